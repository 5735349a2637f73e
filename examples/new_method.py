"""A method of your own: which vectors are learned, and by which losses. Everything else is the package's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import mmprompt as mp


@dataclass(frozen=True)
class SpreadCoOp(mp.Method):
    """CoOp with a second loss that pushes the class features apart."""

    n_ctx: int = 4
    weight: float = 0.5

    def prompt(self, backbone, start: mp.Start):
        return mp.CoOp(n_ctx=self.n_ctx).prompt(backbone, start)

    def loss_terms(self, outputs: mp.Outputs) -> dict[str, Tensor]:
        cosines = outputs.class_features @ outputs.class_features.T  # [C, C]
        others = cosines[~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)]
        return {"cross_entropy": mp.cross_entropy(outputs), "spread": self.weight * others.square().mean()}


data = mp.load_dataset("openart-large", shots=4, seed=1)
result = mp.fit(SpreadCoOp(weight=1.0), "tiny", data, recipe=mp.Recipe(lr=0.02, epochs=10))
first, last = result.history[0], result.history[-1]
print(f"spread {first['spread']:.3f} -> {last['spread']:.3f}")
print(f"test accuracy {result.evaluate(data.test).accuracy:.1%}")

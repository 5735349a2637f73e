"""The state of a training run on disk: one safetensors file, written beside, synced and renamed."""

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from openart.model import Heads
from openart.optimiser import MuonAdamW


@dataclass
class State:
    """Everything a run needs to go on: model, heads, averaged weights, optimiser and the number of steps done."""

    model: CLIP
    heads: Heads
    average: dict[str, Tensor]
    optimiser: MuonAdamW
    step: int = 0

    def parameters(self) -> dict[str, nn.Parameter]:
        """All trained tensors by name."""
        named = {f"model.{n}": p for n, p in self.model.named_parameters()}
        return named | {f"heads.{n}": p for n, p in self.heads.named_parameters()}

    def averaged(self) -> CLIP:
        """A copy of the model that holds the averaged weights."""
        model = copy.deepcopy(self.model).requires_grad_(False).eval()
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(self.average[name])
        return model

    def update_average(self, decay: float) -> None:
        """Exponential moving average of the model's weights."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for name, value in self.model.named_parameters():
            self.average[name].lerp_(value.detach(), 1 - decay)


def new_state(model: CLIP, heads: Heads, weight_decay: float) -> State:
    """A state before its first step. Gains, offsets and embeddings are not decayed."""
    named = {f"model.{n}": p for n, p in model.named_parameters()}
    named |= {f"heads.{n}": p for n, p in heads.named_parameters()}
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    return State(model, heads, average, MuonAdamW(named, weight_decay))


def save_state(state: State, path: Path, settings: dict) -> None:
    """Write the state; what was there is replaced at once or not at all."""
    tensors = {n: p.detach() for n, p in state.parameters().items()}
    tensors |= {f"average.{n}": v for n, v in state.average.items()}
    for name, parameter in state.parameters().items():
        for key, value in state.optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{key}.{name}"] = value
    part = path.with_suffix(".part")
    described = {"step": str(state.step), "settings": json.dumps(settings)}
    save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, part, metadata=described)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def load_state(state: State, path: Path) -> dict:
    """Fill the state from a file; returns the settings it was written with."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        described = file.metadata()
    with torch.no_grad():
        for name, parameter in state.parameters().items():
            if name.startswith("heads.") and name not in tensors:
                continue  # a head that the run did not have yet starts afresh
            parameter.copy_(tensors[name])
            keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"optimiser.{k}.{name}" in tensors]
            state.optimiser.state[parameter] = {
                k: tensors[f"optimiser.{k}.{name}"].to("cpu" if k == "step" else parameter.device) for k in keys
            }
        for name, value in state.average.items():
            value.copy_(tensors[f"average.{name}"])
    state.step = int(described["step"])
    return json.loads(described["settings"])

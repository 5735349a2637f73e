"""A job for tests/training/test_ranks.py: the same small trainings in every process, and the first one writes.

`python rank_driver.py MODEL_FOLDER OUT METHOD,METHOD...`, or under torchrun.
`EPOCH` in the environment is where the last process dies, without a word, in a run of `coop` that is kept in OUT; -1 is
before the first.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import mmprompt as mp
from mmprompt.classification.methods import make_method
from mmprompt.classification.task import ClassificationTask
from mmprompt.models.ranks import Ranks

NAMES = ["cat", "dog", "a small bird", "tree", "red car"]
SETTINGS = {
    "coop": {"n_ctx": 3},
    "coop_own": {"n_ctx": 2, "class_specific": True},
    "kgcoop": {},
    "coop+aligned-gradient": {"n_ctx": 3},
    "cocoop": {},
    "vpt": {"n_visual": 2},
    "maple": {"depth": 2},
}


class Dies(mp.Callback):
    """The last of several processes ends before an epoch."""

    def on_train_begin(self, run: object) -> None:
        self.on_epoch_begin(run, -1)

    def on_epoch_begin(self, run: object, epoch: int) -> None:
        ranks = Ranks()
        if str(epoch) == os.environ.get("EPOCH") and ranks.size > 1 and ranks.rank == ranks.size - 1:
            os._exit(9)


def drawn_images(n: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(n)]


def main() -> None:
    folder, out, names = sys.argv[1], Path(sys.argv[2]), sys.argv[3].split(",")
    backbone = mp.load_backbone(folder, device="cpu", dtype="float64")
    images = drawn_images(11)
    labels = [index % len(NAMES) for index in range(len(images))]
    for name in names:
        task = ClassificationTask("drawn", NAMES, images, labels)
        method = make_method(name.removesuffix("_own"), SETTINGS[name])
        kept = out / "run" if "EPOCH" in os.environ else None
        recipe = mp.Recipe(epochs=4, lr=0.1, batch_size=4, augment="coop", checkpoint_seconds=0)
        result = mp.fit(
            method, backbone, task, kept, recipe, callbacks=[Dies()], resume=kept is not None, progress=False
        )
        if Ranks().is_first:
            losses = torch.tensor([[row["loss"], row["accuracy"]] for row in result.history], dtype=torch.float64)
            state = {key: value.detach().clone() for key, value in result.predictor.prompt.state_dict().items()}
            save_file(state | {"losses": losses}, out / f"{name}.safetensors")


if __name__ == "__main__":
    main()

"""A whole 16-shot CoOp training, features and evaluation included, against the plain procedure.

The plain one decodes and encodes the images again in every step, runs every prompt at full length through the
model's own blocks, and computes class features again for every batch of the test. PromptInit, order of the images,
learning rates and optimiser are the same, so the learned vectors must be the same too.

`end-to-end` is whole, on the embedded default. On `photo-small`, and on a ViT-B/16 with random weights, both take two
steps, and what they cost is multiplied to 16 shots of 100 classes, 200 epochs and 2,465 test images of 224 pixels.

    python scripts/bench/end_to_end.py --json docs/results/end_to_end.json
"""

import os

os.environ["MMPROMPT_CACHE_LIMIT"] = "0"  # no features from an earlier run

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from measure import Row, cpu_seconds, parser, relative_error, report, use_one_thread
from PIL import Image
from plain import class_features
from safetensors.torch import save_file
from text_step import CALTECH, at_full_length
from torch import Tensor

import mmprompt as mp
from mmprompt.data.images import read_image
from mmprompt.data.splits import Dataset, Item
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.image_features import encode_images
from mmprompt.training.recipe import Recipe, learning_rate
from mmprompt.training.seeds import batches, epoch_order

TASK, SEED, N_CTX, TEST_BATCH = "openart-large", 1, 4, 100
N_FEW, N_TRAIN, N_TEST, VIEWS = 64, 1600, 2465, 10
"""Images that both procedures take; then those of Caltech101, and views of each training image that ours encodes."""
MODELS, VIT = ("photo-small", "vit-b-16"), "ViT-B-16-quickgelu"
SAME_WEIGHTS = 1e-3
"""Relative error of the learned vectors after a thousand steps in fp32, in which rounding adds up."""


class PlainTraining:
    """CoOp by the plain procedure."""

    def __init__(self, backbone: FrozenDualEncoder, data: Dataset, recipe: Recipe) -> None:
        self.backbone, self.data, self.recipe = backbone, data, recipe
        classifier = mp.CoOp(n_ctx=N_CTX).build(backbone, data.class_names, SEED)
        (self.ctx,) = classifier.parameters()
        (line,) = classifier.prompt.template.lines  # type: ignore[attr-defined]
        slots = line.slots(backbone, data.class_names)
        self.text = (*at_full_length(slots, backbone.context_length), slots.lengths - 1)

    def logits(self, items: Sequence[Item]) -> Tensor:
        """Everything from the image files and the class names."""
        pixels = torch.stack([self.backbone.preprocess(read_image(item.path)) for item in items])
        image_features = self.backbone.model.encode_image(pixels, normalize=True)
        text_features = class_features(self.backbone.model, *self.text, self.ctx, {})
        return self.backbone.logit_scale * image_features @ text_features.T

    def train(self) -> None:
        """All epochs."""
        items, recipe = self.data.train, self.recipe
        optimizer = torch.optim.SGD(
            [self.ctx], lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        for epoch in range(recipe.epochs or 0):
            optimizer.param_groups[0]["lr"] = learning_rate(recipe, epoch, recipe.epochs or 0)
            for indices in batches(epoch_order(SEED, epoch, len(items)), recipe.batch_size):
                batch = [items[index] for index in indices]
                loss = F.cross_entropy(self.logits(batch), torch.tensor([item.label for item in batch]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    @torch.no_grad()
    def accuracy(self) -> float:
        """On the test split."""
        test, right = self.data.test, 0
        for start in range(0, len(test), TEST_BATCH):
            batch = test[start : start + TEST_BATCH]
            right += int((self.logits(batch).argmax(1) == torch.tensor([item.label for item in batch])).sum())
        return right / len(test)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--epochs", type=int, default=200, help="by default the published number at 16 shots")
    args = options.parse_args()
    use_one_thread()
    for name in args.rows or ("end-to-end", *MODELS):
        report([whole(args.epochs)] if name == "end-to-end" else extrapolated(name, args.epochs), args.json)


def whole(n_epochs: int) -> Row:
    """The embedded default, every step taken."""
    backbone = mp.load_backbone("tiny", device="cpu")
    data = mp.load_dataset(TASK, shots=16, seed=SEED)
    recipe = Recipe(**dict(data.recipe) | {"epochs": n_epochs})
    found: dict[str, object] = {}

    def ours() -> None:
        result = mp.fit(mp.CoOp(n_ctx=N_CTX), backbone, data, recipe=recipe, seed=SEED)
        found["accuracy"] = result.evaluate(data.test).accuracy
        (found["ctx"],) = result.predictor.parameters()

    def plain() -> None:
        training.train()
        found["plain_accuracy"] = training.accuracy()

    training = PlainTraining(backbone, data, recipe)
    first = training.data.train[: recipe.batch_size]
    same_loss = relative_error(training.logits(first).detach(), our_logits(training, first)) < 1e-5
    ours_s, plain_s = cpu_seconds(ours), cpu_seconds(plain)
    error = relative_error(found["ctx"].detach(), training.ctx.detach())  # type: ignore[attr-defined]
    return {
        "name": "end-to-end",
        "ratio": plain_s / ours_s,
        "equal": same_loss and error < SAME_WEIGHTS,
        "plain_s": plain_s,
        "ours_s": ours_s,
        "weights_error": error,
        "accuracy": found["accuracy"],
        "plain_accuracy": found["plain_accuracy"],
        "epochs": recipe.epochs,
        "pictures": len(data.train),
        "test_pictures": len(data.test),
    }


def extrapolated(name: str, n_epochs: int) -> list[Row]:
    """Rows of a model from two steps of both: ten views of each image, as by default, one view, and stored features."""
    with tempfile.TemporaryDirectory() as folder:
        backbone, data = load(name, Path(folder)), few_images(Path(folder))
        recipe = Recipe(lr=0.002, batch_size=32, epochs=1, augment="none", warmup_epochs=0)
        training, vectors = PlainTraining(backbone, data, recipe), []

        def ours(epochs: int) -> None:
            result = mp.fit(mp.CoOp(n_ctx=N_CTX), backbone, data, recipe=replace(recipe, epochs=epochs), seed=SEED)
            vectors.extend(result.predictor.parameters())

        ours(1)  # what is made once a process is no part of it
        files = [item.path for item in data.train]
        n_steps, more = N_FEW // recipe.batch_size, 4
        one, several = cpu_seconds(lambda: ours(1)), cpu_seconds(lambda: ours(1 + more))
        step = (several - one) / (more * n_steps)
        image = cpu_seconds(lambda: encode_images(backbone, files)) / N_FEW
        classes = cpu_seconds(mp.CoOp(n_ctx=N_CTX).build(backbone, data.class_names).class_features)
        plain_step = cpu_seconds(training.train) / n_steps
        with torch.no_grad():
            plain_text = cpu_seconds(lambda: class_features(backbone.model, *training.text, training.ctx, {}))
    error = relative_error(vectors[0].detach(), training.ctx.detach())
    all_steps = n_epochs * (N_TRAIN // recipe.batch_size)
    plain_s = all_steps * plain_step + N_TEST * (image + plain_text / TEST_BATCH)
    begun = one - N_FEW * image - n_steps * step  # what a fit costs beside images and steps
    parts = {"step_s": step, "plain_step_s": plain_step, "image_s": image, "plain_text_s": plain_text}
    rows = []
    for more_name, passes, n_tests in (("", VIEWS, N_TEST), (", one view", 1, N_TEST), (", stored", 0, 0)):
        ours_s = begun + all_steps * step + (passes * N_TRAIN + n_tests) * image + classes
        row = {"name": name + more_name, "ratio": plain_s / ours_s, "equal": error < SAME_WEIGHTS}
        more_facts = {"weights_error": error, "epochs": n_epochs, "passes": passes, **parts}
        rows.append(row | {"plain_s": plain_s, "ours_s": ours_s} | more_facts)
    return rows


def load(name: str, folder: Path) -> FrozenDualEncoder:
    """The frozen model; ViT-B/16 as published, with random weights."""
    if name == "photo-small":
        return mp.load_backbone("photo-small", device="cpu")
    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    save_file(open_clip.create_model(VIT).state_dict(), weights)
    return mp.load_backbone(f"open_clip:{VIT}/{weights}", device="cpu")


def few_images(folder: Path) -> Dataset:
    """Photographs of noise, 300 by 200 pixels as those of Caltech101 are, and its 100 names."""
    drawn = np.random.default_rng(SEED)
    for index in range(N_FEW):
        coarse = Image.fromarray(drawn.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        coarse.resize((300, 200), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")
    items = tuple(Item(folder / f"{index}.jpg", index) for index in range(N_FEW))
    return Dataset("noise", folder, tuple(CALTECH), items, (), items)


@torch.no_grad()
def our_logits(training: PlainTraining, items: Sequence[Item]) -> Tensor:
    """What the package makes of the same images with the same vectors, before training."""
    classifier = mp.CoOp(n_ctx=N_CTX).build(training.backbone, training.data.class_names, SEED)
    pixels = torch.stack([training.backbone.preprocess(read_image(item.path)) for item in items])
    return classifier(pixels)


if __name__ == "__main__":
    main()

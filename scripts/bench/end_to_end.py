"""A whole 16-shot CoOp training on the embedded default, features and evaluation included, against the plain procedure.

The plain one decodes and encodes the images again in every step, runs every prompt at full length through the
model's own blocks, and computes class features again for every batch of the test. PromptInit, order of the images,
learning rates and optimiser are the same, so the learned vectors must be the same too.

    python scripts/bench/end_to_end.py --json docs/results/end_to_end.json
"""

import os

os.environ["MMPROMPT_CACHE_LIMIT"] = "0"  # no features from an earlier run

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from measure import cpu_seconds, parser, relative_error, report, use_one_thread
from plain import class_features
from torch import Tensor

import mmprompt as mp
from mmprompt.data.images import read_image
from mmprompt.data.splits import Dataset, Item
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.training.recipe import Recipe, learning_rate
from mmprompt.training.seeds import batches, epoch_order

TASK, SEED, N_CTX, TEST_BATCH = "openart-large", 1, 4, 100
SAME_WEIGHTS = 1e-3
"""Relative error of the learned vectors after a thousand steps in fp32, in which rounding adds up."""


class PlainTraining:
    """CoOp by the plain procedure."""

    def __init__(self, backbone: FrozenDualEncoder, data: Dataset, recipe: Recipe) -> None:
        self.backbone, self.data, self.recipe = backbone, data, recipe
        classifier = mp.CoOp(n_ctx=N_CTX).build(backbone, data.class_names, SEED)
        (self.ctx,) = classifier.parameters()
        slots = classifier.prompt.layout.slots(backbone, data.class_names)
        missing = backbone.context_length - slots.token_ids.shape[1]
        ctx_index = F.pad(slots.ctx_index, (0, missing), value=-1)
        self.text = (F.pad(slots.token_ids, (0, missing)), ctx_index, slots.lengths - 1)

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
    backbone = mp.load_backbone("tiny", device="cpu")
    data = mp.load_dataset(TASK, shots=16, seed=SEED)
    recipe = Recipe(**dict(data.recipe) | {"epochs": args.epochs})
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
    row = {
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
    report([row], args.json)


@torch.no_grad()
def our_logits(training: PlainTraining, items: Sequence[Item]) -> Tensor:
    """What the package makes of the same images with the same vectors, before training."""
    classifier = mp.CoOp(n_ctx=N_CTX).build(training.backbone, training.data.class_names, SEED)
    pixels = torch.stack([training.backbone.preprocess(read_image(item.path)) for item in items])
    return classifier(pixels)


if __name__ == "__main__":
    main()

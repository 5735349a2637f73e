"""Every method: a step as its published code takes it and ours, side by side, after loss and gradient were found equal.

The model is a CLIP of random weights whose towers stand to each other as those of ViT-B/16 do. A published step runs
the image tower, and every text at full length; ours runs what the sites of the method ask for. Pixels are ready for
both, but for TPT, where cutting the views is part of both.

A head learns on image features: the published step encodes its images first, so that a row of a head is a whole
training of 16 shots at the published number of epochs, put together of the measured times of encoding and of a step.

    python scripts/bench/methods.py --json docs/results/methods.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import open_clip
import published
import torch
import torch.nn.functional as F
from measure import Row, parser, relative_error, report, side_by_side, use_one_thread
from published import STEPS, Setting, Step
from text_step import CALTECH, frozen
from torch import Tensor

from mmprompt.classification.methods import make_method
from mmprompt.classification.task import ClassificationProblem
from mmprompt.core.method import FrozenFeatures
from mmprompt.data.transforms import augment_coop
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.open_clip import read_vision
from mmprompt.models.frozen import PixelTransform
from mmprompt.training.recipe import Recipe, epochs_for

SHOTS, VIEWS = 16, 10
EQUAL = 1e-4
BATCHES = {"coop": 32, "cocoop": 4, "kgcoop": 128, "prograd": 32, "ivlp": 4, "maple": 4, "promptsrc": 4}
"""Images of a step: those of the paper, but for CoCoOp, where ours takes several of the single images at once."""
SETTINGS = {"clip-lora": {"lora_dropout": 0.0}}
TRAINED_HEADS = ("tip-adapter-f", "clip-adapter", "taskres", "clap")
PUBLISHED_PASSES = {"tip-adapter-f": 10, "clap": 20}
"""Augmented passes over the images before the first step, whose features are kept."""
SOLVED = ("gda", "lp-plus-plus", "linear-probe")


@dataclass(frozen=True)
class Size:
    """How large all is."""

    vision: int = 384
    text: int = 256
    layers: int = 6
    patch: int = 16
    image: int = 224
    embed: int = 512
    n_classes: int = 100
    max_batch: int = 32
    views: int = 64


QUICK = Size(64, 64, 2, 16, 32, 32, 5, 4, 20)


def backbone_of(size: Size) -> FrozenDualEncoder:
    """A CLIP with random weights."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=size.embed,
        vision_cfg={
            "image_size": size.image,
            "layers": size.layers,
            "width": size.vision,
            "head_width": 64,
            "patch_size": size.patch,
        },
        text_cfg={"width": size.text, "heads": max(1, size.text // 64), "layers": size.layers},
        quick_gelu=True,
    )
    model.eval().requires_grad_(False)
    pixels = PixelTransform(to_tensor, (0.5,) * 3, (0.25,) * 3, size.image, "as it is")
    return frozen(model, read_vision(model.visual), pixels)


def to_tensor(image: Any) -> Tensor:
    """Pixels [3, H, W] of an image that has the tower's size."""
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - 0.5) / 0.25


class Case:
    """One method, ready to take steps in both ways."""

    def __init__(self, backbone: FrozenDualEncoder, size: Size, name: str, n_images: int) -> None:
        torch.manual_seed(1)
        self.method = make_method(name, SETTINGS.get(name))
        self.classifier = self.method.build(backbone, CALTECH[: size.n_classes])
        coarse = torch.rand(n_images, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        images = F.interpolate(coarse, size.image, mode="bicubic").clamp(0, 1).mul(255).byte()
        labels = [index % size.n_classes for index in range(n_images)]
        recipe = Recipe(augment="none", epochs=1)
        self.problem = ClassificationProblem(self.method, self.classifier, list(images), labels, recipe)
        for parameter in self.classifier.prompt.parameters():  # zeros would hide what a gradient goes through
            if parameter.requires_grad and not parameter.any():
                parameter.data.normal_(0, 0.02)
        pixels = torch.stack([backbone.preprocess(_image(image)) for image in images])
        self.setting = Setting(self.classifier, pixels, torch.tensor(labels), self.problem.teacher)

    def ours(self) -> Step:
        """A step as the loop takes it, but for the optimiser."""
        result = self.problem.step(list(range(len(self.setting.labels))), 0)
        terms, leaves = result.losses, self.setting.leaves
        loss = torch.stack(list(terms.values())).sum()
        if result.gradient_rule is None:
            return loss.detach(), torch.autograd.grad(loss, leaves)
        gradients = {name: torch.autograd.grad(term, leaves, retain_graph=True) for name, term in terms.items()}
        return loss.detach(), result.gradient_rule(gradients)


def _image(pixels: Tensor) -> Any:
    from mmprompt.data.images import read_image

    return read_image(pixels)


def errors(ours: Step, plain: Step) -> dict[str, float]:
    """Relative errors of the loss and of all gradients together."""
    flat = [torch.cat([each.flatten() for each in gradients]) for _, gradients in (ours, plain)]
    return {"loss_error": relative_error(ours[0], plain[0]), "gradient_error": relative_error(*flat)}


def row(name: str, plain_s: float, ours_s: float, found: dict[str, float], **more: object) -> Row:
    """A row of the table."""
    equal = all(error < EQUAL for error in found.values())
    seconds = {"plain_s": plain_s, "ours_s": ours_s}
    return {"name": name, "ratio": plain_s / ours_s, "equal": equal} | seconds | found | more


def measure_step(backbone: FrozenDualEncoder, size: Size, name: str, repeats: int) -> Row:
    """A method whose step runs a tower."""
    batch = min(size.max_batch, BATCHES.get(name, 32))
    case = Case(backbone, size, name, batch)
    plain = partial(STEPS[name], case.setting)
    found, n_parts = errors(case.ours(), plain()), 1
    if name == "cocoop":
        plain, n_parts = partial(published.cocoop_image, case.setting, 0), batch
    seconds = side_by_side({"plain": plain, "ours": case.ours}, repeats)
    return row(name, n_parts * seconds["plain"], seconds["ours"], found, batch=batch)


def measure_head(backbone: FrozenDualEncoder, size: Size, name: str, repeats: int) -> Row:
    """A head that learns by steps on image features: a training of 16 shots, from the times of its parts."""
    case = Case(backbone, size, name, size.max_batch)
    recipe, n_images = case.method.recipe, SHOTS * size.n_classes
    batch, text = min(recipe.batch_size, n_images), case.classifier.class_features()
    features = case.problem.features().image_features
    found = errors(case.ours(), published.head_step(case.setting, features, case.setting.labels, text))
    drawn = torch.Generator().manual_seed(2)
    labels = torch.arange(batch) % size.n_classes
    features = F.normalize(torch.randn(batch, size.embed, generator=drawn), dim=-1)
    case.problem._features[None], case.problem.labels = features, labels
    case.setting = Setting(case.classifier, case.setting.pixels, labels)
    works: dict[str, Callable[[], object]] = {
        "encode": case.setting.frozen_images,
        "plain": lambda: published.head_step(case.setting, features, labels, text),
        "ours": case.ours,
    }
    seconds = side_by_side(works, repeats)
    encode = seconds["encode"] / size.max_batch * n_images
    epochs = epochs_for(recipe, SHOTS)
    n_steps, views = epochs * (n_images // batch), min(epochs, VIEWS)
    plain_passes, passes = PUBLISHED_PASSES.get(name, 0) + (0 if name == "clap" else epochs), views
    if name == "tip-adapter-f":
        passes += 1
    if name == "clap":
        passes = PUBLISHED_PASSES[name]  # as many views as there
    plain_s, ours_s = plain_passes * encode + n_steps * seconds["plain"], passes * encode + n_steps * seconds["ours"]
    step_s = encode / n_images * batch + seconds["plain"] if name != "clap" else seconds["plain"]
    more = {"step_ratio": step_s / seconds["ours"], "passes": f"{plain_passes} to {passes}", "batch": batch}
    return row(name, plain_s, ours_s, found, **more, epochs=epochs)


def measure_solved(backbone: FrozenDualEncoder, size: Size, name: str, repeats: int) -> Row:
    """A head that is solved on features that both have stored."""
    settings: dict[str, Any] = {"linear-probe": {"inverse_strength": 0.3, "max_iter": 50}, "gda": {"gda_weight": None}}
    method = make_method(name, settings.get(name))
    classifier = method.build(backbone, CALTECH[: size.n_classes])
    drawn = torch.Generator().manual_seed(3)
    centres = torch.randn(size.n_classes, size.embed, generator=drawn)

    def images(shots: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(size.n_classes).repeat_interleave(shots)
        noise = torch.randn(len(labels), size.embed, generator=drawn)
        return F.normalize(centres[labels] + 2 * noise, dim=-1), labels

    (features, labels), validation = images(SHOTS), images(4)
    data = FrozenFeatures(features, labels, lambda: validation, drawn, lambda: features)
    text = classifier.class_features().double()
    given = (features.double(), labels)
    others = (validation[0].double(), validation[1])
    plain = {
        "gda": lambda: published.gda(*given, text, others),
        "lp-plus-plus": lambda: published.lp_plus_plus(*given, text, others, 300),
        "linear-probe": lambda: logistic_regression(*given),
    }[name]
    ours = partial(method.finish, classifier, data)
    ours()
    found = {"weights_error": _same_weights(name, classifier.prompt.head, plain())}
    seconds = side_by_side({"plain": plain, "ours": ours}, repeats)
    return row(name, seconds["plain"], seconds["ours"], found)


def logistic_regression(features: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Weight and bias by scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=0.3, max_iter=50).fit(features.numpy(), labels.numpy())
    return torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)


def _same_weights(name: str, head: Any, plain: Sequence[Tensor]) -> float:
    """The error of the direction of the solved weights: GDA's share and the step that LP++ keeps are chosen apart."""
    weight = plain[1] if name == "lp-plus-plus" else plain[0]
    return relative_error(*(F.normalize(each.double().flatten(), dim=0) for each in (head.weight, weight)))


def measure_tpt(backbone: FrozenDualEncoder, size: Size, name: str, repeats: int) -> Row:
    """One image, its views cut and encoded, one step of AdamW, one answer."""
    method = make_method("tpt", {"n_views": size.views, "augmix": False})
    classifier = method.build(backbone, CALTECH[: size.n_classes])
    setting = Setting(classifier, torch.empty(0), torch.empty(0))
    pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    image = _image(F.interpolate(pixels[None], size.image, mode="bicubic")[0].clamp(0, 1).mul(255).byte())

    def plain() -> Tensor:
        crops = [augment_coop(image, size.image, seed=0, epoch=view, index=0) for view in range(size.views - 1)]
        views = torch.stack([backbone.preprocess(image), *map(backbone.normalize, crops)])
        return published.tpt(setting, views)

    def ours() -> Tensor:
        return torch.from_numpy(classifier.predict_proba(image))[0]

    found = {"probability_error": relative_error(ours().float(), plain())}
    seconds = side_by_side({"plain": plain, "ours": ours}, repeats)
    return row(name, seconds["plain"], seconds["ours"], found, batch=size.views)


MEASURES = (
    dict.fromkeys(STEPS, measure_step)
    | dict.fromkeys(TRAINED_HEADS, measure_head)
    | dict.fromkeys(SOLVED, measure_solved)
    | {"tpt": measure_tpt}
)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=2)
    options.add_argument("--quick", action="store_true", help="a model of two layers: whether all is equal, no ratios")
    args = options.parse_args()
    use_one_thread()
    size = QUICK if args.quick else Size()
    backbone = backbone_of(size)
    for name in args.rows or MEASURES:
        report([MEASURES[name](backbone, size, name, args.repeats)], args.json)


if __name__ == "__main__":
    main()

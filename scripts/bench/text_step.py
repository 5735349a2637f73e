"""One training step of the text side: the plain procedure and ours, side by side, after both were found equal.

python scripts/bench/text_step.py --json docs/results/text_step.json
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from floor import Tower, product_rate, step_madds
from measure import Row, parser, relative_error, report, side_by_side, use_one_thread
from plain import class_features
from torch import Tensor

from mmprompt.classification.methods.coop import ClassPosition
from mmprompt.classification.template import ClassTemplate
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder, WordTokenizer
from mmprompt.models.dual_encoder.forward.vision import OpaqueTower, VisionView
from mmprompt.models.dual_encoder.open_clip import read_text
from mmprompt.models.frozen import PixelTransform
from mmprompt.models.sites import Site, TextSlots, Vectors

CALTECH = Path(__file__).with_name("caltech101_names.txt").read_text(encoding="utf-8").splitlines()
IMAGENET = list(open_clip.IMAGENET_CLASSNAMES)
BATCH = 32
EQUAL = 1e-5
NAMES_AT_ONCE = 25


@dataclass(frozen=True)
class Setting:
    """One row: names, context vectors, where and for whom they are, and how many blocks have their own."""

    names: list[str]
    n_ctx: int = 16
    position: ClassPosition = "end"
    class_specific: bool = False
    n_images: int | None = None
    n_deep: int = 0


SETTINGS = {
    "text-100-m16": Setting(CALTECH),
    "text-100-m4": Setting(CALTECH, n_ctx=4),
    "class-specific-100": Setting(CALTECH, class_specific=True),
    "middle-100": Setting(CALTECH, position="middle"),
    "cocoop-100-b8": Setting(CALTECH, n_ctx=4, n_images=8),
    "deep-100": Setting(CALTECH, n_ctx=4, n_deep=8),
    "text-1000-m16": Setting(IMAGENET),
}


def vit_b_16(with_image_tower: bool = False) -> FrozenDualEncoder:
    """ViT-B/16 as published (quick GELU, 77 slots), random weights; the image tower is cut to a stub if not wanted."""
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    if not with_image_tower:
        config["vision_cfg"] |= {"layers": 1, "width": 64}
    model = open_clip.CLIP(**config).eval().requires_grad_(False)
    pixels = PixelTransform(lambda image: torch.empty(0), (0.5,) * 3, (0.5,) * 3, 224, "none")
    return frozen(model, OpaqueTower(model.visual, "stub"), pixels)


def frozen(model: open_clip.CLIP, vision: VisionView | OpaqueTower, pixels: PixelTransform) -> FrozenDualEncoder:
    """A model of random weights around open_clip's."""
    library = open_clip.get_tokenizer("ViT-B-16")
    tokenizer = WordTokenizer(
        lambda text, n_slots: library(text, context_length=n_slots)[0].tolist(), library.decode, library.vocab_size
    )
    return FrozenDualEncoder(
        name="random weights",
        model=model,
        text=read_text(model, tokenizer),
        vision=vision,
        tokenizer=tokenizer,
        pixels=pixels,
        log_logit_scale=model.logit_scale,
    )


def slots_of(backbone: FrozenDualEncoder, template: ClassTemplate, names: list[str]) -> TextSlots:
    """The slots of names that need not differ: ImageNet's list has two twice."""
    return backbone.text_slots([template.row(backbone, name) for name in names])


class Step:
    """A training step of one setting, in both ways.

    The plain one goes part by part (25 names, or one image with its own context), because a whole one would not
    always fit in memory; its cost is that of one part, times their number.
    """

    def __init__(self, backbone: FrozenDualEncoder, setting: Setting) -> None:
        generator = torch.Generator().manual_seed(1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.backbone, self.setting = backbone, setting
        template = ClassTemplate.of_context(setting.n_ctx, setting.position)
        self.slots = slots_of(backbone, template, setting.names)
        n_classes, shape = len(setting.names), (setting.n_ctx, backbone.text_width)
        first = (n_classes,) if setting.class_specific else (setting.n_images,) if setting.n_images else ()
        self.scope = "class" if setting.class_specific else "sample" if setting.n_images else "shared"
        self.ctx = (0.02 * draw(*first, *shape)).requires_grad_()
        self.deep = {layer: (0.02 * draw(*shape)).requires_grad_() for layer in range(1, 1 + setting.n_deep)}
        self.leaves = [self.ctx, *self.deep.values()]
        n_images = setting.n_images or BATCH
        self.image_features = F.normalize(draw(n_images, backbone.embed_dim), dim=-1)
        self.labels = torch.arange(n_images) % n_classes

    def loss(self, features: Tensor) -> Tensor:
        """Cross entropy of class features [C, E] or [B, C, E]."""
        logits = self.backbone.logit_scale * (features @ self.image_features[:, :, None])[..., 0]
        return F.cross_entropy(logits, self.labels)

    def ours(self) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Class features, loss and gradients."""
        vectors = {Site("text"): Vectors(self.ctx, self.scope)}  # type: ignore[arg-type]
        vectors |= {Site("text", layer): Vectors(values) for layer, values in self.deep.items()}
        features = self.backbone.encode_text(self.slots, vectors)
        loss = self.loss(features)
        return features.detach(), loss.detach(), torch.autograd.grad(loss, self.leaves)

    def plain_parts(self) -> list[Callable[[], Tensor]]:
        """The plain forward of each part, giving its class features."""
        full = at_full_length(self.slots, self.backbone.context_length)
        ends, model = self.slots.lengths - 1, self.backbone.model

        def of_names(part: slice) -> Tensor:
            ctx = self.ctx[part] if self.setting.class_specific else self.ctx
            return class_features(model, full[0][part], full[1][part], ends[part], ctx, self.deep)

        def of_image(image: int) -> Tensor:
            return class_features(model, *full, ends, self.ctx[image], self.deep)

        if self.setting.n_images:
            return [lambda image=image: of_image(image) for image in range(self.setting.n_images)]  # type: ignore[misc]
        starts = range(0, len(self.setting.names), NAMES_AT_ONCE)  # every name costs the same, 77 slots
        return [lambda start=start: of_names(slice(start, start + NAMES_AT_ONCE)) for start in starts]  # type: ignore[misc]

    def errors(self) -> tuple[float, float]:
        """Relative errors of the loss and of all gradients, the worse of features and loss for the former."""
        ours, loss, gradients = self.ours()
        leaf = ours.clone().requires_grad_()
        (outer,) = torch.autograd.grad(self.loss(leaf), leaf)
        outer_parts = list(outer) if self.setting.n_images else outer.split(NAMES_AT_ONCE)
        sums = [torch.zeros_like(given) for given in self.leaves]
        found = []
        for part, outer_part in zip(self.plain_parts(), outer_parts, strict=True):
            features = part()
            for total, gradient in zip(sums, torch.autograd.grad(features, self.leaves, outer_part), strict=True):
                total += gradient
            found.append(features.detach())
        features = torch.stack(found) if self.setting.n_images else torch.cat(found)
        loss_error = max(relative_error(ours, features), relative_error(loss, self.loss(features)))
        return loss_error, max(relative_error(a, b) for a, b in zip(gradients, sums, strict=True))

    def plain_part_step(self) -> None:
        """Forward and backward of the first part."""
        features = self.plain_parts()[0]()
        torch.autograd.grad(features, self.leaves, torch.ones_like(features))


def at_full_length(slots: TextSlots, length: int) -> tuple[Tensor, Tensor]:
    """Token ids and context indices padded to all slots of the tower."""
    missing = length - slots.token_ids.shape[1]
    return F.pad(slots.token_ids, (0, missing)), F.pad(slots.ctx_index, (0, missing), value=-1)


def measure(backbone: FrozenDualEncoder, name: str, repeats: int) -> Row:
    """One row."""
    setting = SETTINGS[name]
    step = Step(backbone, setting)
    loss_error, gradient_error = step.errors()
    n_parts = len(step.plain_parts())
    seconds = side_by_side({"plain": step.plain_part_step, "ours": step.ours}, repeats)
    plain, ours = seconds["plain"] * n_parts, seconds["ours"]
    tower = Tower(backbone.text_width, backbone.text_layers, backbone.embed_dim)
    madds = step_madds(tower, step.slots, not setting.class_specific, setting.n_images or 1, setting.n_deep)
    n_rows = int(step.slots.lengths.sum()) - setting.n_ctx * len(setting.names) * (setting.position == "end")
    floor = madds / product_rate(n_rows * (setting.n_images or 1), tower.width)
    return {
        "name": name,
        "ratio": plain / ours,
        "equal": loss_error < EQUAL and gradient_error < EQUAL,
        "plain_s": plain,
        "ours_s": ours,
        "floor_s": floor,
        "of_floor": floor / ours,
        "loss_error": loss_error,
        "gradient_error": gradient_error,
        "repeats": repeats,
        "plain_parts": n_parts,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args()
    use_one_thread()
    backbone = vit_b_16()
    for name in args.rows or SETTINGS:
        report([measure(backbone, name, args.repeats)], args.json)


if __name__ == "__main__":
    main()

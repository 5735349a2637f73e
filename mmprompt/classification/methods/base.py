"""What methods of classification share beside the core's hooks: they can be built by hand, and added together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from mmprompt.core.method import Combined, Method, Start, overrides, parts_of, settled
from mmprompt.errors import UserError, bad_value

if TYPE_CHECKING:
    from torch import Tensor

    from mmprompt.classification.predictor import Classifier
    from mmprompt.core.learned import Outputs, Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder
    from mmprompt.models.sites import Tower


class ClassificationMethod(Method, Protocol):
    """A method whose prompt makes a classifier of a dual encoder."""

    kinds: ClassVar[tuple[str, ...]] = ("classification",)

    def build(
        self, backbone: DualEncoder, class_names: Sequence[str], seed: int = 1, template: str = "a photo of a {}."
    ) -> Classifier:
        """Make an untrained classifier: an ordinary `nn.Module` whose `parameters()` are what is learned alone.

        Args:
            backbone: the frozen model.
            class_names: C names, the order of the logits.
            seed: seed of the random start.
            template: the words around the class name where the method learns no text context.
        Raises:
            UserError: a class name or a setting cannot be used with this backbone.
        """
        import torch

        from mmprompt.classification.template import ClassTemplate
        from mmprompt.models.dual_encoder.interface import DualEncoder
        from mmprompt.settings import check

        check("backbone", backbone, DualEncoder, "Use load_backbone.")
        check("seed", seed, int, "Use `seed=1`.")
        start = Start(torch.Generator().manual_seed(int(seed)), ClassTemplate(template), class_names)
        return untrained(settled(self, backbone.name, "classification"), backbone, start)

    def __add__(self, other: ClassificationMethod) -> Combination:
        return Combination((self, other)) if hasattr(other, "prompt") else NotImplemented

    def __radd__(self, other: Method) -> Combination:
        return Combination((other, self)) if hasattr(other, "prompt") else NotImplemented


def untrained(method: Method, backbone: DualEncoder, start: Start) -> Classifier:
    """Make the classifier that a method trains; refuse class names and settings that cannot be used with the backbone.

    On an image tower alone the class weights are a linear classifier, which learns with the prompt (Jia et al. 2022,
    "Visual Prompt Tuning", section 3).
    """
    from mmprompt.classification.predictor import Classifier
    from mmprompt.classification.template import check_class_names
    from mmprompt.core.heads import Linear
    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import without_text

    check_class_names(start.class_names)
    method.check_whole(method)
    prompt = method.prompt(backbone, start)
    if not backbone.has_text and (prompt.has("text") or overrides(method, "teacher")):
        raise without_text(backbone.name)
    if not backbone.has_text and prompt.head is None and method.is_trained:
        head = Linear(len(start.class_names), backbone.embed_dim, is_trained=True).start_from(start.generator)
        prompt = Prompt(prompt.template, *prompt.sources, head=head).to(backbone.device)
    if prompt.needs_image and (overrides(method, "finish") or prompt.head is not None):
        raise UserError(
            "the text of this prompt is another for each image, but this head needs one text. Join the head to coop, "
            "or leave it out."
        )
    names = start.class_names
    return method.predictor(backbone, prompt, names) or Classifier(backbone, prompt, names)


@dataclass(frozen=True)
class Combination(Combined, ClassificationMethod):
    """Several methods of classification, trained as one prompt."""

    def check_whole(self, whole: Method) -> None:
        """Refuse a second head or average and what joins no steps, and ask every method."""
        heads = [type(part).__name__ for part in parts_of(self) if part.makes_head]
        if len(heads) > 1:
            raise UserError(f"{' and '.join(heads)} both make the head, but a classifier has one. Leave one out.")
        averages = [type(part).__name__ for part in parts_of(self) if part.averages_weights]
        if len(averages) > 1:
            said = f"{' and '.join(averages)} both average the weights"
            raise UserError(f"{said}, but one average is kept. Leave one out.")
        super().check_whole(whole)
        learning = [type(part).__name__ for part in parts_of(whole) if part.learns]
        joined = [type(part).__name__ for part in parts_of(self) if not part.learns and part.is_trained]
        if learning and joined and not whole.is_trained:
            said = f"{joined[0]} joins what is learned in steps, but {learning[0]} takes none"
            raise UserError(f"{said}. Join it to a method that does, such as coop.")


@dataclass(frozen=True)
class Part(ClassificationMethod):
    """What joins a method that learns, and learns nothing alone: a loss term, a gradient rule, an average of weights.

    `CoOp() + KnowledgeGuided(8.0)` and `CoOp(losses=[KnowledgeGuided(8.0)])` are the same.
    """

    learns: ClassVar[bool] = False
    group: ClassVar[str] = "parts that join"

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Refuse to stand alone."""
        raise UserError(f"{type(self).__name__} learns nothing alone. Join it to a method: CoOp() + ...")

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Add nothing."""
        return {}


@dataclass(frozen=True)
class PromptMethod(ClassificationMethod):
    """A method that learns vectors, to which parts can be given."""

    losses: Sequence[Part] = field(default=(), kw_only=True)
    """What joins it: further loss terms, a gradient rule, an average of weights."""


def image_layers(
    backbone: DualEncoder, depth: int | None, paper: int, name: str = "depth", use: str = "`padding-prompt` or `coop`"
) -> int:
    """Return how many layers of the image tower learn: as the user says, else the paper's number, or all where fewer.

    A tower with fewer, or without tokens, is refused by the `name` of the setting; `use` says what to use instead.
    """
    if backbone.vision_width is None:
        use = use if backbone.has_text else "`padding-prompt` or `linear-probe`"
        raise UserError(
            f"the image tower of {backbone.name} ({backbone.unprompted_part}) has no image tokens that a prompt "
            f"can join, but this method needs some. Use {use}, or a backbone with a plain ViT."
        )
    return _layers("image", backbone.name, backbone.vision_layers, depth, paper, name)


def text_layers(backbone: DualEncoder, depth: int | None, paper: int, name: str = "depth") -> int:
    """Return how many layers of the text tower receive vectors; arguments and refusals as for `image_layers`."""
    need_text(backbone)
    return _layers("text", backbone.name, backbone.text_layers, depth, paper, name)


def towers_of(
    backbone: DualEncoder, towers: Literal["both", "text", "vision"], option: str
) -> tuple[Literal["text", "vision"], ...]:
    """Return the towers that are adapted; arguments and refusal as for `tower_shapes`."""
    if towers != "vision" and not backbone.has_text:
        raise bad_value(option, towers, f"{backbone.name} has no text tower", f"Use `{option}='vision'`.")
    return ("text", "vision") if towers == "both" else (towers,)


def tower_shapes(
    backbone: DualEncoder, towers: Literal["both", "text", "vision"], option: str
) -> dict[Tower, tuple[int, int]]:
    """Return the number of blocks and the width of each tower that is adapted; `option` is the setting that says so."""
    shapes: dict[Tower, tuple[int, int]] = {}
    if "text" in towers_of(backbone, towers, option):
        shapes["text"] = (backbone.text_layers, backbone.text_width)
    if towers != "text":
        n_layers = image_layers(backbone, None, backbone.vision_layers, use=f"`{option}='text'`")
        shapes["vision"] = (n_layers, backbone.vision_width or 0)
    return shapes


def block_places(shapes: Mapping[Tower, tuple[int, int]], parts: Sequence[str]) -> dict[str, int]:
    """Return the site names of some parts of every block, and the width of each; `shapes` as of `tower_shapes`."""
    return {
        f"{tower}.block[{layer}].{part}": width
        for tower, (n_layers, width) in shapes.items()
        for layer in range(n_layers)
        for part in parts
    }


def need_text(backbone: DualEncoder) -> None:
    """Refuse an image tower alone."""
    if not backbone.has_text:
        from mmprompt.models.dual_encoder.interface import without_text

        raise without_text(backbone.name)


def _layers(tower: str, backbone: str, n_layers: int, depth: int | None, paper: int, name: str) -> int:
    if depth is None:
        return min(paper, n_layers)
    if depth > n_layers:
        expected = f"the {tower} tower of {backbone} has {n_layers} layers"
        raise bad_value(name, depth, expected, f"Use `{name}={n_layers}` or less.")
    return depth

"""Checkpoints that published code wrote, read as classifiers: one short function a layout, and a table of them.

Only tensors are read. A layout takes the entries it knows out of the file, each with its shape held to the backbone;
what is left is refused by name. The files say neither backbone nor classes, but most keep copies of embeddings, which
are held to those of the backbone, so that a wrong one is seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from mmprompt.classification.methods.coop import ClassPosition
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.template import ClassTemplate, check_class_names
from mmprompt.core.heads import Cache
from mmprompt.core.learned import Learned, Prompt, Source
from mmprompt.core.sources import Conditioned, LowRankTerms
from mmprompt.core.template import escaped
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.files import read_checkpoint
from mmprompt.models.dual_encoder.forward.views import VisionView
from mmprompt.models.dual_encoder.interface import DualEncoder, without_text
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.sites import Site, Tower
from mmprompt.settings import Count, check, checked, expected, holds

Published = Literal[
    "coop", "cocoop", "kgcoop", "prograd", "maple", "ivlp", "promptsrc", "vpt", "clip-lora", "tip-adapter"
]
PHOTO = "a photo of a"
MOST_WORDS = 4
"""With more context vectors MaPLe's code, and what is made of it, starts at random whatever the words."""
TIP_ADAPTER_SCALE = 100.0
"""Of the cosine in its code, whatever the backbone; alpha was chosen beside it."""
VOTES: dict[str, Any] = {"alpha": Annotated[float, Ge(0), Le(1e6)], "beta": Annotated[float, Gt(0), Le(1e3)]}
LORA_FACTS: dict[str, Any] = {
    "r": Count,
    "alpha": Annotated[float, Gt(0)],
    "encoder": Literal["text", "vision", "both"],
    "params": Sequence[Literal["q", "k", "v"]],
    "position": Literal["all", "half-bottom", "half-up", "bottom", "mid", "up", "top", "top1", "top2", "top3"],
}
LORA_LAYERS = {
    "all": (0, 1),
    "half-bottom": (0, 1 / 2),
    "half-up": (1 / 2, 1),
    "bottom": (0, 1 / 3),
    "mid": (1 / 3, 2 / 3),
    "up": (2 / 3, 1),
}
"""From and up to which share of a tower's layers a position names; those called top are the last ones by number."""
LORA_PARTS = {"q": "query", "k": "key", "v": "value"}
DEEPER = "transformer.resblocks.{}.VPT_shallow"
BACKBONE = "Give the backbone that it was learned on."
NAMES = "Give the names that it was learned with, in their order."
OTHER = "Say which code wrote it, or give another file."
MOST_ENTRIES = 10_000
LIKE = 0.05
"""Most that a copy of an embedding may differ, of its norm: it may be of float16, or averaged in it."""


@dataclass(frozen=True)
class Said:
    """What the user says of a file, since the file does not; None where a layout's own default holds."""

    class_position: ClassPosition | None = None
    words: str | None = None
    template: str | None = None
    values: Path | None = None
    alpha: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class File:
    """The entries of a checkpoint that no one has taken yet, and the backbone and class names they are held to."""

    path: Path
    left: dict[str, Any]
    backbone: DualEncoder
    class_names: Sequence[str]

    def refusal(self, problem: str, advice: str = BACKBONE) -> UserError:
        """Word the refusal of this file."""
        return bad_file(self.path, problem, advice)

    def take(self, name: str, *shape: int | str) -> Tensor:
        """Take an entry out, in float32; refuse one that is not there, no tensor of numbers, or of another shape.

        A letter in the shape stands for an axis of any number.
        """
        if name not in self.left:
            raise self.refusal(f"holds no {name}", OTHER)
        value = self.left.pop(name)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            value = torch.from_numpy(value)
        is_plain = isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point()
        if not is_plain or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise self.refusal(f"holds {name}, but not as a tensor of numbers", OTHER)
        fits = [
            size > 0 if isinstance(axis, str) else size == axis for size, axis in zip(value.shape, shape, strict=False)
        ]
        if value.dim() != len(shape) or not all(fits):
            found, wanted = (" x ".join(map(str, sizes)) or "no axis" for sizes in (value.shape, shape))
            raise self.refusal(f"holds {name} of shape {found}, but {self.backbone.name} takes {wanted}")
        value = value.detach().float()
        if not bool(value.isfinite().all()):
            raise self.refusal(f"holds NaN or infinity in {name}", OTHER)
        return value

    def take_layers(self, tower: Tower, name: str, first: int, *shape: int) -> list[Tensor]:
        """Take what there is of the layers above a tower's input, from a first number on, which {} of the name is."""
        values: list[Tensor] = []
        while name.format(first + len(values)) in self.left:
            values.append(self.take(name.format(first + len(values)), *shape))
        self.check_depth(tower, 1 + len(values))
        return values

    def check_depth(self, tower: Tower, depth: int) -> None:
        """Refuse vectors of more layers than a tower has."""
        kind, n_layers = ("text", self.backbone.text_layers)
        if tower == "vision":
            kind, n_layers = ("image", self.backbone.vision_layers)
        if depth > n_layers:
            problem = f"holds vectors of {depth} layers, but the {kind} tower of {self.backbone.name} has {n_layers}"
            raise self.refusal(problem)

    def check_classes(self, n_classes: int) -> None:
        """Refuse what belongs to other classes than are named."""
        if n_classes != len(self.class_names):
            names = len(self.class_names)
            raise self.refusal(f"was learned with {n_classes} classes, but {names} class names were given", NAMES)

    @property
    def vision_width(self) -> int:
        """D of the image tower, which must take vectors."""
        if self.backbone.vision_width is None:
            raise self.refusal(f"was learned in an image tower, but that of {self.backbone.name} has no image tokens")
        return self.backbone.vision_width

    def refuse_rest(self, dead: str) -> None:
        """Refuse what no one took, but for what is known to be dead; the first such entry is named."""
        unknown = sorted(name for name in self.left if not re.fullmatch(dead, name))
        if unknown:
            others = f" and {len(unknown) - 1} more" if unknown[1:] else ""
            raise self.refusal(f"holds {unknown[0]}{others}, which this layout does not know", OTHER)


def read_context(file: File, said: Said) -> Prompt:
    """CoOp, KgCoOp and ProGrad: context vectors, one for all classes or one each."""
    is_own = n_axes(file.left.get("ctx")) == 3
    values = file.take("ctx", *(["C"] if is_own else []), "M", file.backbone.text_width)
    if is_own:
        file.check_classes(len(values))
    template = counted_template(file, said, values.shape[-2], is_own)
    return Prompt(template, Learned(Site("text"), values, "class" if is_own else "shared"))


def read_conditioned(file: File, said: Said) -> Prompt:
    """CoCoOp: context vectors, and the network that shifts them."""
    width = file.backbone.text_width
    values = file.take("ctx", "M", width)
    source = Conditioned(len(values), width, file.backbone.embed_dim)
    state = {"context": values}
    for number, layer in (("1", "down"), ("2", "up")):
        for part, own in source.get_submodule(layer).named_parameters():
            state[f"{layer}.{part}"] = file.take(f"meta_net.linear{number}.{part}", *own.shape)
    source.load_state_dict(state)
    return Prompt(counted_template(file, said, len(values)), source)


def read_coupled(file: File, said: Said) -> Prompt:
    """MaPLe: vectors of the text tower, and those of the image tower that linear maps make of them."""
    width, vision_width = file.backbone.text_width, file.vision_width
    first = file.take("prompt_learner.ctx", "M", width)
    text = [first, *file.take_layers("text", "prompt_learner.compound_prompts_text.{}", 0, *first.shape)]
    file.check_depth("vision", len(text))
    maps = ["proj", *(f"compound_prompt_projections.{number}" for number in range(len(text) - 1))]
    vision = []
    for values, name in zip(text, maps, strict=True):
        weight = file.take(f"prompt_learner.{name}.weight", vision_width, width)
        vision.append(F.linear(values, weight, file.take(f"prompt_learner.{name}.bias", vision_width)))
    return Prompt(cut_template(file, said, len(first)), *learned("text", text), *learned("vision", vision))


def read_independent(file: File, said: Said) -> Prompt:
    """IVLP and PromptSRC: vectors of the text tower and, where there are some, of the image tower."""
    first = file.take("prompt_learner.ctx", "M", file.backbone.text_width)
    deeper = file.take_layers("text", f"text_encoder.{DEEPER}", 1, *first.shape)
    vision = tokens(file) if "image_encoder.VPT" in file.left else []
    return Prompt(cut_template(file, said, len(first)), *learned("text", [first, *deeper]), *learned("vision", vision))


def read_visual(file: File, said: Said) -> Prompt:
    """VPT: tokens of the image tower, as MaPLe's code or that of Jia et al. keeps them."""
    vision = plain_tokens(file) if "shallow_prompt" in file.left else tokens(file)
    return Prompt(fixed_template(said), *learned("vision", vision))


def tokens(file: File) -> list[Tensor]:
    """Take the tokens of the image tower's layers, as MaPLe's code keeps them."""
    first = file.take("image_encoder.VPT", "M", file.vision_width)
    return [first, *file.take_layers("vision", f"image_encoder.{DEEPER}", 1, *first.shape)]


def plain_tokens(file: File) -> list[Tensor]:
    """Take the tokens of a plain vision transformer's layers, as the code of Jia et al. keeps them."""
    view = getattr(file.backbone, "vision", None)
    if isinstance(view, VisionView) and not isinstance(view.pre_norm, nn.Identity):
        raise file.refusal(f"holds tokens of a plain ViT, but {file.backbone.name} has a norm before its blocks")
    first = file.take("shallow_prompt", 1, "M", file.vision_width)[0]
    deeper = [*file.take("deep_prompt", "J", *first.shape)] if "deep_prompt" in file.left else []
    file.check_depth("vision", 1 + len(deeper))
    return [first, *deeper]


def read_low_rank(file: File, said: Said) -> Prompt:
    """CLIP-LoRA: terms beside queries, keys and values, numbered through the text tower and then the image tower."""
    facts = {name: file.left.pop(f"metadata.{name}", None) for name in LORA_FACTS}
    for name, hint in LORA_FACTS.items():
        if isinstance(facts[name], Tensor | np.ndarray) or not holds(facts[name], hint):
            raise file.refusal(f"says that {name} is {facts[name]!r:.60}, but it must be {expected(hint)}", OTHER)
    shapes: dict[str, tuple[int, int]] = {}
    if facts["encoder"] != "vision":
        shapes["text"] = (file.backbone.text_layers, file.backbone.text_width)
    if facts["encoder"] != "text":
        shapes["vision"] = (file.backbone.vision_layers, file.vision_width)
    blocks = [
        (f"{tower}.block[{layer}]", width)
        for tower, (n_layers, width) in shapes.items()
        for layer in layers_of(facts["position"], n_layers)
    ]
    rank, letters = facts["r"], [letter for letter in LORA_PARTS if letter in facts["params"]]
    terms, inner, outer = {}, [], []
    for number, (block, width) in enumerate(blocks):
        for letter in letters:
            name = f"weights.layer_{number}.{letter}_proj.w_lora"
            terms[f"{block}.{LORA_PARTS[letter]}"] = width
            inner.append(file.take(f"{name}_A", rank, width))
            outer.append(file.take(f"{name}_B", width, rank))
    source = LowRankTerms(terms, rank, facts["alpha"] / math.sqrt(rank))
    for places, values in ((source.a, inner), (source.b, outer)):
        for place, value in zip(places, values, strict=True):
            place.data.copy_(value)
    return Prompt(fixed_template(said), source)


def layers_of(position: str, n_layers: int) -> range:
    """Return which layers of a tower CLIP-LoRA's code calls so."""
    if position.startswith("top"):
        return range(max(0, n_layers - int(position[3:] or 1)), n_layers)
    start, end = LORA_LAYERS[position]
    return range(round(start * n_layers), round(end * n_layers))


def read_cache(file: File, said: Said) -> Prompt:
    """Tip-Adapter: keys and, in a file of their own, the votes of each; the keys of Tip-Adapter-F stand in rows."""
    if said.values is None or said.alpha is None or said.beta is None:
        name = next(name for name in ("values", "alpha", "beta") if getattr(said, name) is None)
        raise bad_value(name, "not given", "no file of keys says it", f"Give `{name}`.")
    for name, hint in VOTES.items():
        check(name, getattr(said, name), hint, f"Give the `{name}` that was found for these keys.")
    other = File(said.values, {"values": read_checkpoint(said.values)}, file.backbone, file.class_names)
    values = other.take("values", "N", "C")
    other.check_classes(values.shape[1])
    keys, width = file.left["keys"], file.backbone.embed_dim
    if n_axes(keys) == 2 and (keys.shape[0] != width or isinstance(keys, nn.Parameter)):
        keys = file.take("keys", len(values), width)
    else:
        keys = file.take("keys", width, len(values)).T
    n_keys, n_classes = values.shape
    votes = {"weight": said.alpha, "sharpness": said.beta}
    head = Cache(n_keys, width, n_classes, TIP_ADAPTER_SCALE, 0.0, **votes)
    head.load_state_dict({"keys": keys, "values": values})
    return Prompt(fixed_template(said), head=head.requires_grad_(False))


def n_axes(value: object) -> int:
    """Count the axes of an array; what is none has none."""
    return value.ndim if isinstance(value, Tensor | np.ndarray) else 0


def learned(tower: Tower, values: Sequence[Tensor]) -> list[Source]:
    """Put vectors at the first layers of a tower."""
    return [Learned(Site(tower, layer), each) for layer, each in enumerate(values)]


def fixed_template(said: Said) -> ClassTemplate:
    """Return the words around the class name where none are learned."""
    return ClassTemplate(f"{PHOTO} {{}}." if said.template is None else said.template)


def counted_template(file: File, said: Said, n_ctx: int, is_own: bool = False) -> ClassTemplate:
    """Return what stands around the class name in CoOp's code, which lets as many tokens learn as words have spaces."""
    words = (said.words or "").replace("_", " ").strip()
    n_words = len(words.split())
    if n_words > n_ctx:
        raise bad_value("words", repr(words), f"{file.path} holds {n_ctx} vectors, fewer than words", "Give others.")
    return template_of(file, said, "", n_ctx, words, n_words, is_own)


def cut_template(file: File, said: Said, n_ctx: int) -> ClassTemplate:
    """Return what stands around the class name in MaPLe's code, which lets the first `n_ctx` tokens of words learn."""
    words = (PHOTO if said.words is None else said.words).replace("_", " ").strip()
    words = words if n_ctx <= MOST_WORDS else ""
    n_tokens = len(file.backbone.tokenize(words))
    if words and n_tokens < n_ctx:
        raise bad_value("words", repr(words), f"{file.path} holds {n_ctx} vectors, more than tokens", "Give others.")
    return template_of(file, said, "prompt_learner.", n_ctx, words, n_ctx)


def template_of(
    file: File, said: Said, prefix: str, n_ctx: int, words: str, n_learned: int, is_own: bool = False
) -> ClassTemplate:
    """Return the vectors, the words that stay as they are after them, and the name, which stands where it is said.

    Learning started from the words and took `n_learned` of their tokens, which must not end within one. The file's
    copies of embeddings, named with the prefix, are looked at; `is_own` are vectors of each class.
    """
    backbone, position = file.backbone, said.class_position or "end"
    ids = backbone.tokenize(words)[n_learned:] if words else []
    rest = backbone.decode(ids).strip() if ids else ""
    if ids != (backbone.tokenize(rest) if rest else []):
        raise bad_value("words", repr(words), f"{n_learned} of its tokens end within a word", "Give others.")
    check_copies(file, prefix, rest, is_own)
    if not rest:
        return ClassTemplate.of_context(n_ctx, position)
    if position != "end":
        problem = f"the words {rest!r} stay between vectors and name"
        raise bad_value("class_position", position, problem, "Leave `class_position` out, or give other words.")
    return ClassTemplate(f"{{soft*{n_ctx}}} {escaped(rest)} {{name}}.")


def check_copies(file: File, prefix: str, rest: str, is_own: bool) -> None:
    """Hold a file's copies of embeddings to those of the backbone: of the start, and of all after the vectors.

    With a context for all classes the names may be others than it was learned with, and are not looked at.
    """
    backbone, width = file.backbone, file.backbone.text_width

    def is_like(copy: Tensor, ids: Sequence[int]) -> bool:
        own = backbone.token_vectors(torch.tensor(ids)).float().cpu()
        return len(copy) >= len(own) and bool(((copy[: len(own)] - own).norm(dim=1) <= LIKE * own.norm(dim=1)).all())

    if f"{prefix}token_prefix" in file.left:
        start = backbone.text_slots([backbone.tokenize(PHOTO)]).token_ids[0, 0].item()
        if not is_like(file.take(f"{prefix}token_prefix", "C", 1, width)[0], [int(start)]):
            raise file.refusal(f"was learned on another backbone than {backbone.name}: its embeddings differ")
    if f"{prefix}token_suffix" in file.left:
        copies = file.take(f"{prefix}token_suffix", "C", "L", width)
        if rest and not is_like(copies[0], backbone.tokenize(rest)):
            problem = f"holds other words than {rest!r} between vectors and class name"
            raise file.refusal(problem, 'Give the words that it started from as `words`, or `words=""` for none.')
        for name, copy in zip(file.class_names, copies, strict=False) if is_own else ():
            if not is_like(copy, backbone.tokenize(f"{rest} {name.replace('_', ' ')}.")):
                raise file.refusal(f"holds the context of another class in the place of {name!r}", NAMES)


@dataclass(frozen=True)
class Layout:
    """How a file is read: what takes out all it knows, what is to be said of that, and entries nothing depends on."""

    read: Callable[[File, Said], Prompt]
    takes: tuple[str, ...]
    dead: str = ""


BLOCK = (
    r"transformer\.resblocks\.\d+\."
    r"(attn\.(in_proj_weight|in_proj_bias|out_proj\.(weight|bias))|ln_[12]\.(weight|bias)|mlp\.c_(fc|proj)\.(weight|bias))"
)
FROZEN = (
    r"logit_scale"
    rf"|image_encoder\.(class_embedding|positional_embedding|proj|conv1\.weight|ln_(pre|post)\.(weight|bias)|{BLOCK})"
    rf"|text_encoder\.(positional_embedding|text_projection|ln_final\.(weight|bias)|{BLOCK})"
)
LAYOUTS: dict[str, Layout] = {
    "coop": Layout(read_context, ("class_position", "words")),
    "cocoop": Layout(read_conditioned, ("words",)),
    "kgcoop": Layout(read_context, ("words",), r"bias_vectors|meta_net\.linear[12]\.(weight|bias)"),
    "prograd": Layout(read_context, ("class_position", "words")),
    "maple": Layout(read_coupled, ("words",), FROZEN),
    "ivlp": Layout(read_independent, ("words",), FROZEN),
    "promptsrc": Layout(read_independent, ("words",), rf"{FROZEN}|prompt_learner\.ZS_image_encoder\..+"),
    "vpt": Layout(read_visual, ("template",), FROZEN),
    "clip-lora": Layout(read_low_rank, ("template",)),
    "tip-adapter": Layout(read_cache, ("template", "values", "alpha", "beta")),
}


@checked
def convert(
    path: Path | str,
    source: Published,
    backbone: DualEncoder | str,
    class_names: Sequence[str],
    *,
    class_position: ClassPosition | None = None,
    words: str | None = None,
    template: str | None = None,
    values: Path | str | None = None,
    alpha: float | None = None,
    beta: float | None = None,
) -> Classifier:
    """Read a checkpoint that published code wrote, as a classifier that `save` keeps as it keeps any other.

    Args:
        path: of the file that `torch.save` wrote. Only tensors are read of it.
        source: whose code: coop, cocoop, kgcoop, prograd, maple, ivlp, promptsrc, vpt, clip-lora or tip-adapter.
        backbone: the frozen model it was learned on, or its name; the file does not say.
        class_names: C names, the order of the logits. Those of training where a context, or a vote, is each class's.
        class_position: of coop and prograd: where the class name stands, at the end, in the middle or in front.
        words: that the context started from, if any; "a photo of a" for maple, ivlp and promptsrc. Those that are more
            than vectors stay as they are.
        template: of vpt, clip-lora and tip-adapter: the words around the class name, "a photo of a {}.".
        values: of tip-adapter: the file of values; `path` is that of keys.
        alpha: of tip-adapter: the weight of the votes.
        beta: of tip-adapter: the sharpness of the votes.
    Raises:
        UserError: the file is no such checkpoint, holds anything but tensors, or does not fit backbone or classes.
    """
    layout = LAYOUTS[source]
    said = Said(class_position, words, template, None if values is None else Path(values), alpha, beta)
    for each in fields(said):
        value = getattr(said, each.name)
        if value is not None and each.name not in layout.takes:
            raise bad_value(each.name, value, f"{source} has no use for it", f"Leave `{each.name}` out.")
    check_class_names(class_names)
    path = Path(path)
    content = read_checkpoint(path)
    entries = {"keys": content} if source == "tip-adapter" else entries_of(path, content)
    backbone = load_backbone(backbone) if isinstance(backbone, str) else backbone
    if not backbone.has_text:
        raise without_text(backbone.name)
    file = File(path, entries, backbone, class_names)
    prompt = layout.read(file, said)
    file.refuse_rest(layout.dead)
    return Classifier(backbone, prompt.to(backbone.device), class_names).eval()


def entries_of(path: Path, content: Any) -> dict[str, Any]:
    """Return the entries of a checkpoint by name, those of what stands in another joined by dots."""
    if not isinstance(content, Mapping):
        raise bad_file(path, "holds no entries with names", OTHER)
    state = content.get("state_dict")
    waiting = [("", state if isinstance(state, Mapping) else content)]
    entries: dict[str, Any] = {}
    for _ in range(MOST_ENTRIES):
        if len(entries) > MOST_ENTRIES:
            break
        if not waiting:
            return entries
        prefix, inner = waiting.pop()
        for name, value in inner.items():
            name = f"{prefix}{name}".removeprefix("module.")
            if isinstance(value, Mapping):
                waiting.append((f"{name}.", value))
            else:
                entries[name] = value
    raise bad_file(path, f"holds more than {MOST_ENTRIES} entries", OTHER)

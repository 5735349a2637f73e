"""A frozen captioner with learned prompts: images in, captions out, with a focus that can be weighed and changed.

It knows prompts and images, not how a prompt was learned. The prompt file of a focus is the same pair of files that
a classifier's prompt has.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

import mmprompt.display as display
from mmprompt.captioning.data import shown_name
from mmprompt.captioning.decoding import Decoding
from mmprompt.captioning.readers.captioner import LM_INPUT, FrozenCaptioner
from mmprompt.captioning.readers.load import load_captioner
from mmprompt.captioning.search import Branch, Found, TokenIds, mixture, search
from mmprompt.core.file import load as load_predictor
from mmprompt.core.file import model_of, read_prompt, refuse_other_backbone
from mmprompt.core.header import read_header
from mmprompt.core.learned import Learned, Prompt
from mmprompt.data.images import ImageLike, as_list, is_one, read_image
from mmprompt.errors import UserError, bad_value
from mmprompt.models.image_features import ImageFeatures, Progress
from mmprompt.models.sites import Insert, Site, Vectors, vectors_of
from mmprompt.settings import check_settings, checked, holds

BATCH = 32
_log = logging.getLogger(__name__)
AVOIDING_BEAMS = 8
"""Fewest beams where words are avoided: what is to take their place is chosen before they would be said."""


@dataclass(frozen=True)
class CaptionTemplate:
    """What stands around the vectors of a captioner's prompt: the image before them, the caption after.

    Args:
        focus: what the captions are to speak of, such as "emotions".
        words: of a hard prompt, "" where vectors were learned.
        own_words: words that are the focus's own, and the token ids that begin each, one or more tuples a word.
    """

    focus: str
    words: str = ""
    own_words: Mapping[str, tuple[TokenIds, ...]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """See `core.learned.Template`."""
        return f"{{image}} {self.words} {{caption}}" if self.words else "{image} {soft} {caption}"


@dataclass(frozen=True)
class Caption:
    """What a captioner says of an image.

    Attributes:
        text: the caption.
        log_prob: sum of the log-probabilities of its tokens and its ends, as it was searched.
        score: what the captions of an image are ordered by.
        n_tokens: without the end.
        is_cut: whether it stopped for want of room.
        clip_score: likeness to the image, where captions were ordered by that too.
        others: further captions of the same image, next best first.
    """

    text: str
    log_prob: float
    score: float
    n_tokens: int
    is_cut: bool
    clip_score: float | None = None
    others: tuple[Caption, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict without empty fields."""
        found = asdict(self) | {"others": [other.to_dict() for other in self.others]}
        return {name: value for name, value in found.items() if value not in (None, [])}


@dataclass(frozen=True)
class Guidance:
    """Which prompts a caption is searched with.

    Args:
        prompts: with weights; the template of each is a `CaptionTemplate`. Several speak one after the other in one
            caption, the heaviest first, each as it would alone; a lighter one at that much less of the strength.
        strength: 0 is the captioner without a prompt, 1 the plain prompt, more pushes harder (classifier-free guidance,
            Ho and Salimans 2022), up to 100.
        avoid: the prompt of a focus whose own words are not to be said.
        avoid_strength: what each of them costs, in nats, 0 to 1000; at 10 there is hardly one left, 0 is not at all.
    Raises:
        UserError: a number is out of range or no number, a prompt is no captioner's, or the focus to avoid has no words
            of its own.
    """

    prompts: tuple[tuple[Prompt, float], ...] = ()
    strength: Annotated[float, Ge(0), Le(100)] = 1.0
    avoid: Prompt | None = None
    avoid_strength: Annotated[float, Ge(0), Le(1000)] = 10.0

    def __post_init__(self) -> None:
        check_settings(self)
        object.__setattr__(self, "prompts", tuple(self.prompts))
        check_settings(self)  # what can be read once is looked at now
        for prompt, weight in self.prompts:
            focus = focus_of(prompt)
            if not holds(weight, Annotated[float, Gt(0)]):
                raise bad_value(f"weight of {focus}", weight, "it must be a number, above 0", "Use 1.")
        if self.avoid is not None and not template_of(self.avoid).own_words:
            raise UserError(
                f"the prompt of {focus_of(self.avoid)} names no words of its own that could be avoided. "
                "Learn it with this version of mmprompt, from captions with words that other captions have not."
            )

    def turns(self) -> list[list[Branch]]:
        """Return the branches of each prompt's part of a caption, for `search`."""
        if not self.prompts or self.strength == 0:
            return [[Branch(1.0)]]
        prompts = sorted(self.prompts, key=lambda pair: -pair[1])
        heaviest = prompts[0][1]
        return [mixture(prompt.inserts(), self.strength * (weight / heaviest)) for prompt, weight in prompts]

    def costs(self) -> dict[TokenIds, float]:
        """Return what tokens cost, for `search`."""
        if self.avoid is None or self.avoid_strength == 0:
            return {}
        words = template_of(self.avoid).own_words.values()
        return {ids: self.avoid_strength for beginnings in words for ids in beginnings}


def template_of(prompt: Prompt) -> CaptionTemplate:
    """Return what stands around the vectors of a captioner's prompt; refuse another's."""
    if not isinstance(prompt.template, CaptionTemplate):
        expected = "a prompt for captions was expected"
        raise bad_value("prompt", f"of {prompt.template.text!r}", expected, "Give one that load_focus or fit gave.")
    return prompt.template


def focus_of(prompt: Prompt) -> str:
    """Return what a captioner's prompt makes it speak of."""
    return template_of(prompt).focus


@dataclass
class Captioner:
    """A frozen captioner and the prompts it is steered by.

    Args:
        backbone: the frozen model.
        guidance: the default of `caption`.
        decoding: the default of `caption`.
        progress: called with how many images are done and how many there are.
    """

    backbone: FrozenCaptioner
    guidance: Guidance = field(default_factory=Guidance)
    decoding: Decoding = field(default_factory=Decoding)
    progress: Progress | None = None

    kind = "captioning"

    def __post_init__(self) -> None:
        check_settings(self)

    def __repr__(self) -> str:
        focuses = ", ".join(shown_name(focus_of(prompt)) for prompt, _ in self.guidance.prompts)
        return f"<Captioner: {focuses or 'no focus'}, on {self.backbone.name}>"

    def _repr_html_(self) -> str:
        parts = [display.facts(prompt.facts() | {"weight": weight}) for prompt, weight in self.guidance.prompts]
        steered = {"strength": self.guidance.strength if parts else ""}
        return display.section(repr(self)[1:-1], display.facts(steered), *parts)

    @property
    def prompt(self) -> Prompt:
        """The one prompt it is steered by; refused where there is none, or several."""
        n_prompts = len(self.guidance.prompts)
        if n_prompts != 1:
            raise UserError(f"this captioner has {n_prompts} prompts, but one was expected. Take a captioner with one.")
        return self.guidance.prompts[0][0]

    def header(self) -> dict[str, Any]:
        """Return what the prompt file keeps of a captioner beside its prompt; see `core.file.Predictor`.

        Raises:
            UserError: there is more to it than one prompt, as it was learned, and none of that is kept.
        """
        prompt, guidance = self.prompt, self.guidance
        if guidance.strength != 1 or guidance.avoid is not None or self.decoding != Decoding():
            raise UserError(
                "a prompt file keeps the prompt alone, not its strength, what is avoided or how captions are searched. "
                "Save Captioner(backbone, Guidance(((prompt, 1.0),)))."
            )
        return asdict(template_of(prompt))

    def kept_tensors(self) -> dict[str, Tensor]:
        """Return nothing: a captioner computes nothing ahead."""
        return {}

    def predict(self, images: ImageLike | Iterable[ImageLike]) -> Caption | list[Caption]:
        """Say what is on one image or on many; `caption` takes other prompts and ways of search.

        Raises:
            UserError: an image cannot be read.
        """
        captions = self.caption(images)
        return captions[0] if is_one(images) else captions

    @checked
    def caption(
        self,
        images: ImageLike | Iterable[ImageLike],
        guidance: Guidance | Sequence[Guidance] | None = None,
        decoding: Decoding | None = None,
    ) -> list[Caption]:
        """Write one caption an image, in order.

        Args:
            images: one image or several.
            guidance: one for all, or one an image; images of different prompts get what each gets alone.
            decoding: how captions are searched.
        Raises:
            UserError: an image cannot be read, or a prompt does not fit this captioner.
        """
        sources = as_list(images)
        each = self._each(guidance, len(sources))
        if len(each) != len(sources):
            raise UserError(
                f"there are {len(sources)} images and {len(each)} prompts, but one prompt an image was expected. "
                "Give one for all, or one for each."
            )
        found: list[Caption] = []
        for start in range(0, len(sources), BATCH):
            some = sources[start : start + BATCH]
            pixels = torch.stack([self.backbone.preprocess(read_image(source)) for source in some])
            features = self.backbone.encode_image(pixels)
            places = range(start, start + len(some))
            found += self.caption_features(features, each[start : start + BATCH], decoding, places)
            if self.progress is not None:
                self.progress(len(found), len(sources))
        return found

    def caption_features(
        self,
        features: Tensor,
        guidance: Sequence[Guidance] | Guidance | None = None,
        decoding: Decoding | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[Caption]:
        """Write one caption an image, from the features [N, T, D'] of `backbone.encode_image`.

        Plain prompts of equally many vectors are searched in one batch. The random numbers of samples depend on the
        `numbers` of the images, their places by default.
        """
        warn_of_strangers(self.backbone, features)
        each = self._each(guidance, len(features))
        rows_of: dict[object, list[int]] = {}
        for row, one in enumerate(each):
            rows_of.setdefault(_shapes_of(one) or id(one), []).append(row)
        captions: dict[int, Caption] = {}
        for rows in rows_of.values():
            kv_cache = self.backbone.open(features[torch.tensor(rows, device=features.device)])
            named = rows if numbers is None else [numbers[row] for row in rows]
            costs, how = each[rows[0]].costs(), decoding or self.decoding
            if costs and how.temperature is None:
                how = replace(how, n_beams=max(how.n_beams, AVOIDING_BEAMS))
            branches = _turns_of([each[row] for row in rows])
            turns = [search(self.backbone, kv_cache, some, how, named, costs) for some in branches]
            captions.update(zip(rows, map(self._caption, *turns), strict=True))
        return [captions[row] for row in range(len(each))]

    def _each(self, guidance: Sequence[Guidance] | Guidance | None, n_images: int) -> list[Guidance]:
        given = self.guidance if guidance is None else guidance
        return [given] * n_images if isinstance(given, Guidance) else list(given)

    def _caption(self, *turns: Sequence[Found]) -> Caption:
        """Make the caption of an image of what was found for each of its parts, best first; each is a sentence."""
        captions = []
        for parts in zip(*turns, strict=False):  # as many as every part has
            texts = [self.backbone.tokenizer.decode(part.token_ids) for part in parts]
            ended = [text if not text[-1:].isalnum() else f"{text}." for text in texts]
            text = " ".join(ended) if len(parts) > 1 else texts[0]
            log_prob, score = sum(part.log_prob for part in parts), sum(part.score for part in parts) / len(parts)
            n_tokens = sum(len(part.token_ids) for part in parts)
            captions.append(Caption(text, log_prob, score, n_tokens, any(part.is_cut for part in parts)))
        return replace(captions[0], others=tuple(captions[1:]))


def _shapes_of(guidance: Guidance) -> tuple[tuple[Site, torch.Size], ...]:
    """Return the shapes by site of one plain prompt of shared vectors, () for anything else."""
    if len(guidance.prompts) != 1 or guidance.strength != 1 or guidance.costs():
        return ()
    inserts = guidance.prompts[0][0].inserts()
    vectors = vectors_of(inserts)
    is_plain = len(vectors) == len(inserts) and all(one.scope == "shared" for one in vectors.values())
    return tuple((site, one.values.shape) for site, one in vectors.items()) if is_plain else ()


def _turns_of(guidances: Sequence[Guidance]) -> list[list[Branch]]:
    """Return the branches of one guidance, or of several plain prompts of the same shapes."""
    first, *others = guidances
    if all(other is first for other in others):
        return first.turns()
    each = [vectors_of(one.prompts[0][0].inserts()) for one in guidances]
    stacked = {site: Vectors(torch.stack([some[site].values for some in each]), "sample") for site in each[0]}
    return [[Branch(1.0, stacked)]]


def warn_of_strangers(captioner: FrozenCaptioner, features: Tensor) -> None:
    """Log once a captioner that images, of features [B, T, D'], are unlike all that it was trained on."""
    known = captioner.known_images
    n_strange = 0 if known is None else int(known.strangers(features).sum())
    if n_strange:
        captioner.known_images = None
        _log.warning(
            "%d of the first %d images are unlike any that %s was trained on: this captioner was trained on drawn "
            "scenes; for photographs: --backbone photo, or another captioner's name.",
            n_strange,
            len(features),
            captioner.name,
        )


class CaptionFeatures(ImageFeatures):
    """Features of image files for one captioner, computed once and kept, flat in the store; see `ImageFeatures`."""

    def __init__(
        self, captioner: FrozenCaptioner, store: Path | str | None = "auto", progress: Progress | None = None
    ) -> None:
        names = ("name", "fingerprint", "architecture", "transform", "pixels", "device", "dtype", "preprocess")
        side: Any = SimpleNamespace(**{name: getattr(captioner, name) for name in names}, raw_width=0)
        side.encode_image, side.embed_dim = partial(_flat_features, captioner), math.prod(captioner.image_shape)
        super().__init__(side, store, progress=progress)
        self.captioner, self._shape = captioner, captioner.image_shape

    def of(self, paths: Sequence[Path]) -> Tensor:
        """Return [N, T, D'] on the captioner's device."""
        return super().of(paths).unflatten(1, self._shape)

    @torch.no_grad()
    def log_probs(
        self, paths: Sequence[Path], captions: Sequence[Sequence[TokenIds]], inserts: Mapping[Site, Insert]
    ) -> Tensor:
        """Compute the log-probability [K] of each token of given captions, some with their ends of each image."""
        parts = []
        for start in range(0, len(paths), BATCH):
            kv_cache = self.captioner.open(self.of(paths[start : start + BATCH]))
            parts.append(self.captioner.log_probs(kv_cache, inserts, captions[start : start + BATCH]))
        return torch.cat(parts)


def features_for(captioner: FrozenCaptioner, given: CaptionFeatures | None) -> CaptionFeatures:
    """Return the features that were given, or new ones; refuse those of a captioner that sees its images otherwise."""
    if given is None:
        return CaptionFeatures(captioner)
    given.refuse_other(captioner)
    if given.captioner.image_shape != captioner.image_shape:  # as an mlp and a linear mapper of one pair have
        own, other = (" x ".join(map(str, one.image_shape)) for one in (given.captioner, captioner))
        raise bad_value("features", f"of {own} numbers an image", f"{other} were expected", "Leave `features` out.")
    return given


def _flat_features(captioner: FrozenCaptioner, images: Tensor, inserts: object, raw: bool) -> Tensor:
    return captioner.encode_image(images).flatten(1)


@checked
def hard_prompt(captioner: FrozenCaptioner, focus: str, words: str) -> Prompt:
    """Make a focus in words: their token embeddings where a learned prompt has its vectors.

    Args:
        captioner: the frozen model.
        focus: what the words ask for.
        words: such as "a picture of a face:".
    Raises:
        UserError: the words give no token.
    """
    values = embed_words(captioner, words)
    if not len(values):
        raise bad_value("words", repr(words), "they must hold at least one word", 'Use `words="the mood is"`.')
    prompt = Prompt(CaptionTemplate(focus, words), Learned(LM_INPUT, values))
    return prompt.to(captioner.device).requires_grad_(False)


def embed_words(captioner: FrozenCaptioner, words: str) -> Tensor:
    """Embed the tokens of some words: [n, D]."""
    ids = torch.tensor(captioner.tokenizer.encode(words), dtype=torch.long, device=captioner.device)
    return captioner.decoder.embed(ids)


def load(folder: Path, header: Mapping[str, Any], model: FrozenCaptioner | str | None, device: str) -> Captioner:
    """Load a captioner with the prompt of a folder; `model` is by default the one that the header names."""
    captioner = model_of(folder, header, model, partial(load_captioner, device=device))
    refuse_other_backbone(folder, header, captioner)
    own = {word: tuple(map(tuple, ids)) for word, ids in header.get("own_words", {}).items()}
    template = CaptionTemplate(header["focus"], header["words"], own)
    prompt, _ = read_prompt(folder, header, captioner.device, template)
    return Captioner(captioner, Guidance(((prompt.requires_grad_(False).eval(), 1.0),)))


@checked
def load_focus(folder: Path | str, captioner: FrozenCaptioner) -> Prompt:
    """Load the saved prompt alone, for the captioner it was learned on.

    Raises:
        UserError: files are missing, edited or damaged, or of another captioner or another kind of model.
    """
    read_header(folder, "captioning")
    loaded: Captioner = load_predictor(folder, captioner)
    return loaded.prompt


def load_captioner_of(folders: Iterable[Path | str], name: str | None = None, device: str = "auto") -> FrozenCaptioner:
    """Load the captioner that saved prompts were learned on: by another name, or that of the first; `tiny` for none."""
    first = next(iter(folders), None)
    if first is None:
        return load_captioner(name or "tiny", device=device)
    header, load_named = read_header(first, "captioning"), partial(load_captioner, device=device)
    captioner: FrozenCaptioner = model_of(Path(first), header, name, load_named)
    return captioner

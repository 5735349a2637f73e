"""A frozen captioner with learned prompts: pictures in, captions out, with a focus that can be weighed and changed.

It knows prompts and pictures, not how a prompt was learned. The prompt file of a focus is the same pair of files that
a classifier's prompt has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmprompt.captioning.readers.captioner import LM_INPUT, FrozenCaptioner
from mmprompt.captioning.readers.load import load_captioner
from mmprompt.captioning.search import Branch, Decoding, Found, mixture, search
from mmprompt.core.prompt import SiteSources
from mmprompt.core.site_file import (
    read_prompt_header,
    read_prompt_tensors,
    read_sources,
    refuse_other_backbone,
    write_prompt,
)
from mmprompt.core.sources import FreeVectors
from mmprompt.data.images import ImageLike, as_list, read_image
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.models.image_features import ImageFeatures, Progress
from mmprompt.models.sites import Site, Vectors

BATCH = 32


@dataclass(frozen=True)
class FocusPrompt:
    """A prompt of a captioner: vectors and the focus they were learned for.

    Args:
        focus: such as "emotions".
        sources: the vectors by site.
        words: the words of a hard prompt, "" where the vectors were learned.
    """

    focus: str
    sources: SiteSources
    words: str = ""

    def vectors(self) -> dict[Site, Vectors]:
        """The vectors by site."""
        return self.sources.vectors()


@dataclass(frozen=True)
class Caption:
    """What a captioner says of a picture.

    Attributes:
        text: the caption.
        log_prob: sum of the log-probabilities of its tokens and its end, in the mixture it was searched in.
        score: what the captions of a picture are ordered by.
        n_tokens: without the end.
        is_cut: whether it stopped for want of room.
        clip_score: likeness to the picture, where captions were ordered by that too.
        others: further captions of the same picture, next best first.
    """

    text: str
    log_prob: float
    score: float
    n_tokens: int
    is_cut: bool
    clip_score: float | None = None
    others: tuple[Caption, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without what there is not."""
        found = asdict(self) | {"others": [other.to_dict() for other in self.others]}
        return {name: value for name, value in found.items() if value not in (None, [])}


@dataclass(frozen=True)
class Steering:
    """Which prompts a caption is searched with.

    Args:
        prompts: with weights; several are mixed by weight.
        strength: 0 is the captioner without a prompt, 1 the plain prompt, more pushes harder.
        avoid: a prompt to push away from.
        avoid_strength: how hard; 0 is not at all.
    Raises:
        UserError: a number is out of range or no number.
    """

    prompts: tuple[tuple[FocusPrompt, float], ...] = ()
    strength: float = 1.0
    avoid: FocusPrompt | None = None
    avoid_strength: float = 0.5

    def __post_init__(self) -> None:
        numbers = {"strength": self.strength, "avoid_strength": self.avoid_strength}
        numbers |= {f"weight of {prompt.focus}": weight for prompt, weight in self.prompts}
        for name, value in numbers.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
            if not is_number or (value == 0 and name.startswith("weight")):
                least = "above 0" if name.startswith("weight") else "0 or more"
                raise bad_value(name, value, f"it must be a number {least}", "Use 1.")


@dataclass
class Captioner:
    """A frozen captioner and the prompts it is steered by.

    Args:
        backbone: the frozen model.
        steering: the default of `caption`.
        decoding: the default of `caption`.
        progress: called with how many pictures are done and how many there are.
    """

    backbone: FrozenCaptioner
    steering: Steering = field(default_factory=Steering)
    decoding: Decoding = field(default_factory=Decoding)
    progress: Progress | None = None

    def caption(
        self,
        images: ImageLike | Iterable[ImageLike],
        steering: Steering | Sequence[Steering] | None = None,
        decoding: Decoding | None = None,
    ) -> list[Caption]:
        """One caption a picture, in order.

        Args:
            images: one picture or several.
            steering: one for all, or one a picture; pictures of different prompts get what each gets alone.
            decoding: how captions are searched.
        Raises:
            UserError: a picture cannot be read, or a prompt does not fit this captioner.
        """
        sources = as_list(images)
        if steering is None or isinstance(steering, Steering):
            each = [steering or self.steering] * len(sources)
        else:
            each = list(steering)
        if len(each) != len(sources):
            raise UserError(
                f"there are {len(sources)} pictures and {len(each)} prompts, but one prompt a picture was expected. "
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
        steering: Sequence[Steering] | Steering | None = None,
        decoding: Decoding | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[Caption]:
        """One caption a picture, from image features [N, T, D'].

        Args:
            features: of `backbone.encode_image`.
            steering: one for all, or one a picture.
            decoding: how captions are searched.
            numbers: of the pictures, which the random numbers of their samples depend on; their places by default.
        """
        given = steering or self.steering
        each = [given] * len(features) if isinstance(given, Steering) else list(given)
        rows_of: dict[int, list[int]] = {}
        for row, one in enumerate(each):
            rows_of.setdefault(id(one), []).append(row)
        found: dict[int, list[Found]] = {}
        for rows in rows_of.values():
            memory = self.backbone.open(features[torch.tensor(rows, device=features.device)])
            some = search(
                self.backbone,
                memory,
                branches_of(each[rows[0]]),
                decoding or self.decoding,
                rows if numbers is None else [numbers[row] for row in rows],
            )
            found.update(zip(rows, some, strict=True))
        return [self._caption(found[row]) for row in range(len(each))]

    def _caption(self, found: Sequence[Found]) -> Caption:
        captions = [
            Caption(
                self.backbone.tokenizer.decode(one.token_ids), one.log_prob, one.score, len(one.token_ids), one.is_cut
            )
            for one in found
        ]
        best, *others = captions
        return replace(best, others=tuple(others))


def branches_of(steering: Steering) -> list[Branch]:
    """The branches of a steering, for `search`."""
    focus = [(prompt.vectors(), weight) for prompt, weight in steering.prompts]
    avoid = None if steering.avoid is None else steering.avoid.vectors()
    return mixture(focus, steering.strength, avoid, steering.avoid_strength)


class _ImageSide:
    """The image encoder of a captioner with its features laid flat, as the feature store keeps them."""

    def __init__(self, captioner: FrozenCaptioner) -> None:
        self.captioner = captioner
        self.name, self.fingerprint = captioner.name, captioner.fingerprint
        self.transform, self.pixels = captioner.transform, captioner.pixels
        self.device, self.dtype = captioner.device, captioner.dtype
        self.image_size = captioner.pixels.size
        self.shape = captioner.image_shape
        self.embed_dim = self.shape[0] * self.shape[1]

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.captioner.preprocess(image)

    def normalize(self, images: Tensor) -> Tensor:
        return self.captioner.pixels.normalize(images)

    def encode_image(self, images: Tensor, vectors: Mapping[Site, Vectors] | None = None) -> Tensor:
        return self.captioner.encode_image(images).flatten(1)


class CaptionFeatures:
    """Image features of picture files for one captioner: each computed once and kept in the feature store.

    Args:
        captioner: the frozen model.
        store: as for `ImageFeatures`.
        progress: as for `ImageFeatures`.
    """

    def __init__(
        self, captioner: FrozenCaptioner, store: Path | str | None = "auto", progress: Progress | None = None
    ) -> None:
        self._side = _ImageSide(captioner)
        self._features = ImageFeatures(self._side, store, progress=progress)  # type: ignore[arg-type]

    def of(self, paths: Sequence[Path]) -> Tensor:
        """[N, T, D'] on the captioner's device.

        Raises:
            UserError: a picture cannot be read.
        """
        return self._features.of(paths).unflatten(1, self._side.shape)


def hard_prompt(captioner: FrozenCaptioner, focus: str, words: str) -> FocusPrompt:
    """A focus in words: their token embeddings where a learned prompt has its vectors.

    Args:
        captioner: the frozen model.
        focus: what the words ask for.
        words: such as "a picture of a face:".
    Raises:
        UserError: the words give no token.
    """
    ids = captioner.tokenizer.encode(words)
    if not ids:
        raise bad_value("words", repr(words), "they must hold at least one word", 'Use --words "the mood is".')
    values = captioner.decoder.embed(torch.tensor(ids, device=captioner.device))
    source = FreeVectors(values).requires_grad_(False)
    return FocusPrompt(focus, SiteSources({LM_INPUT: source}).to(captioner.device), words)


def save_focus(
    prompt: FocusPrompt, captioner: FrozenCaptioner, folder: Path | str, training: Mapping[str, Any] | None = None
) -> None:
    """Write a prompt to a folder: kilobytes, and nothing of the captioner.

    Args:
        prompt: what `load_focus` will give back.
        captioner: what it was learned on.
        folder: made if missing.
        training: JSON-ready facts about where the prompt comes from.
    Raises:
        UserError: the folder cannot be written.
    """
    more = {"kind": "captioner", "focus": prompt.focus, "words": prompt.words}
    write_prompt(Path(folder), captioner, prompt.sources, more, {}, training)


def load_focus(folder: Path | str, captioner: FrozenCaptioner) -> FocusPrompt:
    """Load a saved prompt for the captioner it was learned on.

    Raises:
        UserError: files are missing, edited or damaged, or of another captioner or of a classifier.
    """
    folder = Path(folder)
    header = read_caption_header(folder)
    refuse_other_backbone(folder, header, captioner)
    sources = read_sources(header, read_prompt_tensors(folder, header), captioner.device)
    return FocusPrompt(header["focus"], SiteSources(sources).requires_grad_(False), header["words"])


def load_captioner_of(folders: Iterable[Path | str], name: str | None = None, device: str = "auto") -> FrozenCaptioner:
    """The captioner that saved prompts were learned on.

    Args:
        folders: of prompts; the first one names the captioner.
        name: of the captioner where it is another name for the same weights, or there is no prompt.
        device: where to put it.
    """
    first = next(iter(folders), None)
    if name is None:
        name = "tiny" if first is None else read_caption_header(Path(first))["backbone"]["name"]
    return load_captioner(name, device=device)


def read_caption_header(folder: Path) -> dict[str, Any]:
    """What a saved prompt of a captioner says of itself.

    Raises:
        UserError: it is missing, edited, damaged, or the prompt of a classifier.
    """
    header = read_prompt_header(folder)
    if header.get("kind") != "captioner":
        raise bad_file(folder, "is the prompt of a classifier, not of a captioner", "See mmprompt predict.")
    return header

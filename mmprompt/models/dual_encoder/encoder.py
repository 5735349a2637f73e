"""The one backbone class: a frozen model behind the views of its two towers, or of its image tower alone.

The readers (`open_clip.py`, `transformers_clip.py`, `timm_models.py`) hand over the parts; what happens with them, for
every library alike, is here. It is not an `nn.Module`, so that a classifier which holds one never counts its weights as
its own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmprompt.errors import UserError
from mmprompt.files import size_from_environment
from mmprompt.models.dual_encoder.forward.text import check_text_vectors, encode_slots
from mmprompt.models.dual_encoder.forward.views import Frame, TextView, VisionView, norm_sites
from mmprompt.models.dual_encoder.forward.vision import OpaqueTower, encode_image_tokens, encode_images
from mmprompt.models.dual_encoder.interface import without_text
from mmprompt.models.frozen import PixelTransform, architecture, fingerprint
from mmprompt.models.sites import (
    Insert,
    PixelTerm,
    Site,
    TextSlots,
    Tower,
    Vectors,
    Weight,
    in_place,
    vectors_of,
    weights_of,
)

MEMORY_VARIABLE = "MMPROMPT_MEMORY_LIMIT"
DEFAULT_MEMORY_BYTES = 2**30
SCALE_WITHOUT_TEXT = 100.0  # that of CLIP, for heads that compare images with images
PROBE_SLOTS = 16


@dataclass(frozen=True)
class WordTokenizer:
    """Text to ids and back, by a library's own tokenizer, which can give `size` ids.

    `padded_ids` takes a text and a number of slots to that many ids as the library frames and pads them, and
    `ids_to_text` takes ids to text as it decodes them.
    """

    padded_ids: Callable[[str, int], list[int]]
    ids_to_text: Callable[[list[int]], str]
    size: int

    def frame(self) -> Frame:
        """Find the frame by comparing an empty text with a word; refuse any but start, words, end, padding."""
        empty, word = self.padded_ids("", PROBE_SLOTS), self.padded_ids("a", PROBE_SLOTS)
        start_id = empty[0] if empty[0] == word[0] else None
        end_id, pad_id, *rest = empty if start_id is None else empty[1:]
        if any(token != pad_id for token in (*rest, word[-1])):
            raise UserError(
                f"this tokenizer frames an empty text as {empty}, but start, end and padding were expected. "
                "Use a backbone whose tokenizer puts the end token after the words and padding after that."
            )
        return Frame(start_id, end_id, pad_id)

    def words(self, text: str, frame: Frame) -> list[int]:
        """Return the ids of a text without its frame, never cut; refuse a text that spells out start or end."""
        # No known normalisation makes more than four tokens of a byte, so nothing is cut to fit.
        ids = self.padded_ids(text, 4 * len(text.encode()) + PROBE_SLOTS)
        ids = ids if frame.start_id is None else ids[1:]
        while ids and ids[-1] == frame.pad_id:
            ids.pop()
        if frame.end_id != frame.pad_id:
            ids.pop()
        if frame.end_id in ids or frame.start_id in ids:
            raise UserError(
                f"{text!r} holds the tokenizer's own start, end or unknown token. Use words that it can spell."
            )
        return ids

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of ids, as the library decodes it."""
        return self.ids_to_text(list(ids))


class FrozenDualEncoder:
    """A frozen model with an image tower and perhaps a text tower; attributes and methods are those of `DualEncoder`.

    Args:
        name: what `load_backbone` takes to get this backbone again.
        model: the library's own model, frozen; kept for its weights alone.
        vision: the view of its image tower.
        pixels: the library's own test transform.
        image_parts: how the names of those weights begin that belong to the image tower.
        text: the view of its text tower; None for an image tower alone.
        tokenizer: the library's own, reduced to words; given with `text`.
        log_logit_scale: the stored logarithm of the multiplier, one element; given with `text`.
        logit_bias: what is added to the logits, one element; None where there is none.
        embed_dim: E of an image tower alone; with a text tower it is that of its projection.

    Attributes:
        cache_dir: where its downloads are kept, None for the library's own folder; a pickle reads them there again.
        text_memory_bytes: about what a training step may keep of the text tower's activations; classes beyond that
            are computed again in the backward pass. `$MMPROMPT_MEMORY_LIMIT` such as `500MB`, else 1 GB. It changes
            no number by more than rounding.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        vision: VisionView | OpaqueTower,
        pixels: PixelTransform,
        image_parts: tuple[str, ...] = (),
        text: TextView | None = None,
        tokenizer: WordTokenizer | None = None,
        log_logit_scale: Tensor | None = None,
        logit_bias: Tensor | None = None,
        embed_dim: int = 0,
    ) -> None:
        self.name, self.model = name, model
        self.cache_dir: str | None = None
        self._text, self.vision, self.pixels = text, vision, pixels
        self._image_parts = image_parts
        self._tokenizer, self.has_text = tokenizer, text is not None
        self.fingerprint, self.architecture = fingerprint(model), architecture(model)
        first = next(model.parameters())
        self.device, self.dtype, self.embed_dim = first.device, first.dtype, embed_dim
        self.text_width, self.text_layers = (text.width, len(text.blocks)) if text else (0, 0)
        self.vision_width = vision.width if isinstance(vision, VisionView) else None
        self.vision_layers = len(vision.blocks) if isinstance(vision, VisionView) else 0
        self.unprompted_part = vision.part if isinstance(vision, OpaqueTower) else None
        self.context_length = text.context_length if text else 0
        self.vocabulary_size = tokenizer.size if tokenizer else 0
        self.image_size, self.transform = pixels.size, pixels.text
        self.logit_scale = SCALE_WITHOUT_TEXT if log_logit_scale is None else log_logit_scale.double().exp().item()
        self.logit_bias = 0.0 if logit_bias is None else logit_bias.item()
        self.text_memory_bytes = size_from_environment(MEMORY_VARIABLE, DEFAULT_MEMORY_BYTES, "one class at a time")
        if text is not None:
            with torch.no_grad():
                self.embed_dim = text.project(text.position[:1]).shape[-1]

    def __repr__(self) -> str:
        return f"<FrozenDualEncoder {self.name!r}: {self.device}, {self.dtype}>"

    def __deepcopy__(self, memo: dict[int, object]) -> FrozenDualEncoder:
        return self  # frozen: a copy could never differ, and scikit-learn's clone would double the memory

    def __copy__(self) -> FrozenDualEncoder:
        made = object.__new__(type(self))  # not as `__reduce__` has it, by reading the weights again
        made.__dict__.update(self.__dict__)
        return made

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str | None, ...]]:
        """Pickle the name and what the weights hash to, not the weights, which are read again."""
        from mmprompt.models.dual_encoder.load import load_again

        dtype = str(self.dtype).removeprefix("torch.")
        return load_again, (self.name, self.fingerprint, str(self.device), dtype, self.cache_dir)

    @property
    def text(self) -> TextView:
        """The view of the text tower; refused where there is none."""
        if self._text is None:
            raise without_text(self.name)
        return self._text

    @text.setter
    def text(self, view: TextView) -> None:
        self._text = view

    def preprocess(self, image: Image.Image) -> Tensor:
        """See `DualEncoder`."""
        return self.pixels.apply(image)

    def normalize(self, images: Tensor) -> Tensor:
        """See `DualEncoder`."""
        return self.pixels.normalize(images)

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text without its frame, never cut; refuse a text that spells the frame out."""
        frame = self.text.frame
        assert self._tokenizer is not None, "a text tower comes with its tokenizer"
        return self._tokenizer.words(text, frame)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, as the library's tokenizer writes it."""
        if self._tokenizer is None:
            raise without_text(self.name)
        return self._tokenizer.text_of(token_ids)

    def text_slots(self, rows: Sequence[Sequence[int]]) -> TextSlots:
        """Frame rows of slots with the tower's own start, end and padding; see `DualEncoder`.

        Rows that are too long for the tower are framed all the same: the caller, who knows the class names, compares
        `lengths` with `context_length` and words the error.
        """
        frame = self.text.frame
        start = [] if frame.start_id is None else [frame.start_id]
        framed = [[*start, *row, frame.end_id] for row in rows]
        lengths = [len(row) for row in framed]
        n_slots = max(lengths) if self.text.stops_at_end else max(*lengths, self.context_length)
        slots = torch.tensor([row + [frame.pad_id] * (n_slots - len(row)) for row in framed])  # [C, L]
        n_ctx = -min((slot for row in rows for slot in row if slot < 0), default=0)
        parts = slots.where(slots >= 0, frame.pad_id), (-1 - slots).clamp(min=-1), torch.tensor(lengths)
        token_ids, ctx_index, n_slots_of = (part.to(self.device) for part in parts)
        return TextSlots(token_ids, ctx_index, n_slots_of, n_ctx)

    def token_vectors(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings [..., D] of token ids [...], before positions are added."""
        return self.text.token_embedding(token_ids.to(self.device))

    def encode_text(
        self, slots: TextSlots, inserts: Mapping[Site, Insert] | None = None, normalise: bool = True
    ) -> Tensor:
        """See `DualEncoder`."""
        given = _of_tower("text", inserts)
        check_text_vectors(self.text, slots, vectors_of(given))
        weights = self._take_weights("text", given)
        refuse_other_kinds(self.name, given)
        # What is computed again in the backward pass would meet the frozen weights there.
        memory_bytes = sys.maxsize if weights else self.text_memory_bytes
        with in_place(self.model, weights):
            features = encode_slots(self.text, slots, given, memory_bytes)
        return F.normalize(features, dim=-1) if normalise else features

    def encode_image(self, images: Tensor, inserts: Mapping[Site, Insert] | None = None, raw: bool = False) -> Tensor:
        """See `DualEncoder`."""
        own = _of_tower("vision", inserts)
        images = self._with_term(self._checked(images), own.pop(Site("vision", part="pixels"), None))
        weights = self._take_weights("vision", own)
        refuse_other_kinds(self.name, own)
        if not raw or not self.raw_width or own or weights:
            with in_place(self.model, weights):
                features = encode_images(self.vision, images, own)
            return F.normalize(features, dim=-1) if self.has_text else features
        assert isinstance(self.vision, OpaqueTower), "only an opaque tower has raw features"
        inner = self.vision.trunk(images)
        return torch.cat([F.normalize(self.vision.project(inner), dim=-1), F.normalize(inner, dim=-1)], dim=-1)

    def weights_of(self, tower: Tower) -> dict[str, nn.Parameter]:
        """List the weights of a tower by name; scale and bias of the logits belong to neither."""
        own = self.model.named_parameters()
        return {
            name: value
            for name, value in own
            if name not in ("logit_scale", "logit_bias") and name.startswith(self._image_parts) == (tower == "vision")
        }

    def _take_weights(self, tower: Tower, inserts: dict[Site, Insert]) -> dict[str, Weight]:
        """Take the weights out of some inserts, by name; refuse those that the tower has not, or of another shape."""
        weights = weights_of(inserts)
        own = self.weights_of(tower) if weights else {}
        for site, weight in weights.items():
            del inserts[site]
            if site.part not in own or own[site.part].shape != weight.values.shape:
                shape = list(own[site.part].shape) if site.part in own else "no such weight"
                raise UserError(
                    f"the weight of {site} is {list(weight.values.shape)}, but {self.name} has {shape}. "
                    "Build the prompt for this backbone."
                )
        return {site.part: weight for site, weight in weights.items()}

    def find_patch_size(self) -> int | None:
        """Return the side of a patch in pixels, None without image tokens."""
        if not isinstance(self.vision, VisionView):
            return None
        blank = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device, dtype=self.dtype)
        with torch.no_grad():
            n_slots = self.vision.embed(blank).shape[1]  # a square of patches, and less than a further row of others
        return self.image_size // math.isqrt(n_slots)

    @property
    def norm_sites(self) -> tuple[Site, ...]:
        """The layer norms of both towers that can be moved; none of an image tower without known blocks."""
        of_text = norm_sites("text", self.text) if self.has_text else []
        return (*of_text, *(norm_sites("vision", self.vision) if isinstance(self.vision, VisionView) else []))

    @property
    def raw_width(self) -> int:
        """W, the width of the image tower's own features before the projection; 0 where they are not told apart."""
        return getattr(self.vision, "raw_width", 0)

    def encode_image_tokens(self, images: Tensor) -> Tensor:
        """Return the tokens [B, T, D] that enter the image tower's last block, of images as for `encode_image`."""
        return encode_image_tokens(self.vision, self._checked(images))

    def _with_term(self, images: Tensor, term: Insert | None) -> Tensor:
        """Add the pixels that were learned, if there are some, to images [B, 3, H, W]."""
        if term is None:
            return images
        if not isinstance(term, PixelTerm) or term.values.shape != images.shape[1:]:
            raise UserError(
                f"what is added to the image is {[list(tensor.shape) for tensor in term.tensors]}, but {self.name} "
                f"takes one of {list(images.shape[1:])}. Build the prompt for this backbone."
            )
        return images + term.values.to(images.dtype)

    def _checked(self, images: Tensor) -> Tensor:
        expected = (3, self.image_size, self.image_size)
        if images.dim() != 4 or images.shape[1:] != expected:
            raise UserError(
                f"the images are {list(images.shape)}, but {self.name} takes [B, {', '.join(map(str, expected))}]. "
                "Use the backbone's own preprocess."
            )
        return images.to(self.device, self.dtype)

    def compute_fingerprint(self) -> str:
        """Return the fingerprint of the weights as they are now, to compare with `fingerprint`."""
        return fingerprint(self.model)


def refuse_other_kinds(name: str, inserts: Mapping[Site, Insert]) -> None:
    """Refuse what is learned, weights aside, where a model of that name would read something else or nothing."""
    for site, insert in inserts.items():
        if site.is_named or (site.part in ("", "normed") and not isinstance(insert, Vectors)):
            takes = "a weight" if site.is_named else "vectors"
            raise UserError(
                f"what is learned at {site} is a {type(insert).__name__}, but {name} takes {takes} there. "
                "Learn it at a site of its kind."
            )


def _of_tower(tower: Tower, inserts: Mapping[Site, Insert] | None) -> dict[Site, Insert]:
    """Select the inserts of one tower."""
    return {site: insert for site, insert in (inserts or {}).items() if site.tower == tower}

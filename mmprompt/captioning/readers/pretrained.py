"""What the readers of transformers' captioners share: complete weights, a tokenizer of captions, start and end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer

from mmprompt.captioning.readers.captioner import CaptionTokenizer
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.transformers_clip import hub_options, load_complete, read_pixels
from mmprompt.models.frozen import LoadOptions, PixelTransform, freeze

MARKS = (".", ",", "!", "?", ":", ";")


def load_frozen(model_class: Any, source: str, options: LoadOptions, unread: str | None = None) -> Any:
    """A frozen model of one class, or of one of transformers' auto classes; the arguments are `load_complete`'s.

    Raises:
        UserError: its files lack some of its weights.
    """
    model = load_complete(model_class, source, options, unread)
    freeze(model, options)
    return model


def load_tokenizer(source: str, options: LoadOptions) -> Any:
    """The model's own tokenizer."""
    return AutoTokenizer.from_pretrained(source, **hub_options(options))


def load_pixels(source: str, size: int, options: LoadOptions) -> PixelTransform:
    """The model's own test transform, to squares of `size` pixels."""
    return read_pixels(AutoImageProcessor.from_pretrained(source, **hub_options(options)), size)


def caption_tokenizer(tokenizer: Any) -> CaptionTokenizer:
    """A transformers tokenizer, reduced to captions."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(ids: Sequence[int]) -> str:
        return tidy(tokenizer.decode(list(ids), skip_special_tokens=True))

    return CaptionTokenizer(encode, decode)


def tidy(text: str) -> str:
    """A caption without the blanks that some tokenizers put before punctuation."""
    for mark in MARKS:
        text = text.replace(f" {mark}", mark)
    return " ".join(text.split())


def first_id(name: str, what: str, *values: int | Sequence[int] | None) -> int:
    """The first token that is known, for models that name several, or name them in several places.

    Raises:
        UserError: none is.
    """
    for value in values:
        if isinstance(value, int):
            return value
        if value:
            return value[0]
    raise UserError(
        f"{name} names no {what} token in its configuration, but captions need one. "
        f"Write its id into generation_config.json or config.json."
    )

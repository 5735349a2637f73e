"""What the readers of transformers' captioners share: complete weights, a tokenizer of captions, start and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer

from mmprompt.captioning.readers.captioner import CaptionTokenizer, FrozenCaptioner, TextDecoder
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.transformers_clip import hub_options, load_complete, read_pixels
from mmprompt.models.frozen import LoadOptions, freeze

MARKS = (".", ",", "!", "?", ":", ";")


def load_frozen(model_class: Any, source: str, options: LoadOptions, unread: str | None = None) -> Any:
    """Load a frozen model of one class, or of one of transformers' auto classes; the arguments are `load_complete`'s.

    Raises:
        UserError: its files lack some of its weights.
    """
    model = load_complete(model_class, source, options, unread)
    freeze(model, options)
    return model


def build_captioner(
    name: str,
    source: str,
    options: LoadOptions,
    model: Any,
    encode: Callable[[Tensor], Tensor],
    decoder: TextDecoder,
    size: int,
) -> FrozenCaptioner:
    """Make a captioner of a model's parts with its own tokenizer and its own test transform.

    Args:
        name: what the captioner calls itself.
        source: a folder, or a name on the hub.
        options: device, dtype, cache folder, and whether remote code may run.
        model: of `load_frozen`.
        encode: pixels [B, 3, H, H] to image features [B, T, D'].
        decoder: of the model.
        size: H of the pixels.
    """
    tokenizer = caption_tokenizer(AutoTokenizer.from_pretrained(source, **hub_options(options)))
    pixels = read_pixels(AutoImageProcessor.from_pretrained(source, **hub_options(options)), size)
    return FrozenCaptioner(name, model, encode, decoder, tokenizer, pixels)


def caption_tokenizer(tokenizer: Any) -> CaptionTokenizer:
    """Reduce a transformers tokenizer to captions."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(ids: Sequence[int]) -> str:
        return tidy(tokenizer.decode(list(ids), skip_special_tokens=True))

    return CaptionTokenizer(encode, decode)


def tidy(text: str) -> str:
    """Return a caption without the spaces that some tokenizers put before punctuation."""
    for mark in MARKS:
        text = text.replace(f" {mark}", mark)
    return " ".join(text.split())


def first_id(name: str, what: str, *values: int | Sequence[int] | None) -> int:
    """Return the first token that is known, for models that name several, or name them in several places.

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

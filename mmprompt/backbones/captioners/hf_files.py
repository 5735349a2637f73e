"""What every transformers captioner reads from its folder alike: weights that are all there, and a tokenizer reduced
to captions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from mmprompt.backbones.captioners.captioner import CaptionTokenizer
from mmprompt.backbones.dual_encoder import LoadOptions, freeze
from mmprompt.backbones.transformers_clip import no_progress_bar
from mmprompt.errors import UserError


def read_model(kind: Any, source: str, options: LoadOptions) -> Any:
    """Load a model with transformers' own function and freeze it.

    Args:
        kind: a model class, or one of transformers' Auto classes.
        source: a folder, or a name on the hub.
        options: device, dtype, cache folder, and whether remote code may run.
    Raises:
        UserError: its files lack some of its weights.
    """
    with no_progress_bar():
        model, report = kind.from_pretrained(
            source,
            cache_dir=options.cache_dir,
            trust_remote_code=options.trust_remote_code,
            dtype=torch.float32,
            output_loading_info=True,
        )
    if report["missing_keys"]:
        raise UserError(
            f"{source} lacks {len(report['missing_keys'])} weights of its model, {min(report['missing_keys'])!r} among "
            "them, but all were expected. Get the complete checkpoint."
        )
    freeze(model, options)
    return model


def read_captions(tokenizer: Any, before: str = "") -> CaptionTokenizer:
    """A transformers tokenizer for captions.

    Args:
        tokenizer: the library's own.
        before: what stands before a caption. Tokenizers cut a word by what precedes it, so the caption is encoded
            behind it.
    """
    n_before = len(tokenizer(before, add_special_tokens=False)["input_ids"])

    def encode(caption: str) -> list[int]:
        return tokenizer(before + caption, add_special_tokens=False)["input_ids"][n_before:]

    decode = partial(tokenizer.decode, skip_special_tokens=True)
    return CaptionTokenizer(encode, lambda token_ids: decode(list(token_ids)).strip())

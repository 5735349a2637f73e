"""Reads open_clip's CoCa: a causal text tower, then a decoder that reads its slots and, by cross-attention, the image.

The library has no cache and its `generate` cannot run, so both towers are run block by block with the keys and values
of what was read. The slot that the text tower appends for its contrastive feature is seen by no word and left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer
from torch import Tensor

from mmprompt.captioning.readers.captioner import CaptionTokenizer, FrozenCaptioner, TextDecoder, tidy
from mmprompt.errors import UserError
from mmprompt.models.decoder.kv_cache import KVCache, causal_mask
from mmprompt.models.dual_encoder.open_clip import (
    create_frozen,
    is_known,
    read_block,
    read_pixels,
    read_tokenizer,
    unknown_part,
)
from mmprompt.models.frozen import LoadOptions


def load_coca(name: str, architecture: str, weights: str | None, options: LoadOptions) -> FrozenCaptioner:
    """Load a CoCa with open_clip's own functions; a prompt stands after its start token."""
    model, preprocess = create_frozen(architecture, weights, options)
    if not isinstance(model, open_clip.CoCa):
        raise UserError(
            f"{name} is a {type(model).__name__} without a text decoder, but a CoCa was expected. "
            f"Use an architecture named coca_..., or '{name} + hf:gpt2'."
        )
    if not getattr(model.visual, "output_tokens", False):
        raise unknown_part(model.visual, "an image tower that gives its tokens")
    words = read_tokenizer(architecture, options)
    frame = words.frame()
    if frame.start_id is None:
        raise unknown_part(words, "a tokenizer with a start token")

    def decode(ids: Sequence[int]) -> str:
        return tidy(words.text_of([token for token in ids if token not in (frame.start_id, frame.end_id)]))

    return FrozenCaptioner(
        name=name,
        model=model,
        encode=lambda images: model.visual(images)[1],
        decoder=_CocaDecoder(model, frame.start_id, frame.end_id),
        tokenizer=CaptionTokenizer(lambda text: words.words(text, frame), decode),
        pixels=read_pixels(model, preprocess),
    )


class _CocaDecoder(TextDecoder):
    """Both text towers of a CoCa, whose parts must be known; the two ids are the tokens around a caption."""

    def __init__(self, model: open_clip.CoCa, start_id: int, end_id: int) -> None:
        self.text, self.decoder = model.text, model.text_decoder
        if type(self.text) is not TextTransformer or self.text.attn_mask is None:
            raise unknown_part(self.text, "open_clip's own causal text tower")
        blocks = [*self.text.transformer.resblocks, *self.decoder.resblocks]
        for block in blocks:
            if not is_known(block):
                raise unknown_part(block, "an ordinary block")
        self.n_text = len(self.text.transformer.resblocks)
        self.blocks = tuple(read_block(block) for block in blocks)
        self.crossed_blocks = tuple(read_block(block) for block in self.decoder.cross_attn)
        self.key_norms = tuple(block.ln_1_kv for block in self.decoder.cross_attn)
        self.vocabulary_size, self.width = self.text.token_embedding.weight.shape
        self.start_ids, self.end_id = (start_id,), end_id
        self.budget = self.text.context_length - 1
        heads = {block.n_heads for block in self.blocks}
        # The keys and values of all blocks are one tensor shape only where both towers have the same heads.
        n_heads = heads.pop()
        self.kv_shape = None if heads else (len(blocks), n_heads, self.width // n_heads)

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.text.token_embedding(token_ids)

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Compute the keys and values of the image in every cross-attention."""
        crossed = []
        for block, norm in zip(self.crossed_blocks, self.key_norms, strict=True):
            key, value = (block.split_heads(part) for part in block.key_value(norm(features)))
            crossed.append((key, value))
        return KVCache(states=features, crossed=tuple(crossed))

    def run(self, kv_cache: KVCache, x: Tensor, /) -> tuple[Tensor, KVCache]:
        n_read = kv_cache.n_read + x.shape[1]
        x = x + self.text.positional_embedding[kv_cache.n_read : n_read]
        mask = causal_mask(kv_cache.n_read, x)
        own: list[tuple[Tensor, Tensor]] = []
        for layer, block in enumerate(self.blocks):
            query, key, value = (block.split_heads(part) for part in block.in_proj(block.norm1(x)))
            if kv_cache.own:
                pairs = zip(kv_cache.own[layer], (key, value), strict=True)
                key, value = (torch.cat([old, new], dim=2) for old, new in pairs)
            own.append((key, value))
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            x = block.finish(x, block.join_heads(attended))
            if layer >= self.n_text:
                crossing, image = self.crossed_blocks[layer - self.n_text], kv_cache.crossed[layer - self.n_text]
                query = crossing.split_heads(crossing.query(crossing.norm1(x)))
                x = crossing.finish(x, crossing.join_heads(F.scaled_dot_product_attention(query, *image)))
        return x, KVCache(tuple(own), kv_cache.states, kv_cache.crossed, n_read)

    def head(self, hidden: Tensor) -> Tensor:
        return self.decoder.ln_final(hidden) @ self.decoder.text_projection

"""The blocks of a Llama-like decoder over the slots that are there, in the last block over those that are asked for.

Rows of different lengths are padded in the attention alone: all products with weights see one flat list of slots. The
model's own layers and weights are used, in its own order; `CausalReader` takes this way only where it was seen to give
the model's own numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprompt.models.decoder.kv_cache import KVCache, causal_mask
from mmprompt.models.decoder.packing import Packed

PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling")


class FlatBlocks:
    """The body of a Llama, Qwen2, Qwen3 or Mistral, or of what is built like them.

    Args:
        body: transformers' model without its head.
    """

    def __init__(self, body: Any) -> None:
        self.body = body

    @staticmethod
    def fits(body: Any) -> bool:
        """Whether a model has the parts that are run here, and nobody listens at its blocks, which are not called."""
        layers = getattr(body, "layers", None)
        if not layers or not hasattr(body, "rotary_emb") or not hasattr(body, "norm"):
            return False
        if any(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer) for layer in layers):
            return False
        has_parts = all(hasattr(layers[0], part) for part in PARTS)
        return has_parts and all(hasattr(layers[0].self_attn, part) for part in PROJECTIONS)

    def read(self, memory: KVCache, packed: Packed, x: Tensor, mask: Tensor | None) -> Tensor:
        """The hidden states [S, D] after the slots that something is predicted after.

        Args:
            memory: what was read before, of the same rows.
            packed: the questions in rows; T slots are there.
            x: [T, D] embeddings of these slots.
            mask: [N, 1, L, n_before + L], to be added to scores; None where all see all before them.
        """
        n_rows, length = packed.slots.shape
        cos, sin = self.body.rotary_emb(x, packed.places.flatten()[packed.used][None])
        angles = (cos[0, :, None], sin[0, :, None])  # [T, 1, D/H]
        order = packed.read.argsort()
        read = packed.read[order]  # in the order of the rows, like the slots that are there
        asked = torch.searchsorted(packed.used, read)
        n_before = memory.own[0][0].shape[2] if memory.own else 0
        if mask is None:
            mask = causal_mask(n_before, packed.slots.to(x.dtype))
        layers = self.body.layers
        for number, layer in enumerate(layers):
            attention, is_last = layer.self_attn, number == len(layers) - 1
            h = norm(layer.input_layernorm, x)
            key, value = heads(attention, "k", h, angles), heads(attention, "v", h, None)
            pair = [rows_of(part, packed.used, n_rows, length) for part in (key, value)]
            if memory.own:
                pair = [torch.cat([old, new], 2) for old, new in zip(memory.own[number], pair, strict=True)]
            where = packed.used
            if is_last:  # only what is asked for
                x, h, where = x[asked], h[asked], read
                angles = (angles[0][asked], angles[1][asked])
            query = rows_of(heads(attention, "q", h, angles), where, n_rows, length)
            groups = query.shape[1] // pair[0].shape[1]
            key, value = (part.repeat_interleave(groups, 1) if groups > 1 else part for part in pair)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attention.scaling)
            x = x + attention.o_proj(mixed.transpose(1, 2).flatten(0, 1).flatten(-2).index_select(0, where))
            x = x + layer.mlp(norm(layer.post_attention_layernorm, x))
        return norm(self.body.norm, x)[order.argsort()]


def norm(module: Any, x: Tensor) -> Tensor:
    """A root-mean-square norm; in one piece where that rounds as the model's own does."""
    if x.dtype is not torch.float32:
        return module(x)
    return F.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)


def heads(attention: Any, name: str, h: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    """Queries, keys or values [T, H, D/H] of normed slots [T, D], turned by their positions' angles."""
    x = getattr(attention, f"{name}_proj")(h).unflatten(-1, (-1, attention.head_dim))
    if angles is None:
        return x
    own_norm = getattr(attention, f"{name}_norm", None)
    x = x if own_norm is None else norm(own_norm, x)
    half = x.shape[-1] // 2
    cos, sin = angles
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def rows_of(x: Tensor, where: Tensor, n_rows: int, length: int) -> Tensor:
    """Slots [T, H, D/H] at their places in rows, zeros elsewhere: [N, H, L, D/H]."""
    if len(where) < n_rows * length:
        x = x.new_zeros(n_rows * length, *x.shape[1:]).index_copy(0, where, x)
    return x.unflatten(0, (n_rows, length)).transpose(1, 2)

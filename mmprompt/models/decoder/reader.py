"""A causal language model that is read piece by piece: its keys and values are kept as plain tensors.

It is never patched: embeddings, positions and, where several texts share a row, a mask are built here and handed to the
model's own forward. A decoder built like a Llama has its own layers run over the slots that are there alone, where that
was seen to give the model's own numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprompt.errors import UserError
from mmprompt.models.decoder.kv_cache import KeyValues, KVCache, cache_argument, causal_mask, from_cache, to_cache
from mmprompt.models.decoder.packing import Packed, Question, pack
from mmprompt.models.sites import Vectors

UNLIMITED = 1024
"""Slots of a model whose positions have no end."""
FULL = ("full_attention", "global")
"""What transformers calls blocks that see all slots."""
LAYER_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
ATTENTION_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling")
NOT_READ = (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError)
"""What a model raises that cannot be read in some way."""


class TokenReader:
    """What all readers of a language model share: the embeddings of its tokens, V of them and D wide."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        # OPT's embeddings can be narrower than its blocks: the width of a prompt is theirs, that of keys the blocks'.
        self.vocabulary_size, self.width = lm.get_input_embeddings().weight.shape

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return token embeddings [..., D], as the model scales them."""
        return self.lm.get_input_embeddings()(token_ids)

    def embed_slots(self, slots: Tensor, soft: Vectors | None) -> Tensor:
        """Return token embeddings [N, L, D] with vectors of a prompt where slots are negative; see `embed_slots`."""
        return embed_slots(self.embed(slots.clamp(min=0)), slots, soft)


class CausalReader(TokenReader):
    """transformers' causal language model.

    Args:
        lm: any `...ForCausalLM`.

    Attributes:
        width: D of token embeddings, and of vectors at `lm.input`.
        vocabulary_size: V.
        n_positions: slots that it has positions for.
        takes_places: whether it is told the position of each slot; others count slots, or what the mask does not hide.
        kv_shape: blocks, key/value heads and width of a head; None where blocks differ.
        packs: whether several texts can share a row.
    Raises:
        UserError: reading slot by slot does not give the model's own logits: it keeps other states than keys and
            values, makes its logits otherwise, or takes embeddings of tokens alone.
    """

    def __init__(self, lm: Any) -> None:
        super().__init__(lm)
        config, self.body = lm.config.get_text_config(), body_of(lm)
        most = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)  # MPT's name
        self.n_positions: int = most or UNLIMITED
        self._bound = getattr(config, "final_logit_softcapping", None)
        # Cohere multiplies its logits, Granite divides them.
        self._scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        self.takes_places = "position_ids" in inspect.signature(self.body.forward).parameters
        # Three tokens of their own: with one again and again, neither a mask nor a place that is ignored would show.
        probe = (self.vocabulary_size // 4, self.vocabulary_size // 2, 3 * self.vocabulary_size // 4)
        self.kv_shape: tuple[int, int, int] | None = self._measure(probe)
        # A sliding window counts slots, which are other texts' where a row is shared.
        self._reads_flat = False
        self.packs = self.takes_places and window_of(config) == float("inf") and self._can_pack(probe)
        if self.packs and can_read_flat(self.body):
            self._reads_flat = True
            self._reads_flat = self._can_pack(probe)

    def run(
        self, cache: KVCache, x: Tensor, places: Tensor | None = None, visible: Tensor | None = None
    ) -> tuple[Tensor, KVCache]:
        """Read further slots after those of the cache: their hidden states [N, L, D''], and the cache with these slots.

        `x` are embeddings [N, L, D] without positions, which are `places` [N, L] or those that follow. `visible` [N, L,
        L] says which of the new slots each new slot sees, by default those up to itself. Cache and embeddings are left
        as they are.
        """
        n_read = cache.n_read + x.shape[1]
        if places is None:
            places = torch.arange(cache.n_read, n_read, device=x.device).expand(x.shape[0], -1)
        own = to_cache(cache.own)
        inputs = {"position_ids": places} if self.takes_places else {}
        if visible is not None:
            inputs["attention_mask"] = additive(visible, cache.n_read, x.dtype)
        out = self.body(inputs_embeds=x, use_cache=True, **inputs, **cache_argument(self.body, own))
        return out.last_hidden_state.to(x.device), KVCache(from_cache(own), n_read=n_read)

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states [..., D''] into logits [..., V]."""
        return self.bounded(self.lm.get_output_embeddings()(hidden).to(hidden.device))

    def head_of(self, words: Tensor, hidden: Tensor) -> Tensor:
        """Turn hidden states [..., D''] into the logits [..., W] of some tokens [W] alone: those rows of the head."""
        head = self.lm.get_output_embeddings()
        is_plain = type(head.weight.data) is Tensor and head.weight.is_floating_point() and not is_heard(head)
        if not is_plain or head.weight.device != hidden.device:  # quantised, changed, or elsewhere until it is read
            return self.head(hidden).index_select(-1, words)
        bias = getattr(head, "bias", None)
        return self.bounded(F.linear(hidden, head.weight[words], None if bias is None else bias[words]))

    def bounded(self, logits: Tensor) -> Tensor:
        """Scale and bound logits as Cohere, Granite and Gemma do, where the model does."""
        logits = logits if self._scale == 1.0 else logits * self._scale
        return logits if self._bound is None else torch.tanh(logits / self._bound) * self._bound

    @torch.no_grad()
    def keys_values_of(self, x: Tensor) -> KeyValues:
        """Return the keys and values [1, H, M, D/H] of each block, of embeddings [M, D] at the beginning of a text."""
        return self.run(KVCache(), x[None])[1].own

    def read(self, cache: KVCache, packed: Packed, soft: Vectors | None) -> Tensor:
        """Return the hidden states [S, D''] that questions in rows are answered from; the cache is of the same rows."""
        is_shared = soft is None or soft.scope == "shared"
        if self._reads_flat and is_shared and not any(map(is_heard, skipped_by_flat(self.body))):
            x = self.embed_slots(packed.slots.flatten()[packed.used][None], soft)[0]
            return read_flat(self.body, cache, packed, x)
        # the model's own forward, over all slots of all rows
        hidden, _ = self.run(cache, self.embed_slots(packed.slots, soft), packed.places, packed.visible)
        return hidden.flatten(0, 1).index_select(0, packed.read)

    @torch.no_grad()
    def _measure(self, probe: tuple[int, ...]) -> tuple[int, int, int] | None:
        """Measure the shape of keys and values, once reading slot by slot is seen to give the model's own logits."""
        tokens = self.embed(torch.tensor([probe], device=device_of(self.lm)))
        x = (tokens + tokens.roll(1, 1)) / 2  # no token's: some models look up which token an embedding is
        try:
            expected = self.lm(inputs_embeds=x, use_cache=False).logits
            first, cache = self.run(KVCache(), x[:, :2])
            second, cache = self.run(cache, x[:, 2:])
            is_same = close(self.head(torch.cat([first, second], dim=1)), expected)
        except NOT_READ:
            is_same = False
        if not is_same:
            raise UserError(
                f"the language model, a {type(self.lm).__name__}, read slot by slot does not give its own logits, "
                "but a decoder with keys and values was expected. Use a model such as hf:gpt2, or of the OPT or Llama "
                "families."
            )
        shapes = {(len(cache.own), part.shape[1], part.shape[3]) for pair in cache.own for part in pair}
        return shapes.pop() if len(shapes) == 1 else None  # a prefix takes one shape for all blocks

    @torch.no_grad()
    def _can_pack(self, probe: tuple[int, ...]) -> bool:
        """Return whether texts that share a row are seen to read what they read alone, after what was read before."""
        first, last = probe[0], probe[-1]
        _, cache = self.run(KVCache(), self.embed(torch.tensor([[first, last]], device=device_of(self.lm))))
        questions = [Question((last, first), ((last, last), (first,))), Question((first,), ((last, first),))]

        alone = []  # the hidden states before the tokens of each answer, each answer read in a row of its own
        for question in questions:
            for answer in question.answers:
                ids = torch.tensor([[*question.slots, *answer[:-1]]], device=device_of(self.lm))
                alone.append(self.run(cache, self.embed(ids))[0][0, len(question.slots) - 1 :])
        try:
            packed = pack(questions, [[0, 1]], cache.n_read, device_of(self.lm))
            return close(self.read(cache, packed, None).index_select(0, packed.at), torch.cat(alone))
        except NOT_READ:
            return False


def body_of(lm: Any) -> Any:
    """Return a model without its head; of some classes, such as Llama 4's, `base_model` is the whole."""
    return lm.model if lm.base_model is lm else lm.base_model


def device_of(lm: Any) -> torch.device:
    """Return where a model takes its input, also where accelerate keeps its weights elsewhere until they are read."""
    table = lm.get_input_embeddings()
    return torch.device(table._hf_hook.execution_device) if table.weight.is_meta else table.weight.device


def can_read_flat(body: Any) -> bool:
    """Return whether a model has the parts that `read_flat` runs, and nobody listens at those that it skips."""
    layers = getattr(body, "layers", None)
    if not layers or not hasattr(body, "rotary_emb") or not hasattr(body, "norm"):
        return False
    has_parts = all(hasattr(layer, part) for layer in layers for part in LAYER_PARTS)
    if not has_parts or not all(hasattr(layer.self_attn, part) for layer in layers for part in ATTENTION_PARTS):
        return False
    return not any(map(is_heard, skipped_by_flat(body)))


def skipped_by_flat(body: Any) -> Iterator[nn.Module]:
    """Yield the parts of a model whose own forward `read_flat` does not run."""
    yield body
    for layer in body.layers:
        yield from (layer, layer.self_attn)


def is_heard(part: nn.Module) -> bool:
    """Return whether somebody listens at a part of a model, or has put something in place of its forward."""
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))


def read_flat(body: Any, cache: KVCache, packed: Packed, x: Tensor) -> Tensor:
    """Return the hidden states [S, D] after the slots that something is predicted after.

    Rows are padded in the attention alone: all products with weights see one flat list of the T slots that are there,
    with embeddings `x` [T, D], in the last block of those that are asked for. The body is a Llama, Qwen2, Qwen3 or
    Mistral without its head, or what is built like them.
    """
    n_rows, length = packed.slots.shape
    cos, sin = body.rotary_emb(x, packed.places.flatten()[packed.used][None])
    angles = (cos[0, :, None], sin[0, :, None])  # [T, 1, D/H]
    order = packed.read.argsort()
    read = packed.read[order]  # in the order of the rows, like the slots that are there
    asked = torch.searchsorted(packed.used, read)
    n_before = cache.own[0][0].shape[2] if cache.own else 0
    if packed.visible is None:
        mask = causal_mask(n_before, packed.slots.to(x.dtype))
    else:
        mask = additive(packed.visible, n_before, x.dtype)
    for number, layer in enumerate(body.layers):
        attention = layer.self_attn
        h = norm(layer.input_layernorm, x)
        key, value = heads(attention, "k", h, angles), heads(attention, "v", h, None)
        pair = [rows_of(part, packed.used, n_rows, length) for part in (key, value)]
        if cache.own:
            pair = [torch.cat([old, new], 2) for old, new in zip(cache.own[number], pair, strict=True)]
        where = packed.used
        if number == len(body.layers) - 1:  # only what is asked for
            x, h, where = x[asked], h[asked], read
            angles = (angles[0][asked], angles[1][asked])
        query = rows_of(heads(attention, "q", h, angles), where, n_rows, length)
        groups = query.shape[1] // pair[0].shape[1]
        key, value = (part.repeat_interleave(groups, 1) if groups > 1 else part for part in pair)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attention.scaling)
        x = x + attention.o_proj(mixed.transpose(1, 2).flatten(0, 1).flatten(-2).index_select(0, where))
        x = x + layer.mlp(norm(layer.post_attention_layernorm, x))
    return norm(body.norm, x)[order.argsort()]


def norm(module: Any, x: Tensor) -> Tensor:
    """Apply a root-mean-square norm, in one piece where that rounds as the model's own does and nobody listens."""
    if x.dtype is not torch.float32 or is_heard(module):
        return module(x)
    return F.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)


def heads(attention: Any, name: str, h: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    """Project normed slots [T, D] to queries, keys or values [T, H, D/H], turned by their positions' angles."""
    x = getattr(attention, f"{name}_proj")(h).unflatten(-1, (-1, attention.head_dim))
    if angles is None:
        return x
    own_norm = getattr(attention, f"{name}_norm", None)
    x = x if own_norm is None else norm(own_norm, x)
    half = x.shape[-1] // 2
    cos, sin = angles
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def rows_of(x: Tensor, where: Tensor, n_rows: int, length: int) -> Tensor:
    """Put slots [T, H, D/H] at their places in rows, zeros elsewhere: [N, H, L, D/H]."""
    if len(where) < n_rows * length:
        x = x.new_zeros(n_rows * length, *x.shape[1:]).index_copy(0, where, x)
    return x.unflatten(0, (n_rows, length)).transpose(1, 2)


def embed_slots(embedded: Tensor, slots: Tensor, soft: Vectors | None) -> Tensor:
    """Put vectors of a prompt among token embeddings [N, L, D], in the slots [N, L] of -1 - m the m-th.

    The vectors are of all rows [P, D], or of each row [N, P, D]; None where there are none.
    """
    is_soft = slots < 0
    if not bool(is_soft.any()):
        return embedded
    assert soft is not None, "slots are kept for vectors, but no vectors were given"
    which = -1 - slots[is_soft]
    values = soft.values[which] if soft.scope == "shared" else soft.values[is_soft.nonzero()[:, 0], which]
    return embedded.masked_scatter(is_soft[..., None], values.to(embedded.dtype))


def window_of(config: Any) -> float:
    """Return how many slots every block of a model sees at once; without end where no block has a window."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)  # the latter GPT-Neo's
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    size = next((size for size in sizes if size), None)
    has_window = size is not None if kinds is None else any(kind not in FULL for kind in kinds)
    return float(size or 0) if has_window else float("inf")


def additive(visible: Tensor, n_before: int, dtype: torch.dtype) -> Tensor:
    """Turn [N, L, L] bool into the mask [N, 1, L, n_before + L] added to scores; all see what was read before."""
    mask = torch.zeros((*visible.shape[:2], n_before + visible.shape[2]), dtype=dtype, device=visible.device)
    mask[:, :, n_before:].masked_fill_(~visible, torch.finfo(dtype).min)
    return mask[:, None]


def close(found: Tensor, expected: Tensor) -> bool:
    """Return whether two are equal up to what the order of sums changes in their dtype."""
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(found.dtype, 3e-2)
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def close_as(dtype: torch.dtype, found: Tensor, expected: Tensor) -> bool:
    """Return the same of the logits that `generate` gives, in float32, of a model that computes in `dtype`."""
    dtype = torch.float32 if dtype is torch.float64 else dtype
    return close(found.to(dtype), expected.to(dtype))

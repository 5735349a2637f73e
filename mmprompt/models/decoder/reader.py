"""A causal language model that is read piece by piece: its keys and values are kept as plain tensors.

It is never patched: embeddings, positions and, where several texts share a row, a mask are built here and handed to
the model's own forward.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprompt.errors import UserError
from mmprompt.models.decoder.flat import FlatBlocks
from mmprompt.models.decoder.hf_cache import cache_argument, from_cache, to_cache
from mmprompt.models.decoder.kv_cache import KeyValues, KVCache
from mmprompt.models.decoder.packing import Packed, Question, pack
from mmprompt.models.sites import Vectors

UNLIMITED = 1024
"""Slots of a model whose positions have no end."""
FULL = ("full_attention", "global")
"""What transformers calls blocks that see all slots."""


class CausalReader:
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
        UserError: the model scales its logits, keeps no keys and values, or takes embeddings of tokens alone.
    """

    def __init__(self, lm: Any) -> None:
        config = lm.config.get_text_config()
        self.lm = lm
        # OPT's embeddings can be narrower than its blocks: the width of a prompt is theirs, that of keys the blocks'.
        self.vocabulary_size, self.width = lm.get_input_embeddings().weight.shape
        most = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)  # MPT's name
        self.n_positions: int = most or UNLIMITED
        self._bound = getattr(config, "final_logit_softcapping", None)
        self.takes_places = "position_ids" in inspect.signature(lm.base_model.forward).parameters
        # Three tokens of their own: with one again and again, neither a mask nor a place that is ignored would show.
        probe = (self.vocabulary_size // 4, self.vocabulary_size // 2, 3 * self.vocabulary_size // 4)
        self.kv_shape: tuple[int, int, int] | None = self._measure(probe)
        # A sliding window counts slots, which are other texts' where a row is shared.
        self._flat: FlatBlocks | None = None
        self.packs = self.takes_places and window_of(config) == float("inf") and self._can_pack(probe)
        if self.packs and FlatBlocks.fits(lm.base_model):
            self._flat = FlatBlocks(lm.base_model)
            self._flat = self._flat if self._can_pack(probe) else None

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token embeddings [..., D], as the model scales them."""
        return self.lm.get_input_embeddings()(token_ids)

    def embed_slots(self, slots: Tensor, soft: Vectors | None) -> Tensor:
        """Token embeddings [N, L, D] with vectors of a prompt where slots are negative; see `embed_slots` below."""
        return embed_slots(self.embed(slots.clamp(min=0)), slots, soft)

    def run(
        self, memory: KVCache, x: Tensor, places: Tensor | None = None, visible: Tensor | None = None
    ) -> tuple[Tensor, KVCache]:
        """Read further slots.

        Args:
            memory: what was read before; left as it is.
            x: [N, L, D] embeddings without positions; left as they are.
            places: [N, L] int64 positions; those that follow by default.
            visible: [N, L, L] bool, which of the new slots each new slot sees; those up to itself by default.
        Returns:
            [N, L, D''] hidden states, and the memory with these slots.
        """
        if places is None:
            places = torch.arange(memory.n_read, memory.n_read + x.shape[1], device=x.device).expand(x.shape[0], -1)
        cache = to_cache(memory.own)
        more = {"position_ids": places} if self.takes_places else {}
        if visible is not None:
            more["attention_mask"] = additive(visible, memory.n_read, x.dtype)
        out = self.lm.base_model(inputs_embeds=x, use_cache=True, **more, **cache_argument(self.lm.base_model, cache))
        return out.last_hidden_state, KVCache(from_cache(cache), n_read=memory.n_read + x.shape[1])

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D''] to logits [..., V]."""
        return self.cap(self.lm.get_output_embeddings()(hidden))

    def head_of(self, words: Tensor, hidden: Tensor) -> Tensor:
        """Hidden states [..., D''] to the logits [..., W] of some tokens [W] alone: those rows of the head."""
        head = self.lm.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return self.cap(F.linear(hidden, head.weight[words], None if bias is None else bias[words]))

    def cap(self, logits: Tensor) -> Tensor:
        """Logits bounded as Gemma bounds them, where the model does."""
        bound = self._bound
        return logits if bound is None else torch.tanh(logits / bound) * bound

    @torch.no_grad()
    def keys_values_of(self, x: Tensor) -> KeyValues:
        """The keys and values [1, H, M, D/H] of each block, of embeddings [M, D] at the beginning of a text."""
        return self.run(KVCache(), x[None])[1].own

    def read(self, memory: KVCache, packed: Packed, soft: Vectors | None) -> Tensor:
        """The hidden states [S, D''] that questions are answered from.

        Args:
            memory: of the same rows.
            packed: the questions in rows.
            soft: as in `embed_slots`.
        """
        if self._flat is None or (soft is not None and soft.scope != "shared"):
            # the model's own forward, over all slots of all rows
            hidden, _ = self.run(memory, self.embed_slots(packed.slots, soft), packed.places, packed.visible)
            return hidden.flatten(0, 1).index_select(0, packed.read)
        x = self.embed_slots(packed.slots.flatten()[packed.used][None], soft)[0]
        n_before = memory.own[0][0].shape[2] if memory.own else 0
        mask = None if packed.visible is None else additive(packed.visible, n_before, x.dtype)
        return self._flat.read(memory, packed, x, mask)

    @torch.no_grad()
    def _measure(self, probe: tuple[int, ...]) -> tuple[int, int, int] | None:
        """The shape of keys and values, once reading slot by slot is seen to give the model's own logits."""
        tokens = self.embed(torch.tensor([probe], device=self.lm.device))
        x = (tokens + tokens.roll(1, 1)) / 2  # no token's: some models look up which token an embedding is
        try:
            expected = self.lm(inputs_embeds=x, use_cache=False).logits
            first, memory = self.run(KVCache(), x[:, :2])
            second, memory = self.run(memory, x[:, 2:])
            is_same = close(self.head(torch.cat([first, second], dim=1)), expected)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError):
            is_same = False
        if not is_same:
            raise UserError(
                f"the language model, a {type(self.lm).__name__}, cannot be read slot by slot, but a decoder with keys "
                "and values was expected. Use a model such as hf:gpt2, or of the OPT or Llama families."
            )
        shapes = {(len(memory.own), part.shape[1], part.shape[3]) for pair in memory.own for part in pair}
        return shapes.pop() if len(shapes) == 1 else None  # mode kv takes one shape for all blocks

    @torch.no_grad()
    def _can_pack(self, probe: tuple[int, ...]) -> bool:
        """Whether texts that share a row are seen to read what they read alone, after something that was read."""
        first, last = probe[0], probe[-1]
        _, memory = self.run(KVCache(), self.embed(torch.tensor([[first, last]], device=self.lm.device)))
        questions = [Question((last, first), ((last, last), (first,))), Question((first,), ((last, first),))]

        alone = []  # the hidden states before the tokens of each answer, each answer read in a row of its own
        for question in questions:
            for answer in question.answers:
                ids = torch.tensor([[*question.slots, *answer[:-1]]], device=self.lm.device)
                alone.append(self.run(memory, self.embed(ids))[0][0, len(question.slots) - 1 :])
        try:
            packed = pack(questions, [[0, 1]], memory.n_read, self.lm.device)
            return close(self.read(memory, packed, None).index_select(0, packed.at), torch.cat(alone))
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError):
            return False


def embed_slots(embedded: Tensor, slots: Tensor, soft: Vectors | None) -> Tensor:
    """Put vectors of a prompt among token embeddings.

    Args:
        embedded: [N, L, D], of any token where a vector stands.
        slots: [N, L] int64; the m-th vector is written as -1 - m.
        soft: vectors that all rows share [P, D], or of each row [N, P, D]; None where there are none.
    """
    is_soft = slots < 0
    if not bool(is_soft.any()):
        return embedded
    assert soft is not None, "slots are kept for vectors, but no vectors were given"
    which = -1 - slots[is_soft]
    values = soft.values[which] if soft.scope == "shared" else soft.values[is_soft.nonzero()[:, 0], which]
    return embedded.masked_scatter(is_soft[..., None], values.to(embedded.dtype))


def window_of(config: Any) -> float:
    """Slots that every block of a model sees at once; without end where no block has a window."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)  # the latter GPT-Neo's
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    size = next((size for size in sizes if size), None)
    has_window = size is not None if kinds is None else any(kind not in FULL for kind in kinds)
    return float(size or 0) if has_window else float("inf")


def additive(visible: Tensor, n_before: int, dtype: torch.dtype) -> Tensor:
    """[N, L, L] bool as the mask [N, 1, L, n_before + L] that transformers adds to scores; all see what was before."""
    mask = torch.zeros((*visible.shape[:2], n_before + visible.shape[2]), dtype=dtype, device=visible.device)
    mask[:, :, n_before:].masked_fill_(~visible, torch.finfo(dtype).min)
    return mask[:, None]


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to what the order of sums changes in their dtype."""
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(found.dtype, 3e-2)
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())

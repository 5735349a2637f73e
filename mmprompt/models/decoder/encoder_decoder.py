"""A language model with an encoder (T5, BART): its encoder reads prompt and text, its decoder the answers.

Soft vectors stand among the encoder's tokens, and since it reads in both directions nothing of it can be shared.
Learned keys and values come first in the decoder's self-attention, as PEFT has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from mmprompt.errors import UserError
from mmprompt.models.decoder.inserts import KvShape
from mmprompt.models.decoder.kv_cache import KeyValues, cache_argument, from_cache, map_parts, to_crossed_cache
from mmprompt.models.decoder.packing import Packed, Question
from mmprompt.models.decoder.reader import UNLIMITED, TokenReader, device_of, embed_slots
from mmprompt.models.sites import Vectors


class EncoderDecoderReader(TokenReader):
    """transformers' sequence-to-sequence model; attributes as for `CausalReader`, `kv_shape` is the decoder's.

    Args:
        lm: any `...ForConditionalGeneration` of text.
        behind: token ids that stand behind every text, such as T5's end token.
    """

    def __init__(self, lm: Any, behind: tuple[int, ...]) -> None:
        super().__init__(lm)
        self.behind = behind
        self.n_positions: int = getattr(lm.config, "max_position_embeddings", None) or UNLIMITED
        named = [
            (lm.generation_config, "decoder_start_token_id"),
            (lm.config, "decoder_start_token_id"),
            (lm.generation_config, "bos_token_id"),  # as transformers' own `generate` falls back, for T5Gemma
        ]
        start = next((found for place, key in named if (found := getattr(place, key, None)) is not None), None)
        if start is None:
            raise UserError(
                f"the {type(lm).__name__} names no start token of its decoder. "
                "Write decoder_start_token_id into its generation_config.json."
            )
        self.start_id: int = start
        self.kv_shape = self._measure()

    def encode(
        self, soft: Vectors | Sequence[Vectors | None] | None, texts: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Read prompts and texts: states [N, T, D], and [N, T] bool that is False where nothing stands.

        Args:
            soft: vectors that all texts share [P, D], or of each text [N, P, D]; a list of one for each text, whose P
                may differ; None where there are none.
            texts: slots as in `Question`.
        """
        whole = [[*text, *self.behind] for text in texts]
        length = max(map(len, whole))
        slots = torch.tensor([[*text, *[0] * (length - len(text))] for text in whole], device=device_of(self.lm))
        is_there = is_within(list(map(len, whole)), length, device_of(self.lm))
        x = self.embed(slots.clamp(min=0))
        if isinstance(soft, Sequence):
            rows = zip(x.split(1), slots.split(1), soft, strict=True)
            x = torch.cat([embed_slots(*row) for row in rows])
        else:
            x = embed_slots(x, slots, soft)
        return self.lm.get_encoder()(inputs_embeds=x, attention_mask=is_there.long()).last_hidden_state, is_there

    def answer(self, soft: Vectors | None, learned: KeyValues, questions: Sequence[Question]) -> tuple[Tensor, Packed]:
        """Return the logits [K, V] of all answers' tokens, and where each stands.

        `soft` is as in `encode`; `learned` are keys and values of the decoder's blocks, [1 or N, H, M, D/H], or ().
        """
        device = device_of(self.lm)
        states, is_there = self.encode(soft, [question.slots for question in questions])
        owner = torch.tensor([n for n, question in enumerate(questions) for _ in question.answers], device=device)
        answers = [answer for question in questions for answer in question.answers]
        length = max(map(len, answers))
        read = [[self.start_id, *answer[:-1], *[0] * (length - len(answer))] for answer in answers]
        out = self.lm(
            encoder_outputs=BaseModelOutput(last_hidden_state=states.index_select(0, owner)),
            attention_mask=is_there.index_select(0, owner).long(),
            decoder_input_ids=torch.tensor(read, device=device),
            use_cache=True,
            **cache_argument(self.lm, to_crossed_cache(rows_for(learned, owner), ())),
        )
        logits = out.logits[is_within(list(map(len, answers)), length, device)]
        at = torch.arange(len(logits), device=device)
        tokens = torch.tensor([token for answer in answers for token in answer], device=device)
        empty = at[:0]
        return logits, Packed(empty, empty, None, at, at, at, tokens, tuple(map(len, answers)))

    @torch.no_grad()
    def keys_values_of(self, x: Tensor) -> KeyValues:
        """Return keys and values [1, H, M, D/H] of the decoder's blocks, of embeddings [M, D] read by both halves."""
        cache = to_crossed_cache((), ())
        states = self.lm.get_encoder()(inputs_embeds=x[None]).last_hidden_state
        self.lm(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_inputs_embeds=x[None],
            use_cache=True,
            **cache_argument(self.lm, cache),
        )
        return from_cache(cache.self_attention_cache)

    def _measure(self) -> KvShape | None:
        """Measure the shape of the decoder's keys and values, from one token."""
        own = self.keys_values_of(self.embed(torch.tensor([self.start_id], device=device_of(self.lm))))
        shapes = {(len(own), part.shape[1], part.shape[3]) for pair in own for part in pair}
        return shapes.pop() if len(shapes) == 1 else None


def is_within(lengths: Sequence[int], most: int, device: torch.device) -> Tensor:
    """Return [N, most] bool that is True up to each row's length."""
    return torch.arange(most, device=device) < torch.tensor(lengths, device=device)[:, None]


def rows_for(learned: KeyValues, owner: Tensor) -> KeyValues:
    """Return the keys and values of each row: those of its question, or the same for all."""

    def rows(part: Tensor) -> Tensor:
        return part.expand(len(owner), -1, -1, -1) if part.shape[0] == 1 else part.index_select(0, owner)

    return map_parts(rows, learned)

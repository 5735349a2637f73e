"""A causal language model of which nothing can be shared between texts: each is read whole, by the model's own forward.

State-space models (Mamba, RWKV) and hybrids (Jamba, RecurrentGemma, LFM2) keep states that have seen all of a text.
Their numbers are the library's own; only what a decoder with keys and values saves is lost.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from mmprompt.errors import UserError
from mmprompt.models.decoder.kv_cache import KeyValues
from mmprompt.models.decoder.packing import Packed, Question
from mmprompt.models.decoder.reader import NOT_READ, UNLIMITED, TokenReader, close, close_as, device_of
from mmprompt.models.sites import Vectors


class WholeRowReader(TokenReader):
    """transformers' causal language model; attributes as for `CausalReader`, and no keys and values to insert.

    Args:
        lm: any `...ForCausalLM` that takes embeddings.

    Raises:
        UserError: it takes no vectors among its tokens, or what follows a slot changes what is predicted there.
    """

    packs = False
    takes_places = False  # rows of one length are read together, so nothing is padded in front
    kv_shape = None

    def __init__(self, lm: Any) -> None:
        super().__init__(lm)
        config = lm.config.get_text_config()
        self.n_positions: int = getattr(config, "max_position_embeddings", None) or UNLIMITED
        self._keeps = "logits_to_keep" in inspect.signature(lm.forward).parameters
        self._check()
        self._is_own: bool | None = None  # whether its own `generate` may be used, looked at when it is first asked

    def logits(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """Return the logits [N, L, V] after embeddings [N, L, D], or after some columns alone."""
        if columns is None:
            return self.lm(inputs_embeds=x, use_cache=False).logits
        if self._keeps:
            return self.lm(inputs_embeds=x, use_cache=False, logits_to_keep=columns).logits
        return self.logits(x).index_select(1, columns)

    def answer(self, soft: Vectors | None, learned: KeyValues, questions: Sequence[Question]) -> tuple[Tensor, Packed]:
        """Return the logits [S, V] that answers' tokens are predicted by, and where each stands; equal rows once.

        `soft` are vectors that all questions share [P, D], or those of each [N, P, D]; `learned` is ().
        """
        assert not learned, "none can be inserted, as `kv_shape` says"
        rows: dict[tuple[int, tuple[int, ...]], int] = {}
        tokens: list[int] = []
        before: list[tuple[int, int]] = []  # of each answer's token, row and column of the slot before it
        lengths: list[int] = []
        for owner, question in enumerate(questions):
            for answer in question.answers:
                row = rows.setdefault((owner, (*question.slots, *answer[:-1])), len(rows))
                asked = [(place, token) for place, token in enumerate(answer, len(question.slots) - 1) if token >= 0]
                before += [(row, place) for place, _ in asked]
                tokens += [token for _, token in asked]
                lengths.append(len(asked))
        length = max(len(slots) for _, slots in rows)
        # What stands behind a text changes nothing before it, so rows are filled up there.
        device = device_of(self.lm)
        slots = torch.tensor([[*slots, *[0] * (length - len(slots))] for _, slots in rows], device=device)
        if soft is not None and soft.scope != "shared":
            owners = torch.tensor([owner for owner, _ in rows], device=device)
            soft = Vectors(soft.values.index_select(0, owners), soft.scope)
        columns = sorted({column for _, column in before})
        kept = self.logits(self.embed_slots(slots, soft), torch.tensor(columns, device=device))
        numbers = {place: number for number, place in enumerate(dict.fromkeys(before))}
        read = torch.tensor([[row, columns.index(column)] for row, column in numbers], device=device)
        logits = kept[read[:, 0], read[:, 1]]
        empty = read[:0, 0]
        at = torch.tensor([numbers[place] for place in before], device=device)
        return logits, Packed(empty, empty, None, empty, empty, at, torch.tensor(tokens, device=device), tuple(lengths))

    @property
    def generator(self) -> Any:
        """What generates: the model itself, or `WholeRows` where it is seen to leave its own forward."""
        if self._is_own is None:
            self._is_own = self._generates_as_it_reads()
        return self.lm if self._is_own else WholeRows(self.lm)

    @torch.no_grad()
    def _probe(self) -> Tensor:
        """Return embeddings [1, 3, D] of no token."""
        size = self.vocabulary_size
        tokens = self.embed(torch.tensor([[size // 4, size // 2, 3 * size // 4]], device=device_of(self.lm)))
        return (tokens + tokens.roll(1, 1)) / 2

    @torch.no_grad()
    def _check(self) -> None:
        name, x = type(self.lm).__name__, self._probe()
        try:
            logits = self.logits(x)
            filled = self.logits(torch.cat([x, x[:, :1]], 1))[:, :3]
            is_heard = not torch.equal(self.logits(x.roll(1, 1))[:, -1], logits[:, -1])
        except NOT_READ as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"the language model, a {name}, reads no vectors in place of tokens ({reason}). "
                "Use a model such as hf:gpt2, or of the OPT or Llama families."
            ) from None
        if not is_heard or not close(filled, logits):
            problem = "looks ahead" if is_heard else "does not hear vectors among its tokens"
            raise UserError(
                f"the language model, a {name}, {problem}, but a causal language model was expected. "
                "Use a model such as hf:gpt2, or of the OPT or Llama families."
            )

    @torch.no_grad()
    def _generates_as_it_reads(self) -> bool:
        """Return whether the logits of the model's own `generate` are seen to be those of its forward."""
        x, n_new = self._probe(), 3
        x = torch.cat([x, x.roll(1, 1)])  # two rows, which RWKV's own decoding confuses
        try:
            found = self.lm.generate(
                inputs_embeds=x,
                attention_mask=torch.ones(x.shape[:2], dtype=torch.int64, device=x.device),
                max_new_tokens=n_new,
                min_new_tokens=n_new,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        except NOT_READ:
            return False
        whole = torch.cat([x, self.embed(found.sequences[:, -n_new:][:, :-1])], 1)
        expected = self.logits(whole)[:, -n_new:]
        return close_as(expected.dtype, torch.stack(found.logits, 1), expected)


class WholeRows(PreTrainedModel, GenerationMixin):
    """transformers' own searches over a model that reads each row again for each token, and keeps nothing.

    `generate` takes ids [N, L] that stand for the embeddings `start` [N, L, D], and returns them with what follows.
    """

    _is_stateful = False
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # whatever the model in it computes with

    def __init__(self, lm: Any) -> None:
        super().__init__(copy.deepcopy(lm.config))
        self.generation_config = lm.generation_config
        self._lm = [lm]  # in a list, so that its weights are no second time in a module

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self._lm[0])

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, start: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """Hand over what `forward` takes."""
        return {"input_ids": input_ids, "start": start}

    def generate(self, **given: Any) -> Any:
        """Search as transformers does, without a cache: some releases cannot count one of a model without attention."""
        return super().generate(**given | {"use_cache": False})

    def forward(self, input_ids: Tensor, start: Tensor, **_: Any) -> CausalLMOutput:
        """Read rows that begin with the embeddings `start`."""
        (lm,) = self._lm
        x = torch.cat([start, lm.get_input_embeddings()(input_ids[:, start.shape[1] :])], 1)
        return CausalLMOutput(logits=lm(inputs_embeds=x, use_cache=False).logits)

"""Prompts in words, many at a time: what a frozen language model predicts of the same rows after each of them.

What all prompts begin with is read once, the rest of each prompt once for all rows, and the rows are laid out once for
all prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmprompt.errors import UserError
from mmprompt.language.search.words import TokenIds, place_words
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.decoder.model import FrozenLanguageModel, Predicted, columns_of, shared_start
from mmprompt.models.decoder.packing import Packed, Question, pack, share_rows
from mmprompt.models.decoder.reader import CausalReader
from mmprompt.models.sites import Vectors

SLOTS_AT_ONCE = 2048
"""Slots that are read in one go; more are no faster, and their keys and values take memory."""


@torch.no_grad()
def predict_in_words(
    model: FrozenLanguageModel, prompts: Sequence[TokenIds], questions: Sequence[Question], words: Tensor | None = None
) -> list[Predicted]:
    """Predict, as `FrozenLanguageModel.predict`, for questions with each of some prompts in words.

    Args:
        model: the frozen model.
        prompts: C times P tokens, which take the places of the P soft vectors.
        questions: with soft slots.
        words: as in `predict`.
    Returns:
        of each prompt, for all questions.
    """
    reader = model.reader
    if not (isinstance(reader, CausalReader) and reader.packs):
        return [
            model.predict({}, [Question(place_words(one.slots, ids), one.answers) for one in questions], words)
            for ids in prompts
        ]
    n_start = len(shared_start(questions))
    rest = [Question(question.slots[n_start:], question.answers) for question in questions]
    packed = pack(rest, share_rows(rest), n_start, model.device)
    ids = torch.tensor(prompts, device=model.device)  # [C, P]
    start = torch.tensor(questions[0].slots[:n_start], dtype=torch.int64, device=model.device)
    starts = place_words_of_all(start, ids)  # [C, n_start]
    n_same = common_columns(starts)
    shared = model.read_shared({}, starts[0, :n_same].tolist())
    columns = packed.tokens if words is None else columns_of(packed.tokens, words)
    found: list[Predicted] = []
    at_once = max(1, SLOTS_AT_ONCE // (n_start - n_same + packed.slots.numel()))
    for some, rest_of_start in zip(ids.split(at_once), starts[:, n_same:].split(at_once), strict=True):
        hidden = _read(reader, shared, rest_of_start, packed, some)
        for one in hidden:  # [S, D''], for the head takes the most memory
            logits = reader.head(one) if words is None else reader.head_of(words, one)
            found.append(Predicted(logits, packed.at, columns, packed.lengths))
    return found


def place_words_of_all(slots: Tensor, ids: Tensor) -> Tensor:
    """Slots [...] with the tokens [C, P] of each prompt in the places of soft vectors: [C, ...]."""
    return torch.where(slots < 0, ids[:, (-1 - slots).clamp(min=0)], slots)


def common_columns(ids: Tensor) -> int:
    """With how many columns [C, L] all rows begin alike; all where there is but one row."""
    is_same = (ids == ids[:1]).all(0)
    return int(is_same.int().cumprod(0).sum())


def _read(reader: CausalReader, shared: KVCache, start: Tensor, packed: Packed, ids: Tensor) -> Tensor:
    """The hidden states [C, S, D''] that questions are answered from, after each of C prompts.

    Args:
        reader: of the model.
        shared: what all prompts begin with, as one row.
        start: [C, L] token ids that follow it.
        packed: the questions in R rows, with soft slots.
        ids: [C, P] tokens of the prompts.
    """
    n_prompts, n_rows = len(ids), len(packed.slots)
    memory = shared.repeat(n_prompts) if shared.own else shared
    if start.shape[1]:
        memory = reader.run(memory, reader.embed(start))[1]
    if n_rows > 1 and memory.own:
        memory = memory.select(torch.arange(n_prompts, device=ids.device).repeat_interleave(n_rows))
    slots = place_words_of_all(packed.slots, ids).flatten(0, 1)  # [C R, L]
    visible = None if packed.visible is None else packed.visible.repeat(n_prompts, 1, 1)
    hidden, _ = reader.run(memory, reader.embed(slots), packed.places.repeat(n_prompts, 1), visible)
    return hidden.unflatten(0, (n_prompts, n_rows)).flatten(1, 2).index_select(1, packed.read)


def prompt_log_probs(model: FrozenLanguageModel, slots: Sequence[int], soft: Tensor) -> tuple[Tensor, list[int]]:
    """Predict what the model itself would say in the places of a prompt, after all that stands before each of them.

    Args:
        model: the frozen model, decoder-only.
        slots: of a row, with soft slots; those behind the last soft one are not read.
        soft: [C, P, D] embeddings of C prompts.
    Returns:
        [C, Q, V] log-probabilities in the Q places that something stands before, and which of the P prompt tokens
        stands in each.
    Raises:
        UserError: an encoder reads the prompt, which predicts nothing.
    """
    if not isinstance(model.reader, CausalReader):
        raise UserError(
            f"{model.name} reads a prompt with its encoder, which does not say how probable words are. "
            "Leave `fluency` out."
        )
    last = max(place for place, slot in enumerate(slots) if slot < 0)
    places = [place for place in range(1, last + 1) if slots[place] < 0]
    if not places:
        return soft.new_zeros(len(soft), 0, model.vocabulary_size), []
    read = torch.tensor(slots[:last], device=model.device).expand(len(soft), -1)
    hidden, _ = model.reader.run(KVCache(), model.reader.embed_slots(read, Vectors(soft, "sample")))
    logits = model.reader.head(hidden[:, [place - 1 for place in places]])
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).log_softmax(-1), [-1 - slots[place] for place in places]

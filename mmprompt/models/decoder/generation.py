"""Generation by the model's own `generate`, which is never patched: a prompt that was read is handed over as its cache.

Prompts of different lengths stand in one batch behind padding that the mask hides; positions count what is not hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import StaticCache
from transformers.modeling_outputs import BaseModelOutput

from mmprompt.errors import UserError
from mmprompt.models.decoder.encoder_decoder import EncoderDecoderReader
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.inserts import keys_values
from mmprompt.models.decoder.kv_cache import (
    KeyValues,
    KVCache,
    cache_argument,
    concatenate,
    learned_cache,
    map_parts,
    to_cache,
    to_crossed_cache,
)
from mmprompt.models.decoder.model import FrozenLanguageModel, Inserts, SiteVectors
from mmprompt.models.decoder.reader import NOT_READ, CausalReader, close_as, window_of
from mmprompt.models.decoder.whole_rows import WholeRowReader, WholeRows
from mmprompt.models.sites import LM_INPUT, Vectors

BATCH = 32
"""Texts that are answered at once."""
STATIC_PROBE = 320
"""Slots of the buffers that a model is tried with; GPT-Neo's windows, behind which it is wrong, have 256."""
NO_STATIC = "Generate without a static cache."


@dataclass(frozen=True)
class Job:
    """One text to answer: a `cache` of one row that was read or learned, and the slots after it, as in `Question`.

    `soft` are shared vectors for negative slots, None where there are none.
    """

    cache: KVCache
    slots: tuple[int, ...]
    soft: Vectors | None = None


def job_of(model: FrozenLanguageModel, vectors: SiteVectors, slots: tuple[int, ...]) -> Job:
    """Make a job of slots that hold the prompt themselves, and its shared vectors as in `predict`."""
    return Job(learned_cache(keys_values(vectors, model.kv_shape, model.dtype)), slots, vectors.get(LM_INPUT))


@torch.no_grad()
def generate(
    model: FrozenLanguageModel,
    jobs: Sequence[Job],
    settings: Generation,
    streamer: Any = None,
    inserts: Inserts | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> list[tuple[int, ...]]:
    """Return the tokens of one answer to each text, without the end; one that is stopped ends with what stops it.

    The jobs are of any lengths, each with its own prompt; of the inserts those count, for all texts, that change the
    model's weights. `streamer` is transformers' own, for one text; `is_over` is asked after each token whether to end
    all answers as they are.
    """
    if settings.static_cache:
        check_static(model)
    answers: dict[int, tuple[int, ...]] = {}
    arguments = settings.arguments() | {"pad_token_id": model.pad_id, "eos_token_id": model.end_id}
    with seeded(model, settings), model.changed(inserts or {}):
        for rows in batches_of(model, jobs, settings.max_tokens):
            inputs, n_given = decoder_inputs(model, [jobs[row] for row in rows], settings)
            rules = search_rules(model, settings, n_given, is_over)
            tokens = model.generator.generate(**inputs, **arguments, **rules, use_cache=True, streamer=streamer)
            for row, ids in zip(rows, tokens[:, n_given:].tolist(), strict=True):
                ids = ids[: ids.index(model.end_id)] if model.end_id in ids else ids
                while settings.stop and ids and ids[-1] == model.pad_id:  # behind what stopped it
                    ids.pop()
                answers[row] = tuple(ids)
    return [answers[row] for row in range(len(jobs))]


@contextlib.contextmanager
def seeded(model: FrozenLanguageModel, settings: Generation) -> Iterator[None]:
    """Draw by the seed of the settings, and leave what others draw as it was; where nothing is drawn, touch nothing."""
    if settings.temperature is None:
        yield
        return
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(settings.seed)  # once, or equal texts in two batches would get equal samples
        yield


def search_rules(
    model: FrozenLanguageModel, settings: Generation, n_given: int, is_over: Callable[[], bool]
) -> dict[str, Any]:
    """Give what `generate` asks after each token; the answer alone counts, which begins at `n_given`."""
    rules: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([Stops(model, settings.stop, n_given, is_over)])}
    if settings.repetition_penalty != 1:
        penalty = RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty), prompt_ignore_length=n_given)
        rules["logits_processor"] = LogitsProcessorList([penalty])
    return rules


class Stops(StoppingCriteria):
    """Ends an answer that holds one of some texts, and every answer where `is_over` says so."""

    def __init__(
        self, model: FrozenLanguageModel, texts: Sequence[str], n_given: int, is_over: Callable[[], bool]
    ) -> None:
        self.decode = model.tokenizer.decode if texts else None
        self.texts, self.n_given, self.is_over = texts, n_given, is_over
        self.n_last = max((len(text.encode()) for text in texts), default=0) + 4  # a token holds a byte or more

    def __call__(self, input_ids: Tensor, scores: Tensor, **more: Any) -> Tensor:
        """Return [N] bool, which rows are at their end."""
        if self.is_over():
            return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if self.decode is None:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        last = [self.decode(ids[-self.n_last :]) for ids in input_ids[:, self.n_given :].tolist()]
        found = [any(text in piece for text in self.texts) for piece in last]
        return torch.tensor(found, device=input_ids.device)


def check_static(model: FrozenLanguageModel) -> None:
    """Refuse buffers of one size where a model has none, or is seen to predict something else with them.

    transformers' own GPT-Neo and Falcon with ALiBi do; it is looked at once for a model.
    """
    if not isinstance(model.reader, CausalReader):
        where = "in its encoder, and its decoder" if model.is_encoder_decoder else "whole, and"
        raise UserError(f"{model.name} reads texts {where} keeps no buffers of one size. {NO_STATIC}")
    if model.is_static_exact is None:
        model.is_static_exact = is_static_exact(model)
    if not model.is_static_exact:
        raise UserError(
            f"{model.name}, a {type(model.lm).__name__}, is wrong with buffers of one size in this transformers, as "
            f"its own forward shows. {NO_STATIC}"
        )


@torch.no_grad()
def is_static_exact(model: FrozenLanguageModel) -> bool:
    """Return whether buffers of one size, longer than most windows, are seen to change no logits."""
    n_new = 3
    settings = Generation(max_tokens=n_new, min_tokens=n_new)
    job = job_of(model, {}, (model.vocabulary_size // 4, model.vocabulary_size // 2))
    inputs, _ = decoder_inputs(model, [job], settings)
    more = {"pad_token_id": model.pad_id, "output_logits": True, "return_dict_in_generate": True}
    found = []
    for n_slots in (None, min(model.budget, STATIC_PROBE)):
        caches = {} if n_slots is None else cache_argument(model.lm, static_cache(model, (), n_slots))
        try:
            out = model.generator.generate(**inputs, **caches, **settings.arguments(), **more, use_cache=True)
        except NOT_READ:
            return False
        found.append(torch.stack(out.logits))
    return close_as(model.dtype, found[1], found[0])


def batches_of(model: FrozenLanguageModel, jobs: Sequence[Job], n_new: int) -> list[list[int]]:
    """Group texts into batches of `BATCH` at most: any together, where what the mask hides counts for nothing."""
    longest = max(job.cache.n_read for job in jobs) + max(len(job.slots) for job in jobs) + n_new
    groups: dict[object, list[int]] = {}
    for row, job in enumerate(jobs):
        if isinstance(model.reader, EncoderDecoderReader):  # its decoder counts slots, hidden or not
            key: object = job.cache.n_read
        elif not model.reader.takes_places:
            key = job.cache.n_read, len(job.slots)
        else:  # as do windows
            key = row if longest > window_of(model.lm.config.get_text_config()) else None
        groups.setdefault(key, []).append(row)
    return [group[start : start + BATCH] for group in groups.values() for start in range(0, len(group), BATCH)]


def decoder_inputs(model: FrozenLanguageModel, jobs: Sequence[Job], settings: Generation) -> tuple[dict[str, Any], int]:
    """Prepare what `generate` is given, and count the tokens among what it returns that were given to it."""
    kept, is_kept = left_padded([job.cache.own for job in jobs], model)
    kept = map_parts(lambda part: part.repeat_interleave(settings.n_beams, 0), kept)
    n_kept = is_kept.shape[1]
    if isinstance(model.reader, EncoderDecoderReader):
        return encoder_inputs(model, model.reader, jobs, kept, is_kept), n_kept + 1
    length = max(len(job.slots) for job in jobs)
    padded = [[model.pad_id] * (length - len(job.slots)) + list(job.slots) for job in jobs]
    slots = torch.tensor(padded, device=model.device)
    is_there = is_last([len(job.slots) for job in jobs], length, model.device)
    inputs: dict[str, Any] = {"attention_mask": torch.cat([is_kept, is_there], 1).long()}
    if settings.static_cache:
        cache = static_cache(model, kept, n_kept + length + settings.max_tokens)
        inputs |= cache_argument(model.lm, cache)
    elif n_kept:
        inputs |= cache_argument(model.lm, to_cache(kept))
    if isinstance(model.reader, WholeRowReader) and isinstance(model.generator, WholeRows):
        read = slots.new_full(slots.shape, model.pad_id)  # stands for the embeddings
        return inputs | {"input_ids": read, "start": embedded(model.reader, slots, jobs)}, length
    before = slots.new_full((len(jobs), n_kept), model.pad_id)  # stands for what the cache holds, and is never read
    if not bool((slots < 0).any()):
        return inputs | {"input_ids": torch.cat([before, slots], 1)}, n_kept + length
    return inputs | {"inputs_embeds": torch.cat([model.embed(before), embedded(model.reader, slots, jobs)], 1)}, 0


def embedded(reader: CausalReader | WholeRowReader, slots: Tensor, jobs: Sequence[Job]) -> Tensor:
    """Return the embeddings [N, L, D] of each job's slots."""
    return torch.cat([reader.embed_slots(row[None], job.soft) for row, job in zip(slots, jobs, strict=True)])


def encoder_inputs(
    model: FrozenLanguageModel, reader: EncoderDecoderReader, jobs: Sequence[Job], kept: KeyValues, is_kept: Tensor
) -> dict[str, Any]:
    """Prepare the same for a model with an encoder: texts are read already, keys and values are the decoder's."""
    states, is_there = reader.encode([job.soft for job in jobs], [job.slots for job in jobs])
    n_rows, n_kept = is_kept.shape
    start = torch.full((n_rows, 1), reader.start_id, device=model.device)
    inputs: dict[str, Any] = {
        "encoder_outputs": BaseModelOutput(last_hidden_state=states),
        "attention_mask": is_there.long(),
        "decoder_input_ids": start.expand(-1, n_kept + 1),
    }
    # An empty cache of ours grows with the blocks; transformers' own has too few for a T5 of a longer decoder.
    inputs |= cache_argument(model.lm, to_crossed_cache(kept, ()))
    if n_kept:
        seen = torch.cat([is_kept, torch.ones_like(start, dtype=torch.bool)], 1)
        inputs["decoder_attention_mask"] = seen.long()
    return inputs


def left_padded(each: Sequence[KeyValues], model: FrozenLanguageModel) -> tuple[KeyValues, Tensor]:
    """Pad keys and values of several rows to one batch, with [N, S] bool that is False where nothing was read."""
    sizes = [own[0][0].shape[2] if own else 0 for own in each]
    most = max(sizes)
    is_kept = is_last(sizes, most, model.device)
    if most == 0:
        return (), is_kept
    empty = map_parts(lambda part: part[:, :, :0], next(own for own in each if own))
    rows = [map_parts(lambda part: F.pad(part, (0, 0, most - part.shape[2], 0)), own or empty) for own in each]
    return map_parts(concatenate, *rows), is_kept


def is_last(sizes: Sequence[int], most: int, device: torch.device) -> Tensor:
    """Return [N, most] bool that is True in the last slots of each row, as many as its size."""
    return torch.arange(most, device=device) >= most - torch.tensor(sizes, device=device)[:, None]


def static_cache(model: FrozenLanguageModel, kept: KeyValues, n_slots: int) -> StaticCache:
    """Make buffers of one size with what was read in front."""
    cache = StaticCache(config=model.lm.config, max_cache_len=n_slots)
    for layer, (key, value) in enumerate(kept):
        places = torch.arange(key.shape[2], device=model.device)
        cache.update(key, value, layer, {"cache_position": places})
    return cache

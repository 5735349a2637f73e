"""Generation by the model's own `generate`, which is never patched: a prompt that was read is handed over as its cache.

Prompts of different lengths stand in one batch behind padding that the mask hides; positions count what is not hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache
from transformers.modeling_outputs import BaseModelOutput

from mmprompt.errors import UserError
from mmprompt.models.decoder.encoder_decoder import EncoderDecoderReader
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.hf_cache import cache_argument, to_cache, to_crossed_cache
from mmprompt.models.decoder.kv_cache import KeyValues, KVCache, learned_cache
from mmprompt.models.decoder.model import FrozenLanguageModel, SiteVectors
from mmprompt.models.decoder.reader import window_of
from mmprompt.models.decoder.vectors import LM_INPUT, keys_values
from mmprompt.models.sites import Vectors

BATCH = 32
"""Texts that are gone on from at once."""


@dataclass(frozen=True)
class Job:
    """One text to go on from.

    Args:
        memory: of one row: a prompt that was read, or learned keys and values; empty for none.
        slots: what is read after it, as in `Question`; one or more.
        soft: shared vectors for negative slots, None where there are none.
    """

    memory: KVCache
    slots: tuple[int, ...]
    soft: Vectors | None = None


def job_of(
    model: FrozenLanguageModel, vectors: SiteVectors, slots: tuple[int, ...], start: KVCache | None = None
) -> Job:
    """A text with vectors of a prompt.

    Args:
        model: the frozen model.
        vectors: shared ones, as in `FrozenLanguageModel.predict`.
        slots: what is read.
        start: what was read of the prompt before these slots; by default they hold the prompt themselves.
    """
    if start is not None:
        return Job(start, slots)
    memory = learned_cache(keys_values(vectors, model.kv_shape, model.dtype))
    return Job(memory, slots, vectors.get(LM_INPUT))


@torch.no_grad()
def generate(
    model: FrozenLanguageModel, jobs: Sequence[Job], settings: Generation, streamer: Any = None
) -> list[tuple[int, ...]]:
    """The tokens of one answer to each text, without the end.

    Args:
        model: the frozen model.
        jobs: one or more texts, each with its own prompt; of any lengths.
        settings: how answers are searched.
        streamer: transformers' own kind, for one text.
    Raises:
        UserError: buffers of one size were asked for, but an encoder reads the texts.
    """
    if settings.static_cache and model.is_encoder_decoder:
        raise UserError(
            f"{model.name} reads texts in its encoder, and its decoder keeps no buffers of one size. "
            "Generate without a static cache."
        )
    answers: dict[int, tuple[int, ...]] = {}
    arguments = settings.arguments() | {"pad_token_id": model.pad_id, "eos_token_id": model.end_id}
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(settings.seed)  # once, or equal texts in two batches would get equal samples
        for rows in batches_of(model, jobs, settings.max_tokens):
            inputs, n_given = decoder_inputs(model, [jobs[row] for row in rows], settings)
            tokens = model.lm.generate(**inputs, **arguments, use_cache=True, streamer=streamer)
            for row, ids in zip(rows, tokens[:, n_given:].tolist(), strict=True):
                answers[row] = tuple(ids[: ids.index(model.end_id)] if model.end_id in ids else ids)
    return [answers[row] for row in range(len(jobs))]


def batches_of(model: FrozenLanguageModel, jobs: Sequence[Job], n_new: int) -> list[list[int]]:
    """Group texts into batches of `BATCH` at most: any together, where what the mask hides counts for nothing."""
    longest = max(job.memory.n_read for job in jobs) + max(len(job.slots) for job in jobs) + n_new
    groups: dict[object, list[int]] = {}
    for row, job in enumerate(jobs):
        if isinstance(model.reader, EncoderDecoderReader):  # its decoder counts slots, hidden or not
            key: object = job.memory.n_read
        elif not model.reader.takes_places:
            key = job.memory.n_read, len(job.slots)
        else:  # as do windows
            key = row if longest > window_of(model.lm.config.get_text_config()) else None
        groups.setdefault(key, []).append(row)
    return [group[start : start + BATCH] for group in groups.values() for start in range(0, len(group), BATCH)]


def decoder_inputs(model: FrozenLanguageModel, jobs: Sequence[Job], settings: Generation) -> tuple[dict[str, Any], int]:
    """Prepare what `generate` is given, and count the tokens among what it returns that were given to it."""
    kept, is_kept = left_padded([job.memory.own for job in jobs], model)
    kept = tuple(
        (key.repeat_interleave(settings.n_beams, 0), value.repeat_interleave(settings.n_beams, 0))
        for key, value in kept
    )
    n_kept = is_kept.shape[1]
    if isinstance(model.reader, EncoderDecoderReader):
        return encoder_inputs(model, model.reader, jobs, kept, is_kept), n_kept + 1
    length = max(len(job.slots) for job in jobs)
    pads = [length - len(job.slots) for job in jobs]
    slots = torch.tensor([[model.pad_id] * pad + list(job.slots) for pad, job in zip(pads, jobs, strict=True)]).to(
        model.device
    )
    is_there = torch.arange(length, device=model.device) >= torch.tensor(pads, device=model.device)[:, None]
    inputs: dict[str, Any] = {"attention_mask": torch.cat([is_kept, is_there], 1).long()}
    if settings.static_cache:
        cache = static_cache(model, kept, n_kept + length + settings.max_tokens)
        inputs |= cache_argument(model.lm, cache)
    elif n_kept:
        inputs |= cache_argument(model.lm, to_cache(kept))
    before = slots.new_full((len(jobs), n_kept), model.pad_id)  # stands for what the cache holds, and is never read
    if not bool((slots < 0).any()):
        return inputs | {"input_ids": torch.cat([before, slots], 1)}, n_kept + length
    softs = [job.soft for job in jobs]
    x = torch.cat([model.reader.embed_slots(row[None], soft) for row, soft in zip(slots, softs, strict=True)])
    return inputs | {"inputs_embeds": torch.cat([model.embed(before), x], 1)}, 0


def encoder_inputs(
    model: FrozenLanguageModel, reader: EncoderDecoderReader, jobs: Sequence[Job], kept: KeyValues, is_kept: Tensor
) -> dict[str, Any]:
    """The same for a model with an encoder: texts are read already, keys and values belong to the decoder."""
    states, is_there = reader.encode([job.soft for job in jobs], [job.slots for job in jobs])
    n_rows, n_kept = is_kept.shape
    start = torch.full((n_rows, 1), reader.start_id, device=model.device)
    inputs: dict[str, Any] = {
        "encoder_outputs": BaseModelOutput(last_hidden_state=states),
        "attention_mask": is_there.long(),
        "decoder_input_ids": start.expand(-1, n_kept + 1),
    }
    if n_kept:
        seen = torch.cat([is_kept, torch.ones_like(start, dtype=torch.bool)], 1)
        inputs |= cache_argument(model.lm, to_crossed_cache(kept, ()))
        inputs["decoder_attention_mask"] = seen.long()
    return inputs


def left_padded(each: Sequence[KeyValues], model: FrozenLanguageModel) -> tuple[KeyValues, Tensor]:
    """Keys and values of several rows as one batch, and [N, S] bool that is False where nothing was read."""
    sizes = [own[0][0].shape[2] if own else 0 for own in each]
    most = max(sizes)
    is_kept = torch.arange(most, device=model.device) >= torch.tensor(
        [[most - size] for size in sizes], device=model.device
    )
    if most == 0:
        return (), is_kept
    first = next(own for own in each if own)

    def padded(layer: int, part: int) -> Tensor:
        like = first[layer][part]
        empty = like.new_zeros(1, like.shape[1], most, like.shape[3])
        rows = []
        for own, size in zip(each, sizes, strict=True):
            row = empty if not own else own[layer][part]
            rows.append(torch.cat([empty[:, :, : most - size], row], 2) if size < most and own else row)
        return torch.cat(rows)

    return tuple((padded(layer, 0), padded(layer, 1)) for layer in range(len(first))), is_kept


def static_cache(model: FrozenLanguageModel, kept: KeyValues, n_slots: int) -> StaticCache:
    """Buffers of one size with what was read in front."""
    cache = StaticCache(config=model.lm.config, max_cache_len=n_slots)
    for layer, (key, value) in enumerate(kept):
        places = torch.arange(key.shape[2], device=model.device)
        cache.update(key, value, layer, {"cache_position": places})
    return cache

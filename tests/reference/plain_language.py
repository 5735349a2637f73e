"""Language models with vectors of a prompt, the slow way: every answer a whole row of its own through the model's own
forward, nothing shared, nothing packed. Imports nothing of mmprompt."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache


def answer_logits(
    lm: Any,
    slots: Sequence[int],
    answer: Sequence[int],
    soft: Tensor | None = None,
    learned: Sequence[Tensor] = (),
    kv_shape: tuple[int, int, int] | None = None,
    behind: Sequence[int] = (),
) -> Tensor:
    """[len(answer), V], what is predicted for each token of an answer.

    Args:
        lm: transformers' model.
        slots: token ids; -1 - m is the m-th vector.
        answer: token ids.
        soft: [P, D].
        learned: [M, 2 H D/H] keys and values of each block.
        kv_shape: blocks, heads, width of a head.
        behind: what an encoder's texts end with.
    """
    name = "cache" if "cache" in inspect.signature(type(lm).forward).parameters else "past_key_values"
    if lm.config.is_encoder_decoder:
        start = lm.generation_config.decoder_start_token_id
        more = {name: EncoderDecoderCache(cache_of(learned, kv_shape), DynamicCache())} if learned else {}
        ids = torch.tensor([[start, *answer[:-1]]])
        return lm(inputs_embeds=embedded(lm, [*slots, *behind], soft), decoder_input_ids=ids, **more).logits[0]
    more = {name: cache_of(learned, kv_shape)} if learned else {"use_cache": False}
    logits = lm(inputs_embeds=embedded(lm, [*slots, *answer], soft), **more).logits[0]
    return logits[len(slots) - 1 : -1]


def embedded(lm: Any, slots: Sequence[int], soft: Tensor | None) -> Tensor:
    """[1, L, D]."""
    table = lm.get_input_embeddings()
    rows = [table(torch.tensor(slot)) if slot >= 0 else soft[-1 - slot] for slot in slots]  # type: ignore[index]
    return torch.stack(rows)[None]


def cache_of(learned: Sequence[Tensor], kv_shape: tuple[int, int, int] | None) -> DynamicCache:
    """Keys and values as what was read before; a block's are the keys of all heads, then the values."""
    cache = DynamicCache()
    if not learned or kv_shape is None:
        return cache
    _, n_heads, width = kv_shape
    for layer, values in enumerate(learned):
        n_vectors, size = values.shape[0], n_heads * width
        key = values[:, :size].reshape(n_vectors, n_heads, width).transpose(0, 1)
        value = values[:, size:].reshape(n_vectors, n_heads, width).transpose(0, 1)
        cache.update(key[None], value[None], layer)
    return cache


def token_log_probs(lm: Any, questions: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], **more: Any) -> Tensor:
    """[K], of each token of each answer to (slots, answers) in order."""
    found = []
    for slots, answers in questions:
        for answer in answers:
            logits = answer_logits(lm, slots, answer, **more)
            found.append(logits.log_softmax(-1)[range(len(answer)), list(answer)])
    return torch.cat(found)


def greedy(lm: Any, slots: Sequence[int], n_tokens: int, end_id: int, min_tokens: int = 0, **more: Any) -> list[int]:
    """The best token again and again, the whole row read anew for each, without the end."""
    tokens: list[int] = []
    while len(tokens) < n_tokens:
        logits = answer_logits(lm, slots, [*tokens, 0], **more)[-1].clone()
        if len(tokens) < min_tokens:
            logits[end_id] = float("-inf")
        token = int(logits.argmax())
        if token == end_id:
            break
        tokens.append(token)
    return tokens

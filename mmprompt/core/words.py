"""Words for a soft prompt: the tokens that its vectors point to, and of the words near each those that do best.

It knows embeddings and losses, and no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 8192
N_PASSES = 3
N_WORDS = 200
"""Real words that vectors are held against."""
Near = list[list[tuple[int, float]]]
"""Of each vector tokens with their cosines, nearest first."""


def commonest(texts: Iterable[Sequence[int]]) -> list[int]:
    """List the tokens of some texts, commonest first; ties go to the smaller id."""
    counts = Counter(token for text in texts for token in text)
    return sorted(counts, key=lambda token: (-counts[token], token))


def nearest_by_cosine(
    vectors: Tensor, embed: Callable[[Tensor], Tensor], n_tokens: int, k: int, left_out: Collection[int] = ()
) -> Near:
    """Find the `k` tokens whose embeddings point most nearly the way of each vector [P, D].

    `embed` takes token ids [N] to embeddings [N, D]; tokens that are `left_out` are never near.
    """
    query = F.normalize(vectors.detach().float(), dim=1)
    with torch.no_grad():
        tokens = torch.arange(n_tokens, device=vectors.device).split(CHUNK)
        cosines = torch.cat([query @ F.normalize(embed(ids).float(), dim=1).T for ids in tokens], dim=1)
    cosines[:, [token for token in left_out if token < n_tokens]] = -1.0
    best = cosines.topk(min(k, n_tokens), dim=1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [list(zip(ids, values, strict=True)) for ids, values in pairs]


def token_gaps(
    embed: Callable[[Tensor], Tensor], n_tokens: int, device: torch.device, decode: Callable[[int], str]
) -> list[float]:
    """Return the cosines of real words, evenly taken from all tokens, to their nearest other tokens; see above."""
    ids = torch.tensor(some_words(n_tokens, decode), device=device)
    with torch.no_grad():
        return [row[-1][1] for row in nearest_by_cosine(embed(ids), embed, n_tokens, 2)]


def some_words(n_tokens: int, decode: Callable[[int], str], n_words: int = N_WORDS) -> list[int]:
    """List tokens that are words of three letters or more, evenly taken from all; any tokens where none is."""
    step = max(1, n_tokens // (4 * n_words))  # many tokens are no words
    words = [token for token in range(0, n_tokens, step) if len(text := decode(token).strip()) > 2 and text.isalpha()]
    return words[:n_words] or list(range(0, n_tokens, step))[:n_words]


def greedy_words(
    candidates: Sequence[Sequence[str]],
    loss: Callable[[tuple[str, ...]], float],
    progress: Callable[[int, int], None] = lambda done, total: None,
    suggest: Callable[[tuple[str, ...], int], Sequence[str]] = lambda words, place: (),
) -> tuple[str, ...]:
    """Exchange one word at a time for the one of lowest loss, place after place, until a pass changes nothing.

    Every place has candidates, the first to start from; `""` leaves it empty, and `suggest` gives further ones for a
    place beside the words so far. The loss of the words that are returned is no higher than that of the first
    candidates, nor than with all places empty. `progress` is called with how many places were looked at and will be at
    most.
    """
    starts = [tuple(words[0] for words in candidates), ("",) * len(candidates)]
    known = {start: loss(start) for start in starts}
    best = min(starts, key=lambda start: known[start])
    most = N_PASSES * len(candidates)
    for number in range(N_PASSES):
        before = best
        for place, words in enumerate(candidates):
            for word in (*words, *suggest(best, place)):
                other = (*best[:place], word, *best[place + 1 :])
                if other not in known:
                    known[other] = loss(other)
                if known[other] < known[best]:
                    best = other
            progress(number * len(candidates) + place + 1, most)
        if best == before:
            break
    progress(most, most)
    return best

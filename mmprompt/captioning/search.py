"""The decoding loop of every captioner: greedy, sampling, beams, n-best, with a prompt of any strength.

A caption is searched under a sum of log-probabilities over *branches*: the same captioner with another prompt, or with
none. All branches of a row read the same tokens. Tokens may have a cost. Search knows tokens and scores; words, files
and images it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmprompt.captioning.decoding import Decoding
from mmprompt.captioning.readers.captioner import FrozenCaptioner, State
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.sites import Insert, Site, vectors_of

Inserts = Mapping[Site, Insert]
TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Branch:
    """The captioner with a prompt, {} for none, and the weight of its log-probabilities in the sum of 1."""

    weight: float
    inserts: Inserts = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """One caption as it was searched: tokens without the end, and the rest as in `captioning.predictor.Caption`."""

    token_ids: tuple[int, ...]
    log_prob: float
    score: float
    is_cut: bool


def mixture(inserts: Inserts, strength: float) -> list[Branch]:
    """Return the branches of `base + strength (prompt - base)`, in log-probabilities.

    Branches whose weight is zero are left out, so strength 0 is the captioner without a prompt and 1 the plain prompt,
    bit for bit (classifier-free guidance, Ho and Salimans 2022; for captions Kornblith et al. 2023).
    """
    parts = [Branch(strength, inserts), Branch(1.0 - strength)]
    return [part for part in parts if part.weight != 0.0]


PLAUSIBLE = 0.1
"""Tokens below this share of the best allowed one's probability under the prompt are never taken above strength 1."""
Costs = Mapping[TokenIds, float]
"""What the last of some tokens in a row costs, in nats."""


@dataclass(frozen=True)
class Mixed:
    """Rows of captions under way in every branch: one state per branch, with the same rows, and what was said so far.

    The first branch is the prompt's where there is one. `token_ids` are [N, L].
    """

    captioner: FrozenCaptioner
    branches: Sequence[Branch]
    states: Sequence[State]
    token_ids: Tensor
    charge: Callable[[Tensor, Tensor], Tensor] | None = None

    def log_probs(self, may_end: bool) -> Tensor:
        """Return the log-probabilities [N, V] of the next token, float32, less what it costs.

        The costs leave a sum below 1: a caption that is left nothing else to say is less probable than one that ended
        before. An end that may not come yet has -inf.
        """
        parts = [state.logits.float().log_softmax(-1) for state in self.states]
        end_id = torch.tensor([self.captioner.decoder.end_id], device=parts[0].device)
        mixed = parts[0]  # its weight is 1 where it is the only one
        if len(parts) > 1:
            weights = [branch.weight for branch in self.branches]
            mixed = sum((weight * part for weight, part in zip(weights, parts, strict=True)), torch.zeros_like(mixed))
            if min(weights) < 0:
                allowed = parts[0] if may_end else parts[0].index_fill(1, end_id, float("-inf"))
                least = allowed.max(-1, keepdim=True).values + math.log(PLAUSIBLE)
                mixed = mixed.masked_fill(parts[0] < least, float("-inf"))
            mixed = mixed.log_softmax(-1)
        if self.charge is not None:
            mixed = self.charge(self.token_ids, mixed)
        return mixed if may_end else mixed.index_fill(1, end_id, float("-inf"))

    def select(self, rows: Tensor) -> Mixed:
        """Return the given rows, each as often as it is named."""
        return replace(self, states=[state.select(rows) for state in self.states], token_ids=self.token_ids[rows])

    def step(self, token_ids: Tensor) -> Mixed:
        """Read one more token [N] of every row."""
        states = [self.captioner.step(state, token_ids) for state in self.states]
        return replace(self, states=states, token_ids=torch.cat([self.token_ids, token_ids[:, None]], dim=1))


@torch.no_grad()
def search(
    captioner: FrozenCaptioner,
    kv_cache: KVCache,
    branches: Sequence[Branch],
    decoding: Decoding,
    numbers: Sequence[int] | None = None,
    costs: Costs | None = None,
) -> list[list[Found]]:
    """Search the captions of every image of `captioner.open`, best first, in the branches of `mixture`.

    Beams find fewer than `n_best` where the branches leave fewer that can be. The random numbers of each image depend
    on its number beside the seed, its place by default.
    """
    room = captioner.decoder.budget - max(prompt_slots(branch.inserts) for branch in branches)
    n_tokens, n_best = min(decoding.max_tokens, room), decoding.n_best
    states = [captioner.prefill(kv_cache, branch.inserts) for branch in branches]
    nothing = torch.zeros(len(kv_cache), 0, dtype=torch.long, device=captioner.device)
    charge: Callable[[Tensor, Tensor], Tensor] | None = None
    if costs:
        from transformers import SequenceBiasLogitsProcessor

        charge = SequenceBiasLogitsProcessor({ids: -cost for ids, cost in costs.items()})
    mixed = Mixed(captioner, branches, states, nothing, charge)
    if decoding.n_beams > 1:
        return _search_beams(mixed, len(kv_cache), n_tokens, decoding)
    if decoding.temperature is None:
        return [[caption] for caption in _search_rows(mixed, n_tokens, None, decoding)]
    uniform = []  # belongs to one sample of one image, whatever stands beside it in the batch
    for number in range(len(kv_cache)) if numbers is None else numbers:
        for sample in range(n_best):
            seed = ((decoding.seed * 1_000_003 + number) * 1_000_003 + sample) & (2**63 - 1)
            uniform.append(torch.rand(n_tokens, generator=torch.Generator().manual_seed(seed)))
    rows = torch.arange(len(kv_cache), device=captioner.device).repeat_interleave(n_best)
    flat = _search_rows(mixed.select(rows), n_tokens, torch.stack(uniform).to(captioner.device), decoding)
    captions = [flat[start : start + n_best] for start in range(0, len(flat), n_best)]
    return [sorted(samples, key=lambda caption: -caption.score) for samples in captions]


def prompt_slots(inserts: Inserts) -> int:
    """Return the slots that a prompt takes of the decoder."""
    return sum(given.n_vectors for site, given in vectors_of(inserts).items() if site.layer == 0)


def _search_rows(mixed: Mixed, n_tokens: int, uniform: Tensor | None, decoding: Decoding) -> list[Found]:
    """Take one token after another, the best one or, by `uniform` [N, n_tokens], a sampled one, until all ended."""
    end_id = mixed.captioner.decoder.end_id
    n_rows = len(mixed.states[0].logits)
    ended = torch.zeros(n_rows, dtype=torch.bool, device=mixed.captioner.device)
    total = torch.zeros(n_rows, device=ended.device)
    tokens = []
    for place in range(n_tokens):
        log_probs = mixed.log_probs(place >= decoding.min_tokens)
        token = log_probs.argmax(-1) if uniform is None else _sample_tokens(log_probs, uniform[:, place], decoding)
        token = token.masked_fill(ended, end_id)
        total = total + log_probs.gather(1, token[:, None])[:, 0].masked_fill(ended, 0.0)
        tokens.append(token)
        ended = ended | (token == end_id)
        if place + 1 == n_tokens or bool(ended.all()):
            break
        mixed = mixed.step(token)
    captions = []
    for row, log_prob, is_ended in zip(torch.stack(tokens, 1).tolist(), total.tolist(), ended.tolist(), strict=True):
        ids = tuple(row[: row.index(end_id)] if is_ended else row)
        score = log_prob / (len(ids) + is_ended) ** decoding.length_penalty
        captions.append(Found(ids, log_prob, score, not is_ended))
    return captions


def _sample_tokens(log_probs: Tensor, uniform: Tensor, decoding: Decoding) -> Tensor:
    """Sample one token per row [N] by the inverse cumulative distribution over tokens, the most probable first."""
    values, order = (log_probs / (decoding.temperature or 1.0)).softmax(-1).sort(dim=-1, descending=True, stable=True)
    if decoding.top_k is not None:
        values[:, decoding.top_k :] = 0.0
    if decoding.top_p is not None:
        before = values.cumsum(-1) - values
        values = values.masked_fill(before >= decoding.top_p * values.sum(-1, keepdim=True), 0.0)
    sums = values.cumsum(-1)
    place = torch.searchsorted(sums, uniform[:, None] * sums[:, -1:], right=True).clamp_max(values.shape[1] - 1)
    last = (values > 0).sum(-1, keepdim=True) - 1
    return order.gather(1, torch.minimum(place, last))[:, 0]


@dataclass
class Beams:
    """The search of one image: sums and tokens of its running beams, and what has ended."""

    sums: list[float]
    rows: list[list[int]]
    ended: list[Found] = field(default_factory=list)
    is_open: bool = True


def _search_beams(mixed: Mixed, n_images: int, n_tokens: int, decoding: Decoding) -> list[list[Found]]:
    """Search with beams, as transformers does with `early_stopping=False`.

    A beam that ends among the best `n_beams` candidates is kept with its sum over its length to the length penalty. An
    image is done when it has `n_beams` such and the best running beam, at its length so far, is no better than the
    worst of them.
    """
    n_beams, end_id, device = decoding.n_beams, mixed.captioner.decoder.end_id, mixed.captioner.device
    images = [Beams([0.0], [[]]) for _ in range(n_images)]
    for length in range(1, n_tokens + 1):
        log_probs = mixed.log_probs(length > decoding.min_tokens).unflatten(0, (n_images, -1))  # [B, beams, V]
        sums = log_probs + torch.tensor([image.sums for image in images], device=device)[:, :, None]
        best, places = sums.flatten(1).topk(min(2 * n_beams, sums[0].numel()), dim=1)
        n_words = log_probs.shape[2]
        parents, tokens = (places // n_words).tolist(), (places % n_words).tolist()
        rows, words = [], []
        for number, image in enumerate(images):
            candidates = list(zip(best[number].tolist(), parents[number], tokens[number], strict=True))
            kept = _extend(image, candidates, length, length == n_tokens, end_id, decoding)
            rows += [number * log_probs.shape[1] + parent for parent in kept]
            words += [row[-1] for row in image.rows]
        if length == n_tokens or not any(image.is_open for image in images):
            break
        mixed = mixed.select(torch.tensor(rows, device=device)).step(torch.tensor(words, device=device))
    return [sorted(image.ended, key=lambda caption: -caption.score)[: decoding.n_best] for image in images]


def _extend(
    image: Beams,
    candidates: Sequence[tuple[float, int, int]],
    length: int,
    is_last: bool,
    end_id: int,
    decoding: Decoding,
) -> list[int]:
    """Move one image on by a token, in place, by its candidates (sum, parent beam, token), best first.

    Return the parent of every beam that runs on.
    """
    n_beams = decoding.n_beams
    candidates = [candidate for candidate in candidates if candidate[0] > float("-inf")]  # the others cannot be
    running: list[tuple[float, int, int]] = []
    for rank, (total, parent, token) in enumerate(candidates):
        is_end = token == end_id
        if (is_end or is_last) and rank < n_beams and image.is_open:
            ids = (*image.rows[parent], *(() if is_end else (token,)))
            image.ended.append(Found(ids, total, total / length**decoding.length_penalty, not is_end))
        elif not is_end and len(running) < n_beams:
            running.append((total, parent, token))
    while len(running) < n_beams:  # fewer ways to go on than beams: repeat the worst, out of the race
        total, parent, token = running[-1] if running else (0.0, 0, end_id)
        running.append((float("-inf"), parent, token))
    image.ended = sorted(image.ended, key=lambda caption: -caption.score)[:n_beams]
    best_possible = running[0][0] / length**decoding.length_penalty
    image.is_open &= best_possible > (image.ended[-1].score if len(image.ended) == n_beams else float("-inf"))
    image.rows = [[*image.rows[parent], token] for _, parent, token in running]
    image.sums = [total for total, _, _ in running]
    return [parent for _, parent, _ in running]

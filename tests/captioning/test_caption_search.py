"""Search of captions: equal to transformers' generate, and mixtures that are what their formula says."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from mmprompt.captioning.decoding import Decoding
from mmprompt.captioning.readers.captioner import LM_INPUT, FrozenCaptioner
from mmprompt.captioning.search import PLAUSIBLE, Branch, mixture, search
from mmprompt.errors import UserError
from mmprompt.models.sites import Site, Vectors
from tests.small_captioners import END, N_IMAGE, START, WORDS, small_captioner

BARE = [Branch(1.0)]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def captioner(request: pytest.FixtureRequest) -> FrozenCaptioner:
    return small_captioner(request.param)


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(4, N_IMAGE, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def soft(captioner: FrozenCaptioner, seed: int, n: int = 2) -> dict[Site, Vectors]:
    ids = torch.randint(2, WORDS, (n,), generator=torch.Generator().manual_seed(seed))
    return {LM_INPUT: Vectors(captioner.decoder.embed(ids))}


def generate(captioner: FrozenCaptioner, features: torch.Tensor, vectors: dict[Site, Vectors], **settings: object):
    decoder = captioner.decoder
    start = decoder.embed(torch.tensor([[START]])).expand(len(features), -1, -1)
    parts = [decoder.mapper(features), start]
    parts += [given.values.expand(len(features), -1, -1) for given in vectors.values()]
    x = torch.cat(parts, 1)
    return decoder.lm.generate(
        inputs_embeds=x,
        attention_mask=torch.ones(x.shape[:2], dtype=torch.long),
        eos_token_id=END,
        pad_token_id=END,
        do_sample=False,
        min_new_tokens=1,
        **settings,
    )


def without_end(row: list[int]) -> tuple[int, ...]:
    return tuple(row[: row.index(END)] if END in row else row)


@pytest.mark.parametrize("prompted", [False, True])
def test_greedy_captions_are_those_of_generate(captioner, features, prompted):
    vectors = soft(captioner, 5) if prompted else {}
    theirs = generate(captioner, features, vectors, max_new_tokens=12)
    branches = mixture(vectors, 1.0) if prompted else BARE
    ours = search(captioner, captioner.open(features), branches, Decoding(max_tokens=12))
    assert [one[0].token_ids for one in ours] == [without_end(row) for row in theirs.tolist()]


@pytest.mark.parametrize("n_beams", [2, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beams_are_those_of_generate(captioner, features, n_beams, length_penalty):
    settings = {"max_new_tokens": 9, "num_beams": n_beams, "num_return_sequences": n_beams}
    settings |= {"length_penalty": length_penalty, "return_dict_in_generate": True, "output_scores": True}
    theirs = generate(captioner, features, {}, **settings)
    decoding = Decoding(max_tokens=9, n_beams=n_beams, n_best=n_beams, length_penalty=length_penalty)
    ours = search(captioner, captioner.open(features), BARE, decoding)
    flat = [found for some in ours for found in some]
    assert [found.token_ids for found in flat] == [without_end(row) for row in theirs.sequences.tolist()]
    assert torch.tensor([found.score for found in flat]) == pytest.approx(theirs.sequences_scores.float(), rel=1e-4)


def test_strength_0_is_the_captioner_without_a_prompt_and_1_the_plain_prompt(captioner, features):
    kv_cache, vectors = captioner.open(features), soft(captioner, 5)
    bare = search(captioner, kv_cache, BARE, Decoding(max_tokens=8))
    assert search(captioner, kv_cache, mixture(vectors, 0.0), Decoding(max_tokens=8)) == bare
    assert [(branch.weight, branch.inserts) for branch in mixture(vectors, 1.0)] == [(1.0, vectors)]


def test_a_pushed_prompt_has_the_log_probabilities_of_its_formula(captioner, features):
    kv_cache, vectors = captioner.open(features), soft(captioner, 5)
    found = search(captioner, kv_cache, mixture(vectors, 1.5), Decoding(max_tokens=1, min_tokens=0))
    base, prompted = (captioner.prefill(kv_cache, v).logits.log_softmax(-1) for v in ({}, vectors))
    wanted = base + 1.5 * (prompted - base)
    allowed = prompted.exp() >= 0.1 * prompted.exp().max(-1, keepdim=True).values
    wanted = wanted.masked_fill(~allowed, float("-inf")).log_softmax(-1)
    assert [row[0].log_prob for row in found] == pytest.approx(wanted.max(-1).values.tolist(), rel=1e-5)


@pytest.mark.parametrize("n_beams", [1, 3])
def test_tokens_in_a_row_cost_what_the_last_of_them_is_said_to(captioner, features, n_beams):
    kv_cache, decoding = captioner.open(features), Decoding(max_tokens=8, n_beams=n_beams)
    free = [one[0].token_ids for one in search(captioner, kv_cache, BARE, decoding)]
    pair = free[0][1:3]
    found = search(captioner, kv_cache, BARE, decoding, costs={pair: 1000.0})
    said = [one[0].token_ids for one in found]
    assert all(pair not in pairwise(ids) for ids in said)
    assert all(new == old for new, old in zip(said, free, strict=True) if pair not in pairwise(old))
    slight = search(captioner, kv_cache, BARE, decoding, costs={free[0][:1]: 1e-4})[0][0]
    assert slight.token_ids == free[0]
    spared = search(captioner, kv_cache, BARE, decoding)[0][0]
    assert spared.log_prob - slight.log_prob == pytest.approx(1e-4 * free[0].count(free[0][0]), abs=1e-5)


def test_samples_depend_on_the_image_and_not_on_the_batch(captioner, features):
    decoding = Decoding(max_tokens=8, temperature=1.0, top_k=20, top_p=0.95, n_best=3)
    together = search(captioner, captioner.open(features), BARE, decoding)
    alone = [
        search(captioner, captioner.open(features[[i]]), BARE, decoding, numbers=[i])[0] for i in range(len(features))
    ]
    assert [[one.token_ids for one in some] for some in together] == [[one.token_ids for one in some] for some in alone]
    assert len({one.token_ids for some in together for one in some}) > len(features)


def test_samples_follow_the_distribution_that_top_k_leaves(captioner, features):
    kv_cache = captioner.open(features[:1])
    probabilities = captioner.prefill(kv_cache, {}).logits.softmax(-1)[0]
    best = probabilities.topk(2).indices.tolist()
    decoding = Decoding(max_tokens=1, min_tokens=0, temperature=1.0, top_k=2, n_best=2000)
    found = search(captioner, kv_cache, BARE, decoding)[0]
    ids = [one.token_ids[0] if one.token_ids else END for one in found]
    share = probabilities[best[0]] / probabilities[best].sum()
    assert set(ids) == set(best)
    assert ids.count(best[0]) / 2000 == pytest.approx(share.item(), abs=0.05)


@pytest.mark.parametrize("n_beams", [1, 3])
def test_a_caption_is_not_empty_unless_that_is_allowed(captioner, features, n_beams):
    kv_cache = captioner.open(features)
    bias = torch.zeros(WORDS, dtype=torch.float64)
    bias[END] = 100.0
    silent = Silent(captioner.decoder, bias)
    captioner.decoder, kept = silent, captioner.decoder
    try:
        settings = {"max_tokens": 4, "n_beams": n_beams}
        said = search(captioner, kv_cache, BARE, Decoding(**settings))
        unsaid = search(captioner, kv_cache, BARE, Decoding(**settings, min_tokens=0))
    finally:
        captioner.decoder = kept
    assert all(len(some[0].token_ids) == 1 for some in said)
    assert all(some[0].token_ids == () for some in unsaid)


@pytest.mark.parametrize("settings", [{}, {"n_beams": 3}, {"temperature": 1.0}])
def test_a_pushed_prompt_that_would_end_says_what_is_plausible_beside_the_end(
    captioner, features, settings, monkeypatch
):
    bias = torch.zeros(WORDS, dtype=torch.float64)
    bias[END] = 100.0
    kv_cache, branches = captioner.open(features), mixture(soft(captioner, 5), 1.5)
    monkeypatch.setattr(captioner, "decoder", Silent(captioner.decoder, bias))
    pushed = search(captioner, kv_cache, branches, Decoding(max_tokens=4, min_tokens=3, **settings))
    assert all(math.isfinite(some[0].log_prob) and len(some[0].token_ids) == 3 for some in pushed)
    first = captioner.prefill(kv_cache, branches[0].inserts).logits.index_fill(1, torch.tensor([END]), -torch.inf)
    said = first.gather(1, torch.tensor([some[0].token_ids[:1] for some in pushed]))[:, 0]
    assert (said >= first.max(-1).values + math.log(PLAUSIBLE)).all()


def test_beams_of_a_pushed_prompt_end_in_the_plausible_captions_alone(captioner, features):
    kv_cache, branches = captioner.open(features), mixture(soft(captioner, 5), 3.0)
    decoding = Decoding(max_tokens=1, min_tokens=0, n_beams=WORDS, n_best=WORDS)
    found = search(captioner, kv_cache, branches, decoding)
    prompted = captioner.prefill(kv_cache, branches[0].inserts).logits.softmax(-1)
    plausible = prompted >= PLAUSIBLE * prompted.max(-1, keepdim=True).values
    for some, allowed in zip(found, plausible, strict=True):
        assert all(math.isfinite(one.log_prob) for one in some)
        said = {one.token_ids[0] if one.token_ids else END for one in some}
        assert said == set(allowed.nonzero()[:, 0].tolist())
        assert len(some) == len(said) < WORDS


class Silent:
    """A decoder that would rather say nothing."""

    def __init__(self, decoder, bias):
        self._decoder, self._bias = decoder, bias

    def __getattr__(self, name):
        return getattr(self._decoder, name)

    def head(self, hidden):
        return self._decoder.head(hidden) + self._bias


def test_a_caption_that_does_not_fit_is_said_to_be_cut(captioner, features):
    found = search(captioner, captioner.open(features), BARE, Decoding(max_tokens=2))
    assert all(one[0].is_cut == (len(one[0].token_ids) == 2) for one in found)
    assert any(one[0].is_cut for one in found)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_best": 2},
        {"temperature": 0.0},
        {"n_beams": 2, "temperature": 1.0},
        {"top_k": 3},
        {"n_beams": 0},
        {"top_p": 2.0},
        {"temperature": 1e-320},
        {"length_penalty": 1000.0},
        {"length_penalty": -1000.0},
        {"length_penalty": float("nan")},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(UserError):
        Decoding(**settings)

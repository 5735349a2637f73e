"""Words for vectors, against plain searches."""

from __future__ import annotations

from itertools import product

import torch

from mmprompt.core.words import greedy_words, nearest_by_cosine, some_words, token_gaps


def test_the_nearest_tokens_are_those_of_a_plain_search() -> None:
    rng = torch.Generator().manual_seed(0)
    table, vectors = torch.randn(40, 6, generator=rng), torch.randn(3, 6, generator=rng)
    found = nearest_by_cosine(vectors, lambda ids: table[ids], 40, 3, left_out=(7,))
    for vector, near in zip(vectors, found, strict=True):
        cosines = {t: float(vector @ table[t] / vector.norm() / table[t].norm()) for t in range(40) if t != 7}
        expected = sorted(cosines, key=lambda token: -cosines[token])[:3]
        assert [token for token, _ in near] == expected
        assert all(abs(cosine - cosines[token]) < 1e-5 for token, cosine in near)


def test_gaps_are_to_another_token() -> None:
    table = torch.eye(5) + 0.1
    gaps = token_gaps(lambda ids: table[ids], 5, torch.device("cpu"), lambda token: "word")
    expected = float(table[0] @ table[1] / table[0].norm() / table[1].norm())
    assert len(gaps) == 5
    assert all(abs(gap - expected) < 1e-6 for gap in gaps)


def test_real_words_are_chosen_where_there_are_some() -> None:
    names = ["a", "##", "house", " tree ", "12", "go"]
    assert some_words(6, names.__getitem__, 10) == [2, 3]
    assert some_words(2, names.__getitem__, 10) == [0, 1]


def test_one_word_at_a_time_finds_the_best_where_places_do_not_depend_on_each_other() -> None:
    price = {"a": 3.0, "b": 1.0, "c": 2.0, "": 2.5}
    asked: list[tuple[str, ...]] = []

    def loss(words: tuple[str, ...]) -> float:
        asked.append(words)
        return sum(price[word] * weight for word, weight in zip(words, (1, -1, 2), strict=True))

    candidates = [["a", "b", ""], ["c", "a", ""], ["a", "c", "b", ""]]
    best = greedy_words(candidates, loss)
    assert loss(best) == min(loss(words) for words in product(*candidates))
    assert len(asked[: asked.index(best) + 1]) == len(set(asked[: asked.index(best) + 1]))


def test_words_are_never_worse_than_none() -> None:
    assert greedy_words([["a"], ["b"]], lambda words: sum(map(len, words))) == ("", "")


def test_words_that_are_suggested_on_the_way_are_tried_in_their_place_alone() -> None:
    price = {"a": 3.0, "b": 1.0, "": 4.0}
    seen: list[tuple[tuple[str, ...], int]] = []

    def suggest(words: tuple[str, ...], place: int) -> list[str]:
        seen.append((words, place))
        return ["b"] if place else []

    assert greedy_words([["a"], ["a"]], lambda words: sum(map(price.__getitem__, words)), suggest=suggest) == ("a", "b")
    assert seen == [(("a", "a"), 0), (("a", "a"), 1), (("a", "b"), 0), (("a", "b"), 1)]

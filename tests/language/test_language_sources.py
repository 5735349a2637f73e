"""Vectors of a language model as they are made: what each formula says, and that a saved state gives the same ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmprompt.core.learned import Given, Learned, Prompt, Source
from mmprompt.core.sources import SOURCES, MadePrefix, zero_linear
from mmprompt.errors import UserError
from mmprompt.language.sources import EncodedVectors, MultitaskVectors
from mmprompt.language.templates.template import Template
from mmprompt.models.sites import Site, Vectors, vectors_of

LM_INPUT = Site("lm")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given_by(source: Source, task: str = "") -> dict[Site, Vectors]:
    """What enters each site."""
    return vectors_of(source(Given(task=task)))


def values_of(source: Source, task: str = "") -> Tensor:
    """What enters the one site of a source."""
    (vectors,) = given_by(source, task).values()
    return vectors.values


def encoded(encoder: str = "mlp", seed: int = 0) -> EncodedVectors:
    torch.manual_seed(0)
    return EncodedVectors(drawn(4, 6, seed=seed), 0.5, encoder, 8)  # type: ignore[arg-type]


def prefix(seed: int = 0) -> MadePrefix:
    torch.manual_seed(0)
    start = [drawn(3, 8, seed=seed + n) for n in range(2)]
    return MadePrefix(start, [torch.full((8,), 0.1 * (n + 1)) for n in range(2)], 5)


def multitask(rank: int = 2) -> MultitaskVectors:
    return MultitaskVectors.of(("a", "b"), drawn(3, 6), drawn(2, 3, rank, seed=1), drawn(2, rank, 6, seed=2))


def moved(module: Source) -> Source:
    """With other weights, as learning leaves them."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.add_(drawn(*parameter.shape, seed=number))
    return module


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_encoded_vectors_begin_at_their_start_and_every_number_can_move(encoder: str) -> None:
    source = encoded(encoder)
    assert torch.equal(values_of(source), source.start)
    optimizer = torch.optim.SGD(source.parameters(), 0.1)
    (values_of(source) * drawn(4, 6, seed=9)).sum().backward()
    optimizer.step()  # only the last layer, which was zero, has moved
    optimizer.zero_grad()
    (values_of(source) * drawn(4, 6, seed=9)).sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in source.parameters())  # type: ignore[union-attr]


def test_an_mlp_makes_each_vector_and_its_steps_are_of_the_vectors_size() -> None:
    source = moved(encoded())
    assert isinstance(source, EncodedVectors)
    first, _, last = source.mlp
    expected = torch.relu(source.inputs @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(values_of(source), source.start + 0.5 * expected)


def test_an_lstm_looks_at_all_vectors_and_an_mlp_at_one() -> None:
    for encoder, expected in (("mlp", [2]), ("lstm", [0, 1, 2, 3])):
        source = moved(encoded(encoder))
        before = values_of(source).detach().clone()
        with torch.no_grad():
            source.inputs[2] += 1.0
        changed = (values_of(source) - before).abs().amax(1) > 1e-6
        assert changed.nonzero()[:, 0].tolist() == expected


def test_a_prefix_begins_at_its_start_and_is_cut_block_by_block() -> None:
    source = prefix()
    for layer in range(2):
        assert torch.equal(given_by(source)[Site("lm.kv", layer)].values, drawn(3, 8, seed=layer))
    moved(source)
    first, _, last = source.mlp
    made = torch.tanh(source.inputs @ first.weight.T + first.bias) @ last.weight.T + last.bias
    for layer in range(2):
        expected = drawn(3, 8, seed=layer) + 0.1 * (layer + 1) * made[:, 8 * layer : 8 * layer + 8]
        torch.testing.assert_close(given_by(source)[Site("lm.kv", layer)].values, expected)


def test_a_prefix_enters_no_other_tower() -> None:
    prompt = Prompt(Template.parse("{text} {answer}"), prefix())
    assert list(prompt.inserts("lm.kv")) == [Site("lm.kv", 0), Site("lm.kv", 1)]
    assert prompt.inserts("lm") == {}
    assert prompt.has("lm.kv")
    assert not prompt.has("lm")


@pytest.mark.parametrize("rank", [1, 2])
def test_the_prompt_of_a_task_is_the_shared_one_times_a_matrix_of_low_rank(rank: int) -> None:
    source = multitask(rank)
    shared = values_of(source)
    assert torch.equal(shared, drawn(3, 6))
    for number, task in enumerate(("a", "b")):
        found = values_of(source, task)
        for place in range(3):
            for column in range(6):
                factor = sum(source.columns[number, place, r] * source.rows[number, r, column] for r in range(rank))
                torch.testing.assert_close(found[place, column], shared[place, column] * factor)


def test_an_unknown_task_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        MultitaskVectors.of(("colour", "kind"), drawn(1, 2), drawn(2, 1, 1), drawn(2, 1, 2))(Given(task="colr"))
    assert str(caught.value) == "there is no task named 'colr'. Did you mean 'colour'?"


def test_one_prompt_serves_every_task() -> None:
    prompt = Prompt(Template.parse("{soft*2} {answer}"), Learned(LM_INPUT, drawn(2, 3)))
    found = vectors_of(prompt.inserts(given=Given(task="whatever")))
    assert torch.equal(found[LM_INPUT].values, drawn(2, 3))
    assert Prompt(Template.parse("{answer}")).inserts() == {}


def test_what_a_file_keeps_of_several_tasks_gives_the_same_prompts() -> None:
    source = moved(multitask())
    again = SOURCES[source.kind](**source.settings())
    again.load_state_dict(source.state_dict())
    assert sorted(source.state_dict()) == ["columns", "rows", "unit", "values"]
    for task in ("a", "b"):
        assert torch.equal(values_of(again, task), values_of(source, task))


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: encoded("mlp", seed),
        lambda seed: encoded("lstm", seed),
        prefix,
        lambda seed: multitask(),
    ],
)
def test_a_state_is_taken_back_to_the_same_vectors_wherever_it_started(make: Callable[[int], Source]) -> None:
    learned, fresh = moved(make(0)), make(40)
    fresh.load_state_dict({name: value.clone() for name, value in learned.state_dict().items()})
    for task in learned.tasks or ("",):
        for site, vectors in given_by(learned, task).items():
            assert torch.equal(given_by(fresh, task)[site].values, vectors.values)


def test_a_layer_of_zeros_gives_zeros() -> None:
    assert not bool(zero_linear(3, 2)(drawn(5, 3)).any())

"""Vectors of a language model as they are made: what each formula says, and that a saved state gives the same ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmprompt.core.sources import FreeVectors
from mmprompt.errors import UserError
from mmprompt.language.sources import (
    EncodedVectors,
    LanguageSources,
    MultitaskSources,
    PrefixSources,
    read_multitask,
    zero_linear,
)
from mmprompt.models.sites import Site

LM_INPUT = Site("lm")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoded(encoder: str = "mlp", seed: int = 0) -> EncodedVectors:
    torch.manual_seed(0)
    return EncodedVectors(drawn(4, 6, seed=seed), 0.5, encoder, 8)  # type: ignore[arg-type]


def prefix(seed: int = 0) -> PrefixSources:
    torch.manual_seed(0)
    start = [drawn(3, 8, seed=seed + n) for n in range(2)]
    return PrefixSources(start, [torch.full((8,), 0.1 * (n + 1)) for n in range(2)], 5)


def multitask(rank: int = 2) -> MultitaskSources:
    return MultitaskSources(FreeVectors(drawn(3, 6)), ("a", "b"), drawn(2, 3, rank, seed=1), drawn(2, rank, 6, seed=2))


def moved(module: nn.Module) -> nn.Module:
    """With other weights, as learning leaves them."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.add_(drawn(*parameter.shape, seed=number))
    return module


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_encoded_vectors_begin_at_their_start_and_every_number_can_move(encoder: str) -> None:
    source = encoded(encoder)
    assert torch.equal(source().values, source.start)
    optimizer = torch.optim.SGD(source.parameters(), 0.1)
    (source().values * drawn(4, 6, seed=9)).sum().backward()
    optimizer.step()  # only the last layer, which was zero, has moved
    optimizer.zero_grad()
    (source().values * drawn(4, 6, seed=9)).sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in source.parameters())  # type: ignore[union-attr]


def test_an_mlp_makes_each_vector_and_its_steps_are_of_the_vectors_size() -> None:
    source = moved(encoded())
    assert isinstance(source, EncodedVectors)
    first, _, last = source.mlp
    expected = torch.relu(source.inputs @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(source().values, source.start + 0.5 * expected)


def test_an_lstm_looks_at_all_vectors_and_an_mlp_at_one() -> None:
    for encoder, expected in (("mlp", [2]), ("lstm", [0, 1, 2, 3])):
        source = moved(encoded(encoder))
        before = source().values.detach().clone()
        with torch.no_grad():
            source.inputs[2] += 1.0
        changed = (source().values - before).abs().amax(1) > 1e-6
        assert changed.nonzero()[:, 0].tolist() == expected


def test_a_prefix_begins_at_its_start_and_is_cut_block_by_block() -> None:
    source = prefix()
    for layer in range(2):
        assert torch.equal(source.vectors()[Site("lm.kv", layer)].values, drawn(3, 8, seed=layer))
    moved(source)
    first, _, last = source.mlp
    made = torch.tanh(source.inputs @ first.weight.T + first.bias) @ last.weight.T + last.bias
    for layer in range(2):
        expected = drawn(3, 8, seed=layer) + 0.1 * (layer + 1) * made[:, 8 * layer : 8 * layer + 8]
        torch.testing.assert_close(source.vectors()[Site("lm.kv", layer)].values, expected)


def test_a_prefix_enters_no_other_tower() -> None:
    assert list(prefix().vectors("lm.kv")) == [Site("lm.kv", 0), Site("lm.kv", 1)]
    assert prefix().vectors("lm") == {}
    assert prefix().has("lm.kv")
    assert not prefix().has("lm")


@pytest.mark.parametrize("rank", [1, 2])
def test_the_prompt_of_a_task_is_the_shared_one_times_a_matrix_of_low_rank(rank: int) -> None:
    source = multitask(rank)
    shared = source.vectors()[LM_INPUT].values
    for number, task in enumerate(("a", "b")):
        found = source.vectors_of(task)[LM_INPUT].values
        for place in range(3):
            for column in range(6):
                factor = sum(source.columns[number, place, r] * source.rows[number, r, column] for r in range(rank))
                torch.testing.assert_close(found[place, column], shared[place, column] * factor)


def test_an_unknown_task_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        MultitaskSources(FreeVectors(drawn(1, 2)), ("colour", "kind"), drawn(2, 1, 1), drawn(2, 1, 2)).vectors_of(
            "colr"
        )
    assert str(caught.value) == "there is no task named 'colr'. Did you mean 'colour'?"


def test_one_prompt_serves_every_task() -> None:
    source = LanguageSources({LM_INPUT: FreeVectors(drawn(2, 3))})
    assert source.tasks == ()
    assert torch.equal(source.vectors_of("whatever")[LM_INPUT].values, drawn(2, 3))
    assert LanguageSources({}).vectors_of() == {}


def test_what_a_file_keeps_of_several_tasks_gives_the_same_prompts() -> None:
    source = moved(multitask())
    assert isinstance(source, MultitaskSources)
    tensors = source.tensors()
    assert sorted(tensors) == ["lm.input", "task_columns", "task_rows"]
    sites = {LM_INPUT: FreeVectors(tensors["lm.input"])}
    again = read_multitask(sites, ["a", "b"], tensors)
    for task in ("a", "b"):
        assert torch.equal(again.vectors_of(task)[LM_INPUT].values, source.vectors_of(task)[LM_INPUT].values)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: LanguageSources({LM_INPUT: encoded("mlp", seed)}),
        lambda seed: LanguageSources({LM_INPUT: encoded("lstm", seed)}),
        prefix,
        lambda seed: multitask(),
    ],
)
def test_a_state_is_taken_back_to_the_same_vectors_wherever_it_started(make: Callable[[int], LanguageSources]) -> None:
    learned, fresh = moved(make(0)), make(40)
    assert isinstance(learned, LanguageSources)
    fresh.load_state_dict({name: value.clone() for name, value in learned.state_dict().items()})
    for task in learned.tasks or ("",):
        for site, vectors in learned.vectors_of(task).items():
            assert torch.equal(fresh.vectors_of(task)[site].values, vectors.values)


def test_a_layer_of_zeros_gives_zeros() -> None:
    assert not bool(zero_linear(3, 2)(drawn(5, 3)).any())

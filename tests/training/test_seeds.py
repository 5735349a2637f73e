from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mmprompt.training.seeds import batches, derive_seed, epoch_order, generator


def test_an_order_is_a_permutation() -> None:
    assert sorted(epoch_order(1, 0, 50)) == list(range(50))


def test_an_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    torch.manual_seed(1)
    first = epoch_order(1, 5, 50)
    torch.rand(7)
    assert epoch_order(1, 5, 50) == first
    assert epoch_order(1, 6, 50) != first
    assert epoch_order(2, 5, 50) != first


def test_an_order_is_the_same_in_another_process() -> None:
    program = "from mmprompt.training.seeds import epoch_order; print(epoch_order(3, 2, 20))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(epoch_order(3, 2, 20))


def test_asking_for_an_order_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    epoch_order(1, 0, 50)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_streams_with_other_words_or_counters_are_independent() -> None:
    streams = [("a",), ("b",), ("a", 1), ("a", 2), ("a", "1"), ("a", 1, 1), ("a", 11)]
    assert len({derive_seed(1, *stream) for stream in streams} | {derive_seed(2, "a")}) == len(streams) + 1


def test_a_generator_repeats_its_numbers() -> None:
    numbers = [torch.rand(3, generator=generator(1, "augment", 4, 2)) for _ in range(2)]
    assert torch.equal(numbers[0], numbers[1])


@pytest.mark.parametrize(
    ("n", "size", "lengths"), [(10, 4, [4, 4]), (8, 4, [4, 4]), (3, 4, [3]), (4, 4, [4]), (0, 4, []), (1, 1, [1])]
)
def test_a_partial_batch_is_dropped_only_beside_a_full_one(n: int, size: int, lengths: list[int]) -> None:
    cut = batches(list(range(n)), size)
    assert [len(batch) for batch in cut] == lengths
    assert [index for batch in cut for index in batch] == list(range(sum(lengths)))

import pytest

from mmprompt.experiments.averages import harmonic_mean, mean_and_std, mean_of_means


def test_harmonic_mean_of_the_papers_averages():
    assert harmonic_mean(82.69, 63.22) == pytest.approx(71.66, abs=0.005)  # CoOp in the table of CoCoOp


def test_harmonic_mean_is_zero_where_one_side_is():
    assert harmonic_mean(0.8, 0.0) == harmonic_mean(0.0, 0.0) == 0.0


def test_standard_deviation_is_that_of_the_seeds_at_hand():
    assert mean_and_std([1.0, 3.0]) == (2.0, 1.0)


def test_a_single_seed_has_no_standard_deviation():
    assert mean_and_std([0.7]) == (0.7, None)


def test_every_data_set_counts_once_however_many_seeds_it_has():
    assert mean_of_means([[1.0, 1.0, 1.0], [0.0]]) == 0.5

"""What a decoder has read: rows are picked, repeated and joined, and nothing is changed in place."""

from __future__ import annotations

import torch
from torch import Tensor

from mmprompt.models.decoder.kv_cache import KVCache, causal_mask


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cache_of(n_rows: int, n_slots: int, seed: int = 0) -> KVCache:
    """Two blocks of two heads; states and their keys and values too."""
    own = tuple((drawn(n_rows, 2, n_slots, 3, seed=seed + n), drawn(n_rows, 2, n_slots, 3, seed=9 + n)) for n in (0, 1))
    crossed = ((drawn(n_rows, 2, 5, 3, seed=seed + 20), drawn(n_rows, 2, 5, 3, seed=seed + 21)),)
    return KVCache(own, drawn(n_rows, 5, 6, seed=seed + 30), crossed, n_slots)


def tensors(cache: KVCache) -> list[Tensor]:
    found = [part for pair in (*cache.own, *cache.crossed) for part in pair]
    return [*found, cache.states] if cache.states is not None else found


def test_rows_are_picked_as_often_as_they_are_named() -> None:
    cache, rows = cache_of(3, 4), torch.tensor([2, 0, 2, 1])
    picked = cache.select(rows)
    assert (len(picked), picked.n_read) == (4, 4)
    for one, other in zip(tensors(picked), tensors(cache), strict=True):
        assert torch.equal(one, other[rows])


def test_one_row_is_repeated_without_a_copy() -> None:
    cache = cache_of(1, 4)
    repeated = cache.repeat(5)
    assert (len(repeated), repeated.n_read) == (5, 4)
    for one, other in zip(tensors(repeated), tensors(cache), strict=True):
        assert torch.equal(one, other.expand_as(one))
        assert one.data_ptr() == other.data_ptr()
        assert one.stride(0) == 0


def test_learned_keys_and_values_come_after_what_was_read() -> None:
    cache, learned = cache_of(2, 4), cache_of(1, 3, seed=50).own
    longer = cache.insert(learned)
    assert longer.n_read == 7
    for (key, value), (old, _), (new, new_value) in zip(longer.own, cache.own, learned, strict=True):
        assert torch.equal(key[:, :, :4], old)
        assert torch.equal(key[:, :, 4:], new.expand(2, -1, -1, -1))
        assert torch.equal(value[:, :, 4:], new_value.expand(2, -1, -1, -1))
    empty = KVCache(states=cache.states)
    assert torch.equal(empty.insert(learned).own[1][0], learned[1][0].expand(2, -1, -1, -1))


def test_caches_are_joined_row_after_row() -> None:
    one, other = cache_of(2, 4), cache_of(1, 4, seed=60)
    both = KVCache.join([one, other])
    assert (len(both), both.n_read) == (3, 4)
    for part, first, second in zip(tensors(both), tensors(one), tensors(other), strict=True):
        assert torch.equal(part, torch.cat([first, second]))
    assert KVCache.join([KVCache(one.own, n_read=4), KVCache(other.own, n_read=4)]).states is None


def test_rows_after_a_base_take_its_part_from_it() -> None:
    rows = torch.tensor([1, 1, 0])
    base = KVCache(tuple((key[:, :, :2], value[:, :, :2]) for key, value in cache_of(2, 4, seed=70).own), n_read=2)
    cache = cache_of(2, 4)
    picked = cache.select_after(base, rows)
    assert picked.n_read == 4
    for (key, value), (old_key, old_value), (old, _) in zip(picked.own, cache.own, base.own, strict=True):
        assert torch.equal(key, torch.cat([old[rows], old_key[rows][:, :, 2:]], 2))
        assert torch.equal(value[:, :, 2:], old_value[rows][:, :, 2:])
    assert torch.equal(picked.crossed[0][1], cache.crossed[0][1][rows])
    assert torch.equal(cache.select_after(KVCache(), rows).own[0][0], cache.own[0][0][rows])


def test_bytes_are_counted_over_all_that_is_kept() -> None:
    n_own, n_crossed, n_states = 4 * 2 * 2 * 4 * 3, 2 * 2 * 2 * 5 * 3, 2 * 5 * 6
    assert cache_of(2, 4).n_bytes == 4 * (n_own + n_crossed + n_states)
    assert KVCache().n_bytes == 0


def test_new_slots_see_what_was_read_and_one_another_from_left_to_right() -> None:
    mask = causal_mask(2, torch.zeros(1, 3, 4))
    assert mask is not None
    assert (mask == 0).tolist() == [
        [True, True, True, False, False],
        [True, True, True, True, False],
        [True, True, True, True, True],
    ]
    assert bool(mask[mask != 0].isneginf().all())
    assert causal_mask(2, torch.zeros(5, 1, 4)) is None

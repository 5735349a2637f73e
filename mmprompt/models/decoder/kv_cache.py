"""What a text decoder has read so far, as plain tensors that are never changed in place.

Rows can be picked, repeated and put in another order at no more than the cost of an index, which is what beams, mixed
batches and images with many captions need. It knows no library; `hf_cache` turns it into transformers' caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KeyValues = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of every block: [N, H, S, D/H] each."""


@dataclass(frozen=True)
class KVCache:
    """Keys and values of N rows.

    Args:
        own: of the slots read so far, by self-attention; () before anything was read.
        states: [N, T, D'], what cross-attention reads, None where there is none.
        crossed: keys and values of the states where the decoder keeps them, else ().
        n_read: slots of the text axis that are taken, from which positions go on.
    """

    own: KeyValues = ()
    states: Tensor | None = None
    crossed: KeyValues = ()
    n_read: int = 0

    def select(self, rows: Tensor) -> KVCache:
        """Select rows, each as often as it is named: [N'] int64."""
        return self._map(lambda tensor: tensor.index_select(0, rows))

    def repeat(self, n_rows: int) -> KVCache:
        """Repeat one row without a copy."""
        return self._map(lambda tensor: tensor.expand(n_rows, *tensor.shape[1:]))

    def select_after(self, base: KVCache, rows: Tensor) -> KVCache:
        """The given rows, with what `base` had read taken from `base`, so that no gradient flows back through it.

        Args:
            base: what the same rows had read before, in self-attention.
            rows: [N'] int64.
        """
        if not base.own:
            return self.select(rows)
        n_base = base.own[0][0].shape[2]
        own = tuple(
            (
                torch.cat([old_key.index_select(0, rows), key[:, :, n_base:].index_select(0, rows)], dim=2),
                torch.cat([old_value.index_select(0, rows), value[:, :, n_base:].index_select(0, rows)], dim=2),
            )
            for (old_key, old_value), (key, value) in zip(base.own, self.own, strict=True)
        )
        rest = KVCache((), self.states, self.crossed, self.n_read).select(rows)
        return KVCache(own, rest.states, rest.crossed, self.n_read)

    def insert(self, keys_values: KeyValues) -> KVCache:
        """The same with learned keys and values after what was read: [1 or N, H, M, D/H] each."""
        n_rows = len(self)
        pairs = []
        for layer, given in enumerate(keys_values):
            pair = tuple(part.expand(n_rows, -1, -1, -1) for part in given)
            if self.own:
                before = self.own[layer]
                pair = tuple(torch.cat([old, new.to(old.dtype)], dim=2) for old, new in zip(before, pair, strict=True))
            pairs.append((pair[0], pair[1]))
        return KVCache(tuple(pairs), self.states, self.crossed, self.n_read + keys_values[0][0].shape[2])

    @staticmethod
    def join(parts: Sequence[KVCache]) -> KVCache:
        """Join the rows of several caches that have read equally much, one after another."""
        first = parts[0]

        def pairs(layers: Sequence[KeyValues]) -> KeyValues:
            blocks = [list(zip(*block, strict=True)) for block in zip(*layers, strict=True)]
            return tuple((torch.cat(keys), torch.cat(values)) for keys, values in blocks)

        states = None if first.states is None else torch.cat([part.states for part in parts if part.states is not None])
        own, crossed = pairs([part.own for part in parts]), pairs([part.crossed for part in parts])
        return KVCache(own, states, crossed, first.n_read)

    def __len__(self) -> int:
        first = self.states if self.states is not None else self.own[0][0]
        return first.shape[0]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [part for pair in (*self.own, *self.crossed) for part in pair]
        tensors += [] if self.states is None else [self.states]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _map(self, change: Callable[[Tensor], Tensor]) -> KVCache:
        own = tuple((change(key), change(value)) for key, value in self.own)
        crossed = tuple((change(key), change(value)) for key, value in self.crossed)
        return KVCache(own, None if self.states is None else change(self.states), crossed, self.n_read)


def learned_cache(learned: KeyValues) -> KVCache:
    """Make a cache of learned keys and values, which count as read before everything else."""
    return KVCache(learned, n_read=learned[0][0].shape[2]) if learned else KVCache()


def causal_mask(n_before: int, x: Tensor) -> Tensor | None:
    """Build the mask of new slots, which see all that were read before them, and one another from left to right.

    Args:
        n_before: keys that were kept, image and prompt among them.
        x: [N, L] or [N, L, D], the new slots.
    Returns:
        [L, n_before + L] in the dtype of x, to be added to scores; None where a single new slot sees everything.
    """
    n_new = x.shape[1]
    if n_new == 1:
        return None
    hidden = torch.full((n_new, n_before + n_new), float("-inf"), dtype=x.dtype, device=x.device)
    return hidden.triu(n_before + 1)

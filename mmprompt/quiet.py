"""Warnings of libraries, held back in several threads at once.

`warnings.catch_warnings` puts back what it found: of two threads that overlap, the later one what the other had set.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_lock, _kept = threading.Lock(), ExitStack()
_n_users = 0


@contextmanager
def quiet(message: str = "", category: type[Warning] = Warning) -> Iterator[None]:
    """Hold back the warnings that begin so, by default all, until nobody holds any back."""
    global _n_users
    with _lock:
        if not _n_users:
            _kept.enter_context(warnings.catch_warnings())
        _n_users += 1
        warnings.filterwarnings("ignore", message, category)
    try:
        yield
    finally:
        with _lock:
            _n_users -= 1
            if not _n_users:
                _kept.close()

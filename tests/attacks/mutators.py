"""Seeded damage to bytes, texts and JSON: what a bad disk, another tool or an attacker makes of a file."""

from __future__ import annotations

import copy
import io
import random
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 10**8, 10**30, -0.5, 1e308, "", "x", "x" * 5000, "../../etc/passwd",
    "/dev/zero", "a\0b", "\ud800", "\x1b]0;PWN\x07", "{soft*99999999}", "{name", "{{ 7*7 }}",
    [], [[]], {}, {"a": {}}, [0] * 500,
)  # fmt: skip
"""What stands in place of a value."""
PIECES = (
    b"\0",
    b"\xff\xfe",
    b"\r\n",
    b"9" * 40,
    b'"',
    b"{",
    b"]",
    b",",
    b"\xed\xa0\x80",
    b"NaN",
    b"1e999",
    b"../",
    b"%s",
)
"""What is put into bytes."""


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, overwrite or insert, once or a few times."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        place = rng.randrange(len(changed) + 1)
        end = min(len(changed), place + rng.choice((1, 4, 16, 200)))
        match rng.randrange(6):
            case 0 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                del changed[place:end]
            case 2:
                del changed[place:]
            case 3:
                changed[place:place] = changed[place:end] * rng.choice((1, 2, 50))
            case 4:
                changed[place:end] = rng.randbytes(end - place)
            case _:
                changed[place:place] = rng.choice(PIECES)
    return bytes(changed)


def mutate_json(content: Any, rng: random.Random) -> Any:
    """Put another value somewhere, take a key away, add one, or exchange, repeat or cut the members of a list."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(content))
        if not places:
            return rng.choice(VALUES)
        owner, key = rng.choice(places)
        match rng.randrange(5):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, dict):
                owner[rng.choice(("", "extra", "__class__", "kind"))] = copy.deepcopy(rng.choice(VALUES))
            case 2 if isinstance(owner, list):
                owner.extend(copy.deepcopy(owner[: rng.choice((1, 3, 200))]))
            case 3:
                other_owner, other = rng.choice(places)
                owner[key] = copy.deepcopy(other_owner[other])
            case _:
                owner[key] = copy.deepcopy(rng.choice(VALUES))
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every member of every list and mapping, with what it is a member of."""
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])


def with_member(archive: bytes, suffix: str, change: Callable[[bytes], bytes]) -> bytes:
    """A zip file that is whole, with another content of one of its files."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith(suffix) else data)
    return made.getvalue()

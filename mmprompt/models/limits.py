"""Limits on disk and memory that the user sets in the environment, as sizes such as `500MB`."""

from __future__ import annotations

import os
import re

from mmprompt.errors import bad_value

UNITS = {"": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


def size_from_environment(variable: str, default_bytes: int, zero: str) -> int:
    """Return the bytes that an environment variable asks for, the default where it is not set.

    Raises:
        UserError: it is not a size; `zero` says what 0 would mean.
    """
    text = os.environ.get(variable, "")
    if not text:
        return default_bytes
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B)?", text.strip().upper())
    if match is None:
        raise bad_value(variable, repr(text), "a size was expected", f"Use 500MB, 4GB, or 0 for {zero}.")
    return int(float(match[1]) * UNITS[match[2] or ""])

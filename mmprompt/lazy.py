"""Names of a package that are imported when they are first used, so that importing the package loads no torch."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_IMPORT = re.compile(r"^    from (mmprompt\.[\w.]+) import (\([^)]*\)|[^\n]*)", re.MULTILINE)


def lazy_names(package: str, *parts: str) -> tuple[Callable[[str], Any], list[str]]:
    """Resolve on first use the names that a package imports under `if TYPE_CHECKING`, where editors read them.

    Args:
        package: its `__name__`.
        parts: sub-packages that are names of it too.
    Returns:
        The package's `__getattr__`, and its names for `__all__`.
    """
    source = Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8")
    homes = {
        name: module
        for module, names in _IMPORT.findall(source)
        for name in re.findall(r"\w+", re.sub(r"#[^\n]*", "", names))
    }

    def resolve(name: str) -> Any:
        if name in parts:
            return importlib.import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return resolve, sorted({*homes, *parts})

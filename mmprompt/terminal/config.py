"""Settings from a file: the options by their names, or the `run.json` of an earlier run.

A file holds `n_ctx: 4` where the command line says `--n-ctx 4`; what the command line says wins. A key
that is misspelt or stands twice is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mmprompt.data.strict_yaml import read_yaml, validate
from mmprompt.errors import bad_file, unknown_name

RUN_KEYS = "format kind backbone data class_names method recipe seed device dtype versions call".split()
"""What a run.json holds."""


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a file by option name, with underscores.

    Args:
        path: a YAML or JSON file, the `run.json` of a run among them.
    Raises:
        UserError: it cannot be read, or a key stands twice; of a `run.json` also that a key is unknown.
    """
    content = read_yaml(path)
    if "format" not in content:
        return content
    for key in content:
        if key not in RUN_KEYS:
            raise unknown_name(f"key in {path}", key, RUN_KEYS)
    try:
        place = content.get("call", {}).get("pictures") or {"data": content["data"]["name"]}
        return {
            **{name: value for name, value in place.items() if value is not None},
            "backbone": content["backbone"]["name"],
            "method": content["method"]["name"],
            **content["method"]["settings"],
            **content["recipe"],
            "shots": content["data"]["shots"],
            "seed": content["seed"],
        }
    except (KeyError, TypeError, AttributeError):
        raise bad_file(path, "is not a whole run.json", "Give one as a run wrote it.") from None


def distribute(settings: Mapping[str, Any], groups: Mapping[str, type], path: Path) -> dict[str, Any]:
    """Make each group's dataclass from the settings that are its own.

    Args:
        settings: values by option name.
        groups: dataclasses by the name of the group; no two have a field of the same name.
        path: the file, for the error message.
    Raises:
        UserError: a key belongs to no group (the nearest is named), or a value does not fit.
    """
    names = {group: [field.name for field in fields(kind)] for group, kind in groups.items()}
    known = [name for members in names.values() for name in members]
    for key in settings:
        if key not in known:
            raise unknown_name(f"key in {path}", key, known)
    return {
        group: validate(kind, {key: value for key, value in settings.items() if key in names[group]}, path)
        for group, kind in groups.items()
    }

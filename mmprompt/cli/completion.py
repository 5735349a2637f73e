"""`mmprompt completion`: a script with which a shell completes verbs and options."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from mmprompt.terminal.parser import parse, parser_of

DESCRIPTION = "Print a script with which your shell completes verbs and options; docs/first-hour.md says where it goes."
PATHS = ("PATH", "FILE", "FOLDER", "RUN", "IMAGES")
"""Words of a placeholder that stands for something on disk."""


@dataclass(frozen=True)
class Settings:
    """For which shell."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "tcsh"]] = "bash"


def run(arguments: Sequence[str], prog: str) -> None:
    """Print the script."""
    import shtab

    shell = parse(Settings, arguments, prog, DESCRIPTION).shell
    print(shtab.complete(whole_parser(), shell))


def whole_parser() -> argparse.ArgumentParser:
    """Return one parser of all verbs, in which the options of a method are those of the default one."""
    from mmprompt.cli.main import VERBS

    whole = argparse.ArgumentParser("mmprompt")
    groups: dict[str, Any] = {"": whole.add_subparsers()}
    for name, verb in VERBS.items():
        group, _, last = name.rpartition(" ")
        if group not in groups:
            groups[group] = groups[""].add_parser(group, help=f"{group} ...").add_subparsers()
        function = getattr(importlib.import_module(f"mmprompt.{verb.module}"), verb.function)
        options = parser_of(function, f"mmprompt {name}")
        for action in options._actions:
            if any(word in str(action.metavar) for word in PATHS):
                action.complete = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # type: ignore[attr-defined]
        groups[group].add_parser(last, help=verb.summary, parents=[options], add_help=False)
    return whole

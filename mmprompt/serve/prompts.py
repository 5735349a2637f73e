"""The prompts of a folder on one frozen model of each kind, looked at again and again: what was added, changed or
removed. A prompt that cannot be used is refused in one line, and the one that was there before stays.

It knows files and predictors, not HTTP.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprompt.core.file import load
from mmprompt.core.header import HEADER, TENSORS, read_header
from mmprompt.errors import UserError, bad_file

Stamp = tuple[tuple[int, int, int], ...]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Served:
    """A prompt in use: its folder's name, its kind, what predicts with it, and its facts, JSON-ready."""

    name: str
    kind: str
    predictor: Any
    facts: Mapping[str, Any]


class PromptFolder:
    """The prompts of the folders in a folder, by name.

    The frozen model of a kind is that of its first prompt; prompts that were learned on other weights are refused.

    Attributes:
        prompts: those in use. Never changed in place, so that who looks at it sees one state.
        refused: by name, why a prompt is not used as its files are now.
        models: the frozen model of each kind.
        in_use: held while prompts compute, and while one is made.
    """

    def __init__(self, folder: Path | str, device: str = "auto") -> None:
        self.folder, self.device = Path(folder), device
        if not self.folder.is_dir():
            raise bad_file(self.folder, "is no folder", "Give a folder with a folder for each prompt in it.")
        if (self.folder / HEADER).exists():
            advice = f"Give the folder that it lies in: {self.folder.absolute().parent}."
            raise bad_file(self.folder, "is itself a prompt, but a folder of prompts was expected", advice)
        self.prompts: dict[str, Served] = {}
        self.refused: dict[str, str] = {}
        self.models: dict[str, Any] = {}
        self.in_use = threading.Lock()
        self._stamps: dict[str, Stamp] = {}

    def refresh(self) -> None:
        """Look at the folder, and take in what is new in it; a folder that cannot be read leaves all as it was."""
        try:
            shown = [path for path in sorted(self.folder.iterdir()) if path.name.isprintable()]
            found = [path for path in shown if not path.name.startswith(".")]  # hidden ones are half written
            stamps = {path.name: stamp for path in found if (stamp := _stamp_of(path)) is not None}
        except OSError as error:
            _log.warning("%s cannot be read (%s). The prompts stay as they are.", self.folder, error.strerror)
            return
        for name in self._stamps.keys() - stamps.keys():
            self.prompts = {other: served for other, served in self.prompts.items() if other != name}
            self.refused.pop(name, None)
            _log.info("%s is gone", name)
        changed = [name for name, stamp in stamps.items() if self._stamps.get(name) != stamp]
        self._stamps = stamps
        for name in changed:
            try:
                self.prompts = self.prompts | {name: self._load(name)}
                self.refused.pop(name, None)
                _log.info("%s is in use", name)
            except Exception as error:  # whatever a stranger's files do, the server lives on
                why = str(error) if isinstance(error, UserError) else f"{type(error).__name__} while it was loaded"
                self.refused[name] = why
                stays = "; the one before it stays in use" if name in self.prompts else ""
                _log.warning("%s is refused%s: %s", name, stays, why)

    def _load(self, name: str) -> Served:
        folder = self.folder / name
        header = read_header(folder)
        kind = header["kind"]
        with self.in_use if kind in self.models else nullcontext():  # of a new model nobody waits for the loading
            predictor = load(folder, self.models.get(kind), self.device)
        self.models.setdefault(kind, predictor.backbone)
        facts = {"name": name, "kind": kind, "backbone": header["backbone"]["name"], "template": header["template"]}
        if kind == "classification":
            facts["class_names"] = list(predictor.class_names)
        elif kind == "captioning":
            facts["focus"] = header["focus"]
        else:
            words = predictor.label_words
            facts |= {"fields": list(predictor.template.fields), "tasks": list(predictor.tasks)}
            facts |= {"labels": None if words is None else list(words.labels)}
        return Served(name, kind, predictor, facts)


def _stamp_of(folder: Path) -> Stamp | None:
    """Return what changes whenever the files of a prompt do, None where there is no prompt."""
    stamps = []
    for name in (HEADER, TENSORS):
        try:
            stat = (folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            if name == HEADER:
                return None
            continue
        except OSError:
            return ()  # why, its loading says
        stamps.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(stamps)

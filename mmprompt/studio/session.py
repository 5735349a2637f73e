"""People and their work: a session for each, in a folder of its own, all over one queue and one set of models."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmprompt.core.header import read_header
from mmprompt.errors import UserError
from mmprompt.files import make_folder
from mmprompt.studio import prompts
from mmprompt.studio.captions import CaptionWork
from mmprompt.studio.classify import ImageWork
from mmprompt.studio.jobs import Job, Jobs
from mmprompt.studio.prompts import Models
from mmprompt.studio.texts import TextWork

NAME = re.compile(r"[0-9a-f]{32}")
NO_FILE_NAME = re.compile(r"[^\w.-]")
MOST_LETTERS = 50
"""Of the name of a download, which may come from a stranger."""
KEPT_DAYS = 30
"""A session that nobody looked at for longer is deleted when a studio starts."""
PARTS = {"classification": "images", "captioning": "captions", "language": "texts"}


class Session:
    """What one person has made; the parts are taken up from the folder when they are first looked at."""

    def __init__(self, name: str, folder: Path, shared: Path, models: Models, jobs: Jobs) -> None:
        self.name, self.folder, self.jobs = name, folder, jobs
        self.job: Job | None = None
        self._makers: dict[str, Callable[[], Any]] = {
            "images": partial(ImageWork, folder, models),
            "captions": partial(CaptionWork, folder, models, shared / "focuses"),
            "texts": partial(TextWork, folder, models),
        }
        self._parts: dict[str, Any] = {}
        self._lock = threading.Lock()

    def part(self, name: str) -> Any:
        """Return the work of a part of the studio."""
        with self._lock:  # a page asks for several things at once when it opens
            if name not in self._parts:
                self._parts[name] = self._makers[name]()
            return self._parts[name]

    @property
    def images(self) -> ImageWork:
        """Images and the classifier."""
        return self.part("images")

    @property
    def captions(self) -> CaptionWork:
        """Focuses."""
        return self.part("captions")

    @property
    def texts(self) -> TextWork:
        """The prompt of a language model."""
        return self.part("texts")

    def submit(self, place: str, work: Callable[[Job], None], keeps_part: bool = True) -> Job:
        """Put a training into the queue, where there is room and this person has none under way."""
        with self._lock:
            if self.job is not None and self.job.is_alive:
                raise UserError("a training of yours is under way. Stop it first, or wait for it.")
            self.job = self.jobs.add(Job(place, work, keeps_part))
        return self.job

    def job_of(self, place: str) -> Job | None:
        """Return the latest training, if it is of this part of the studio."""
        return self.job if self.job is not None and self.job.place == place else None

    def open_prompt(self, given: Sequence[Path]) -> str:
        """Take up a prompt that somebody brings, and say where it went; nothing of a refused one is kept."""
        folder = prompts.new_run(self.folder)
        try:
            prompts.unpack(given, folder)
            part = PARTS[read_header(folder)["kind"]]
            self.part(part).open_prompt(folder)
        except UserError:
            shutil.rmtree(folder)
            raise
        return part

    def download(self, folder: Path, name: str) -> Path:
        """Return a zip file of the prompt of a run folder, to be taken along; what is no name of a file is left out."""
        return prompts.pack(folder, self.folder / "downloads" / f"{NO_FILE_NAME.sub('_', name)[:MOST_LETTERS]}.zip")


class Studio:
    """All sessions of one work folder; `n_forgotten` were deleted, for nobody had looked at them for `KEPT_DAYS`."""

    def __init__(self, folder: Path, models: Models) -> None:
        self.folder, self.models, self.jobs = make_folder(folder).resolve(), models, Jobs()
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self.n_forgotten = 0
        for old in self.sessions.iterdir():
            if NAME.fullmatch(old.name) and time.time() - old.stat().st_mtime > KEPT_DAYS * 86400:
                shutil.rmtree(old, ignore_errors=True)
                self.n_forgotten += 1

    @property
    def sessions(self) -> Path:
        """Where the folders of all sessions are."""
        return make_folder(self.folder / "sessions")

    def session(self, name: object = "") -> Session:
        """Return the session of a name that a browser kept, or a new one where there is none of that name."""
        with self._lock:
            if not isinstance(name, str) or not NAME.fullmatch(name) or not (self.sessions / name).is_dir():
                name = secrets.token_hex(16)
            folder = make_folder(self.sessions / name)
            os.utime(folder)  # it is in use, also where another studio on this folder starts
            if name not in self._sessions:
                self._sessions[name] = Session(name, folder, self.folder, self.models, self.jobs)
            return self._sessions[name]

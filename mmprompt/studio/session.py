"""People and their work: a session for each, in a folder of its own, all over one queue and one set of models."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprompt.core.header import read_header
from mmprompt.errors import UserError
from mmprompt.files import make_folder
from mmprompt.studio import prompt_files
from mmprompt.studio.jobs import Job, Jobs
from mmprompt.studio.models import Models

if TYPE_CHECKING:
    from mmprompt.studio.captions import CaptionWork
    from mmprompt.studio.classify import ImageWork
    from mmprompt.studio.texts import TextWork

NAME = re.compile(r"[0-9a-f]{32}")


class Session:
    """What one person has made; the parts are taken up from the folder when they are first looked at."""

    def __init__(self, name: str, folder: Path, shared: Path, models: Models, jobs: Jobs) -> None:
        self.name, self.folder, self.shared, self.models, self._jobs = name, folder, shared, models, jobs
        self.job: Job | None = None
        self._parts: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def images(self) -> ImageWork:
        """Images and the classifier."""
        from mmprompt.studio.classify import ImageWork

        return self._part("images", lambda: ImageWork(self.folder, self.models))

    @property
    def captions(self) -> CaptionWork:
        """Focuses."""
        from mmprompt.studio.captions import CaptionWork

        return self._part("captions", lambda: CaptionWork(self.shared / "focuses", self.models))

    @property
    def texts(self) -> TextWork:
        """The prompt of a language model."""
        from mmprompt.studio.texts import TextWork

        return self._part("texts", lambda: TextWork(self.folder, self.models))

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:  # a page asks for several things at once when it opens
            if name not in self._parts:
                self._parts[name] = make()
            return self._parts[name]

    def submit(self, place: str, work: Callable[[Job], None], keeps_part: bool = True) -> Job:
        """Put a training into the queue.

        Raises:
            UserError: this person has one there already, or the queue is full.
        """
        with self._lock:
            if self.job is not None and self.job.is_alive:
                raise UserError("a training of yours is under way. Stop it first, or wait for it.")
            self.job = self._jobs.add(Job(place, work, keeps_part))
        return self.job

    def job_of(self, place: str) -> Job | None:
        """Return the latest training, if it is of this part of the studio."""
        return self.job if self.job is not None and self.job.place == place else None

    def n_ahead(self) -> int:
        """Count the trainings that come before this person's."""
        return 0 if self.job is None else self._jobs.n_ahead(self.job)

    def open_prompt(self, given: Sequence[Path]) -> str:
        """Take up a prompt that somebody brings, and return the part of the studio that it went to.

        Raises:
            UserError: it is none, was edited, or is of a model that is not offered.
        """
        folder = prompt_files.unpack(given, self.folder / "loaded" / secrets.token_hex(4))
        kind: str = read_header(folder)["kind"]
        part = {"classification": "images", "captioning": "captions", "language": "texts"}[kind]
        getattr(self, part).open_prompt(folder)
        return part

    def download(self, folder: Path, name: str) -> Path:
        """Return a zip file of the prompt of a run folder, to be taken along."""
        return prompt_files.pack(folder, self.folder / "downloads" / f"{name}.zip")


class Studio:
    """All sessions of one work folder.

    Args:
        folder: where everything goes.
        models: that are offered.
    """

    def __init__(self, folder: Path, models: Models) -> None:
        self.folder, self.models, self.jobs = make_folder(folder).resolve(), models, Jobs()
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def session(self, name: object = "") -> Session:
        """Return the session of a name that a browser kept, or a new one where there is none of that name."""
        with self._lock:
            if not isinstance(name, str) or not NAME.fullmatch(name) or not self._folder(name).is_dir():
                name = secrets.token_hex(16)
            if name not in self._sessions:
                folder = make_folder(self._folder(name))
                self._sessions[name] = Session(name, folder, self.folder, self.models, self.jobs)
            return self._sessions[name]

    def _folder(self, name: str) -> Path:
        return self.folder / "sessions" / name

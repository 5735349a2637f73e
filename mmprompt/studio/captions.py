"""One person's captions: of drawn scenes and of an image of their own, steered by focus, strength and what to avoid.

The focuses of the bundled scenes are learned once for each captioner and shared by all; one from a prompt file is its
person's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mmprompt.captioning.data import DEFAULT_SET, load_captions
from mmprompt.captioning.predictor import Captioner, Guidance
from mmprompt.core.fit import fit
from mmprompt.core.header import HEADER, read_header
from mmprompt.core.learned import Prompt
from mmprompt.core.soft import PromptTuning
from mmprompt.errors import UserError, unknown_name
from mmprompt.files import sha256_bytes
from mmprompt.studio.jobs import Job
from mmprompt.studio.prompts import Models, newest_first

FOCUSES = ("objects", "emotions", "actions")
N_SOFT, EPOCHS = 8, 5
N_SCENES = 4
KIND = "captioning"


class CaptionWork:
    """One person's focuses; those of the bundled scenes lie in `shared`, for all.

    `captioner` is the name of the frozen model that speaks, `newest` the focus that was learned or brought last.
    """

    def __init__(self, folder: Path, models: Models, shared: Path) -> None:
        self.shared, self.models, self.captioner, self.newest = shared, models, "tiny", ""
        self._own: dict[str, tuple[Path, str]] = {}  # of each focus from a file its folder and captioner
        self._prompts: dict[Path, Prompt] = {}
        for brought in reversed(newest_first(folder, KIND)):
            captioner = self._take(brought)
            if captioner in models.offered[KIND]:
                self.captioner = captioner

    def learned(self) -> list[str]:
        """Return the names of the focuses that there are for this captioner."""
        shared = (name for name in FOCUSES if (self.folder(name) / HEADER).is_file())
        return [*shared, *(name for name, (_, captioner) in self._own.items() if captioner == self.captioner)]

    def learn(self, focus: str) -> Callable[[Job], None]:
        """Return the work that learns a focus of the bundled scenes."""
        if focus not in FOCUSES:
            raise unknown_name("focus", focus, FOCUSES)
        out, name = self.folder(focus), self.captioner

        def work(job: Job) -> None:
            if not (out / HEADER).is_file():  # else somebody else was first
                job.say(f"loading {name}")
                captioner, task = self.models.get(KIND, name), load_captions(DEFAULT_SET).focus(focus)
                fit(PromptTuning(N_SOFT), captioner, task, out, None, 1, [job], out.exists(), False, epochs=EPOCHS)
            self.newest = focus

        return work

    def open_prompt(self, folder: Path) -> None:
        """Take up a focus from a prompt file, and speak with its captioner."""
        self._prompts[folder] = self.models.load(folder, KIND).prompt
        self.captioner = self._take(folder)

    def _take(self, folder: Path) -> str:
        """Offer a focus from a file, and return its captioner."""
        header = read_header(folder, KIND)
        captioner: str = header["backbone"]["name"]
        self.newest = f"{header['focus']} (file {folder.name})"
        self._own[self.newest] = (folder, captioner)
        return captioner

    def write(
        self, image: Path | None, focuses: Sequence[str], strength: float, avoid: str | None, avoid_strength: float
    ) -> list[tuple[Path, str, str]]:
        """Write captions of some bundled scenes, or of one image: each with what is said of it by itself, and steered.

        Focuses speak one after the other, at a strength of 0 to 3; none is the captioner by itself. Of the one to
        avoid, each own word costs `avoid_strength` nats.
        """
        captioner = Captioner(self.models.get(KIND, self.captioner))
        prompts = tuple((self._prompt(name), 1.0) for name in focuses)
        guidance = Guidance(prompts, strength, None if avoid is None else self._prompt(avoid), avoid_strength)
        images = [item.image for item in load_captions(DEFAULT_SET).test[:N_SCENES]] if image is None else [image]
        plain, steered = captioner.caption(images), captioner.caption(images, guidance)
        return [(path, one.text, other.text) for path, one, other in zip(images, plain, steered, strict=True)]

    def folder(self, focus: str) -> Path:
        """Return where the prompt of a focus lies, or will."""
        own, of_captioner = self._own.get(focus), sha256_bytes(self.captioner.encode())[:12]
        return self.shared / f"{focus}-{of_captioner}" if own is None else own[0]

    def _prompt(self, name: str) -> Prompt:
        if name not in self.learned():
            raise UserError(f"the focus {name!r} is not learned yet. Learn it first; it takes some seconds.")
        folder = self.folder(name)
        if folder not in self._prompts:
            self._prompts[folder] = self.models.load(folder, KIND).prompt
        return self._prompts[folder]

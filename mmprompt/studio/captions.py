"""One person's captions: of drawn scenes and of an image of their own, steered by focus, strength and what to avoid.

The focuses of the bundled scenes are learned once and shared by all; one from a prompt file is its person's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmprompt.captioning.data import DEFAULT_SET, load_captions
from mmprompt.captioning.predictor import Captioner, Guidance, load_focus
from mmprompt.core.fit import fit
from mmprompt.core.header import HEADER, read_header
from mmprompt.core.soft import PromptTuning
from mmprompt.errors import UserError, unknown_name
from mmprompt.studio.jobs import Job
from mmprompt.studio.models import Models

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt

FOCUSES = ("objects", "emotions", "actions")
N_SOFT, EPOCHS = 8, 5
N_SCENES = 4
CAPTIONER = "tiny"


@dataclass(frozen=True)
class Captioned:
    """An image with what the captioner says of it by itself, and steered."""

    image: Path
    plain: str
    steered: str


class CaptionWork:
    """One person's focuses.

    Args:
        shared: where the focuses that all share are, and will be.
        models: the studio's.
    """

    def __init__(self, shared: Path, models: Models) -> None:
        self.shared, self.models = shared, models
        self.newest = ""
        self._own: dict[str, Path] = {}
        self._prompts: dict[Path, Prompt] = {}

    def learned(self) -> list[str]:
        """Return the names of the focuses that are there."""
        return [*(name for name in FOCUSES if (self.shared / name / HEADER).is_file()), *self._own]

    def learn(self, focus: str) -> Callable[[Job], None]:
        """Return the work that learns a focus of the bundled scenes.

        Raises:
            UserError: there is none of that name.
        """
        if focus not in FOCUSES:
            raise unknown_name("focus", focus, FOCUSES)

        def work(job: Job) -> None:
            self.newest = focus
            if (self.shared / focus / HEADER).is_file():
                return  # somebody else was first
            job.doing = f"loading {CAPTIONER}"
            captioner = self.models.captioner(CAPTIONER)
            task = load_captions(DEFAULT_SET).focus(focus)
            out, is_begun = self.shared / focus, (self.shared / focus).exists()
            fit(PromptTuning(N_SOFT), captioner, task, out, None, 1, [job], is_begun, progress=False, epochs=EPOCHS)

        return work

    def open_prompt(self, folder: Path) -> str:
        """Take up a focus from a prompt file, and return its name.

        Raises:
            UserError: it is edited, damaged, of another kind, or of a captioner that is not offered.
        """
        header = read_header(folder, "captioning")
        captioner = self.models.of_prompt(header)
        if captioner is not self.models.captioner(CAPTIONER):
            raise UserError(
                f"this focus was learned on {header['backbone']['name']}, but captions here are {CAPTIONER}'s. "
                "Use `mmprompt caption write` for it."
            )
        self._prompts[folder] = load_focus(folder, captioner)
        name = f"{header['focus']} (from a file)"
        self._own[name], self.newest = folder, name
        return name

    def write(
        self, image: Path | None, focuses: Sequence[str], strength: float, avoid: str | None, avoid_strength: float
    ) -> list[Captioned]:
        """Write captions of some bundled scenes, or of one image.

        Args:
            image: of one's own; None for the scenes.
            focuses: that speak one after the other; none for the captioner by itself.
            strength: of them, 0 to 3.
            avoid: the focus whose own words are not to be said.
            avoid_strength: what each of them costs, in nats.
        Raises:
            UserError: a focus is not there, or the image cannot be read.
        """
        captioner = Captioner(self.models.captioner(CAPTIONER))
        prompts = tuple((self._prompt(name), 1.0) for name in focuses)
        guidance = Guidance(prompts, strength, None if avoid is None else self._prompt(avoid), avoid_strength)
        images = scenes() if image is None else [image]
        plain, steered = captioner.caption(images), captioner.caption(images, guidance)
        return [Captioned(*row) for row in zip(images, (c.text for c in plain), (c.text for c in steered), strict=True)]

    def folder(self, focus: str) -> Path:
        """Return where the prompt of a focus lies."""
        return self._own.get(focus, self.shared / focus)

    def _prompt(self, name: str) -> Prompt:
        if name not in self.learned():
            raise UserError(f"the focus {name!r} is not learned yet. Learn it first; it takes some seconds.")
        folder = self.folder(name)
        if folder not in self._prompts:
            self._prompts[folder] = load_focus(folder, self.models.captioner(CAPTIONER))
        return self._prompts[folder]


def scenes() -> list[Path]:
    """Return some test scenes of the bundled set."""
    return [item.image for item in load_captions(DEFAULT_SET).test[:N_SCENES]]

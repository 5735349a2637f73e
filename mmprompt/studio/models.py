"""The frozen models of a studio: each loaded once, on first use, and shared by all."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprompt.core.file import load
from mmprompt.core.header import read_header
from mmprompt.errors import UserError, unknown_name
from mmprompt.models.dual_encoder.load import MODEL_OF, load_backbone
from mmprompt.models.packaged import PHOTOS, is_fetched

IN_PLACE = ("weights", "layer-norms")
"""Sources that change a model's own weights while it reads."""


class Models:
    """The frozen models that are offered, by kind of prompt: `tiny`, those that were fetched and those named."""

    def __init__(
        self,
        backbones: Sequence[str] = (),
        captioners: Sequence[str] = (),
        language_models: Sequence[str] = (),
        device: str = "auto",
    ) -> None:
        known = {"classification": PHOTOS, "captioning": ("photo",), "language": ("smollm2",)}
        more = {"classification": backbones, "captioning": captioners, "language": language_models}
        self.offered = {
            kind: tuple(dict.fromkeys(("tiny", *filter(is_fetched, known[kind]), *more[kind]))) for kind in known
        }
        self.device = device
        self._loaded: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def get(self, kind: str, name: str) -> Any:
        """Return the frozen model of a name that is offered for prompts of a kind."""
        if name not in self.offered[kind]:
            raise unknown_name("frozen model", name, self.offered[kind])
        with self._lock:
            if (kind, name) not in self._loaded:
                self._loaded[kind, name] = load_backbone(name, self.device, kind=MODEL_OF[kind])
            return self._loaded[kind, name]

    def load(self, folder: Path, kind: str) -> Any:
        """Load a prompt on the shared model that it names, which must be one that is offered.

        One that puts other weights in place while a model reads gets a model of its own: others read with the shared
        one meanwhile.
        """
        header = read_header(folder, kind)
        name = header["backbone"]["name"]
        if name not in self.offered[kind]:
            raise UserError(
                f"this prompt was learned on {name}, but this studio has {', '.join(self.offered[kind])}. "
                "Give a prompt of one of these, or start the studio with that model."
            )
        is_in_place = any(part["kind"] in IN_PLACE for part in header["sources"])
        return load(folder, name if is_in_place else self.get(kind, name), self.device)

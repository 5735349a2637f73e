"""The frozen models of a studio: each loaded once, on first use, and shared by all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmprompt.errors import UserError, unknown_name
from mmprompt.models.packaged import is_fetched

if TYPE_CHECKING:
    from mmprompt.captioning.readers.captioner import FrozenCaptioner
    from mmprompt.models.decoder.model import FrozenLanguageModel
    from mmprompt.models.dual_encoder.interface import DualEncoder

IN_PLACE = ("weights", "layer-norms")
"""Sources that change a model's own weights while it reads."""


class Models:
    """Which models there are, and the models themselves.

    Args:
        backbones: for images; `tiny`, and of `photo` and `photo-large` those that were fetched, come with them.
        language_models: for texts; `tiny`, and `smollm2` if it was fetched, come with them.
        device: of all of them.
    """

    def __init__(
        self, backbones: Sequence[str] = (), language_models: Sequence[str] = (), device: str = "auto"
    ) -> None:
        here = {name for name in ("photo", "photo-large", "smollm2") if is_fetched(name)}
        self.backbones = tuple(dict.fromkeys(["tiny", *sorted(here - {"smollm2"}), *backbones]))
        self.captioners = ("tiny", *sorted(here & {"photo"}))
        self.language_models = tuple(dict.fromkeys(["tiny", *sorted(here & {"smollm2"}), *language_models]))
        self.device = device
        self._loaded: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def dual_encoder(self, name: str) -> DualEncoder:
        """Return the frozen model for images of a name that is offered."""
        from mmprompt.models.dual_encoder.load import load_backbone

        return self._load("backbone", name, self.backbones, lambda: load_backbone(name, self.device))

    def captioner(self, name: str) -> FrozenCaptioner:
        """Return the frozen captioner of a name that is offered."""
        from mmprompt.captioning.readers.load import load_captioner

        return self._load("captioner", name, self.captioners, lambda: load_captioner(name, device=self.device))

    def language_model(self, name: str) -> FrozenLanguageModel:
        """Return the frozen language model of a name that is offered."""
        from mmprompt.models.decoder.load import load_language_model

        offered = self.language_models
        return self._load("language model", name, offered, lambda: load_language_model(name, self.device))

    def of_prompt(self, header: Mapping[str, Any]) -> Any:
        """Return the frozen model that a prompt file names.

        A prompt that puts other weights in place while a model reads gets one of its own: others read with the shared
        one meanwhile.

        Raises:
            UserError: it is for a model that this studio does not offer.
        """
        kind, name = header["kind"], header["backbone"]["name"]
        find = {"classification": self.dual_encoder, "captioning": self.captioner, "language": self.language_model}
        try:
            shared = find[kind](name)
        except UserError:
            offered = {
                "classification": self.backbones,
                "captioning": self.captioners,
                "language": self.language_models,
            }
            raise UserError(
                f"this prompt was learned on {name}, but this studio has {', '.join(offered[kind])}. "
                "Give a prompt of one of these, or start the studio with that model."
            ) from None
        is_in_place = any(part["kind"] in IN_PLACE for part in header["sources"])
        return name if is_in_place else shared

    def _load(self, kind: str, name: str, offered: Sequence[str], load: Callable[[], Any]) -> Any:
        if name not in offered:
            raise unknown_name(kind, name, offered)
        with self._lock:
            if (kind, name) not in self._loaded:
                self._loaded[kind, name] = load()
            return self._loaded[kind, name]

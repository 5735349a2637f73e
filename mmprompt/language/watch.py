"""Alarms while a prompt of a language model learns: gradients that vanish or burst, vectors that grow too large."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

import torch

from mmprompt.core.learned import rms
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.models.decoder.vectors import LM_INPUT
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run

VANISHED, BURST, OUTGROWN = 1e-7, 100.0, 5.0
"""A gradient norm, times the median so far, and times the size of token embeddings."""
_log = logging.getLogger(__name__)


class VectorWatch(Callback):
    """Record the gradient's norm and the vectors' size of every epoch, and say once what looks wrong.

    Adds `gradient_norm` and, for vectors among the tokens, `vector_size` (in sizes of the model's token embeddings) to
    every epoch's record.

    Args:
        prompted: the model and the prompt that learns.

    Attributes:
        alarms: what was said, one sentence each.
    """

    def __init__(self, prompted: LanguagePredictor) -> None:
        self.prompted = prompted
        self.alarms: dict[str, str] = {}
        self._norms: list[float] = []

    def on_train_begin(self, run: Run) -> None:
        """Forget earlier trainings."""
        self.alarms, self._norms = {}, []

    def on_step_end(self, run: Run, step: int, logs: Mapping[str, float]) -> None:
        """Take the norm of the gradient of the step."""
        gradients = [value.grad for value in run.problem.module.parameters() if value.grad is not None]
        self._norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Write the epoch's figures into its record, and sound the alarms."""
        norm = fmean(self._norms)
        self._norms = []
        logs["gradient_norm"] = norm
        before = [record["gradient_norm"] for record in run.history if "gradient_norm" in record]
        if norm < VANISHED:
            self._sound(
                "vanished",
                f"The gradient has vanished (norm {norm:.1e} in epoch {epoch + 1}): the prompt no longer learns. "
                "Use another start or a higher lr.",
            )
        if before and norm > BURST * median(before):
            times = norm / median(before)
            self._sound(
                "burst",
                f"The gradient burst in epoch {epoch + 1} (norm {norm:.1e}, {times:.0f} times its median so far). "
                "Use a lower lr.",
            )
        vectors = self.prompted.vectors().get(LM_INPUT)
        if vectors is None:
            return
        size = rms(vectors.values.detach().float()).item() / self.prompted.model.embedding_rms
        logs["vector_size"] = size
        if size > OUTGROWN:
            self._sound(
                "outgrown",
                f"The vectors have grown to {size:.1f} times the size of token embeddings (epoch {epoch + 1}), where "
                "blocks saturate. Use a lower lr.",
            )

    def _sound(self, name: str, text: str) -> None:
        if name not in self.alarms:
            self.alarms[name] = text
            _log.warning("%s", text)

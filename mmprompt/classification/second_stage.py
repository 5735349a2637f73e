"""The switch from what learns in the towers to a classifier that starts from the text (Farina et al. 2025, "2SFS")."""

from __future__ import annotations

from collections.abc import Mapping

from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run
from mmprompt.training.recipe import steps_of_first_stage


class SecondStage(Callback):
    """Stops what learns in the towers where the recipe's second cosine starts, and starts the classifier."""

    def on_train_begin(self, run: Run) -> None:
        """Go on in the second stage, where a resumed training was in it."""
        self._look(run, len(run.history) * run.n_steps)

    def on_step_end(self, run: Run, step: int, logs: Mapping[str, float]) -> None:
        """Look whether the first stage is over."""
        self._look(run, len(run.history) * run.n_steps + step + 1)

    def _look(self, run: Run, n_done: int) -> None:
        n_first = steps_of_first_stage(run.recipe, run.recipe.n_steps or run.n_epochs * run.n_steps)
        classifier = run.problem.classifier  # type: ignore[attr-defined]
        if n_first is None or n_done < n_first:
            return
        for source in classifier.prompt.sources:
            source.requires_grad_(False)
        if not classifier.prompt.head.is_learned.any():
            with classifier.in_use():
                class_features = classifier.class_features()
            classifier.prompt.head.start_from(class_features)

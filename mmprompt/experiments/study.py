"""What a search varies, and the study in its storage, opened by every process that takes part.

It knows ranges and Optuna, not what a trial is.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.files import is_alive, make_folder
from mmprompt.quiet import quiet
from mmprompt.training.seeds import derive_seed

ADVICE = "Write `search='lr=1e-3:0.5,n_ctx=1:16,epochs'`."
INSTALL = 'pip install "mmprompt[tune]"'
UNIQUE_NAMES = "CREATE UNIQUE INDEX IF NOT EXISTS ix_studies_study_name ON studies (study_name)"
"""As Optuna makes it with a new table, and not for one that is there."""
HEARTBEAT_S = 30
BUSY_S = 60
N_RANDOM = 8  # trials drawn at random before the sampler and the pruner trust what they have seen
N_REPORTS = 20  # a trial: trainings of different length are compared at the same share of it
FIRST_REPORT = 4  # before, the warm-up and a high learning rate tell nothing


@dataclass(frozen=True)
class Range:
    """The values a setting may take, both ends included; drawn evenly over the logarithm, since factors matter."""

    low: float
    high: float
    is_whole: bool

    def suggest(self, trial: Any, name: str) -> int | float:
        """Return the value that an Optuna trial tries."""
        if self.is_whole:
            return trial.suggest_int(name, self.low, self.high, log=True)
        return trial.suggest_float(name, self.low, self.high, log=True)

    def holds(self, value: float) -> bool:
        """Return whether a value lies in the range."""
        return self.low <= value <= self.high


KNOWN: Mapping[str, Range] = {
    "lr": Range(1e-4, 1.0, False),
    "epochs": Range(10, 200, True),
    "weight_decay": Range(1e-6, 1e-2, False),
    "batch_size": Range(8, 128, True),
    "n_ctx": Range(1, 16, True),
    "n_visual": Range(1, 32, True),
    "depth": Range(1, 12, True),
}


def read_space(texts: Sequence[str], settings: Sequence[str]) -> dict[str, Range]:
    """Return the ranges that a search is asked for.

    `texts` are names or `name=low:high`; `settings` is what the method has beside those of the recipe.
    """
    space: dict[str, Range] = {}
    recipe = {"lr", "epochs", "weight_decay", "batch_size"}
    for text in texts:
        name, _, limits = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in KNOWN or not (name in recipe or name in settings):
            raise unknown_name("setting to search", name, [n for n in KNOWN if n in recipe or n in settings], ADVICE)
        if name in space:
            raise bad_value("search", f"{name} twice", "each setting may be named once", ADVICE)
        space[name] = _narrowed(KNOWN[name], name, limits) if limits else KNOWN[name]
    if not space:
        raise UserError(f"nothing was named to search. {ADVICE}")
    return space


def _narrowed(known: Range, name: str, text: str) -> Range:
    low, colon, high = text.partition(":")
    try:
        limits = (float(low), float(high))
    except ValueError:
        limits = (math.nan, math.nan)
    is_whole = not known.is_whole or all(limit.is_integer() for limit in limits)
    if not colon or not is_whole or not 0 < limits[0] <= limits[1] < math.inf:
        kind = "whole numbers" if known.is_whole else "numbers"
        raise bad_value(name, repr(text), f"low:high was expected, {kind} above 0", ADVICE)
    low_end, high_end = map(int, limits) if known.is_whole else limits
    return Range(low_end, high_end, known.is_whole)


def require_optuna() -> None:
    """Say how to install what a search needs, if it is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(f"a search needs optuna, which is missing: {INSTALL}")


def open_study(storage: str, name: str) -> Any:
    """Return the study in its storage, made if it is not there.

    Trials of processes of this machine that died wait to be run again, with their numbers and values; those of other
    machines count as failed once nothing was heard of them.
    """
    import optuna
    from sqlalchemy import make_url, text
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        url = make_url(storage)
        is_file = url.get_backend_name() == "sqlite" and bool(url.database)
        if is_file:
            make_folder(Path(str(url.database)).parent)
        # heartbeats are years old and still called experimental, as is the sampler's liar
        with quiet(category=optuna.exceptions.ExperimentalWarning):
            store = optuna.storages.RDBStorage(
                storage,
                engine_kwargs={"connect_args": {"timeout": BUSY_S}} if is_file else None,
                heartbeat_interval=HEARTBEAT_S,
            )
            if is_file:  # a kill between a table and its index left names that may be there twice
                with store.engine.begin() as connection:
                    connection.execute(text(UNIQUE_NAMES))
            study = optuna.create_study(
                storage=store,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=N_RANDOM, n_warmup_steps=FIRST_REPORT - 1),
            )
            for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
                machine, process = trial.user_attrs.get("process", (platform.node(), 0))
                if machine == platform.node() and not is_alive(process):
                    store.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.WAITING)
            return study
    except (SQLAlchemyError, ValueError, ImportError) as error:
        line = str(error).splitlines()[0]
        raise UserError(
            f"the storage {storage} cannot be used ({line}). Give `storage='sqlite:///study.db'`."
        ) from None


def take_trial(study: Any, trial: Any) -> None:
    """Note whose trial it is, and let its number alone decide what is drawn: as it would be without a kill before."""
    import optuna

    trial.set_user_attr("process", (platform.node(), os.getpid()))
    seed = derive_seed(trial.number, "search") % 2**32
    with quiet(category=optuna.exceptions.ExperimentalWarning):
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=N_RANDOM, constant_liar=True)

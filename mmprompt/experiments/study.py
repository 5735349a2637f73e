"""The study of a search in its storage: opened by every process that takes part, with the sampler and the pruner.

It knows Optuna, not what a trial is.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from mmprompt.errors import UserError
from mmprompt.files import make_folder
from mmprompt.training.seeds import derive_seed

INSTALL = 'pip install "mmprompt[tune]"'
HEARTBEAT_S = 30
BUSY_S = 60
N_RANDOM = 8  # trials drawn at random before the sampler and the pruner trust what they have seen
N_REPORTS = 20  # a trial: trainings of different length are compared at the same share of it
FIRST_REPORT = 4  # before, the warm-up and a high learning rate tell nothing


def missing_optuna() -> str | None:
    """One line on how to install what a search needs, None where it is there."""
    import importlib.util

    return None if importlib.util.find_spec("optuna") else f"a search needs optuna, which is missing: {INSTALL}"


def open_study(storage: str, name: str, worker: int = 0) -> Any:
    """The study in its storage, made if it is not there; trials of dead processes count as failed.

    Raises:
        UserError: the storage cannot be used.
    """
    import optuna
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        url = make_url(storage)
        is_file = url.get_backend_name() == "sqlite" and bool(url.database)
        if is_file:
            make_folder(Path(str(url.database)).parent)
        with warnings.catch_warnings():
            # heartbeats and the liar are years old and still called experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            store = optuna.storages.RDBStorage(
                storage,
                engine_kwargs={"connect_args": {"timeout": BUSY_S}} if is_file else None,
                heartbeat_interval=HEARTBEAT_S,
            )
            study = optuna.create_study(
                storage=store,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=N_RANDOM, n_warmup_steps=FIRST_REPORT - 1),
            )
            seed = derive_seed(worker, "search", len(study.trials))  # going on draws other values than before
            study.sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=N_RANDOM, constant_liar=True)
            return study
    except (SQLAlchemyError, ValueError, ImportError) as error:
        line = str(error).splitlines()[0]
        raise UserError(
            f"the storage {storage} cannot be used ({line}). Give `storage='sqlite:///study.db'`."
        ) from None


def n_ended(study: Any) -> int:
    """How many trials of a study have ended, in whatever way."""
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))

"""Workers of a grid, a search or many images: as many as are wanted, all doing the same until nothing is left to do.

They share a folder or a database, not memory, so that a worker that is lost costs what it was at and nothing else. They
are processes of this machine, tasks of Ray, or jobs of submitit, which speaks to Slurm. This file knows who starts and
ends them, not what is computed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias

from mmprompt.data.parallel import end_with_parent
from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.settings import Count, check
from mmprompt.training.problem import RunFailed

PAUSE_S = 0.2
MINUTES = 24 * 60
"""Of a job of submitit, whose own default is five."""
INSTALL = 'Install it with pip install "mmprompt[cluster]".'
Outcome: TypeAlias = Exception | None
"""Why a worker failed, None where it came to the end."""
Ended: TypeAlias = Callable[[], Sequence[Outcome] | None]
"""Says None while a worker is at work, then what came of each."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workers:
    """Who computes.

    Args:
        n: how many at once; None for one a GPU of this machine, else one.
        engine: who starts them: `local`, `ray` or `submitit`.
        options: what Ray's `remote` or submitit's `AutoExecutor` is told of each worker, such as `{"num_gpus": 1}` or
            `{"slurm_partition": "gpu", "gpus_per_node": 1}`; submitit's `cluster` and `folder` too.
    """

    n: Count | None = None
    engine: str = "local"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check("workers", self.n, Count | None, "Use `workers=1`.")
        if self.engine not in ENGINES:
            raise unknown_name("engine", self.engine, ENGINES)
        if self.engine == "local" and self.options:
            raise UserError("engine_options are for ray and submitit. Give `engine=ray`, or leave them out.")
        if self.engine != "local" and importlib.util.find_spec(self.engine) is None:
            raise bad_value("engine", self.engine, f"{self.engine} is missing", INSTALL)

    def devices(self, device: str) -> list[str]:
        """Return the device of each worker: of this machine the GPUs in turn, everything else as it is."""
        import torch

        n_devices = torch.cuda.device_count() if device in {"auto", "cuda"} else 0
        n = self.n or max(1, n_devices)
        if self.engine != "local" or not n_devices:
            return [device] * n
        return [f"cuda:{index % n_devices}" for index in range(n)]

    def is_this_process(self, device: str) -> bool:
        """Return whether one worker is enough, and this process can be it."""
        return self.engine == "local" and len(self.devices(device)) == 1

    def run(
        self, work: Callable[..., None], calls: Sequence[tuple[Any, ...]], n_left: Callable[[], int], what: str
    ) -> Sequence[Outcome]:
        """Call a function of a module in one worker for each tuple of arguments, and wait until all have ended.

        They are ended when this process is. `n_left`, called now and then meanwhile, counts what is missing; `what`
        says of how many what that is, as in `9 cells not computed`. What came of each worker is returned.
        """
        remotes = [_Remote(work, call) for call in calls]
        with ENGINES[self.engine](remotes, self.options) as ended:
            while (outcomes := ended()) is None:
                n_left()
                time.sleep(PAUSE_S)
        n_missing, why = n_left(), "; ".join(dict.fromkeys(str(one) for one in outcomes if one is not None))
        if n_missing > 0:
            raise RunFailed(
                f"the worker processes ended with {n_missing} of {what} ({why or 'as if all was done'}); memory may "
                "have run out. Run it again with fewer `workers`: what is done is kept."
            )
        if why and None in outcomes:
            _log.warning("a worker ended early (%s); the others did its part.", why.rstrip("."))
        return outcomes


@dataclass(frozen=True)
class _Remote:
    """A call to be made elsewhere, in the folder and with the settings of this process."""

    work: Callable[..., None]
    arguments: tuple[Any, ...]
    folder: Path = field(default_factory=Path.cwd)
    environment: Mapping[str, str] = field(
        default_factory=lambda: {name: value for name, value in os.environ.items() if name.startswith("MMPROMPT_")}
    )

    def __call__(self) -> Outcome:
        """Do the work; why it failed is returned, since engines word exceptions anew."""
        os.chdir(self.folder)
        os.environ.update(self.environment)
        try:
            self.work(*self.arguments)
        except (UserError, RunFailed) as error:
            return error
        except Exception as error:
            _log.exception("the work failed")
            return RunFailed(f"{type(error).__name__}: {error}")
        return None

    def checkpoint(self) -> Any:
        """Ask submitit to queue the same again when the job is preempted or out of time."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@contextlib.contextmanager
def _processes(remotes: Sequence[_Remote], options: Mapping[str, Any]) -> Iterator[Ended]:
    """Start processes of this machine; the pools of the standard library and of joblib end all when one dies."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // len(remotes))
    pipes = [context.Pipe(duplex=False) for _ in remotes]
    children = [
        context.Process(target=_child, args=(threads, remote, sender), daemon=True)
        for remote, (_, sender) in zip(remotes, pipes, strict=True)
    ]

    def ended() -> list[Outcome] | None:
        if not all(receiver.poll() for receiver, _ in pipes):  # true too at the end of one that died
            return None
        return [outcome(child, receiver) for child, (receiver, _) in zip(children, pipes, strict=True)]

    def outcome(child: BaseProcess, receiver: Connection) -> Outcome:
        try:
            return receiver.recv()  # while it lives: what is long waits in it until it is read
        except EOFError:  # it died before it could say anything
            child.join()
            return RunFailed(f"exit code {child.exitcode}")

    try:
        for child, (_, sender) in zip(children, pipes, strict=True):
            child.start()
            sender.close()  # the child has its own
        yield ended
    finally:
        for child in children:
            if child.pid is not None:
                child.terminate()
                child.join()


def _child(threads: int, remote: _Remote, sender: Connection) -> None:
    import torch

    end_with_parent()
    torch.set_num_threads(threads)
    with contextlib.suppress(KeyboardInterrupt):
        sender.send(remote())


@contextlib.contextmanager
def _ray(remotes: Sequence[_Remote], options: Mapping[str, Any]) -> Iterator[Ended]:
    """Start tasks on the cluster of $RAY_ADDRESS or of this program, else on one of this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    is_own, address = not ray.is_initialized(), os.environ.get("RAY_ADDRESS")
    if is_own:
        here = {} if address else {"address": "local", "_node_ip_address": "127.0.0.1"}
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **here)
        except ConnectionError as error:
            raise bad_value("RAY_ADDRESS", address, _first_line(error), "See `ray status` on its machine.") from None
    defaults = {"max_retries": 0, "num_gpus": min(1, ray.cluster_resources().get("GPU", 0))}
    tasks: list[Any] = []

    def ended() -> list[Outcome] | None:
        return None if ray.wait(tasks, num_returns=len(tasks), timeout=0)[1] else list(map(outcome, tasks))

    def outcome(task: Any) -> Outcome:
        try:
            return ray.get(task)
        except ray.exceptions.RayTaskError as error:  # of a machine where the package is another or missing
            return RunFailed(str(error).strip().splitlines()[-1])
        except ray.exceptions.RayError as error:
            return RunFailed(_first_line(error))

    try:
        try:
            start = ray.remote(**{**defaults, **options})(_call)
        except (ValueError, TypeError) as error:
            raise bad_value("engine_options", dict(options), _first_line(error), "See ray.remote.") from None
        tasks += [start.remote(remote) for remote in remotes]
        yield ended
    finally:
        for task in tasks:
            ray.cancel(task, force=True)
        if is_own:
            ray.shutdown()


def _call(remote: _Remote) -> Outcome:
    return remote()


@contextlib.contextmanager
def _submitit(remotes: Sequence[_Remote], options: Mapping[str, Any]) -> Iterator[Ended]:
    """Submit jobs, to Slurm where there is one; they write what they say into a folder that all machines see."""
    import submitit

    given = {"folder": "runs/submitit", "cluster": None, "name": "mmprompt", "timeout_min": MINUTES, **options}
    try:
        executor = submitit.AutoExecutor(given.pop("folder"), given.pop("cluster"))
        executor.update_parameters(**given)
        with executor.batch():
            jobs = [executor.submit(remote) for remote in remotes]
    except (ValueError, TypeError, NameError, AssertionError, submitit.core.utils.FailedJobError) as error:
        advice = "See submitit.AutoExecutor."
        raise bad_value("engine_options", dict(options), _first_line(error), advice) from None

    def ended() -> list[Outcome] | None:
        return list(map(outcome, jobs)) if all(job.done() for job in jobs) else None

    def outcome(job: Any) -> Outcome:
        error = job.exception()
        return job.result() if error is None else RunFailed(_first_line(error))

    try:
        yield ended
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


ENGINES: Mapping[str, Callable[[Sequence[_Remote], Mapping[str, Any]], AbstractContextManager[Ended]]] = {
    "local": _processes,
    "ray": _ray,
    "submitit": _submitit,
}

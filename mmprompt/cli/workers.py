"""The options that say who computes, of all commands that share work out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.experiments.workers import Workers


@dataclass(frozen=True)
class WorkerSettings:
    """Who computes."""

    workers: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = None
    """How many at once; by default one a GPU of this machine, else one."""
    engine: Annotated[str, tyro.conf.arg(metavar="NAME")] = "local"
    """Who starts them: `local` as processes of this machine, `ray` on the cluster of RAY_ADDRESS or one of its own,
    `submitit` as jobs of Slurm."""
    engine_options: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A YAML file of what Ray's `remote` or submitit's `AutoExecutor` is told of each worker, such as
    slurm_partition."""

    def chosen(self) -> Workers:
        """Return the workers, their options read from the file."""
        from mmprompt.data.strict_yaml import read_yaml

        return Workers(self.workers, self.engine, read_yaml(self.engine_options) if self.engine_options else {})

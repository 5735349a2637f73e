"""Trains the embedded dual encoder `tiny` from openly licensed artwork: prepare, train, evaluate, export.

    python scripts/pretrain_tiny.py prepare  --work DIR
    python scripts/pretrain_tiny.py train    --work DIR [--run NAME] [--decay-from STEP --decay-steps N]
    python scripts/pretrain_tiny.py evaluate --work DIR [--run NAME]
    python scripts/pretrain_tiny.py export   --work DIR [--run NAME] --assets FOLDER

`train` goes on from the run's last checkpoint if there is one. The recipe is in docs/embedded_default.md.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import distributed

from openart.batches import RELATIONS, Composer
from openart.evaluation import table, watched_pools, zero_shot
from openart.export import export_model, export_pools, write_licences
from openart.model import Heads, build, configuration
from openart.prepared import load_prepared, prepare, sources
from openart.state import State, load_state, new_state
from openart.tasks import N_NOVEL_PAIRS, SPLITS, all_pools
from openart.tokenizer import Encoder, read_encoder
from openart.training import Schedule, Worker
from openart.training import train as train_steps

IMAGE_SIZE, PATCH_SIZE, WIDTH = 72, 12, 192
DEV_STYLE, TEST_STYLE = "fxemoji", "openmoji"
SCHEDULE = Schedule(learning_rate=2e-3, patch_dropout=0.4)


@dataclass(frozen=True)
class Run:
    """A run in a work folder."""

    work: Path
    """Work folder, outside the repository."""
    run: str = "tiny"
    """Name of the run in the work folder."""
    seed: int = 1
    device: str = "cpu"

    @property
    def checkpoint(self) -> Path:
        """Where the state of the run is."""
        return self.work / "runs" / self.run / "state.safetensors"

    def encoder(self) -> Encoder:
        """The encoder of the prepared vocabulary."""
        return read_encoder(self.work / "prepared" / "tokenizer")

    def configuration(self) -> dict[str, Any]:
        """That of the model."""
        return configuration(len(self.encoder().ids), IMAGE_SIZE, PATCH_SIZE, WIDTH)

    def new_state(self) -> State:
        """A new model with its heads and optimiser."""
        model = build(self.configuration(), self.seed).to(self.device)
        heads = Heads(WIDTH, len(load_prepared(self.work).concepts), ("label", *RELATIONS, "place")).to(self.device)
        return new_state(model, heads, weight_decay=0.1)

    def trained_state(self) -> State:
        """What the run has come to."""
        state = self.new_state()
        load_state(state, self.checkpoint)
        return state


@dataclass(frozen=True)
class Training(Run):
    """A training run."""

    workers: int = 2
    """Processes that share each step."""
    threads: int = 1
    """Threads of each process."""
    schedule: Schedule = SCHEDULE
    log_every: int = 50
    evaluate_every: int = 250
    save_every: int = 250


def train_worker(rank: int, options: Training) -> None:
    """One worker of a training run."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    folder = options.checkpoint.parent
    if options.workers > 1:
        store = f"file://{(folder / 'rendezvous').resolve()}"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=options.workers)
    state = options.trained_state() if options.checkpoint.is_file() else options.new_state()
    composer, encoder = Composer(load_prepared(options.work), IMAGE_SIZE), options.encoder()
    every = (options.log_every, options.evaluate_every, options.save_every)
    pools = watched_pools(options.work, composer.prepared, DEV_STYLE) if rank == 0 else {}

    def evaluate(now: State) -> dict[str, float]:
        return zero_shot(now.averaged(), encoder, pools)

    worker = Worker(rank, options.workers, os.getppid() if options.workers > 1 else None)
    train_steps(state, composer, encoder, options.schedule, folder, options.seed, evaluate, every, worker)
    if options.workers > 1:
        distributed.destroy_process_group()


def train(options: Training) -> None:
    """Train, in several processes; go on from the last checkpoint if there is one."""
    folder = options.checkpoint.parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)
    if options.workers == 1:
        train_worker(0, options)
    else:
        torch.multiprocessing.spawn(train_worker, (options,), options.workers)


def evaluate(options: Run, style: str = DEV_STYLE, seeds: int = 2) -> None:
    """Print a JSON table of one art style: zero-shot and quick prompt tuning.

    Args:
        style: art style of the images.
        seeds: few-shot samples.
    """
    state = options.trained_state()
    pools = watched_pools(options.work, load_prepared(options.work), style)
    found = table(state.averaged(), options.encoder(), pools, (1, 4, 16), seeds)
    print(json.dumps({"style": style, "step": state.step, **found}, indent=1))


def export(options: Run, assets: Path) -> None:
    """Write the model folder and, unless they are there, the images of the tasks.

    Args:
        assets: the package's assets folder.
    """
    tokenizer = options.work / "prepared" / "tokenizer"
    export_model(options.trained_state().averaged(), options.configuration(), tokenizer, assets / "tiny")
    if not (assets / "openart" / "pictures.zip").is_file():
        pools = all_pools(load_prepared(options.work), TEST_STYLE, SPLITS, N_NOVEL_PAIRS)
        export_pools(pools, assets / "openart")
    write_licences(sources(options.work), assets)


if __name__ == "__main__":
    verbs = {"prepare": prepare, "train": train, "evaluate": evaluate, "export": export}
    tyro.extras.subcommand_cli_from_dict(verbs, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))

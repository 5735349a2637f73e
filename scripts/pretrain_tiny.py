"""Trains the embedded dual encoder `tiny` from openly licensed artwork: prepare, train, evaluate, export.

    python scripts/pretrain_tiny.py prepare  --work DIR
    python scripts/pretrain_tiny.py train    --work DIR [--run NAME] [--decay-from STEP --decay-steps N]
    python scripts/pretrain_tiny.py evaluate --work DIR [--run NAME]
    python scripts/pretrain_tiny.py export   --work DIR [--run NAME] --assets FOLDER

`train` goes on from the run's last checkpoint if there is one. The recipe is in docs/embedded_default.md.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed

from openart import prepared
from openart.batches import RELATIONS, Composer
from openart.evaluation import table, watched_pools, zero_shot
from openart.export import export_model, export_pools, write_licences
from openart.model import Heads, build, configuration
from openart.state import State, load_state, new_state
from openart.tasks import N_NOVEL_PAIRS, SPLITS, all_pools
from openart.tokenizer import read_encoder
from openart.training import Schedule, Worker, train

IMAGE_SIZE, PATCH_SIZE, WIDTH = 72, 12, 192
DEV_STYLE, TEST_STYLE = "fxemoji", "openmoji"


def fresh_state(work: Path, seed: int, device: str) -> State:
    """A new model with its heads and optimiser."""
    data = prepared.load_prepared(work)
    vocab_size = len(read_encoder(work / "prepared" / "tokenizer").ids)
    model = build(configuration(vocab_size, IMAGE_SIZE, PATCH_SIZE, WIDTH), seed).to(device)
    heads = Heads(WIDTH, len(data.concepts), ("label", *RELATIONS, "place")).to(device)
    return new_state(model, heads, weight_decay=0.1)


def train_worker(rank: int, options: argparse.Namespace) -> None:
    """One worker of a training run."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    folder = options.work / "runs" / options.run
    if options.workers > 1:
        store = f"file://{(folder / 'rendezvous').resolve()}"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=options.workers)
    state = fresh_state(options.work, options.seed, options.device)
    checkpoint = folder / "state.safetensors"
    if checkpoint.is_file():
        load_state(state, checkpoint)
    schedule = Schedule(
        learning_rate=options.learning_rate,
        sprite_steps=options.sprite_steps,
        few_steps=options.few_steps,
        growth_steps=options.growth_steps,
        decay_from=options.decay_from,
        decay_steps=options.decay_steps,
        patch_dropout=options.patch_dropout,
    )
    composer = Composer(prepared.load_prepared(options.work), IMAGE_SIZE)
    encoder = read_encoder(options.work / "prepared" / "tokenizer")
    every = (options.log_every, options.evaluate_every, options.save_every)
    pools = watched_pools(options.work, composer.prepared, DEV_STYLE) if rank == 0 else {}

    def evaluate(now: State) -> dict[str, float]:
        return zero_shot(now.averaged(), encoder, pools)

    worker = Worker(rank, options.workers, os.getppid() if options.workers > 1 else None)
    train(state, composer, encoder, schedule, folder, options.seed, evaluate, every, worker)
    if options.workers > 1:
        distributed.destroy_process_group()


def run_training(options: argparse.Namespace) -> None:
    """Start the workers and wait for them."""
    folder = options.work / "runs" / options.run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)
    if options.workers == 1:
        train_worker(0, options)
    else:
        torch.multiprocessing.spawn(train_worker, (options,), options.workers)


def run_evaluation(options: argparse.Namespace) -> None:
    """Print a JSON table of one art style: zero-shot and quick prompt tuning."""
    state = fresh_state(options.work, options.seed, options.device)
    load_state(state, options.work / "runs" / options.run / "state.safetensors")
    encoder = read_encoder(options.work / "prepared" / "tokenizer")
    pools = watched_pools(options.work, prepared.load_prepared(options.work), options.style)
    found = table(state.averaged(), encoder, pools, (1, 4, 16), options.seeds)
    print(json.dumps({"style": options.style, "step": state.step, **found}, indent=1))


def run_export(options: argparse.Namespace) -> None:
    """Write the model folder and, unless they are there, the pictures of the tasks."""
    state = fresh_state(options.work, options.seed, options.device)
    load_state(state, options.work / "runs" / options.run / "state.safetensors")
    tokenizer = options.work / "prepared" / "tokenizer"
    config = configuration(len(read_encoder(tokenizer).ids), IMAGE_SIZE, PATCH_SIZE, WIDTH)
    export_model(state.averaged(), config, tokenizer, options.assets / "tiny")
    data = prepared.load_prepared(options.work)
    if not (options.assets / "openart" / "pictures.zip").is_file():
        export_pools(all_pools(data, TEST_STYLE, SPLITS, N_NOVEL_PAIRS), options.assets / "openart")
    write_licences(prepared.sources(options.work), options.assets)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("prepare", "train", "evaluate", "export"):
        sub = verbs.add_parser(verb)
        sub.add_argument("--work", type=Path, required=True, help="work folder, outside the repository")
        if verb != "prepare":
            sub.add_argument("--run", default="tiny", help="name of the run in the work folder")
            sub.add_argument("--seed", type=int, default=1)
            sub.add_argument("--device", default="cpu")
        if verb == "evaluate":
            sub.add_argument("--style", default=DEV_STYLE, help="art style of the pictures")
            sub.add_argument("--seeds", type=int, default=2, help="few-shot samples")
        if verb == "export":
            sub.add_argument("--assets", type=Path, required=True, help="the package's assets folder")
        if verb == "train":
            sub.add_argument("--workers", type=int, default=2, help="processes that share each step")
            sub.add_argument("--threads", type=int, default=1, help="threads of each process")
            sub.add_argument("--learning-rate", type=float, default=2e-3)
            sub.add_argument("--sprite-steps", type=int, default=800, help="first steps, on single pieces only")
            sub.add_argument("--few-steps", type=int, default=500, help="next steps, on scenes of few concepts")
            sub.add_argument("--growth-steps", type=int, default=800, help="steps over which concepts are added")
            sub.add_argument("--decay-from", type=int, default=-1, help="step at which the decay begins")
            sub.add_argument("--decay-steps", type=int, default=0, help="its length; training ends with it")
            sub.add_argument("--patch-dropout", type=float, default=0.4)
            sub.add_argument("--log-every", type=int, default=50)
            sub.add_argument("--evaluate-every", type=int, default=250)
            sub.add_argument("--save-every", type=int, default=250)
    return parser.parse_args(arguments)


def main() -> None:
    """Run one verb."""
    options = parse(sys.argv[1:])
    if options.verb == "prepare":
        prepared.prepare(options.work)
    elif options.verb == "train":
        run_training(options)
    elif options.verb == "evaluate":
        run_evaluation(options)
    else:
        run_export(options)


if __name__ == "__main__":
    main()

"""Trains the text tower of `photo` from names, definitions and word vectors: prepare, train, export, count.

    python scripts/train_photo_text.py prepare --work DIR
    python scripts/train_photo_text.py train   --work DIR
    python scripts/train_photo_text.py export  --work DIR --assets mmprompt/assets
    python scripts/train_photo_text.py count   --work DIR --prompts FILE

No picture is used. `train` goes on from its last checkpoint if there is one. `count` says how many class names of
the sets in CLIP's `data/prompts.md` are nouns that the tower was trained on. The recipe is in docs/photographs.md.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mmprompt.models.dual_encoder.photo import image_weights
from mmprompt.models.packaged import fetch
from openart.state import load_state
from openart.tokenizer import read_encoder, write_tokenizer
from photo_text.export import export
from photo_text.sources import imagenet_offsets, load_nouns, load_word_vectors
from photo_text.teacher import Teacher, Weights, class_targets
from photo_text.texts import Entry, gather, learn_vocabulary
from photo_text.training import (
    CONTEXT_LENGTH,
    EMBEDDING,
    Lessons,
    Schedule,
    fresh_state,
    start_from_word_vectors,
    train,
)

VOCABULARY, N_COMMON = 10_000, 100_000
WEIGHTS = Weights(taxonomy=8, name=16, definition=10)  # chosen on Caltech101's validation pictures


def prepare(work: Path) -> None:
    """Fetch the sources; write the entries, their targets, the projection and the vocabulary."""
    nouns, vectors, leaves = load_nouns(work), load_word_vectors(work), imagenet_offsets()
    *_, classifier, _ = image_weights(fetch("photo")).values()
    projection, classes = class_targets(classifier, EMBEDDING)
    groups = gather(nouns, vectors, leaves, N_COMMON)
    teacher = Teacher(nouns, vectors, leaves, classes, WEIGHTS)
    entries = [entry for group in groups.values() for entry in group]
    targets = [classes[e.leaf] if e.leaf is not None else teacher.target(e.name, e.offset) for e in entries]
    merges = learn_vocabulary(groups, nouns, VOCABULARY)
    write_tokenizer(merges, work / "tokenizer", CONTEXT_LENGTH)
    table = {name: [[e.name, e.offset, e.is_first, e.leaf] for e in group] for name, group in groups.items()}
    (work / "entries.json").write_text(json.dumps(table))
    tensors = {"targets": torch.stack(targets), "classes": classes, "projection": projection}
    save_file({name: value.contiguous() for name, value in tensors.items()}, work / "targets.safetensors")
    print(", ".join(f"{len(group)} {name}" for name, group in groups.items()))


def run_training(options: argparse.Namespace) -> None:
    """Train, or go on training."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    work = options.work
    table = json.loads((work / "entries.json").read_text())
    groups = {name: [Entry(*row) for row in rows] for name, rows in table.items()}
    tensors = load_file(work / "targets.safetensors")
    encoder = read_encoder(work / "tokenizer", CONTEXT_LENGTH)
    lessons = Lessons(groups, tensors["targets"], tensors["classes"], load_nouns(work), encoder)
    folder = work / "runs" / options.run
    folder.mkdir(parents=True, exist_ok=True)
    state = fresh_state(encoder, options.seed)
    if (folder / "state.safetensors").is_file():
        load_state(state, folder / "state.safetensors")
    else:
        start_from_word_vectors(state.model, encoder, load_word_vectors(work))
    train(state, lessons, Schedule(options.steps, options.learning_rate), options.seed, folder)


def run_export(options: argparse.Namespace) -> None:
    """Write what the package ships."""
    encoder = read_encoder(options.work / "tokenizer", CONTEXT_LENGTH)
    state = fresh_state(encoder, options.seed)
    load_state(state, options.work / "runs" / options.run / "state.safetensors")
    projection = load_file(options.work / "targets.safetensors")["projection"]
    export(state.averaged(), projection, options.work, options.assets)


def run_count(options: argparse.Namespace) -> None:
    """Print a table: set, class names, how many of them are among the training names."""
    table = json.loads((options.work / "entries.json").read_text())
    trained = {row[0] for rows in table.values() for row in rows}
    for section in options.prompts.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        names = re.findall(r"^    ['\"](.+)['\"],$", body.partition("templates = [")[0], re.MULTILINE)
        found = [name for name in names if name.lower().replace("_", " ") in trained]
        print(f"| {title} | {len(names)} | {len(found)} |")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("prepare", "train", "export", "count"):
        sub = verbs.add_parser(verb)
        sub.add_argument("--work", type=Path, required=True, help="work folder, outside the repository")
        if verb in ("train", "export"):
            sub.add_argument("--run", default="photo", help="name of the run in the work folder")
            sub.add_argument("--seed", type=int, default=1)
        if verb == "train":
            sub.add_argument("--steps", type=int, default=2500)
            sub.add_argument("--learning-rate", type=float, default=3e-3)
            sub.add_argument("--threads", type=int, default=2)
        if verb == "count":
            sub.add_argument("--prompts", type=Path, required=True, help="data/prompts.md of github.com/openai/CLIP")
        if verb == "export":
            sub.add_argument("--assets", type=Path, required=True, help="the package's assets folder")
    return parser.parse_args(arguments)


def main() -> None:
    """Run one verb."""
    options = parse(sys.argv[1:])
    if options.verb == "prepare":
        options.work.mkdir(parents=True, exist_ok=True)
        prepare(options.work)
    elif options.verb == "train":
        run_training(options)
    elif options.verb == "export":
        run_export(options)
    else:
        run_count(options)


if __name__ == "__main__":
    main()

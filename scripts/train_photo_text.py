"""Trains the text tower of `photo-small` from names, definitions and word vectors: prepare, train, export, count.

    python scripts/train_photo_text.py prepare --work DIR
    python scripts/train_photo_text.py train   --work DIR
    python scripts/train_photo_text.py export  --work DIR --assets mmprompt/assets
    python scripts/train_photo_text.py count   --work DIR --prompts FILE

No image is used. `train` goes on from its last checkpoint if there is one. `count` says how many class names of
the sets in CLIP's `data/prompts.md` are nouns that the tower was trained on. The recipe is in docs/photographs.md.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file, save_file

from mmprompt.models.packaged import fetch, image_weights
from openart.artwork import new_folder
from openart.export import copy_tokenizer, write_configuration
from openart.state import load_state
from openart.tokenizer import Encoder, read_encoder, write_tokenizer
from photo_text.sources import imagenet_offsets, load_nouns, load_word_vectors
from photo_text.teacher import Teacher, Weights, class_targets
from photo_text.texts import Entry, gather, learn_vocabulary
from photo_text.training import (
    CONTEXT_LENGTH,
    EMBEDDING,
    Lessons,
    Schedule,
    configuration,
    fresh_state,
    start_from_word_vectors,
)
from photo_text.training import train as train_steps

VOCABULARY, N_COMMON = 10_000, 100_000
WEIGHTS = Weights(taxonomy=8, name=16, definition=10)  # chosen on Caltech101's validation images
LOGIT_SCALE = 30.0
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


@dataclass(frozen=True)
class Run:
    """A run in a work folder."""

    work: Path
    """Work folder, outside the repository."""
    run: str = "photo-small"
    """Name of the run in the work folder."""
    seed: int = 1

    @property
    def checkpoint(self) -> Path:
        """Where the state of the run is."""
        return self.work / "runs" / self.run / "state.safetensors"

    def encoder(self) -> Encoder:
        """The encoder of the vocabulary."""
        return read_encoder(self.work / "tokenizer", CONTEXT_LENGTH)


def prepare(work: Path) -> None:
    """Fetch the sources; write the entries, their targets, the projection and the vocabulary."""
    work.mkdir(parents=True, exist_ok=True)
    nouns, vectors, leaves = load_nouns(work), load_word_vectors(work), imagenet_offsets()
    (data,) = fetch("photo-small")
    *_, classifier, _ = image_weights(data).values()
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


def train(options: Run, steps: int = 2500, learning_rate: float = 3e-3, threads: int = 2) -> None:
    """Train, or go on training."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    work, encoder = options.work, options.encoder()
    table = json.loads((work / "entries.json").read_text())
    groups = {name: [Entry(*row) for row in rows] for name, rows in table.items()}
    tensors = load_file(work / "targets.safetensors")
    lessons = Lessons(groups, tensors["targets"], tensors["classes"], load_nouns(work), encoder)
    options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    state = fresh_state(encoder, options.seed)
    if options.checkpoint.is_file():
        load_state(state, options.checkpoint)
    else:
        start_from_word_vectors(state.model, encoder, load_word_vectors(work))
    train_steps(state, lessons, Schedule(steps, learning_rate), options.seed, options.checkpoint.parent)


def export(options: Run, assets: Path) -> None:
    """Write the folder `photo-small` of the assets in half precision; what was there is replaced.

    Args:
        assets: the package's assets folder.
    """
    state = fresh_state(options.encoder(), options.seed)
    load_state(state, options.checkpoint)
    tower = state.averaged()
    weights = {name: value.detach() for name, value in tower.state_dict().items() if name != "attn_mask"}
    weights["visual.head.proj.weight"] = load_file(options.work / "targets.safetensors")["projection"]
    weights["logit_scale"] = torch.tensor(LOGIT_SCALE).log()
    with new_folder(assets / "photo-small") as part:
        save_file({n: w.to(torch.float16).contiguous() for n, w in weights.items()}, part / "text.safetensors")
        (part / "text.safetensors").chmod(0o644)
        write_configuration(configuration(len(tower.token_embedding.weight)), "photo-small", PREPROCESS, part)
        copy_tokenizer(options.work / "tokenizer", part)


def count(work: Path, prompts: Path) -> None:
    """Print a table: set, class names, how many of them are among the training names.

    Args:
        work: work folder, outside the repository.
        prompts: data/prompts.md of github.com/openai/CLIP.
    """
    table = json.loads((work / "entries.json").read_text())
    trained = {row[0] for rows in table.values() for row in rows}
    for section in prompts.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        names = re.findall(r"^    ['\"](.+)['\"],$", body.partition("templates = [")[0], re.MULTILINE)
        found = [name for name in names if name.lower().replace("_", " ") in trained]
        print(f"| {title} | {len(names)} | {len(found)} |")


if __name__ == "__main__":
    verbs = {"prepare": prepare, "train": train, "export": export, "count": count}
    tyro.extras.subcommand_cli_from_dict(verbs, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))

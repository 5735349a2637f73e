"""Trains the text tower: each text is pulled to its target, and to the classes that the target resembles."""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from openart.model import Heads, text_features
from openart.state import State, new_state, save_state
from openart.tokenizer import Encoder
from openart.training import write_line
from photo_text.sources import Nouns, WordVectors
from photo_text.texts import Entry, spoken

CONTEXT_LENGTH, WIDTH, EMBEDDING = 48, 192, 256
SHARES = {"classes": 40, "common": 168, "rare": 48}  # texts of a batch
CLASS_SCALE = 20.0  # of the cosines to the classes
START_NORM = 0.5  # of the embedding of a word; open_clip starts with 0.3


def configuration(vocab_size: int) -> dict[str, Any]:
    """open_clip's model configuration."""
    return {
        "embed_dim": EMBEDDING,
        "vision_cfg": {"image_size": 224, "timm_model_name": "tf_efficientnet_lite0", "timm_proj": "linear"},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "width": WIDTH,
            "heads": 3,
            "layers": 3,
        },
    }


def fresh_state(encoder: Encoder, seed: int) -> State:
    """A new text tower in open_clip's model, with its optimiser. The image tower takes no part in training."""
    torch.manual_seed(seed)
    config = configuration(len(encoder.ids))
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    model.visual = nn.Identity()
    model.logit_scale.requires_grad_(False)
    return new_state(model, Heads(WIDTH, 0, ()), weight_decay=0.05)


@torch.no_grad()
def start_from_word_vectors(model: CLIP, encoder: Encoder, vectors: WordVectors) -> None:
    """Let tokens that are whole words begin at their word vectors, turned at random into the tower's width."""
    table = model.token_embedding.weight
    turn = torch.linalg.qr(torch.randn(WIDTH, vectors.vectors.shape[1])).Q
    for piece, row in encoder.ids.items():
        word = piece.removesuffix("</w>")
        if word != piece and word in vectors.rows:
            table[row] = START_NORM * turn @ vectors.vectors[vectors.rows[word]]


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the steps: warm-up, constant, a linear end."""

    steps: int
    learning_rate: float
    warmup: int = 100
    decay_share: float = 0.4

    def rate(self, step: int) -> float:
        """The learning rate of one step."""
        left = (self.steps - step) / (self.steps * self.decay_share)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, left)


@dataclass(frozen=True)
class Lessons:
    """What the tower learns from."""

    groups: dict[str, list[Entry]]
    targets: Tensor  # [N, E] of all entries, the groups one after another
    classes: Tensor  # [1000, E], targets of the classes
    nouns: Nouns
    encoder: Encoder

    def batch(self, seed: int, step: int) -> tuple[list[list[int]], Tensor]:
        """Token ids of the texts of one step and their targets: a pure function of seed and step."""
        rng = random.Random(f"{seed}/{step}")
        ids, rows, start = [], [], 0
        for group, entries in self.groups.items():
            for i in rng.choices(range(len(entries)), k=SHARES[group]):
                ids.append(self.encoder.encode(spoken(entries[i], self.nouns, rng)))
                rows.append(start + i)
            start += len(entries)
        return ids, self.targets[rows]


def loss_of(features: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """Cosine distance to the targets, and Kullback-Leibler divergence of the distributions over classes."""
    wanted = (CLASS_SCALE * targets @ classes.T).log_softmax(dim=-1)
    found = (CLASS_SCALE * features @ classes.T).log_softmax(dim=-1)
    distance = 1 - (features * targets).sum(dim=-1).mean()
    return distance + F.kl_div(found, wanted, log_target=True, reduction="batchmean")


def train(state: State, lessons: Lessons, schedule: Schedule, seed: int, folder: Path, every: int = 50) -> None:
    """Train up to the schedule's end: a line of the log every so many steps, a checkpoint every ten lines."""
    began, sums = time.monotonic(), []
    while state.step < schedule.steps:
        ids, targets = lessons.batch(seed, state.step)
        features = text_features(state.model, ids)
        loss = loss_of(features, targets, lessons.classes)
        state.optimiser.zero_grad()
        loss.backward()
        state.optimiser.step(schedule.rate(state.step))
        state.step += 1
        state.update_average(0.998)
        sums.append((loss.item(), (features.detach() * targets).sum(dim=-1).mean().item()))
        if state.step % every == 0:
            means = torch.tensor(sums).mean(dim=0).tolist()
            line = {"step": state.step, "seconds": round(time.monotonic() - began, 1)}
            write_line(folder, line | {"loss": round(means[0], 4), "cosine": round(means[1], 4)})
            sums.clear()
        if state.step % (10 * every) == 0 or state.step == schedule.steps:
            save_state(state, folder / "state.safetensors", {"seed": seed})

"""Pretraining: the losses over the groups of a batch, and the resumable loop with its warm-up/stable/decay schedule."""

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from openart.batches import RELATIONS, Batch, Composer, Difficulty, Sizes
from openart.model import Heads, image_features, text_features
from openart.state import State, save_state
from openart.tokenizer import Encoder

WEIGHTS = {
    "label": 1.0, "left": 1.0, "right": 1.0, "large": 0.7, "small": 0.7, "side": 1.5, "size": 0.5,
    "emotion": 0.7, "action": 0.7, "kind": 0.4, "tag": 0.2, "background": 0.15, "pair": 3.0, "heads": 1.0,
}  # fmt: skip
MIXED = Sizes()
SPRITES_ONLY = Sizes(singles=96, pairs=0, people=0, objects=48)
MAX_LOG_SCALE = math.log(100)


def several_true(logits: Tensor, truth: Tensor) -> Tensor:
    """Softmax loss [n, m] with one or more true captions a row: each is held against the false ones, then averaged."""
    false = logits.masked_fill(truth, float("-inf")).logsumexp(1, keepdim=True)
    each = F.softplus(false - logits) * truth
    return (each.sum(1) / truth.sum(1)).mean()


def losses(batch: Batch, images: Tensor, texts: Tensor, scale: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Every group's loss, the pair loss, and what there is to watch (pair and group accuracies in percent)."""
    found: dict[str, Tensor] = {}
    seen: dict[str, float] = {}
    pair = []
    for group in batch.groups:
        if not len(group.images):
            continue
        logits = scale * images[group.images] @ texts[group.captions].T
        found[group.name] = several_true(logits, group.truth)
        right = group.truth.gather(1, logits.argmax(1, keepdim=True))
        seen[f"acc_{group.name}"] = 100 * right.float().mean().item()
        if group.swapped is not None:
            gap = logits.gather(1, group.swapped[:, None])[:, 0] - logits[group.truth]
            pair.append(F.softplus(gap).mean())
            seen[f"pair_{group.name}"] = 100 * (gap < 0).float().mean().item()
    if pair:
        found["pair"] = torch.stack(pair).mean()
    return found, seen


def head_loss(batch: Batch, heads: Heads, token: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of the throw-away heads (all parts of every image, the part in each relation), and the missed
    distance of one that says where a single piece stands; accuracies.
    """
    seen: dict[str, float] = {}
    alone = batch.place[:, 2] > 0
    missed = (heads("place", token[alone.to(token.device)])[:, :2] - batch.place[alone, :2].to(token.device)) / 0.125
    logits = heads("label", token)
    truth = torch.zeros(logits.shape, dtype=torch.bool)
    there = batch.parts >= 0
    truth[there.nonzero()[:, 0], batch.parts[there]] = True
    total = several_true(logits, truth.to(logits.device)) + missed.square().mean()
    seen["miss_place"] = missed.square().mean().item()
    for relation in RELATIONS:
        target = batch.related[relation].to(token.device)
        rows = (target >= 0).nonzero()[:, 0]
        if len(rows):
            logits = heads(relation, token[rows])
            seen[f"head_{relation}"] = 100 * (logits.argmax(1) == target[rows]).float().mean().item()
            total = total + F.cross_entropy(logits, target[rows])
    return total, seen


@dataclass(frozen=True)
class Schedule:
    """When what happens, in optimiser steps."""

    learning_rate: float = 1e-3
    warmup: int = 200
    sprite_steps: int = 800
    """First steps, on single pieces only."""
    few_steps: int = 500
    """Next steps, on scenes of few concepts."""
    growth_steps: int = 800
    """Steps over which concepts are added."""
    decay_from: int = -1
    """Step at which the decay begins; below 0, the end is not chosen yet."""
    decay_steps: int = 0
    """Its length; training ends with it."""
    patch_dropout: float = 0.5

    def rate(self, step: int) -> float:
        """The learning rate of one step."""
        rate = self.learning_rate * min(1.0, (step + 1) / self.warmup)
        if self.decay_from >= 0 and step >= self.decay_from:
            rate *= max(0.0, 1 - math.sqrt((step - self.decay_from + 1) / self.decay_steps))
        return rate

    def difficulty(self, step: int) -> Difficulty:
        """Easy single pieces; scenes of few concepts, until relations are learned; then more and stranger ones."""
        if step < self.sprite_steps:
            return Difficulty(160, 0.5, 0.35)
        progress = min(1.0, max(0.0, (step - self.sprite_steps - self.few_steps) / self.growth_steps))
        return Difficulty(round(48 + 272 * progress), 0.4, 0.3 + 0.4 * progress)

    def last_step(self) -> float:
        """Steps in all."""
        return self.decay_from + self.decay_steps if self.decay_from >= 0 else math.inf

    def dropout(self, step: int) -> float:
        """The share of patches left out: half while things are new, none in the second half of the decay."""
        if step < self.sprite_steps // 3 or self.sprite_steps <= step < self.sprite_steps + self.few_steps:
            return self.patch_dropout / 2
        late = self.decay_from >= 0 and step >= self.decay_from + self.decay_steps // 2
        return 0.0 if late else self.patch_dropout


@dataclass(frozen=True)
class Worker:
    """One of several single-threaded processes that share every step; their gradients are averaged.

    On busy cores this is several times faster than threads, which wait for one another in every layer.
    """

    rank: int = 0
    count: int = 1
    parent: int | None = None

    def is_alone(self) -> bool:
        """Whether the process that started this worker has gone."""
        return self.parent is not None and os.getppid() != self.parent

    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over the workers (a gradient that a worker lacks counts as zero)."""
        if self.count == 1:
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.flatten() for p in parameters]) / self.count
        distributed.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad.copy_(part.view_as(p))


def kept_patches(n: int, n_patches: int, dropout: float, seed: int, step: int) -> Tensor | None:
    """The patches each image shows: [n, k] indices, or None for all."""
    if dropout == 0:
        return None
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.rand(n, n_patches, generator=generator).topk(round(n_patches * (1 - dropout)), dim=1).indices


def train(
    state: State,
    composer: Composer,
    encoder: Encoder,
    schedule: Schedule,
    folder: Path,
    seed: int,
    evaluate: Callable[[State], dict[str, float]],
    every: tuple[int, int, int],
    worker: Worker,
) -> None:
    """Run until the schedule ends. The first worker logs JSON lines to `folder/log.jsonl` and writes checkpoints.

    `every` holds the steps between log lines, evaluations and checkpoints.
    """
    device = state.model.text_projection.device
    n_patches = state.model.visual.positional_embedding.shape[0] - 1
    sums: dict[str, list[float]] = defaultdict(list)
    began = time.time()
    while state.step < schedule.last_step() and not worker.is_alone():
        step = state.step
        if step == schedule.sprite_steps:
            state.heads.start_from("label")
        sizes = SPRITES_ONLY if step < schedule.sprite_steps else MIXED
        batch = composer.batch(seed, step, worker.rank, sizes, schedule.difficulty(step))
        ids = [encoder.encode(c) for c in batch.captions]
        keep = kept_patches(
            len(batch.images), n_patches, schedule.dropout(step), seed, step * worker.count + worker.rank
        )
        keep = None if keep is None else keep.to(device)
        images, token = image_features(state.model, batch.images.to(device), keep)
        texts = text_features(state.model, ids)
        parts, seen = losses(batch, images, texts, state.model.logit_scale.exp())
        parts["heads"], seen_by_heads = head_loss(batch, state.heads, token)
        state.optimiser.zero_grad()
        torch.stack([WEIGHTS[name] * value for name, value in parts.items()]).sum().backward()
        worker.average_gradients(list(state.parameters().values()))
        norm = torch.nn.utils.clip_grad_norm_(list(state.parameters().values()), 1.0)
        state.optimiser.step(schedule.rate(step), worker.rank, worker.count)
        with torch.no_grad():
            state.model.logit_scale.clamp_(0, MAX_LOG_SCALE)
        state.step += 1
        state.update_average(0.998)
        for name, value in {**parts, **seen, **seen_by_heads, "norm": norm}.items():
            sums[name].append(float(torch.as_tensor(value).detach()))
        if worker.rank:
            continue
        if state.step % every[0] == 0:
            line = {"step": state.step, "seconds": round(time.time() - began, 1), "rate": schedule.rate(step)}
            line |= {"scale": state.model.logit_scale.exp().item()}
            line |= {name: round(sum(v) / len(v), 3) for name, v in sums.items()}
            sums.clear()
            write_line(folder, line)
        if state.step % every[1] == 0 or state.step >= schedule.last_step():
            write_line(folder, {"step": state.step, "evaluation": evaluate(state)})
        if state.step % every[2] == 0 or state.step >= schedule.last_step():
            save_state(state, folder / "state.safetensors", {"seed": seed, "weights": WEIGHTS})


def adamw(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """An optimiser that decays matrices alone, and steps once `set_rate` said how far."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))


def set_rate(optimiser: torch.optim.Optimizer, highest: float, step: int, steps: int) -> None:
    """Warm-up over 100 steps, then a cosine to zero."""
    rate = highest * (step + 1) / 100 if step < 100 else highest * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimiser.param_groups:
        group["lr"] = rate


def write_line(folder: Path, line: dict) -> None:
    """Append one JSON line to the log."""
    text = json.dumps(line)
    with (folder / "log.jsonl").open("a") as file:
        file.write(text + "\n")

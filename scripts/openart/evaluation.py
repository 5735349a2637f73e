"""Measures a model on the tasks in one art style: bare names, templates, opposite templates, and quick prompt tuning.

The prompt tuning here only serves to judge a model while it is trained; the package's own trainer makes the tables.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor

from openart.model import image_features, text_features
from openart.prepared import Prepared
from openart.tasks import OPPOSITE, TASKS, Pool, Task, all_pools
from openart.tokenizer import Encoder

WATCHED = {"train": 320, "val": 40, "test": 400}  # fewer images than the exported ones


def watched_pools(work: Path, prepared: Prepared, style: str) -> dict[str, Pool]:
    """The pools of one style with few images, drawn once and kept in the work folder."""
    folder = work / "pools"
    folder.mkdir(exist_ok=True)
    path = folder / f"{style}.npz"
    if not path.is_file():
        pools = all_pools(prepared, style, WATCHED, n_novel=100)
        flat = {f"{name}/pictures": pool.images for name, pool in pools.items()}
        for name, pool in pools.items():
            flat |= {f"{name}/rows/{task}": np.array(rows, dtype=str) for task, rows in pool.rows.items()}
        part = folder / f"{style}.part.npz"
        np.savez_compressed(part, **flat)
        part.replace(path)
    stored = np.load(path)
    pools = {name: Pool(stored[f"{name}/pictures"], {}) for name in ("pairs", "people", "singles")}
    for key in stored.files:
        if "/rows/" in key:
            name, _, task = key.split("/")
            pools[name].rows[task] = [(int(i), label, split, novel == "True") for i, label, split, novel in stored[key]]
    return pools


@torch.no_grad()
def pool_features(model: CLIP, pool: Pool, split: str | None = None) -> Tensor:
    """Features [N, E] of the images of a pool; zeros for those of other splits than the one wanted."""
    device = model.text_projection.device
    wanted = sorted({r[0] for rows in pool.rows.values() for r in rows if split in (None, r[2])})
    found = torch.zeros(len(pool.images), model.visual.proj.shape[1], device=device)
    for start in range(0, len(wanted), 128):
        some = wanted[start : start + 128]
        images = torch.from_numpy(pool.images[some]).to(device)
        found[some] = image_features(model, images.permute(0, 3, 1, 2).float() / 255)[0]
    return found


def chosen_rows(pool: Pool, task: str, split: str, novel: bool | None) -> tuple[Tensor, list[str]]:
    """Pictures and labels of one split; `novel` None takes both."""
    rows = [r for r in pool.rows[task] if r[2] == split and novel in (None, r[3])]
    return torch.tensor([r[0] for r in rows], dtype=torch.long), [r[1] for r in rows]


@torch.no_grad()
def accuracy(model: CLIP, encoder: Encoder, images: Tensor, labels: list[str], template: str) -> float:
    """Zero-shot accuracy in percent among the labels' own names."""
    names = sorted(set(labels))
    texts = text_features(model, [encoder.encode(template.format(n)) for n in names])
    target = torch.tensor([names.index(label) for label in labels], device=images.device)
    return 100 * float(((images @ texts.T).argmax(1) == target).float().mean())


def task_accuracies(model: CLIP, encoder: Encoder, pool: Pool, features: Tensor, task: Task) -> dict[str, float]:
    """Bare name, template and opposite template on seen concepts, and the template on novel ones."""
    found = {}
    for novel, mark in ((False, ""), (True, "-novel")):
        rows, labels = chosen_rows(pool, task.name, "test", novel)
        if not labels:
            continue
        short = task.name.removeprefix("openart-") + mark
        found[f"{short}/bare"] = accuracy(model, encoder, features[rows], labels, "{}")
        found[f"{short}/template"] = accuracy(model, encoder, features[rows], labels, task.template)
        if not novel and task.name in OPPOSITE:
            opposite = next(t.template for t in TASKS if t.name.endswith(OPPOSITE[task.name]))
            found[f"{short}/opposite"] = accuracy(model, encoder, features[rows], labels, opposite)
    return found


def zero_shot(model: CLIP, encoder: Encoder, pools: dict[str, Pool]) -> dict[str, float]:
    """Every task's zero-shot accuracies in percent."""
    features = {name: pool_features(model, pool, "test") for name, pool in pools.items()}
    found: dict[str, float] = {}
    for task in TASKS:
        found |= task_accuracies(model, encoder, pools[task.pool], features[task.pool], task)
    return {name: round(value, 1) for name, value in found.items()}


def prompted_features(model: CLIP, ctx: Tensor, ids: list[list[int]]) -> Tensor:
    """Class features [C, E] with shared context vectors between the start token and the name."""
    length = max(len(t) for t in ids)
    padded = torch.tensor([t + t[-1:] * (length - len(t)) for t in ids], device=ctx.device)
    x = model.token_embedding(padded)
    x = torch.cat([x[:, :1], ctx.expand(len(ids), -1, -1), x[:, 1:]], 1)  # [C, 1 + M + L - 1, D]
    width = x.shape[1]
    x = model.transformer(x + model.positional_embedding[:width], attn_mask=model.attn_mask[:width, :width])
    ends = torch.tensor([len(t) - 1 + len(ctx) for t in ids], device=ctx.device)
    x = model.ln_final(x)[torch.arange(len(ids), device=ctx.device), ends] @ model.text_projection
    return F.normalize(x, dim=-1)


def tuned(
    model: CLIP, encoder: Encoder, pool: Pool, features: Tensor, task: Task, shots: int, seed: int, n_steps: int = 150
) -> float:
    """Accuracy in percent on seen test concepts after tuning four context vectors on `shots` images a class."""
    generator = torch.Generator().manual_seed(seed)
    rows, labels = chosen_rows(pool, task.name, "train", None)
    names = sorted(set(labels))
    picked = []
    for name in names:
        mine = torch.tensor([i for i, label in enumerate(labels) if label == name])
        picked.append(mine[torch.randperm(len(mine), generator=generator)[:shots]])
    chosen = torch.cat(picked)
    images, target = features[rows[chosen]], torch.tensor([names.index(labels[int(i)]) for i in chosen])
    ids = [encoder.encode(n) for n in names]
    ctx = (0.02 * torch.randn(4, model.token_embedding.weight.shape[1], generator=generator)).requires_grad_()
    optimiser = torch.optim.Adam([ctx], lr=4e-3)
    scale = model.logit_scale.exp().detach()
    for step in range(n_steps):
        optimiser.param_groups[0]["lr"] = 4e-3 * 0.5 * (1 + np.cos(np.pi * step / n_steps))
        some = torch.randperm(len(chosen), generator=generator)[:64]
        loss = F.cross_entropy(scale * images[some] @ prompted_features(model, ctx, ids).T, target[some])
        (ctx.grad,) = torch.autograd.grad(loss, ctx)
        optimiser.step()
    rows, labels = chosen_rows(pool, task.name, "test", False)
    kept = [i for i, label in enumerate(labels) if label in names]
    with torch.no_grad():
        predicted = (features[rows[kept]] @ prompted_features(model, ctx, ids).T).argmax(1)
    return 100 * float(np.mean([names[p] == labels[i] for p, i in zip(predicted.tolist(), kept, strict=True)]))


def table(
    model: CLIP, encoder: Encoder, pools: dict[str, Pool], shots: tuple[int, ...], seeds: int
) -> dict[str, float]:
    """Zero-shot accuracies and, per number of shots, the mean accuracy of the quick prompt tuning over seeds."""
    found = zero_shot(model, encoder, pools)
    features = {name: pool_features(model, pool) for name, pool in pools.items()}
    for task in TASKS:
        for k in shots:
            runs = [tuned(model, encoder, pools[task.pool], features[task.pool], task, k, s) for s in range(seeds)]
            found[f"{task.name.removeprefix('openart-')}/coop-{k}"] = round(sum(runs) / seeds, 1)
    return found

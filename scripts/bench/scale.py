"""How cost grows over classes, vectors, images and prompts: CPU seconds, peak memory, and the exponent fitted to each.

Each point is a process of its own; an exponent of 1 means twice the size, twice the cost. It is fitted to what the
points cost beyond the smallest one, in logarithms.

    python scripts/bench/scale.py --json docs/results/scale.json
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import Row, cpu_seconds, in_a_process, parser, report, use_one_thread
from memory import ADJECTIVES
from text_step import IMAGENET

import mmprompt as mp
from mmprompt.classification.template import ClassTemplate
from mmprompt.experiments.memory import forget_peak, peak_bytes
from mmprompt.models.sites import Site, Vectors

SIZES = {
    "classes": (10, 100, 1000, 5000, 21000),
    "vectors": (1, 2, 4, 8, 16),
    "images": (1000, 10_000, 100_000, 1_000_000),
    "prompts": (1, 10, 100, 1000, 10_000),
}
WHAT = {
    "classes": "one training step of CoOp with 4 vectors on `tiny`, batch 32",
    "vectors": "one training step of CoOp with 100 classes on `tiny`, batch 32",
    "images": "class means of stored features, 256 wide, 100 classes, and their predictions",
    "prompts": "prompt files of 20 classes loaded for one frozen model",
}
WIDTH = 256


def text_step(n_classes: int, n_ctx: int) -> Callable[[], object]:
    """A step of the text side."""
    backbone = mp.load_backbone("tiny", device="cpu")
    short = list(dict.fromkeys(name for name in IMAGENET if len(name) < 12))
    names = [f"{one} {other} {name}" for name in short for one in ADJECTIVES for other in ADJECTIVES if one != other]
    slots = ClassTemplate.of_context(n_ctx).slots(backbone, names[:n_classes])
    generator = torch.Generator().manual_seed(1)
    ctx = (0.02 * torch.randn(n_ctx, backbone.text_width, generator=generator)).requires_grad_()
    images = F.normalize(torch.randn(32, backbone.embed_dim, generator=generator), dim=-1)

    def step() -> object:
        features = backbone.encode_text(slots, {Site("text"): Vectors(ctx)})
        loss = F.cross_entropy(backbone.logit_scale * images @ features.T, torch.arange(32) % n_classes)
        return torch.autograd.grad(loss, ctx)

    return step


def class_means(n_images: int) -> Callable[[], object]:
    """Means of many features, and what they say of the images."""
    generator = torch.Generator().manual_seed(1)
    features = F.normalize(torch.randn(n_images, WIDTH, generator=generator), dim=-1)
    labels = torch.arange(n_images) % 100

    def work() -> object:
        sums = torch.zeros(100, WIDTH).index_add_(0, labels, features)
        return (features @ F.normalize(sums, dim=-1).T).argmax(1)

    return work


def loaded_prompts(n_prompts: int, folder: Path) -> Callable[[], object]:
    """Many prompts for one frozen model."""
    backbone = mp.load_backbone("tiny", device="cpu")
    data = mp.load_dataset("openart-left", shots=1)
    mp.fit(mp.CoOp(n_ctx=4), backbone, data, out=folder / "0", epochs=1, progress=False)
    for number in range(1, n_prompts):
        shutil.copytree(folder / "0", folder / str(number), ignore=shutil.ignore_patterns("checkpoint"))
    kept = []
    return lambda: kept.extend(mp.load(folder / str(number), backbone) for number in range(n_prompts))


def one_point(what: str, size: int) -> Row:
    """The cost of one point."""
    with tempfile.TemporaryDirectory() as folder:
        if what == "classes":
            work = text_step(size, 4)
        elif what == "vectors":
            work = text_step(100, size)
        elif what == "images":
            work = class_means(size)
        else:
            work = loaded_prompts(size, Path(folder))
        forget_peak()
        before = peak_bytes()
        seconds = cpu_seconds(work)
        if what != "prompts":  # the first call warms up what the others share
            seconds = min(seconds, cpu_seconds(work))
        return {"seconds": seconds, "mb": (peak_bytes() - before) / 1e6}


def exponent(sizes: list[int], costs: list[float]) -> float:
    """The slope of the costs over the sizes in logarithms, from the second point on."""
    return float(np.polyfit(np.log(sizes[1:]), np.log(np.maximum(costs[1:], 1e-9)), 1)[0])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--one", nargs=2, help="measure this point here")
    args = options.parse_args()
    use_one_thread()
    if args.one:
        print(json.dumps(one_point(args.one[0], int(args.one[1]))))
        return
    for what, sizes in SIZES.items():
        if args.rows and what not in args.rows:
            continue
        points = [in_a_process(__file__, "--one", what, size) for size in sizes]
        seconds, memory = ([point[key] for point in points] for key in ("seconds", "mb"))
        row: Row = {"name": what, "what": WHAT[what], "sizes": list(sizes), "seconds": seconds, "mb": memory}
        row |= {"exponent": exponent(list(sizes), seconds), "memory_exponent": exponent(list(sizes), memory)}
        report([row], args.json)


if __name__ == "__main__":
    main()

"""Peak memory of a training step with the whole of ViT-B/16 in memory, at 100, 1,000 and 21,000 classes.

Each figure is the peak of a process of its own. The 21,000 names are ImageNet's with an adjective before each, a little
longer than real ones. The plain procedure is measured where it fits.

    python scripts/bench/memory.py --json docs/results/memory.json
"""

import json

import torch
import torch.nn.functional as F
from measure import Row, in_a_process, parser, relative_error, report, use_one_thread
from plain import class_features
from text_step import CALTECH, IMAGENET, at_full_length, slots_of, vit_b_16

from mmprompt.classification.template import ClassTemplate
from mmprompt.experiments.memory import peak_bytes
from mmprompt.models.sites import Site, Vectors

N_CTX, BATCH, CHECKED = 16, 32, 100
ADJECTIVES = "old new red blue green big small dark bright wet dry warm cold soft hard clean dirty".split()
ADJECTIVES += "heavy light round flat".split()
NAMES = {100: CALTECH, 1000: IMAGENET, 21000: [f"{adjective} {name}" for adjective in ADJECTIVES for name in IMAGENET]}


def one_step(n_classes: int, is_plain: bool) -> Row:
    """A step and its peak, and how far some class features are from the plain ones, found afterwards."""
    backbone, names = vit_b_16(with_image_tower=True), NAMES[n_classes]
    slots = slots_of(backbone, ClassTemplate.of_context(N_CTX), names)
    generator = torch.Generator().manual_seed(1)
    ctx = (0.02 * torch.randn(N_CTX, backbone.text_width, generator=generator)).requires_grad_()
    images = F.normalize(torch.randn(BATCH, backbone.embed_dim, generator=generator), dim=-1)
    text = (*at_full_length(slots, backbone.context_length), slots.lengths - 1)
    before = peak_bytes()
    if is_plain:
        features = class_features(backbone.model, *text, ctx, {})
    else:
        features = backbone.encode_text(slots, {Site("text"): Vectors(ctx)})
    logits = backbone.logit_scale * images @ features.T
    torch.autograd.grad(F.cross_entropy(logits, torch.arange(BATCH)), ctx)
    peak = peak_bytes()
    chosen = torch.arange(0, n_classes, n_classes // CHECKED)
    with torch.no_grad():
        expected = class_features(backbone.model, *(part[chosen] for part in text), ctx, {})
    return {"peak": peak, "before": before, "error": relative_error(features[chosen].detach(), expected)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--one", type=int, help="measure this number of classes here")
    options.add_argument("--plain", action="store_true", help="by the plain procedure")
    args = options.parse_args()
    use_one_thread()
    if args.one:
        print(json.dumps(one_step(args.one, args.plain)))
        return
    for n_classes in NAMES:
        name = f"memory-{n_classes}"
        if args.rows and name not in args.rows:
            continue
        found = in_a_process(__file__, "--one", n_classes)
        row = {"name": name, "ratio": None, "equal": found["error"] < 1e-5, "peak_gb": found["peak"] / 1e9}
        row |= {"before_the_step_gb": found["before"] / 1e9, "features_error": found["error"]}
        if n_classes == min(NAMES):
            plain = in_a_process(__file__, "--one", n_classes, "--plain")
            row |= {"ratio": plain["peak"] / found["peak"], "plain_peak_gb": plain["peak"] / 1e9}
        report([row], args.json)


if __name__ == "__main__":
    main()

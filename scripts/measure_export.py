"""How large exports are, how long they take and how near they come, with random weights of an architecture.

    python scripts/measure_export.py

Each is read again and run on images of noise. The prompt is drawn, not learned.
"""

import math
import tempfile
import time
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_model

import mmprompt as mp
from markdown import table
from measuring import run_main
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.template import ClassTemplate
from mmprompt.core.learned import Learned, Prompt
from mmprompt.files import read_json
from mmprompt.models.sites import Site


def main(architecture: str = "ViT-B-16", n_classes: int = 20, forms: tuple[str, ...] = ("onnx", "pt2", "npy")) -> None:
    """Export a classifier of 16 context vectors in each form.

    Args:
        architecture: of open_clip's.
        n_classes: how many class names it knows.
        forms: what it is exported to.
    """
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        model = open_clip.create_model(architecture)
        model.logit_scale.data.fill_(
            math.log(100)
        )  # as in trained ones: near even probabilities would differ by nothing
        save_model(model, f"{place}/weights.safetensors")
        backbone = mp.load_backbone(f"open_clip:{architecture}//{place}/weights.safetensors", device="cpu")
        prompt = Prompt(ClassTemplate.of_context(16), Learned(Site("text"), torch.randn(16, backbone.text_width) / 50))
        mp.save(Classifier(backbone, prompt, [f"class {n}" for n in range(n_classes)]).eval(), f"{place}/run")
        for form in forms:
            began = time.process_time()
            folder = Path(mp.export(f"{place}/run", form, f"{place}/{form}"))
            seconds = time.process_time() - began
            n_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.name != "export.json")
            difference = read_json(folder / "export.json").get("largest_difference")
            rows.append([form, f"{n_bytes:,}", f"{seconds:.0f}", "" if difference is None else f"{difference:.1e}"])
    print(table([f"`--to`, {architecture}", "bytes", "processor seconds", "largest difference of a probability"], rows))


if __name__ == "__main__":
    run_main(main, __doc__)

"""A classifier as one graph, from pixels to probabilities: ONNX, or a program of `torch.export`.

Image tower, prompts, low-rank terms and head are in it; class features are constants. What is written is read again and
compared with the classifier before it has its name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprompt.classification.predictor import Classifier
from mmprompt.errors import UserError
from mmprompt.training.problem import RunFailed

INPUT, OUTPUT = "images", "probabilities"
TOLERANCE = 1e-4
LARGEST_FILE = 2**31 - 2**20
"""Bytes of weights that one ONNX file takes; protobuf ends at 2 GiB."""
N_TRACED, N_TRIED = 2, 3
"""Images that a graph is traced with, and tried on."""


class PixelClassifier(nn.Module):
    """Probabilities of images as they are kept: [B, 3, S, S] uint8, RGB, to [B, C] float32.

    Args:
        classifier: on the CPU, in single precision.
    Raises:
        UserError: its class features depend on the image, or it learns anew on each image.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        refuse_anew(classifier)
        self.classifier = classifier
        backbone: Any = classifier.backbone
        parts = sorted({name.partition(".")[0] for name in backbone.weights_of("vision")})
        # Of a dual encoder the text tower stays out: its weights would be most of the file.
        kept = {part: getattr(backbone.model, part) for part in parts}
        self.tower = nn.ModuleDict(kept) if backbone.has_text else backbone.model

    def forward(self, images: Tensor) -> Tensor:
        """Compute probabilities [B, C]."""
        backbone = self.classifier.backbone
        pixels = backbone.normalize(images.to(backbone.dtype) / 255)
        logits = self.classifier.outputs(self.classifier.image_features(pixels)).logits
        return logits.softmax(-1).float()


def refuse_anew(classifier: Classifier) -> None:
    """Refuse a classifier that makes or learns something for each image, for which no export has a place."""
    instead = "Serve it with this package, or train coop instead."
    if classifier.prompt.needs_image:
        problem = "are made anew for each image, but an export holds them as constants"
        raise UserError(f"the class features of this prompt {problem}. {instead}")
    if type(classifier).predict_proba is not Classifier.predict_proba:
        problem = "learns anew on each image, which no export does"
        raise UserError(f"a {classifier.form} classifier {problem}. {instead}")


def noise(classifier: Classifier, n_images: int) -> Tensor:
    """Draw images of noise [N, 3, S, S] uint8."""
    size = classifier.backbone.image_size
    generator = torch.Generator().manual_seed(n_images)
    return torch.randint(0, 256, (n_images, 3, size, size), dtype=torch.uint8, generator=generator)


def traced(classifier: Classifier) -> torch.export.ExportedProgram:
    """Trace a classifier, for any number of images; refuse an image tower that cannot be traced."""
    model = PixelClassifier(classifier).eval()
    if not classifier.prompt.needs_image:
        classifier.class_features()  # encoded now, so that the trace meets them as a constant
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    try:
        return torch.export.export(model, (noise(classifier, N_TRACED),), dynamic_shapes=shapes)
    except UserError:
        raise
    except Exception as error:  # torch raises a dozen kinds of its own where a model decides by values
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"the image tower of {classifier.backbone.name} cannot be traced by torch.export ({reason}). "
            "Export class weights (npy), and run the tower by its own library."
        ) from None


@torch.no_grad()
def write_onnx(classifier: Classifier, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write `classifier.onnx`; weights of 2 GB and more lie beside it in `classifier.onnx.data`.

    The facts are kept in the metadata, lists as JSON. Input, output, the opset, and the largest difference of a
    probability on images of noise are returned; `RunFailed` is raised where onnxruntime computes something else.
    """
    import onnxruntime

    program = traced(classifier)
    graph = torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False, external_data=False
    )
    assert graph is not None, "dynamo gives a program"
    for name, value in facts.items():
        graph.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    path = folder / "classifier.onnx"
    n_bytes = sum(each.nbytes for each in program.state_dict.values())
    graph.save(path, external_data=n_bytes > LARGEST_FILE)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference = compare(classifier, lambda images: session.run([OUTPUT], {INPUT: images.numpy()})[0], "onnxruntime")
    return describe(classifier) | {"opset": graph.model.opset_imports[""], "largest_difference": difference}


@torch.no_grad()
def write_pt2(classifier: Classifier, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write `classifier.pt2`, which `torch.export.load` reads; it raises what `write_onnx` raises."""
    path = folder / "classifier.pt2"
    torch.export.save(traced(classifier), path)
    again = torch.export.load(path).module()
    difference = compare(classifier, lambda images: again(images).numpy(), "the saved program")
    return describe(classifier) | {"torch": torch.__version__, "largest_difference": difference}


def describe(classifier: Classifier) -> dict[str, Any]:
    """Say what goes into a graph and what comes out."""
    size, n_classes = classifier.backbone.image_size, len(classifier.class_names)
    given = f"[B, 3, {size}, {size}] uint8, RGB, resized and cut as `transform` says, not normalised"
    return {"input": {INPUT: given}, "output": {OUTPUT: f"[B, {n_classes}] float32"}}


def compare(classifier: Classifier, run: Callable[[Tensor], np.ndarray], name: str) -> float:
    """Return the largest difference of a probability between a graph and the classifier; refuse one that matters."""
    images = noise(classifier, N_TRIED)
    difference = float(np.abs(run(images) - PixelClassifier(classifier)(images).numpy()).max())
    if not difference <= TOLERANCE:
        raise RunFailed(f"{name} differs from the classifier by {difference:.1g}, so nothing was written")
    return difference

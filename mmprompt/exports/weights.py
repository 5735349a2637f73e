"""A classifier as class weights, for image features that somebody computes with the frozen model's own library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmprompt.classification.predictor import Classifier
from mmprompt.errors import UserError
from mmprompt.exports.graph import refuse_anew
from mmprompt.files import tensor_bytes, write_bytes

N_TRIED = 64
INSTEAD = "Use `to=onnx`, which holds the whole classifier."


@torch.no_grad()
def class_weights(classifier: Classifier) -> tuple[Tensor, Tensor]:
    """Read off what a classifier multiplies image features with.

    Returns:
        weights [C, E] and biases [C], float32: logits are `logit_scale * features @ weights.T + biases`. Those of a
        classifier without a head are its class features.
    Raises:
        UserError: its logits are no such product, or something is learned in the image tower, or on each image.
    """
    backbone = classifier.backbone
    refuse_anew(classifier)
    if classifier.prompt.has("vision"):
        site = next(site for site in classifier.prompt.sites if site.tower == "vision")
        problem = "so the features of the frozen model are not what it reads"
        raise UserError(f"this prompt learned in the image tower, at {site}, {problem}. {INSTEAD}")
    if classifier.reads_raw:
        raise UserError(f"this classifier is no product of image features and class weights. {INSTEAD}")
    width = backbone.embed_dim
    tried = torch.randn(N_TRIED, width, generator=torch.Generator().manual_seed(0))
    tried = torch.nn.functional.normalize(tried, dim=-1) if backbone.has_text else tried
    rows = torch.cat([torch.zeros(1, width), torch.eye(width), tried]).to(backbone.device, backbone.dtype)
    logits = classifier.outputs(rows).logits.double().cpu()
    biases, weights = logits[0], (logits[1 : 1 + width] - logits[0]).T  # [C], [C, E]
    expected = tried.double() @ weights.T + biases
    if not torch.allclose(expected, logits[1 + width :], rtol=1e-4, atol=1e-3):
        kind = getattr(classifier.prompt.head, "kind", "its form")
        raise UserError(f"the logits of this classifier ({kind}) are not linear in the image features. {INSTEAD}")
    return (weights / backbone.logit_scale).float(), biases.float()


def write_npy(classifier: Classifier, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write `class_weights.npy` [C, E] float32; it raises what `class_weights` raises.

    Returns:
        how to multiply, the linear `logit_scale`, and the `bias` of each class.
    """
    weights, biases = class_weights(classifier)
    held = BytesIO()
    np.save(held, weights.numpy())
    write_bytes(folder / "class_weights.npy", held.getvalue())
    kind = "of unit norm" if classifier.backbone.has_text else "as the image tower gives them"
    use = f"logits = logit_scale * features @ class_weights.T + bias, features {kind}"
    return {"use": use, "logit_scale": classifier.backbone.logit_scale, "bias": biases.tolist()}


def write_open_clip(classifier: Classifier, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write `zero_shot_classifier.safetensors`: `classifier` [E, C] as open_clip's `build_zero_shot_classifier` has it.

    Returns:
        how to multiply.
    Raises:
        UserError: see `class_weights`, or the frozen model is not one of open_clip's, or classes have a bias of their
            own.
    """
    backbone: Any = classifier.backbone
    if not type(backbone.model).__module__.startswith("open_clip") or not backbone.has_text:
        raise UserError(
            f"{backbone.name} is no model of open_clip's. Use `to=npy`, which any library can multiply with."
        )
    weights, biases = class_weights(classifier)
    if (biases - backbone.logit_bias).abs().max() > 1e-3:
        raise UserError("this classifier has a bias for each class, which open_clip does not add. Use `to=npy`.")
    said = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    data = tensor_bytes({"classifier": weights.T.contiguous()}, said)
    write_bytes(folder / "zero_shot_classifier.safetensors", data)
    bias = " + model.logit_bias" if backbone.logit_bias else ""
    features = "model.encode_image(images, normalize=True)"
    return {"use": f"logits = model.logit_scale.exp() * {features} @ classifier{bias}"}

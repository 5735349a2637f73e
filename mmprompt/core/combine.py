"""Saved prompts of one form, put together: their average, a point between two, and in what two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmprompt.core.file import Predictor, load, read_sealed
from mmprompt.core.header import TENSORS, read_header
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.settings import checked

ADDED_SOURCES = {"vectors", "weights", "layer-norms", "pixel-frame", "pixel-patch"}
"""Kinds of sources whose average stands for an average of what enters the model; the product of low-rank factors, and
networks, are no sums."""
ADDED_HEADS = {"linear", "blend"}
NOT_OF_THE_FORM = {"format", "mmprompt", "backbone", "training", "tensors_sha256"}
"""In which prompts of one form may differ."""


@checked
def average_prompts(
    folders: Sequence[Path | str], shares: Sequence[float] | None = None, model: Any = None
) -> Predictor:
    """Average what some prompts learned (Wortsman et al. 2022, "Model soups", section 2, of prompts).

    Args:
        folders: N run folders, or any that `save` wrote, N at least 2; all but what was learned is that of the first.
        shares: N numbers of 0 or more that sum to 1; equal ones by default.
        model: the frozen model or its name; by default the one that the first names.
    Returns:
        A predictor of their kind.
    Raises:
        UserError: they are of different kinds, models, templates, sites, shapes or class names, or what was learned is
            a product or a network, of which an average means nothing.
    """
    if len(folders) < 2:
        raise bad_value("folders", f"{len(folders)} long", "two prompts or more are averaged", "Give another.")
    shares = [1 / len(folders)] * len(folders) if shares is None else list(shares)
    if len(shares) != len(folders):
        raise bad_value("shares", f"{len(shares)} long", f"there are {len(folders)} prompts", "Give one for each.")
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise bad_value("shares", list(shares), "numbers of 0 or more that sum to 1 were expected", "Give shares.")
    places = [Path(folder) for folder in folders]
    first, *others = [read_header(place) for place in places]
    for place, header in zip(places[1:], others, strict=True):
        _refuse_other_form(places[0], first, place, header)
    _refuse_products(places[0], first)
    predictor: Predictor = load(places[0], model)
    states = [predictor.prompt.state_dict()]
    states += [load(place, predictor.backbone).prompt.state_dict() for place in places[1:]]
    with torch.no_grad():
        for name, value in states[0].items():
            if value.is_floating_point():
                value.copy_(sum(share * state[name] for share, state in zip(shares, states, strict=True)))
    return predictor


def origin_of(folders: Sequence[Path | str], shares: Sequence[float]) -> dict[str, Any]:
    """Give what the file of an average says of where it comes from: the prompts by their hashes, and the data if all
    learned from the same.
    """
    headers = [read_header(folder) for folder in folders]
    data = [header["training"].get("data") for header in headers]
    kept = {"data": data[0]} if data[0] is not None and all(one == data[0] for one in data) else {}
    parts = [header["tensors_sha256"] for header in headers]
    return {"method": {"name": "average", "settings": {"shares": list(shares)}}, "averaged": parts} | kept


@checked
def diff_prompts(a: Path | str, b: Path | str) -> dict[str, Any]:
    """Compare two saved prompts of one kind and one frozen model; no model is loaded.

    Returns:
        `facts`: what the files say differently, a pair for each; `learned`: of every tensor that both hold `name`,
        `shape`, the two norms, the `distance` between them and their `cosine`, or of one of another shape both
        `shapes`; `only`: those that one holds; `classes`: of class names that both have, the cosine between their
        features, the least first.
    Raises:
        UserError: they are of different kinds or models.
    """
    places = Path(a), Path(b)
    headers = [read_header(place) for place in places]
    _refuse_other_model(places[0], headers[0], places[1], headers[1])
    read = [
        read_sealed(place / TENSORS, header["tensors_sha256"]) for place, header in zip(places, headers, strict=True)
    ]
    features = [tensors.pop("class_features", None) for tensors in read]
    facts = [_facts(header) for header in headers]
    said = {name: [one.get(name) for one in facts] for name in sorted(facts[0] | facts[1])}
    return {
        "facts": {
            name: pair for name, pair in said.items() if pair[0] != pair[1] and (":" not in name or None not in pair)
        },
        "learned": [
            _difference(name, read[0][name], read[1][name]) for name in sorted(read[0].keys() & read[1].keys())
        ],
        "only": [sorted(read[0].keys() - read[1].keys()), sorted(read[1].keys() - read[0].keys())],
        "classes": _moved_classes(headers, features),
    }


def _facts(header: Mapping[str, Any]) -> dict[str, Any]:
    """Lay out flat what a header says of how a prompt was made."""
    training = header["training"]
    method, data = training.get("method", {}), training.get("data", {})
    names = {"class names": header.get("class_names"), "focus": header.get("focus")}
    return {
        "template": header["template"],
        "method": method.get("name"),
        **{f"method: {name}": value for name, value in method.get("settings", {}).items()},
        **{f"recipe: {name}": value for name, value in training.get("recipe", {}).items()},
        "data": data.get("name"),
        "shots": data.get("shots"),
        "seed": training.get("seed"),
        **{name: value for name, value in names.items() if value is not None},
    }


def _difference(name: str, a: Tensor, b: Tensor) -> dict[str, Any]:
    if a.shape != b.shape:
        return {"name": name, "shapes": [list(a.shape), list(b.shape)]}
    shape = list(a.shape)
    a, b = a.double().flatten(), b.double().flatten()
    norms = a.norm(), b.norm()
    return {
        "name": name,
        "shape": shape,
        "norms": [norm.item() for norm in norms],
        "distance": (a - b).norm().item(),
        "cosine": (a @ b / (norms[0] * norms[1]).clamp_min(1e-30)).item(),
    }


def _moved_classes(headers: Sequence[Mapping[str, Any]], features: Sequence[Tensor | None]) -> list[dict[str, Any]]:
    if features[0] is None or features[1] is None or 0 in features[0].shape:
        return []
    names = [header["class_names"] for header in headers]
    both = [name for name in names[0] if name in names[1]]
    cosines = [
        (features[0][names[0].index(name)].double() @ features[1][names[1].index(name)].double()).item()
        for name in both
    ]
    pairs = sorted(zip(cosines, both, strict=True))
    return [{"name": name, "cosine": cosine} for cosine, name in pairs]


def _refuse_other_model(a: Path, own: Mapping[str, Any], b: Path, other: Mapping[str, Any]) -> None:
    """Refuse prompts of different kinds or models."""
    if own["kind"] != other["kind"]:
        problem = f"is a prompt for {other['kind']}, but {a} is one for {own['kind']}"
        raise bad_file(b, problem, "Give prompts of one kind.")
    if own["backbone"]["fingerprint"] != other["backbone"]["fingerprint"]:
        said = [f"{one['backbone']['name']} ({one['backbone']['fingerprint'][:12]})" for one in (other, own)]
        raise bad_file(b, f"was learned on {said[0]}, but {a} on {said[1]}", "Give prompts of one frozen model.")


def _refuse_other_form(a: Path, own: Mapping[str, Any], b: Path, other: Mapping[str, Any]) -> None:
    """Refuse prompts that differ in more than the numbers that were learned."""
    _refuse_other_model(a, own, b, other)
    for key in sorted((own.keys() | other.keys()) - NOT_OF_THE_FORM):
        if own.get(key) != other.get(key):
            what = {"sources": "sites or shapes"}.get(key, key.replace("_", " "))
            said = [str(one.get(key))[:80] for one in (other, own)]
            problem = f"has other {what} than {a} ({said[0]}, not {said[1]})"
            raise bad_file(b, problem, "Give prompts that differ in what was learned alone.")


def _refuse_products(folder: Path, header: Mapping[str, Any]) -> None:
    kinds = [source["kind"] for source in header["sources"] if source["kind"] not in ADDED_SOURCES]
    kinds += [header["head"]["kind"]] if header["head"] and header["head"]["kind"] not in ADDED_HEADS else []
    if kinds:
        raise bad_file(
            folder,
            f"holds {' and '.join(kinds)}, of which an average of the numbers is no average of what they do",
            "Average the probabilities of the classifiers instead.",
        )
    if not header["sources"] and not header["head"]:
        raise UserError(f"{folder} holds nothing learned, so there is nothing to average. Give trained prompts.")

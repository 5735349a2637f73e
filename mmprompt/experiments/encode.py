"""Many images encoded once, by several workers where that is worth it, into the store that all of them share.

A row does not depend on what is encoded beside it, so that it does not matter who encodes which.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmprompt.errors import UserError
from mmprompt.experiments.workers import Workers
from mmprompt.models.dual_encoder.load import MODEL_OF, load_backbone
from mmprompt.models.feature_store import FeatureStore, StoreError, features_folder, limit_bytes
from mmprompt.models.image_features import ImageFeatures
from mmprompt.progress import CountProgress

WORTH_WORKERS = 1000  # images: below, they are encoded sooner than workers have started
LEAST, MOST = 64, 4096
"""Images of a block, whose features are in memory at once."""


def features_of(kind: str, model: Any, progress: CountProgress | None = None) -> Any:
    """Return the features that a kind of task keeps of image files; None of language, which has none."""
    if kind == "classification":
        return ImageFeatures(model, progress=progress)
    if kind == "captioning":
        from mmprompt.captioning.predictor import CaptionFeatures

        return CaptionFeatures(model, progress=progress)
    return None


def store_features(
    kind: str,
    name: str,
    model: Any,
    paths: Sequence[Path],
    workers: Workers,
    device: str = "auto",
    progress: CountProgress | None = None,
) -> int:
    """Encode those images of a list whose features are not stored, and return how many that were.

    A thousand or more are shared out to `workers`, who load the model by its name, on the device of `load_backbone`.
    `progress` is called with how many are encoded and how many there were to encode.
    """
    show = progress or (lambda n_done, n_all: None)
    paths = list(dict.fromkeys(paths))
    missing: list[Path] = []
    for start in range(0, len(paths), MOST):
        block = paths[start : start + MOST]
        known = features_of(kind, model).stored(block)
        missing += [path for path in block if path not in known]
    if len(missing) < WORTH_WORKERS or not limit_bytes() or workers.is_this_process(device):
        for start in range(0, len(missing), MOST):
            offset = partial(lambda start, n_done, _: show(start + n_done, len(missing)), start)
            features_of(kind, model, offset).of(missing[start : start + MOST])
        return len(missing)
    n_before = n_stored(model)

    def n_left() -> int:
        show(max(0, min(n_stored(model) - n_before, len(missing))), len(missing))
        return 0

    devices = workers.devices(device)
    calls = [(kind, name, one, missing, index, len(devices)) for index, one in enumerate(devices)]
    failures = [one for one in workers.run(encode_share, calls, n_left, "") if one is not None]
    if len(failures) == len(devices):
        raise min(failures, key=lambda one: not isinstance(one, UserError))
    return len(missing)


def encode_share(kind: str, name: str, device: str, paths: Sequence[Path], index: int, n: int) -> None:
    """Encode blocks of images: every n-th first, then, from the end, what the other workers have not come to."""
    model = load_backbone(name, device, kind=MODEL_OF[kind])
    size = min(MOST, max(LEAST, len(paths) // (8 * n)))
    blocks = [paths[start : start + size] for start in range(0, len(paths), size)]
    others = [block for place, block in enumerate(blocks) if place % n != index]
    for block in (*blocks[index::n], *reversed(others)):
        features_of(kind, model).of(block)


def n_stored(model: Any) -> int:
    """Count the stored rows of a model, on whatever device they were computed; 0 while the store cannot be read."""
    try:
        contents = FeatureStore(features_folder(), limit_bytes()).contents()
    except StoreError:
        return 0
    return sum(one.rows for one in contents if one.fingerprint == model.fingerprint)

"""Image features of many pictures: decoded and encoded in batches, and each picture at most once.

It knows pictures, a backbone and the store on disk, not labels. A row does not depend on what is encoded beside
it: every batch has the same shape, for which the matrix products of a row are the same whatever its neighbours.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import PIL
import PIL.Image
import torch
from torch import Tensor

from mmprompt.data.images import ImageLike, read_image
from mmprompt.errors import UserError
from mmprompt.files import make_folder, sha256_bytes
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.feature_store import FeatureStore, Space, features_folder, limit_bytes
from mmprompt.models.image_reading import Job, PictureReader, View, decode
from mmprompt.models.sites import Insert, Site

CPU_BATCH, DEVICE_BATCH = 8, 64
SAVE_SECONDS = 5.0
Progress: TypeAlias = Callable[[int, int], None]
Picture: TypeAlias = "tuple[Path, View | None]"
Answer = TypeVar("Answer")
_log = logging.getLogger(__name__)


def encode_batches(
    backbone: DualEncoder, images: Iterable[Tensor], inserts: Mapping[Site, Insert] | None = None
) -> Iterator[Tensor]:
    """Features of pictures that are already tensors, batch by batch.

    The last batch is filled up to the size of the others, and mixed precision is off: a matrix product may round
    otherwise for another shape (measured: for batches of 1 to 3 on a CPU), and features must not depend on that.

    Args:
        backbone: the frozen model.
        images: N normalised [3, H, W], as `preprocess` gives them; taken one batch at a time.
        inserts: at the vision sites, if something learned is in the image tower.
    Yields:
        [B, E] of unit norm, on the backbone's device.
    """
    size = CPU_BATCH if backbone.device.type == "cpu" else DEVICE_BATCH
    remaining = iter(images)
    while batch := list(islice(remaining, size)):
        full = torch.stack(batch + batch[-1:] * (size - len(batch))).to(backbone.device, backbone.dtype)
        with torch.no_grad(), torch.autocast(backbone.device.type, enabled=False):
            features = backbone.encode_image(full, inserts)
        yield features[: len(batch)]


def encode_tensors(
    backbone: DualEncoder, images: Iterable[Tensor], inserts: Mapping[Site, Insert] | None = None
) -> Tensor:
    """Features of pictures that are already tensors: [N, E]; arguments as for `encode_batches`."""
    empty = torch.empty(0, backbone.embed_dim, device=backbone.device, dtype=backbone.dtype)
    return torch.cat([empty, *encode_batches(backbone, images, inserts)])


def encode_pictures(
    backbone: DualEncoder, sources: Sequence[ImageLike], inserts: Mapping[Site, Insert] | None = None
) -> Tensor:
    """Features of pictures under the backbone's own test transform, computed now and kept nowhere.

    Args:
        backbone: the frozen model.
        sources: N pictures.
        inserts: at the vision sites, if something learned is in the image tower.
    Returns:
        [N, E] of unit norm, on the backbone's device.
    Raises:
        UserError: a picture cannot be read.
    """
    return encode_tensors(backbone, (backbone.preprocess(read_image(source)) for source in sources), inserts)


class ImageFeatures:
    """Features of picture files for one backbone: computed once, kept in memory and in a store on disk.

    Several classifiers share one of these, and several processes share the store. A store that cannot be written
    is done without, with a warning.

    Args:
        backbone: the frozen model; its image tower is not prompted here.
        store: a folder, `"auto"` for `features` in the cache folder (`$MMPROMPT_CACHE`), None for memory alone.
        n_workers: processes that read pictures; None for as many as are worth it, 0 for none.
        progress: called with how many of the missing pictures are encoded and how many there are.
    """

    def __init__(
        self,
        backbone: DualEncoder,
        store: Path | str | None = "auto",
        n_workers: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.backbone = backbone
        self.progress = progress
        self._place = store
        self._n_workers = n_workers
        self._rows: dict[Picture, Tensor] = {}

    def of(self, paths: Sequence[Path]) -> Tensor:
        """[N, E] of unit norm under the backbone's own test transform, on its device.

        Raises:
            UserError: a picture cannot be read, or another version wrote the store.
        """
        return self._gather([(path, None) for path in paths])

    def of_view(self, paths: Sequence[Path], seed: int, view: int) -> Tensor:
        """[N, E] of one cropped and flipped view of the pictures of a training set.

        Args:
            paths: N files; their order is part of the augmentation.
            seed: of the run.
            view: its number.
        Raises:
            UserError: as for `of`.
        """
        return self._gather([(path, View(seed, view, index)) for index, path in enumerate(paths)])

    def prepare_views(self, paths: Sequence[Path], seed: int, n_views: int) -> None:
        """Compute the first views of a training set at once, reading each file once; arguments as for `of_view`."""
        self._fill([(path, View(seed, view, index)) for index, path in enumerate(paths) for view in range(n_views)])

    def stored(self, paths: Sequence[Path]) -> frozenset[Path]:
        """Those of the files whose features are known: their very bytes were decoded before, by this Pillow.

        Raises:
            UserError: another version wrote the store.
        """
        pictures: list[Picture] = [(path, None) for path in paths if path.is_file() and os.access(path, os.R_OK)]
        self._take(pictures, self._keys(pictures))
        return frozenset(path for path, view in pictures if (path, view) in self._rows)

    def refuse_other(self, backbone: DualEncoder) -> None:
        """Refuse to serve a classifier on another backbone.

        Raises:
            UserError: weights or transform differ.
        """
        own = self.backbone
        if (own.fingerprint, own.transform) != (backbone.fingerprint, backbone.transform):
            raise UserError(
                f"the image features are of {own.name} ({own.fingerprint[:12]}), but the classifier runs on "
                f"{backbone.name} ({backbone.fingerprint[:12]}). Give ImageFeatures of the classifier's backbone."
            )

    def _gather(self, pictures: Sequence[Picture]) -> Tensor:
        if not pictures:
            return encode_tensors(self.backbone, [])
        self._fill(pictures)
        return torch.stack([self._rows[picture] for picture in pictures])

    def _fill(self, pictures: Sequence[Picture]) -> None:
        """Bring rows into memory: from the store what is there, the others computed and added to it."""
        missing = [picture for picture in dict.fromkeys(pictures) if picture not in self._rows]
        if not missing:
            return
        keys = self._keys(missing)
        self._take(missing, keys)
        self._encode([picture for picture in missing if picture not in self._rows], keys)

    def _encode(self, pictures: Sequence[Picture], keys: Mapping[Picture, str]) -> None:
        views: dict[Path, list[View | None]] = {}
        for path, view in pictures:
            views.setdefault(path, []).append(view)
        jobs = [Job(path, tuple(of_path)) for path, of_path in views.items()]
        waiting = iter([(job.path, view) for job in jobs for view in job.views])
        unsaved: dict[Picture, Tensor] = {}
        n_done, saved_at = 0, time.monotonic()
        try:
            for features in encode_batches(
                self.backbone, decode(PictureReader.of(self.backbone), jobs, self._n_workers)
            ):
                unsaved.update(zip(islice(waiting, len(features)), features, strict=True))
                n_done += len(features)
                if time.monotonic() - saved_at > SAVE_SECONDS:
                    self._keep(unsaved, keys)
                    unsaved, saved_at = {}, time.monotonic()
                if self.progress is not None:
                    self.progress(n_done, len(pictures))
        finally:  # an interruption or a broken picture costs nothing of what is done
            self._keep(unsaved, keys)

    def _keep(self, rows: Mapping[Picture, Tensor], keys: Mapping[Picture, str]) -> None:
        """Add rows to the store and go on with what it then holds, which is what every later run will see."""
        self._rows.update(rows)
        if not rows or not keys:
            return
        values = torch.stack(list(rows.values())).to("cpu", self._store_dtype).numpy()
        named = {keys[picture]: value for picture, value in zip(rows, values, strict=True)}
        self._ask(lambda store: store.add(self._space, named))
        self._take(list(rows), keys)

    def _take(self, pictures: Sequence[Picture], keys: Mapping[Picture, str]) -> None:
        """Bring those rows into memory that the store holds."""
        if not keys:
            return
        found = self._ask(lambda store: store.read(self._space, [keys[picture] for picture in pictures])) or {}
        for picture in pictures:
            if keys[picture] in found:
                row = torch.from_numpy(found[keys[picture]])
                self._rows[picture] = row.to(self.backbone.device, self.backbone.dtype)

    def _keys(self, pictures: Sequence[Picture]) -> dict[Picture, str]:
        """What pictures are called in the store: the hash of the file's bytes, and the view; none without a store."""
        paths = list(dict.fromkeys(path for path, _ in pictures))
        hashes = self._ask(lambda store: store.hash_files(paths))
        if not hashes:
            return {}
        return {(path, view): hashes[path] + (f" {view}" if view else "") for path, view in pictures}

    def _ask(self, work: Callable[[FeatureStore], Answer]) -> Answer | None:
        """What the store answers; None without one, and from its first failure on the run goes on without it."""
        if self._store is None:
            return None
        try:
            return work(self._store)
        except (OSError, sqlite3.Error) as error:
            warn_without(error)
            self._store = None
            return None

    @cached_property
    def _store(self) -> FeatureStore | None:
        limit = limit_bytes()
        if self._place is None or limit == 0:
            return None
        folder = features_folder() if self._place == "auto" else Path(self._place).expanduser()
        try:
            store = FeatureStore(make_folder(folder), limit)
        except UserError as error:
            if self._place != "auto":
                raise
            warn_without(error)
            return None
        try:
            store.open(self._space)
        except (OSError, sqlite3.Error) as error:
            warn_without(error)
            return None
        return store

    @property
    def _store_dtype(self) -> torch.dtype:
        """float32 also holds every half-precision number exactly."""
        return torch.float64 if self.backbone.dtype == torch.float64 else torch.float32

    @cached_property
    def _space(self) -> Space:
        backbone = self.backbone
        computed_by = [
            f"{describe_device(backbone.device)} {backbone.dtype}",
            f"torch {torch.__version__}",
            f"pillow {PIL.__version__}",
            f"pixels {transform_hash(backbone)}",
        ]
        dtype = str(self._store_dtype).removeprefix("torch.")
        return Space(
            backbone.name,
            backbone.fingerprint,
            backbone.transform,
            ", ".join(computed_by),
            backbone.embed_dim,
            dtype,
        )


def warn_without(error: Exception) -> None:
    """Say once that the store is out of order."""
    _log.warning("the feature store cannot be used (%s); image features are kept in memory alone.", error)


def transform_hash(backbone: DualEncoder) -> str:
    """What the test transform makes of a picture: its line of text rounds means and names no library version."""
    pixels = np.random.default_rng(0).integers(0, 256, (67, 101, 3), dtype=np.uint8)
    return sha256_bytes(backbone.preprocess(PIL.Image.fromarray(pixels)).numpy().tobytes())[:12]


def describe_device(device: torch.device) -> str:
    """What a device is, as far as it decides the last bits of a matrix product."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type

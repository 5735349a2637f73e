"""Image features of many images: decoded and encoded in batches, and each image at most once.

It knows images, a backbone and the store on disk, not labels. A row does not depend on what is encoded beside
it: every batch has the same shape, for which the matrix products of a row are the same whatever its neighbours.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import PIL
import PIL.Image
import torch
from torch import Tensor

from mmprompt.data.images import ImageLike, read_image
from mmprompt.data.parallel import in_workers
from mmprompt.data.transforms import augment_coop
from mmprompt.errors import UserError
from mmprompt.files import make_folder, sha256_bytes
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.feature_store import FeatureStore, Space, StoreError, features_folder, limit_bytes
from mmprompt.models.frozen import PixelTransform
from mmprompt.models.sites import Insert, Site
from mmprompt.settings import expanded

CPU_BATCH, DEVICE_BATCH = 8, 64
SAVE_SECONDS = 5.0
Progress: TypeAlias = Callable[[int, int], None]
_log = logging.getLogger(__name__)


class View(NamedTuple):
    """One cropped and flipped view of a training image: seed, epoch and index of `augment_coop`."""

    seed: int
    epoch: int
    number: int


Image: TypeAlias = tuple[Path, View | None]
"""An image file and the view of it; None is the backbone's own test transform."""


class Job(NamedTuple):
    """An image file that is read once, and the views that are made of it."""

    path: Path
    views: tuple[View | None, ...]


def decode(backbone: DualEncoder, jobs: Sequence[Job], n_workers: int | None = None) -> Iterator[Tensor]:
    """Yield the input tensors [3, H, W] float32 of all views of all jobs, in order; `n_workers` as for `in_workers`."""
    pixels = getattr(backbone, "pixels", None)  # so that workers are sent the transforms and not the weights
    if isinstance(pixels, PixelTransform):
        work = partial(_make_views, pixels.apply, pixels.normalize, pixels.size)
    else:
        work = partial(_make_views, backbone.preprocess, backbone.normalize, backbone.image_size)
    for views in in_workers(work, jobs, n_workers):
        yield from torch.from_numpy(views)


def _make_views(
    preprocess: Callable[[PIL.Image.Image], Tensor], normalize: Callable[[Tensor], Tensor], size: int, job: Job
) -> np.ndarray:
    """Read one file and return its views, [len(job.views), 3, H, W] float32."""
    image = read_image(job.path)
    views = [preprocess(image) if view is None else normalize(augment_coop(image, size, *view)) for view in job.views]
    return torch.stack(views).numpy()


def encode_batches(
    backbone: DualEncoder, images: Iterable[Tensor], inserts: Mapping[Site, Insert] | None = None, raw: bool = False
) -> Iterator[Tensor]:
    """Yield features of images that are already tensors, batch by batch: [B, E] of unit norm, on the backbone's device.

    The last batch is filled up to the size of the others, and mixed precision is off: a matrix product may round
    otherwise for another shape (measured: for batches of 1 to 3 on a CPU), and features must not depend on that. Images
    are taken one batch at a time; the inserts are those at the vision sites, and `raw` is as in
    `DualEncoder.encode_image`.
    """
    size = CPU_BATCH if backbone.device.type == "cpu" else DEVICE_BATCH
    remaining = iter(images)
    while batch := list(islice(remaining, size)):
        full = torch.stack(batch + batch[-1:] * (size - len(batch))).to(backbone.device, backbone.dtype)
        with torch.no_grad(), torch.autocast(backbone.device.type, enabled=False):
            features = backbone.encode_image(full, inserts, raw)
        yield features[: len(batch)]


def encode_tensors(
    backbone: DualEncoder, images: Iterable[Tensor], inserts: Mapping[Site, Insert] | None = None, raw: bool = False
) -> Tensor:
    """Return the features [N, E] of images that are already tensors; arguments as for `encode_batches`."""
    each = list(encode_batches(backbone, images, inserts, raw))
    return torch.cat(each or [torch.empty(0, backbone.embed_dim, device=backbone.device, dtype=backbone.dtype)])


def encode_images(
    backbone: DualEncoder,
    sources: Sequence[ImageLike],
    inserts: Mapping[Site, Insert] | None = None,
    raw: bool = False,
) -> Tensor:
    """Return the features [N, E] of images under the backbone's own test transform, computed now and kept nowhere."""
    return encode_tensors(backbone, (backbone.preprocess(read_image(source)) for source in sources), inserts, raw)


class ImageFeatures:
    """Features of image files for one backbone: computed once, kept in memory and in a store on disk.

    Several classifiers share one of these, and several processes share the store. A store that cannot be used is done
    without, with a warning.

    Args:
        backbone: the frozen model; its image tower is not prompted here.
        store: a folder, `"auto"` for `features` in the cache folder (`$MMPROMPT_CACHE`), None for memory alone.
        n_workers: processes that read images; None for as many as are worth it, 0 for none.
        progress: called with the number of missing images that are encoded and in all.
    """

    def __init__(
        self,
        backbone: DualEncoder,
        store: Path | str | None = "auto",
        n_workers: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.backbone, self.progress = backbone, progress
        self._place, self._n_workers = store, n_workers
        self._rows: dict[Image, Tensor] = {}

    def of(self, paths: Sequence[Path]) -> Tensor:
        """Return the features [N, E] of unit norm under the backbone's own test transform, on its device."""
        return self._gather([(path, None) for path in paths])[:, : self.backbone.embed_dim]

    def wide(self, paths: Sequence[Path]) -> Tensor:
        """Return the same features and after them, [N, E + W], those before the projection; see `encode_image`."""
        return self._gather([(path, None) for path in paths])

    def of_view(self, paths: Sequence[Path], seed: int, view: int) -> Tensor:
        """Return the features [N, E] of one cropped and flipped view of a training set, whose order is part of it."""
        images = [(path, View(seed, view, index)) for index, path in enumerate(paths)]
        return self._gather(images)[:, : self.backbone.embed_dim]

    def prepare_views(self, paths: Sequence[Path], seed: int, n_views: int) -> None:
        """Compute the first views of a training set at once, reading each file once; arguments as for `of_view`."""
        self._fill([(path, View(seed, view, index)) for index, path in enumerate(paths) for view in range(n_views)])

    def stored(self, paths: Sequence[Path]) -> frozenset[Path]:
        """Return the files whose features are known: their very bytes were decoded before, by this Pillow."""
        images: list[Image] = [(path, None) for path in paths if path.is_file() and os.access(path, os.R_OK)]
        self._load(images)
        return frozenset(path for path, view in images if (path, view) in self._rows)

    def refuse_other(self, model: Any) -> None:
        """Refuse to serve a predictor on a frozen model with other weights, another architecture or transform."""
        for what in ("fingerprint", "architecture", "transform"):
            if getattr(self.backbone, what) != getattr(model, what):
                raise UserError(
                    f"the image features are of {self.backbone.name}, but those of {model.name} were expected, and the "
                    f"{what} differs. Give features of the same frozen model."
                )

    def _gather(self, images: Sequence[Image]) -> Tensor:
        if not images:
            return encode_tensors(self.backbone, [])
        self._fill(images)
        return torch.stack([self._rows[image] for image in images])

    def _fill(self, images: Sequence[Image]) -> None:
        """Bring rows into memory: from the store what is there, the others computed and added to it."""
        keys = self._load([image for image in dict.fromkeys(images) if image not in self._rows])
        views: dict[Path, list[View | None]] = {}
        for path, view in dict.fromkeys(images):
            if (path, view) not in self._rows:
                views.setdefault(path, []).append(view)
        jobs = [Job(path, tuple(of_path)) for path, of_path in views.items()]
        missing = [(job.path, view) for job in jobs for view in job.views]
        unsaved: dict[Image, Tensor] = {}
        n_done, saved_at = 0, time.monotonic()
        try:
            for features in encode_batches(self.backbone, decode(self.backbone, jobs, self._n_workers), raw=True):
                unsaved.update(zip(missing[n_done : n_done + len(features)], features, strict=True))
                n_done += len(features)
                if time.monotonic() - saved_at > SAVE_SECONDS:
                    self._save(unsaved, keys)
                    unsaved, saved_at = {}, time.monotonic()
                if self.progress is not None:
                    self.progress(n_done, len(missing))
        finally:  # an interruption or a broken image costs nothing of what is done
            self._save(unsaved, keys)

    def _load(self, images: Sequence[Image]) -> dict[Image, str]:
        """Bring those rows into memory that the store holds, and return the store's keys of all images.

        A key is the hash of the file's bytes, and the view. Without a store there are none.
        """
        if self._store is None or not images:
            return {}
        try:
            hashes = self._store.hash_files(dict.fromkeys(path for path, _ in images))
            keys = {(path, view): f"{hashes[path]} {view}" for path, view in images}
            rows = self._store.read(self._space, keys.values())
        except StoreError as error:
            self._do_without(error)
            return {}
        for image, key in keys.items():
            if key in rows:
                self._rows[image] = rows[key].to(self.backbone.device)
        return keys

    def _save(self, rows: Mapping[Image, Tensor], keys: Mapping[Image, str]) -> None:
        """Add rows to the store and go on with what it then holds, which is what every later run will see."""
        self._rows.update(rows)
        if self._store is not None and keys and rows:
            try:
                self._store.add(self._space, {keys[image]: row for image, row in rows.items()})
            except StoreError as error:
                self._do_without(error)
            self._load(list(rows))

    def _do_without(self, error: UserError) -> None:
        _log.warning("%s Image features are kept in memory alone.", error)
        self._store = None

    @cached_property
    def _store(self) -> FeatureStore | None:
        limit = limit_bytes()
        if self._place is None or limit == 0:
            return None
        folder = features_folder() if self._place == "auto" else expanded(self._place)
        try:
            return FeatureStore(make_folder(folder), limit)
        except UserError as error:
            if self._place != "auto":
                raise
            self._do_without(error)
            return None

    @cached_property
    def _space(self) -> Space:
        """What decides the last bits too: the device, the model beside its weights, and the transform as it is, whose
        line of text rounds.
        """
        own, device = self.backbone, self.backbone.device.type
        if device == "cuda":
            device = torch.cuda.get_device_name(own.device)
        elif device == "cpu":
            device = f"cpu {torch.backends.cpu.get_cpu_capability()}"
        noise = np.random.default_rng(0).integers(0, 256, (67, 101, 3), dtype=np.uint8)
        pixels = sha256_bytes(own.preprocess(PIL.Image.fromarray(noise)).numpy().tobytes())[:12]
        versions = f"torch {torch.__version__}, pillow {PIL.__version__}"
        computed_by = f"{device} {own.dtype}, {versions}, pixels {pixels}, model {own.architecture[:12]}"
        return Space(own.name, own.fingerprint, own.transform, computed_by, own.embed_dim + own.raw_width)

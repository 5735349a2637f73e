"""Captions of many images into a JSONL file: a row an image, in order, broken images as error rows.

While it is written the file is called `NAME.part`; a killed run goes on from its whole rows, and NAME itself is always
complete. A row names the content of its image, so that it stands for no other image of that name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmprompt.captioning.metrics.clip_score import clip_score
from mmprompt.captioning.predictor import Caption, Captioner
from mmprompt.data.images import IMAGE_SUFFIXES, read_image
from mmprompt.errors import UserError, bad_file
from mmprompt.files import locked, make_folder, read_bytes, sha256_bytes, sha256_file, sync_folder, write_bytes
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_features import Progress, encode_pictures

ROWS_AT_ONCE = 32
MAX_FILE_BYTES = 2**31
Describe = Callable[[Sequence[Path], Sequence[int]], Sequence["Caption | UserError"]]
"""Writes captions of images with their numbers; an error stands for an image that cannot be read."""
Row = dict[str, Any]


def describe_images(captioner: Captioner, ranker: DualEncoder | None = None, weight: float = 1.0) -> Describe:
    """Make what writes captions of image files, a broken one as its error.

    Args:
        captioner: with its guidance and decoding.
        ranker: a dual encoder that orders the n best captions of an image (see `rank`).
        weight: of its score.
    """

    def describe(paths: Sequence[Path], numbers: Sequence[int]) -> list[Caption | UserError]:
        images: dict[int, Image.Image] = {}
        described: dict[int, Caption | UserError] = {}
        for path, number in zip(paths, numbers, strict=True):
            try:
                images[number] = read_image(path)
            except UserError as error:
                described[number] = error
        if images:
            pixels = torch.stack([captioner.backbone.preprocess(image) for image in images.values()])
            features = captioner.backbone.encode_image(pixels)
            captions = captioner.caption_features(features, numbers=list(images))
            if ranker is not None:
                captions = rank(captions, encode_pictures(ranker, list(images.values())), ranker, weight)
            described.update(zip(images, captions, strict=True))
        return [described[number] for number in numbers]

    return describe


def rank(captions: Sequence[Caption], image_features: Tensor, ranker: DualEncoder, weight: float) -> list[Caption]:
    """Order the n best captions of every image by likeness to it too; all scores are kept.

    Args:
        captions: of N images, each with its others.
        image_features: [N, E] of the ranker.
        ranker: a dual encoder.
        weight: the score becomes the search's own plus weight times CLIPScore (Hessel et al. 2021).
    """
    ranked = []
    for caption, features in zip(captions, image_features, strict=True):
        candidates = [replace(caption, others=()), *caption.others]
        scores = clip_score(ranker, [one.text for one in candidates], features.expand(len(candidates), -1)).by_image
        scored = [
            replace(one, score=one.score + weight * value, clip_score=value)
            for one, value in zip(candidates, scores, strict=True)
        ]
        best, *others = sorted(scored, key=lambda one: -one.score)
        ranked.append(replace(best, others=tuple(others)))
    return ranked


def find_images(places: Sequence[Path]) -> list[tuple[str, Path]]:
    """Find image files, with their names in the output: relative to a folder that is given alone, else as given.

    Args:
        places: files and folders; folders are searched to the bottom, in order of names.
    Raises:
        UserError: a place is not there, or there is no image at all.
    """
    named: dict[str, Path] = {}
    for place in places:
        if place.is_dir():
            for path in sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
                named[(path.relative_to(place) if len(places) == 1 else path).as_posix()] = path
        elif place.is_file():
            named[str(place)] = place
        else:
            raise bad_file(place, "is not there", "Give image files or a folder of images.")
    if not named:
        names = ", ".join(str(place) for place in places) or "nothing"
        raise UserError(f"there is no image in {names}. Give image files or a folder of images.")
    return list(named.items())


def caption_rows(
    describe: Describe,
    images: Sequence[tuple[str, Path]],
    out: Path | None,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
) -> list[Row]:
    """Return a row for every image; with a file they are written there, and go on where an earlier run stopped.

    Args:
        describe: writes the captions.
        images: names and files, in the order of the rows.
        out: the JSONL file, None to write nothing.
        settings: JSON-ready, all that captions depend on; every row names their hash, and rows of others are refused.
        progress: called with how many rows there are and how many there will be.
    Returns:
        The rows: `image`, `settings`, and either `caption` with its numbers and the image's `content`, or `error`.
        Images with an error are looked at again by the next run.
    Raises:
        UserError: the file cannot be written or read, another process writes it, or it holds rows of other settings or
            of other images.
    """
    name = sha256_bytes(json.dumps(settings, sort_keys=True).encode())[:12]
    if out is None:
        return _describe_missing(describe, images, {}, name, None, progress)
    part = out.with_name(f"{out.name}.part")
    make_folder(out.parent)
    refusal = bad_file(out, "is being written by another process", "Wait until it has ended, or give another `out`.")
    with locked(out.with_name(f"{out.name}.lock"), refusal):
        known = _known_rows((out, part), dict(images), name)
        write_bytes(part, _to_lines(known.values()))
        rows = _describe_missing(describe, images, known, name, part, progress)
        write_bytes(out, _to_lines(rows))
        part.unlink()
        sync_folder(out.parent)
    return rows


def _describe_missing(
    describe: Describe,
    images: Sequence[tuple[str, Path]],
    known: Mapping[str, Row],
    settings: str,
    part: Path | None,
    progress: Progress | None,
) -> list[Row]:
    """Return the rows of all images in order; make those that are not known, and add them to the file under way."""
    rows = dict(known)
    missing = [(number, *image) for number, image in enumerate(images) if image[0] not in rows]
    for start in range(0, len(missing), ROWS_AT_ONCE):
        batch = missing[start : start + ROWS_AT_ONCE]
        described = describe([path for _, _, path in batch], [number for number, _, _ in batch])
        new: list[Row] = []
        for (_, image, path), caption in zip(batch, described, strict=True):
            row: Row = {"image": image, "settings": settings}
            if isinstance(caption, UserError):
                row["error"] = str(caption)
            else:
                numbers = caption.to_dict()
                row |= {"content": _content_of(path), "caption": numbers.pop("text"), **numbers}
            new.append(row)
        if part is not None:
            _append(part, _to_lines(new))
        rows.update((row["image"], row) for row in new)
        if progress is not None:
            progress(len(rows), len(images))
    return [rows[image] for image, _ in images]


def _known_rows(paths: Iterable[Path], files: Mapping[str, Path], settings: str) -> dict[str, Row]:
    """Read the captions that earlier runs left; refuse those of images that are gone or have changed."""
    content = cache(_content_of)  # a row may stand in both files
    known: dict[str, Row] = {}
    for path in paths:
        for row in _read_rows(path, settings):
            image = row["image"]
            if "error" not in row and (image not in files or content(files[image]) != row["content"]):
                advice = "Give another `out`, or remove it."
                raise bad_file(path, f"holds a caption of {image}, which is gone or another image now", advice)
            known[image] = row
    return {image: known[image] for image in files if image in known and "error" not in known[image]}


def _read_rows(path: Path, settings: str) -> Iterator[Row]:
    """Read the whole rows of a file that may end in the middle of one; none if it is not there."""
    if not path.exists():
        return
    lines = read_bytes(path, MAX_FILE_BYTES).split(b"\n")[:-1]  # what follows the last line end is torn, or nothing
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            image, made_by, _ = row["image"], row["settings"], row["error" if "error" in row else "content"]
        except (ValueError, KeyError, TypeError):
            advice = "Give another `out`, or remove it."
            raise bad_file(path, "is no row of captions", advice, line=number) from None
        if made_by != settings:
            advice = "Give another `out`, or write with the settings it was begun with."
            raise bad_file(path, f"holds captions of other settings ({image})", advice)
        yield row


def _content_of(image: Path) -> str:
    """Return the first 12 digits of the hash of an image file, "" if it is not there."""
    return sha256_file(image)[:12] if image.is_file() else ""


def _to_lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _append(path: Path, data: bytes) -> None:
    """Add whole lines to a file and see them on the disk."""
    try:
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise bad_file(path, f"cannot be written ({error.strerror})", "Free some space and run it again.") from None

"""`mmprompt caption write`: captions of images, steered by learned prompts, words or nothing.

They may go into a JSONL file: a row an image, in order, broken images as error rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.captioning.data import DEFAULT_SET, load_captions
from mmprompt.captioning.decoding import Decoding
from mmprompt.core.header import read_header
from mmprompt.data.images import IMAGE_SUFFIXES, find_images, read_image
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.files import sha256_file
from mmprompt.models.packaged import refuse_missing
from mmprompt.progress import ProgressDisplay
from mmprompt.terminal.output import (
    OTHER_OUT,
    Device,
    Json,
    Output,
    Row,
    hash_of,
    whole_rows,
    write_rows,
)
from mmprompt.terminal.parser import parse

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mmprompt.captioning.predictor import Caption, Captioner, Guidance
    from mmprompt.captioning.readers.captioner import FrozenCaptioner
    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder
    from mmprompt.models.image_features import Progress


ROWS_AT_ONCE = 32
Describe = Callable[[Sequence[Path], Sequence[int]], Sequence["Caption | UserError"]]
"""Writes captions of images with their numbers; an error stands for an image that cannot be read."""
SHOWN = 8
DESCRIPTION = (
    f"Write captions of images, with a learned prompt, several, or none. Without images: of {SHOWN} drawn scenes."
)


@dataclass(frozen=True)
class Settings:
    """What is captioned, and how captions are steered."""

    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGES...")]] = ()
    """Image files and folders of images."""
    prompt: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")] = ()
    """Run folders of prompts; several speak one after the other. None is the captioner as it is."""
    weights: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER...")] = ()
    """Weights of several prompts, by default the same for all: the heaviest speaks first, lighter ones at that much
    less of the strength."""
    strength: Annotated[float, tyro.conf.arg(metavar="NUMBER")] = 1.0
    """0 is the captioner without a prompt, 1 the plain prompt, more pushes harder."""
    avoid: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """The run folder of a prompt whose own words are not to be said."""
    avoid_strength: Annotated[float, tyro.conf.arg(metavar="NUMBER")] = 10.0
    """What each word that is avoided costs, in nats; 0 is not at all."""
    words: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """A focus in words instead of a learned prompt."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The captioner, if it is not the one that the prompt names."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A JSONL file with a row an image; run again, it goes on where it stopped."""
    rerank: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """A dual encoder that orders the n best captions of an image by likeness too; needs --n-best."""
    device: Device = "auto"
    json: Json = False
    decoding: Decoding = field(default_factory=Decoding)


def run(arguments: Sequence[str], prog: str) -> None:
    """Write captions to a file or to the screen."""
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    output = Output(settings.json)
    refuse_idle(settings)
    refuse_missing(settings.backbone or "")
    if settings.images:
        images = find_images(settings.images)
    else:
        images = [(item.image_id, item.image) for item in load_captions(DEFAULT_SET).test[:SHOWN]]
    folders = [*settings.prompt, *([] if settings.avoid is None else [settings.avoid])]
    hashes = {folder: read_header(folder, "captioning")["tensors_sha256"] for folder in folders}

    from mmprompt.captioning.predictor import Captioner, load_captioner_of
    from mmprompt.models.dual_encoder.load import load_backbone

    captioner = load_captioner_of(folders, settings.backbone, settings.device)
    guidance = read_guidance(settings, captioner)
    if not settings.images:
        output.say(f"No images were given: these are the first {len(images)} test scenes of {DEFAULT_SET}.\n")
    ranker = None if settings.rerank is None else load_backbone(settings.rerank, settings.device)
    describe = describe_images(Captioner(captioner, guidance, settings.decoding), ranker)
    kept = {key: value for key, value in asdict(settings).items() if key not in ("images", "out", "json", "device")}
    prompt = [hashes[folder] for folder in settings.prompt]  # two halves of one file are by the same prompts
    avoid = None if settings.avoid is None else hashes[settings.avoid]
    facts = kept | {"prompt": prompt, "avoid": avoid, "backbone": captioner.fingerprint}
    with ProgressDisplay() as progress:
        rows = caption_rows(describe, images, settings.out, facts, progress.count("writing captions"))
    shown = rows if settings.out is None else rows[:SHOWN]
    output.table(["image", "caption"], [[row["image"], row.get("caption", f"({row.get('error')})")] for row in shown])
    if settings.out is not None:
        n_broken = sum("error" in row for row in rows)
        broken = f", {n_broken} of them for broken images" if n_broken else ""
        output.say(f"\n{len(rows)} rows in {settings.out}{broken}.")
    output.document({"settings": facts, "captions": rows})


def refuse_idle(settings: Settings) -> None:
    """Refuse images among the prompts, options without effect, and weights that are not as many as the prompts."""
    for path in settings.prompt:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise bad_value("prompt", path, "the run folder of a prompt was expected", "Name images before --prompt.")
    n_prompts = len(settings.prompt) + (settings.words is not None)
    if settings.weights and len(settings.weights) != n_prompts:
        given = " ".join(f"{weight:g}" for weight in settings.weights)
        expected = f"one number for each prompt was expected, {n_prompts} in all"
        raise bad_value("weights", given, expected, "Give as many as prompts, or none.")
    if settings.strength != Settings.strength and not n_prompts:
        advice = "Add --prompt RUN or --words TEXT."
        raise bad_value("strength", settings.strength, "there is no prompt to weigh", advice)
    if settings.avoid_strength != Settings.avoid_strength and settings.avoid is None:
        raise bad_value("avoid_strength", settings.avoid_strength, "there is nothing to avoid", "Add --avoid RUN.")
    if settings.rerank is not None and settings.decoding.n_best < 2:
        raise bad_value("rerank", settings.rerank, "there is one caption an image", "Add --n-beams 4 --n-best 4.")


def read_guidance(settings: Settings, captioner: FrozenCaptioner) -> Guidance:
    """Make the guidance that the options describe."""
    from mmprompt.captioning.predictor import Guidance, hard_prompt, load_focus

    prompts: list[Prompt] = [load_focus(folder, captioner) for folder in settings.prompt]
    if settings.words is not None:
        prompts.append(hard_prompt(captioner, "words", settings.words))
    weights = settings.weights or (1.0,) * len(prompts)
    avoid = None if settings.avoid is None else load_focus(settings.avoid, captioner)
    pairs = tuple(zip(prompts, weights, strict=True))
    return Guidance(pairs, settings.strength, avoid, settings.avoid_strength)


def describe_images(captioner: Captioner, ranker: DualEncoder | None = None) -> Describe:
    """Make what writes captions of image files, a broken one as its error; a ranker orders the n best, see `rank`."""
    import torch

    from mmprompt.models.image_features import encode_images

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
                captions = rank(captions, encode_images(ranker, list(images.values())), ranker)
            described.update(zip(images, captions, strict=True))
        return [described[number] for number in numbers]

    return describe


def rank(captions: Sequence[Caption], image_features: Tensor, ranker: DualEncoder) -> list[Caption]:
    """Order the n best captions of N images by likeness to them too, with the ranker's features [N, E] of these.

    The score becomes the search's own plus CLIPScore (Hessel et al. 2021); all scores are kept.
    """
    from mmprompt.captioning.metrics.caption_metrics import clip_score

    ranked = []
    for caption, features in zip(captions, image_features, strict=True):
        candidates = [replace(caption, others=()), *caption.others]
        scores = clip_score(ranker, [one.text for one in candidates], features.expand(len(candidates), -1)).by_image
        scored = [
            replace(one, score=one.score + value, clip_score=value)
            for one, value in zip(candidates, scores, strict=True)
        ]
        best, *others = sorted(scored, key=lambda one: -one.score)
        ranked.append(replace(best, others=tuple(others)))
    return ranked


def caption_rows(
    describe: Describe,
    images: Sequence[tuple[str, Path]],
    out: Path | None,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
) -> list[Row]:
    """Return a row for every image; with a file they are written there, and go on where an earlier run stopped.

    A row holds `image`, `settings`, and either `caption` with its numbers and the image's `content`, so that it stands
    for no other image of that name, or `error`; such images are looked at again by the next run. The settings are all
    that captions depend on: every row names their hash, and rows of others are refused.
    """
    name, place_of = hash_of(settings), {image: place for place, (image, _) in enumerate(images)}

    def known(*paths: Path) -> dict[int, Row]:
        return {place_of[row["image"]]: row for row in _known_rows(paths, dict(images), name)}

    def make(places: list[int]) -> list[Row]:
        rows: list[Row] = []
        for place, caption in zip(places, describe([images[place][1] for place in places], places), strict=True):
            image, path = images[place]
            row: Row = {"image": image, "settings": name}
            if isinstance(caption, UserError):
                row["error"] = str(caption)
            else:
                numbers = caption.to_dict()
                row |= {"content": _content_of(path), "caption": numbers.pop("text"), **numbers}
            rows.append(row)
        return rows

    return write_rows(out, len(images), ROWS_AT_ONCE, known, make, progress)


def _known_rows(paths: Iterable[Path], files: Mapping[str, Path], settings: str) -> list[Row]:
    """Read the captions that earlier runs left; refuse those of images that are gone or have changed."""
    content = cache(_content_of)  # a row may be in both files
    known: dict[str, Row] = {}
    for path in paths:
        for number, row in whole_rows(path, "captions", "image"):
            image = row["image"]
            if "error" not in row and "content" not in row:
                raise bad_file(path, "is no row of captions", OTHER_OUT, number)
            if row["settings"] != settings:
                advice = "Give another `out`, or write with the settings it was begun with."
                raise bad_file(path, f"holds captions of other settings ({image})", advice)
            if "error" not in row and (image not in files or content(files[image]) != row["content"]):
                raise bad_file(path, f"holds a caption of {image}, which is gone or another image now", OTHER_OUT)
            known[image] = row
    return [known[image] for image in files if image in known and "error" not in known[image]]


def _content_of(image: Path) -> str:
    """Return the first 12 digits of the hash of an image file, "" if it is not there."""
    return sha256_file(image)[:12] if image.is_file() else ""

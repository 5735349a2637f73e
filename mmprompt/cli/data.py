"""`mmprompt data`: which sets there are, whether one is whole, what a k-shot draw takes, splits of one's own, and
the image features that are kept on disk.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from mmprompt.captioning.data import EMBEDDED as CAPTION_SETS
from mmprompt.cli.workers import WorkerSettings
from mmprompt.data.catalog import list_datasets, read_card
from mmprompt.data.check import check_dataset
from mmprompt.data.images import find_images
from mmprompt.data.layouts import Part, find_parts, given_root, set_folder
from mmprompt.data.split_file import divide, write_split
from mmprompt.data.splits import SPLITS
from mmprompt.errors import UserError, bad_value
from mmprompt.language.data import EMBEDDED as TEXT_SETS
from mmprompt.models.packaged import refuse_missing
from mmprompt.progress import ProgressDisplay
from mmprompt.terminal.images import ImagePlace, Images
from mmprompt.terminal.output import Device, Json, Output, shorten
from mmprompt.terminal.parser import parse

Place = TypeVar("Place", bound=ImagePlace)
Name = tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="NAME")]]


@dataclass(frozen=True)
class ListSettings:
    """Which sets are listed."""

    datasets_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A folder with YAML files of more data sets."""
    json: Json = False


@dataclass(frozen=True)
class CheckSettings:
    """What is looked over."""

    name: Name = None
    """A data set known by name; or give --data."""
    sample: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = 200
    """How many images to open; None for all."""
    json: Json = False
    images: ImagePlace = field(default_factory=ImagePlace)


@dataclass(frozen=True)
class ShotsSettings:
    """Which draw is shown."""

    name: Name = None
    """A data set known by name; or give --data."""
    shots: Annotated[int, tyro.conf.arg(metavar="INT")] = 16
    """Training images of each class."""
    seed: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Seed of the draw."""
    json: Json = False
    images: Images = field(default_factory=Images)


@dataclass(frozen=True)
class SplitSettings:
    """What is divided, and how."""

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER")]]
    """Your own images: a folder of class folders, or a CSV or JSONL table."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The new split file; by default split-seed1.json beside the class folders."""
    val: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.1
    """Share of every class that is kept for validation."""
    test: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.2
    """Share of every class that is kept for testing."""
    seed: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Seed of the division."""
    json: Json = False


@dataclass(frozen=True)
class EncodeSettings:
    """Which images are encoded, and by what."""

    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGES...")]]
    """Image files, and folders that are searched to the bottom."""
    backbone: Annotated[str, tyro.conf.arg(metavar="NAME")] = "tiny"
    """The frozen model."""
    device: Device = "auto"
    json: Json = False


@dataclass(frozen=True)
class CacheSettings:
    """What is done with the stored features."""

    clear: bool = False
    """Drop all of them. Nothing is asked and nothing is lost but time: they are computed again when needed."""
    json: Json = False


def named(name: str | None, images: Place, prog: str) -> Place:
    """Return the images of a set named in place or by an option."""
    if name is None and images.data is None:
        raise UserError(f"no data set is named. Write {prog} NAME, or {prog} --data PATH.")
    return images if name is None else replace(images, data=name)


def run_list(arguments: Sequence[str], prog: str) -> None:
    """Print the data sets known by name."""
    settings = parse(ListSettings, arguments, prog, "The data sets there are.")
    output = Output(settings.json)
    cards = list_datasets(settings.datasets_dir)
    rows = []
    for card in cards:
        sizes = [f"{card.sizes[split]:,}" if split in card.sizes else "" for split in SPLITS]
        classes = "" if card.n_classes is None else f"{card.n_classes:,}"
        where = "in the package" if card.archive else "--root"
        rows.append([card.name, card.title, classes, *sizes, where, card.licence])
    output.table(["name", "what it is", "classes", *SPLITS, "where", "licence"], rows, numbers=range(2, 6))
    output.say(
        f"\nCaptions (mmprompt caption train): {', '.join(CAPTION_SETS)}. Texts (mmprompt llm train): {TEXT_SETS[0]}."
    )
    output.document([asdict(card) for card in cards])


def run_check(arguments: Sequence[str], prog: str) -> None:
    """Print what is there of a data set and what is missing."""
    settings = parse(CheckSettings, arguments, prog, "Look a data set over before using it.")
    output = Output(settings.json)
    images = named(settings.name, settings.images, prog)
    card = None if images.path is not None else read_card(str(images.data), images.datasets_dir)
    parts = () if card is None or card.archive else find_parts(card, given_root(card, images.root))
    listed = [{"path": str(part.path), "is_there": part.is_there, "get": part.get} for part in parts]
    if card is not None and parts:
        _say_parts(output, parts, set_folder(card, given_root(card, images.root)))
    try:
        splits = images.splits()
    except UserError:
        output.document({"parts": listed, "is_ok": False})
        raise
    sizes = card.sizes if card is not None and not splits.is_official else {}  # those of the papers' split
    report = check_dataset(splits, None if card is None else card.n_classes, sizes, settings.sample)
    for line in report.lines:
        output.say(line)
    output.document({"parts": listed, **asdict(report), "root": str(report.root), "is_ok": report.is_ok})
    if not report.is_ok:
        count = f"{len(report.problems)} problem{'s' if len(report.problems) > 1 else ''}"
        raise UserError(f"{report.root} has {count}, the first: {report.problems[0]} Mend the data, then check again.")


def _say_parts(output: Output, parts: Sequence[Part], folder: Path) -> None:
    """Say what is there and what is missing, with commands to be pasted that get it."""
    for part in parts:
        output.say(f"There: {part.path}" if part.is_there else f"Missing: {part.path}")
    missing = [part for part in parts if not part.is_there]
    if missing:
        output.say("To get what is missing:")
        output.say(f"  mkdir -p {shlex.quote(str(folder))} && cd {shlex.quote(str(folder))}")
    for get in dict.fromkeys(part.get for part in missing):
        output.say(f"  {get}")


def run_shots(arguments: Sequence[str], prog: str) -> None:
    """Print the images that a k-shot draw takes, class by class."""
    settings = parse(ShotsSettings, arguments, prog, "Show which images a k-shot draw takes.")
    output = Output(settings.json)
    data = named(settings.name, settings.images, prog).load(settings.shots, settings.seed)
    drawn: dict[str, dict[str, list[str]]] = {name: {"train": [], "val": []} for name in data.class_names}
    for split, items in (("train", data.train), ("val", data.val)):
        for item in items:
            drawn[data.class_names[item.label]][split].append(item.path.relative_to(data.root).as_posix())
    rows = [[name, str(len(of["train"])), str(len(of["val"])), ", ".join(of["train"])] for name, of in drawn.items()]
    output.table(["class", "train", "val", "training images"], rows, numbers=(1, 2))
    notes = data.notes if data.train else (*data.notes, f"{data.name} has test images only, so nothing is drawn.")
    for note in notes:
        output.say(f"Note: {note}", "dim")
    said = {"data": data.name, "protocol": data.protocol, "shots": data.shots, "seed": data.seed}
    output.document({**said, "root": str(data.root), "drawn": drawn})


def run_split(arguments: Sequence[str], prog: str) -> None:
    """Divide the user's own images and write the split file."""
    settings = parse(SplitSettings, arguments, prog, "Divide your own images once into train, val and test.")
    output = Output(settings.json)
    source = ImagePlace(data=str(settings.folder.resolve()))
    divided = divide(source.splits(hold_out=False), settings.val, settings.test, settings.seed)
    path = settings.out or divided.root / f"split-seed{settings.seed}.json"
    write_split(path, divided, {"seed": settings.seed, "val": settings.val, "test": settings.test})
    counts = {split: len(divided.items(split)) for split in SPLITS}
    output.say(f"{path}: {', '.join(f'{split} {count}' for split, count in counts.items())}.")
    for note in divided.notes:
        output.say(f"Note: {note}", "dim")
    root = [] if path.resolve().parent == divided.root else ["--root", str(divided.root)]
    output.say(f"Use it: mmprompt train {shlex.join(['--data', str(path), *root])}")
    output.document({"split": str(path), "root": str(divided.root), "seed": settings.seed, "sizes": counts})


def run_encode(arguments: Sequence[str], prog: str) -> None:
    """Encode images into the store, so that no later command does."""
    form = make_dataclass("Encode", [("images", EncodeSettings), ("workers", WorkerSettings)], frozen=True)
    read: Any = parse(form, arguments, prog, "Encode many images now, so that no later command waits for it.")
    given, workers = read.images, read.workers.chosen()
    refuse_missing(given.backbone)
    paths = [path.absolute() for _, path in find_images(given.images)]

    from mmprompt.experiments.encode import store_features
    from mmprompt.models.dual_encoder.load import load_backbone
    from mmprompt.models.feature_store import LIMIT_VARIABLE, features_folder, limit_bytes

    output, model = Output(given.json), load_backbone(given.backbone, given.device)
    size = 4 * len(paths) * (model.embed_dim + model.raw_width)
    if size > limit_bytes():
        raise bad_value(
            LIMIT_VARIABLE,
            f"{limit_bytes():,} bytes",
            f"the features of {len(paths):,} images take {size:,}",
            f"Set {LIMIT_VARIABLE}={-(-size // 10**9)}GB here and for the commands that use them.",
        )
    with ProgressDisplay() as display:
        progress = display.count("images")
        n_encoded = store_features("classification", given.backbone, model, paths, workers, given.device, progress)
    n_known = len(paths) - n_encoded
    output.say(f"{n_encoded:,} images encoded by {given.backbone}, {n_known:,} known before, in {features_folder()}.")
    output.document({"encoded": n_encoded, "known": n_known, "folder": str(features_folder())})


def run_cache(arguments: Sequence[str], prog: str) -> None:
    """List what is kept, or drop it and say what was dropped."""
    from mmprompt.models.feature_store import LIMIT_VARIABLE, FeatureStore, features_folder, limit_bytes

    description = "The image features kept on disk, so that no image is encoded twice."
    settings = parse(CacheSettings, arguments, prog, description)
    output = Output(settings.json)
    folder, limit = features_folder(), limit_bytes()
    store = FeatureStore(folder, limit)
    held = store.clear() if settings.clear else store.contents()
    rows = []
    for one in held:
        name = f"{one.backbone} ({one.fingerprint[:8]})" if one.fingerprint else one.backbone
        used = datetime.datetime.fromtimestamp(one.last_used).strftime("%Y-%m-%d %H:%M")
        rows.append([name, shorten(one.transform, 48), f"{one.rows:,}", megabytes(one.size_bytes), used])
    if rows:
        output.table(["backbone", "transform", "rows", "MB", "last used"], rows, numbers=(2, 3))
        output.say()
    size = sum(one.size_bytes for one in held)
    if settings.clear:
        output.say(f"Dropped {megabytes(size)} MB from {folder}." if held else f"Nothing to drop in {folder}.")
    else:
        output.say(f"{megabytes(size)} MB of at most {megabytes(limit)} MB ({LIMIT_VARIABLE}) in {folder}.")
    counted = {"folder": str(folder), "size_bytes": size, "limit_bytes": limit, "is_cleared": settings.clear}
    output.document({**counted, "features": [asdict(one) for one in held]})


def megabytes(size_bytes: int) -> str:
    """Return a size in units of 2**20 bytes, with one digit after the point below 100."""
    size = size_bytes / 2**20
    return f"{size:,.1f}" if size < 100 else f"{size:,.0f}"

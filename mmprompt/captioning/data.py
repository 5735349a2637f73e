"""Images with captions: grouped by image, divided by image, their captions held by focus.

`read_captions` takes any of the published forms, `load_captions` a name or a path. What a focus is, nothing here
knows: it is a name that captions were filed under.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mmprompt.captioning.caption_files import READERS, CaptionRow, detect_format, without_images
from mmprompt.data.class_names import shortened
from mmprompt.data.splits import SPLITS
from mmprompt.errors import UserError, bad_file, unknown_name
from mmprompt.files import SafeRoot, read_json, unpack
from mmprompt.settings import checked

if TYPE_CHECKING:
    from mmprompt.captioning.predictor import CaptionFeatures
    from mmprompt.captioning.task import FocusTask

NEUTRAL = ""
"""The focus of captions that were written with none in mind."""
NEUTRAL_NAME = "neutral"
MAX_CAPTION_CHARACTERS = 2000
HELD_OUT = 0.1
"""Share of the images that go to val, and to test, where a file divides nothing."""

_ASSETS = Path(__file__).resolve().parents[1] / "assets"


@dataclass(frozen=True)
class CaptionItem:
    """One image and what was written of it.

    Args:
        image: its file.
        image_id: its name in the data; no two images share one.
        captions: by focus; `""` holds captions of no focus. A labelled caption is filed twice, under its focus and
            under `FOCUS-LABEL`, such as `emotions` and `emotions-positive`.
        split: `train`, `val` or `test`.
    """

    image: Path
    image_id: str
    captions: Mapping[str, tuple[str, ...]]
    split: str

    def of(self, focus: str | None) -> tuple[str, ...]:
        """Return the captions of one focus, perhaps none; of None, all captions, each once."""
        if focus is None:
            return tuple(dict.fromkeys(caption for captions in self.captions.values() for caption in captions))
        return self.captions.get(focus, ())


@dataclass(frozen=True)
class CaptionData:
    """A set of images with captions.

    Args:
        name: of the set.
        root: the folder below which all images lie.
        items: in the order of the file, no image twice.
        lexicon: by focus, what each surface form (one or more words) names; empty where the data brings none.
        chosen_by: by focus, how its captions were chosen among others; missing or `""` where people wrote them.
        notes: what was decided on the user's behalf, one sentence each.
        licence: of captions and images, where it is known.
    """

    name: str
    root: Path
    items: tuple[CaptionItem, ...]
    lexicon: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    chosen_by: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    licence: str = ""

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(self._part(split))}" for split in SPLITS)
        return f"<CaptionData {self.name!r}: {', '.join(self.focuses) or 'no focus'}, {sizes}>"

    @property
    def train(self) -> tuple[CaptionItem, ...]:
        """The images to train on."""
        return self._part("train")

    @property
    def val(self) -> tuple[CaptionItem, ...]:
        """The images to choose settings on; there may be none."""
        return self._part("val")

    @property
    def test(self) -> tuple[CaptionItem, ...]:
        """The images to measure on; there may be none."""
        return self._part("test")

    @property
    def focuses(self) -> tuple[str, ...]:
        """The names that captions are filed under, sorted, without that of no focus."""
        return tuple(sorted({focus for item in self.items for focus in item.captions} - {NEUTRAL}))

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over every image's id, path, split, captions and size in bytes."""
        digest = hashlib.sha256()
        for item in self.items:
            try:
                size = item.image.stat().st_size
            except OSError as error:
                problem = f"cannot be read ({error.strerror})"
                raise bad_file(item.image, problem, "Restore the image.") from None
            path = item.image.relative_to(self.root).as_posix()
            record = [item.image_id, path, item.split, dict(item.captions), size]
            digest.update(json.dumps(record, sort_keys=True).encode())
        return digest.hexdigest()

    def focus(self, name: str, features: CaptionFeatures | None = None) -> FocusTask:
        """Give what `fit` learns from the captions of one focus.

        Args:
            name: of the focus, such as "emotions".
            features: of the captioner that is to learn, to share them.
        Raises:
            UserError: there is no caption of it to learn from.
        """
        task: FocusTask = importlib.import_module("mmprompt.captioning.task").FocusTask(self, name, features)
        return task

    def with_captions(self, split: str, focus: str | None) -> tuple[CaptionItem, ...]:
        """Return the images of a split that have captions of a focus, of any for None.

        Raises:
            UserError: there is no such split, or it has no caption of this focus.
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        part = self._part(split)
        found = tuple(item for item in part if item.of(focus))
        if not found and focus is None:
            advice = "Use another `split`, or give data that has some."
            raise UserError(f"the {split} part of {self.name} has no images with captions. {advice}")
        if not found:
            known = sorted({name for item in part for name in item.captions} - {NEUTRAL})
            what, advice = (
                (", ".join(known), "Name one of these") if known else ("no focus, if any", 'Name "" for those')
            )
            raise UserError(
                f"there is no focus named {str(focus)!r} in the {split} part of {self.name}, which has captions of "
                f"{what}. {advice}, or give data with captions of that focus."
            )
        return found

    def _part(self, split: str) -> tuple[CaptionItem, ...]:
        return tuple(item for item in self.items if item.split == split)


def shown_name(focus: str) -> str:
    """Return what a focus is called where people read of it."""
    return focus or NEUTRAL_NAME


DEFAULT_SET = "openart-scenes"
EMBEDDED = {
    DEFAULT_SET: ("scenes/openart-scenes", "CC BY 4.0 (Twemoji), Apache 2.0 (Noto), MIT (Fluent)"),
    "openart-scenes-new-style": ("openart/openart-scenes-new-style", "CC BY-SA 4.0 (OpenMoji)"),
}
"""Sets that ship in the package: a JSONL file and a zip file of images below the assets, and the licence of both."""


@checked
def load_captions(
    name_or_path: str | Path, images: str | Path | None = None, skip_missing: bool = False
) -> CaptionData:
    """Load images and captions by name, or from a file.

    Args:
        name_or_path: `openart-scenes`, a JSONL file, COCO's captions, a file of Karpathy's splits, a token file of
            Flickr, SentiCap, ArtEmis, or a text file or the folder of FlickrStyle.
        images: the folder that the file's images are relative to; by default its own.
        skip_missing: pass over captions of images that are not there, and images without captions; a note counts them.
    Raises:
        UserError: there is no set and no file of that name, the file is bad, or an image is missing or lies elsewhere.
    """
    if str(name_or_path) in EMBEDDED:
        place, licence = EMBEDDED[str(name_or_path)]
        data = read_captions(_ASSETS / f"{place}.jsonl", unpack(_ASSETS / f"{place}.zip"), "jsonl")
        return replace(data, name=str(name_or_path), licence=licence)
    if not Path(name_or_path).exists():
        raise unknown_name("set of captions", str(name_or_path), EMBEDDED, "A file of your own is given by its path.")
    return read_captions(name_or_path, images, skip_missing=skip_missing)


def read_captions(
    path: str | Path,
    images: str | Path | None = None,
    format: str | None = None,
    seed: int = 0,
    skip_missing: bool = False,
) -> CaptionData:
    """Read a file of one of the published forms, or a folder of FlickrStyle; images are looked for and not opened.

    The form is by default what the content shows, and images are relative to the file's own folder. The seed is of the
    division by image, where the file gives none. A file `NAME.lexicon.json` beside a `NAME.jsonl`, by focus the items
    that surface forms name, is read with it.
    """
    path = Path(path)
    format = detect_format(path) if format is None else format
    if format not in READERS:
        raise unknown_name("form of captions", format, READERS)
    rows = list(READERS[format](path))
    rows, notes = without_images(rows) if format == "flickr" else (rows, ())
    if not rows:
        raise bad_file(path, "holds no captions", "Give a file that does.")
    for row in rows:
        if not isinstance(row.image, str) or not row.image.strip():
            problem = f"the image is {row.image!r}, but its path was expected"
            raise bad_file(f"{path}, {row.place}", problem, "Write it.")
    if unread := sorted({name for row in rows for name in row.unread}):
        notes = (*notes, f"Passed over the keys {shortened(unread)}, which say nothing of a caption.")
    own_folder = path if path.is_dir() else path.parent
    root = (own_folder if images is None else Path(images)).resolve()
    if skip_missing:
        rows, skipped = _with_images(rows, root, path)
        notes = (*notes, *skipped)
    items, split_notes = _divided(_grouped(rows, root, path), path, seed)
    beside = path.with_suffix(".lexicon.json")
    lexicon = read_lexicon(beside) if format == "jsonl" and beside.is_file() else {}
    return CaptionData(path.stem, root, tuple(items), lexicon, notes=(*notes, *split_notes))


def read_lexicon(path: Path) -> dict[str, dict[str, str]]:
    """Read what surface forms name, by focus: `{"emotions": {"laughing": "joy", "laughing face": "joy"}}`.

    A list of words, `{"brand voice": ["wow", "today"]}`, stands for words that name themselves.
    """
    content = read_json(path)
    if isinstance(content, dict):
        content = {
            focus: {str(form): form for form in entries} if isinstance(entries, list) and entries else entries
            for focus, entries in content.items()
        }
    if not isinstance(content, dict) or not all(isinstance(entries, dict) for entries in content.values()):
        raise bad_file(
            path, "is not an object of objects", "Write surface forms and items by focus, or lists of words."
        )
    for focus, entries in content.items():
        for form, item in entries.items():
            if not isinstance(item, str) or not item.strip() or not form.strip():
                problem = f"{form!r} of {focus} names {item!r}, but texts that are not empty were expected"
                raise bad_file(path, problem, "Correct it.")
    return content


def _grouped(rows: Sequence[CaptionRow], root: Path, path: Path) -> list[CaptionItem]:
    """Make one item an image, its split `""` where no row gives one."""
    inside = SafeRoot(root)
    files: dict[str, Path] = {}
    owner: dict[Path, str] = {}
    captions: dict[str, dict[str, list[str]]] = {}
    splits: dict[str, str] = {}
    for row in rows:
        place = f"{path}, {row.place}"
        image = _find_image(row, inside, place)
        image_id = row.image_id or row.image
        if files.setdefault(image_id, image) != image:
            before = files[image_id].relative_to(root)
            problem = f"gives the id {image_id!r} to {row.image}, but {before} has it already"
            raise bad_file(place, problem, "Give every image an id of its own.")
        if owner.setdefault(image, image_id) != image_id:
            problem = f"gives {row.image} the id {image_id!r}, but it is {owner[image]!r} before"
            raise bad_file(place, problem, "Give every image one id, so that no split shares it.")
        if row.split not in (None, *SPLITS):
            raise bad_file(place, f"split is {row.split!r}, but train, val or test was expected", "Correct it.")
        split = row.split or ""
        if splits.setdefault(image_id, split) != split:
            problem = f"puts {row.image} into {split or 'no split'}, but it is in {splits[image_id] or 'none'} before"
            raise bad_file(place, problem, "Divide by image, never by caption.")
        texts = _clean(row, place)
        for focus in (row.focus, f"{row.focus}-{row.label.replace(' ', '-')}") if row.label else (row.focus,):
            captions.setdefault(image_id, {}).setdefault(focus, []).extend(texts)
    return [
        CaptionItem(files[name], name, {focus: tuple(texts) for focus, texts in filed.items()}, splits[name])
        for name, filed in captions.items()
    ]


def _with_images(rows: Sequence[CaptionRow], root: Path, path: Path) -> tuple[list[CaptionRow], tuple[str, ...]]:
    """Pass over the rows without an image or without a caption, with notes that count them; refuse to pass over all."""
    inside = SafeRoot(root)
    there = {name: _is_there(name, inside) for name in dict.fromkeys(row.image for row in rows)}
    kept = [row for row in rows if there[row.image] and row.captions]
    missing = [row for row in rows if not there[row.image]]
    bare = sum(there[row.image] and not row.captions for row in rows)
    if not any(there.values()):
        raise bad_file(path, f"none of its {len(there)} images is in {root}", "Give their folder as `images`.")
    if not kept:
        raise bad_file(path, f"holds no caption of the images that are in {root}", "Give a file that does.")
    notes = []
    if missing:
        n_captions, names = sum(len(row.captions) for row in missing), [name for name in there if not there[name]]
        counts = f"{n_captions} captions of {len(names)} images"
        notes.append(f"Passed over {counts} that are not in {root}: {shortened(names)}.")
    if bare:
        notes.append(f"Passed over {bare} images without a caption.")
    return kept, tuple(notes)


def _is_there(name: str, inside: SafeRoot) -> bool:
    """Return whether an image is there; one that is named wrongly is left for its refusal."""
    try:
        return inside.join(name).is_file()
    except (UserError, ValueError, OSError):
        return True


def _find_image(row: CaptionRow, inside: SafeRoot, place: str) -> Path:
    try:
        image = inside.join(row.image)
        is_there = image.is_file()
    except (UserError, ValueError, OSError) as error:
        raise UserError(f"{place}: {error}") from None
    if not is_there:
        ways = "with the folder of the images as `images`, or with `skip_missing=True`"
        raise bad_file(place, f"{row.image} is not in {inside.root}", f"Put it there, or load the captions {ways}.")
    return image


def _clean(row: CaptionRow, place: str) -> list[str]:
    """Return the captions of a row, runs of white space made one space; refuse what is no caption."""
    if not row.captions:
        raise bad_file(place, f"{row.image} has no caption", "Write one, or pass over it with `skip_missing=True`.")
    cleaned = []
    for caption in row.captions:
        if not isinstance(caption, str):
            raise bad_file(place, f"a caption is {caption!r}, but text was expected", "Write it as text.")
        text = " ".join(caption.split())
        if not text:
            raise bad_file(place, f"a caption of {row.image} is empty", "Fill it in or remove it.")
        if len(text) > MAX_CAPTION_CHARACTERS:
            problem = f"a caption has {len(text)} characters, the limit is {MAX_CAPTION_CHARACTERS}"
            raise bad_file(place, problem, "Shorten it.")
        cleaned.append(text)
    return cleaned


def _divided(items: list[CaptionItem], path: Path, seed: int) -> tuple[list[CaptionItem], tuple[str, ...]]:
    """Give each item a split: the file's, or by the hash of its id where the file gives none."""
    undivided = [item.image_id for item in items if not item.split]
    if not undivided:
        return items, ()
    if len(undivided) < len(items):
        problem = f"gives no split to {shortened(undivided)}, but to other images it does"
        raise bad_file(path, problem, "Give every image a split, or none.")
    ranked = sorted(undivided, key=lambda image_id: hashlib.sha256(f"{seed} {image_id}".encode()).digest())
    n_held = round(HELD_OUT * len(items))
    n_test = max(n_held, min(1, len(items) - 1))
    split_of = dict.fromkeys(ranked[:n_test], "test") | dict.fromkeys(ranked[n_test : n_test + n_held], "val")
    note = (
        f"No split was given: {n_test} of {len(items)} images are held out for testing and {n_held} for validation, "
        f"by the hashes of their ids and seed {seed}."
    )
    return [replace(item, split=split_of.get(item.image_id, "train")) for item in items], (note,)

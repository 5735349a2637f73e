"""Readers of published files of captions: each turns one file into rows. Nothing here looks for images.

JSONL of our own; COCO's captions (Chen et al. 2015); Karpathy's splits of COCO, Flickr8k and Flickr30k (Karpathy and
Fei-Fei 2015); Flickr's token files (Hodosh et al. 2013, Young et al. 2014); SentiCap (Mathews et al. 2016); FlickrStyle
(Gan et al. 2017); ArtEmis (Achlioptas et al. 2021).
"""

from __future__ import annotations

import csv
import io
import pickletools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from mmprompt.data.images import IMAGE_SUFFIXES
from mmprompt.errors import UserError, bad_file, unknown_name
from mmprompt.files import parse_json, read_bytes, read_objects, read_text, text_lines

EMOTIONS = "emotions"

_REQUIRED = ("image", "captions")
_KEYS = (*_REQUIRED, "image_id", "focus", "label", "split")
_LIKE = 0.75
"""Likeness (difflib's ratio) from which an unknown key is taken for an optional one that was misspelt."""
_ARTEMIS = ("art_style", "painting", "emotion", "utterance")
_FLICKR_LINE = re.compile(r"(?P<name>[^\t]+)#\d+\t(?P<caption>.*)")
_STYLE_FILE = "*_train.txt"
_RESTORE = "Restore the file as it was published."


class CaptionRow(NamedTuple):
    """Captions of one image as a file gives them, before images are looked for.

    `place` is where the file has it, such as `line 3`; `image` the path as the file spells it, below the folder of
    images; `image_id` its name in the file, None for its path. `focus` is `""` for captions of no focus, `label` a
    finer name within it, such as `positive`; `split` is None where the file divides nothing. `unread` are keys that
    say nothing of a caption.
    """

    place: str
    image: str
    image_id: str | None
    captions: tuple[str, ...]
    focus: str = ""
    label: str = ""
    split: str | None = None
    unread: tuple[str, ...] = ()


Rows = Iterator[CaptionRow]


def detect_format(path: Path) -> str:
    """Name the reader that fits the content of a file, or of a folder for FlickrStyle."""
    if path.is_dir():
        if any(path.glob(_STYLE_FILE)):
            return "flickrstyle"
        raise bad_file(path, "is a folder without files of captions", "Give the file of captions itself.")
    text = read_text(path)
    first = text.lstrip().partition("\n")[0].strip()
    if not first:
        raise bad_file(path, "holds no captions", "Give a file that does.")
    if first.startswith(("{", "[")):
        try:
            record = parse_json(first)
            is_jsonl = isinstance(record, dict) and "images" not in record
        except ValueError:
            is_jsonl = '"captions"' in first and '"images"' not in first  # its reader says what is wrong
        return "jsonl" if is_jsonl else _detect_json(_parse(path, text), path)
    if set(_ARTEMIS) <= set(first.replace('"', "").split(",")):
        return "artemis"
    if _FLICKR_LINE.fullmatch(first):
        return "flickr"
    if path.match(_STYLE_FILE):
        return "flickrstyle"
    raise bad_file(path, "is in no form of captions that is known", f"Known: {', '.join(sorted(READERS))}.")


def _detect_json(content: Any, path: Path) -> str:
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise bad_file(path, "holds no list of images", "Give captions of COCO, SentiCap or Karpathy's splits.")
    if "annotations" in content:
        return "coco"
    sentences = next((image.get("sentences") for image in images if isinstance(image, dict)), None)
    first = sentences[0] if isinstance(sentences, list) and sentences else None
    return "senticap" if isinstance(first, dict) and "sentiment" in first else "karpathy"


def _read_jsonl(path: Path) -> Rows:
    """Read our own form, an object a line: `image`, `captions`, perhaps `image_id`, `focus`, `label`, `split`."""
    for line, record in read_objects(path):
        unread = tuple(name for name in record if name not in _KEYS)
        for name in unread:
            if get_close_matches(name, set(_KEYS) - set(_REQUIRED) - set(record), cutoff=_LIKE):
                raise UserError(f"{path}, line {line}: {unknown_name('key', name, _KEYS)}")
        for name in _REQUIRED:
            if name not in record:
                raise bad_file(path, f"lacks {name!r}", "Write it.", line)
        captions, image_id = record["captions"], record.get("image_id")
        if not isinstance(captions, list):
            raise bad_file(path, f"captions is {captions!r}, but a list of texts was expected", "Write a list.", line)
        for name in ("image", "focus", "label", "split"):
            if not isinstance(record.get(name, ""), str):
                raise bad_file(path, f"{name} is {record[name]!r}, but text was expected", "Write it as text.", line)
        texts = {name: record[name] for name in ("focus", "label", "split") if name in record}
        image_id = None if image_id is None else str(image_id)
        yield CaptionRow(f"line {line}", record["image"], image_id, tuple(captions), **texts, unread=unread)


def _read_coco(path: Path) -> Rows:
    """Read the `captions_*.json` of COCO; it gives no split."""
    content = _parse(path, read_text(path))
    names: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for index, image in enumerate(_list_of(content, "images", path)):
        image_id, name = _fields(image, ("id", "file_name"), path, f"image {index}")
        if names.setdefault(str(image_id), name) != name:
            raise bad_file(f"{path}, image {index}", f"gives id {image_id} a second image", _RESTORE)
        captions.setdefault(str(image_id), [])
    for index, annotation in enumerate(_list_of(content, "annotations", path)):
        place = f"annotation {index}"
        image_id, caption = _fields(annotation, ("image_id", "caption"), path, place)
        if str(image_id) not in names:
            raise bad_file(f"{path}, {place}", f"is a caption of image {image_id}, which is not listed", _RESTORE)
        captions[str(image_id)].append(caption)
    for image_id, name in names.items():
        yield CaptionRow(f"image {image_id}", name, image_id, tuple(captions[image_id]))


def _read_karpathy(path: Path) -> Rows:
    """Read the `dataset_*.json` of Karpathy's splits; `restval` joins train."""
    for place, image, sentences in _images(path):
        raw = tuple(_fields(sentence, ("raw",), path, place)[0] for sentence in sentences)
        folder, image_id = image.get("filepath", ""), image.get("cocoid", image.get("imgid"))
        file = f"{folder}/{image['filename']}" if folder else image["filename"]
        split = "train" if image["split"] == "restval" else image["split"]
        yield CaptionRow(place, file, None if image_id is None else str(image_id), raw, split=split)


def _read_senticap(path: Path) -> Rows:
    """Read SentiCap's JSON: captions of emotions, labelled positive or negative."""
    for place, image, sentences in _images(path):
        for sentence in sentences:
            raw, sentiment = _fields(sentence, ("raw", "sentiment"), path, place)
            if sentiment not in (0, 1):
                raise bad_file(f"{path}, {place}", f"sentiment is {sentiment!r}, but 0 or 1 was expected", _RESTORE)
            label = "positive" if sentiment else "negative"
            yield CaptionRow(place, image["filename"], None, (raw,), EMOTIONS, label, image["split"])


def _read_flickr(path: Path) -> Rows:
    """Read Flickr's token file, `name#i`, a tabulator and a caption a line; it gives no split."""
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        match = _FLICKR_LINE.fullmatch(line)
        if match is None:
            raise bad_file(path, "is not `name#i`, a tabulator and a caption", "Write it so.", number)
        yield CaptionRow(f"line {number}", match["name"], None, (match["caption"],))


def _read_artemis(path: Path) -> Rows:
    """Read ArtEmis's CSV: captions of emotions, labelled with one of nine; images lie in a folder for each style."""
    lines = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for name in _ARTEMIS:
            if name not in (lines.fieldnames or ()):
                raise bad_file(path, f"lacks the column {name!r}", _RESTORE, 1)
        for record in lines:
            if None in record or None in record.values():
                raise bad_file(path, "has more or fewer cells than the header", _RESTORE, lines.line_num)
            style, painting, emotion, utterance = (record[name] for name in _ARTEMIS)
            image = f"{style}/{painting}.jpg"
            split = record.get("split")
            yield CaptionRow(f"line {lines.line_num}", image, None, (utterance,), EMOTIONS, emotion, split)
    except csv.Error as error:
        raise bad_file(path, f"is not valid CSV ({error})", _RESTORE, lines.reader.line_num) from None


def _read_flickrstyle(path: Path) -> Rows:
    """Read FlickrStyle's text files, a caption a line: a folder of `funny_train.txt` and `romantic_train.txt`, or one.

    The images are named, in the order of the lines, by a list beside them: `images.txt`, or the published `.p` file.
    """
    folder = path if path.is_dir() else path.parent
    lists = [file for file in (folder / "images.txt", *sorted(folder.glob("*.p"))) if file.is_file()]
    if not lists:
        advice = "Put images.txt there, a name a line, or the .p file of the release."
        raise bad_file(folder, "holds no list of the images", advice)
    images, *others = (_pickled_names(file) if file.suffix == ".p" else text_lines(file) for file in lists)
    for file, names in zip(lists[1:], others, strict=True):
        if names != images:
            raise bad_file(file, f"lists other images than {lists[0].name}", "Keep the list of these captions.")
    for file in sorted(folder.glob(_STYLE_FILE)) if path.is_dir() else [path]:
        captions = text_lines(file)
        if len(captions) != len(images):
            counts = f"has {len(captions)} captions, but {len(images)} images are listed"
            raise bad_file(file, counts, "Give files of one release.")
        label = file.name.removesuffix(_STYLE_FILE[1:])
        for number, (image, caption) in enumerate(zip(images, captions, strict=True), start=1):
            yield CaptionRow(f"{file.name}, line {number}", image, None, (caption,), EMOTIONS, label)


def _pickled_names(path: Path) -> list[str]:
    """Read the names of images in a pickled list: its opcodes are read and never run."""
    try:
        values = [value for _, value, _ in pickletools.genops(read_bytes(path)) if isinstance(value, str)]
    except (ValueError, UnicodeDecodeError) as error:
        raise bad_file(path, f"is no list of images ({error})", "Put images.txt there, a name a line.") from None
    return [value for value in values if _is_image(value)]


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def without_images(rows: Sequence[CaptionRow]) -> tuple[list[CaptionRow], tuple[str, ...]]:
    """Leave out the rows of a Flickr token file that name no image, with a note on them.

    The published file of Flickr8k names one, with `.1` behind its suffix, that is not among the images.
    """
    kept = [row for row in rows if _is_image(row.image)]
    others = Counter(row.image for row in rows if not _is_image(row.image))
    notes = (f"Passed over, for it is no image's name: {name} ({count} captions)." for name, count in others.items())
    return kept, tuple(notes)


def _parse(path: Path, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise bad_file(path, "is not valid JSON", _RESTORE, getattr(error, "lineno", None)) from None


def _images(path: Path) -> Iterator[tuple[str, dict[str, Any], list[Any]]]:
    """Read the images of Karpathy's form with their places and sentences."""
    for index, image in enumerate(_list_of(_parse(path, read_text(path)), "images", path)):
        place = f"image {index}"
        _, sentences, _ = _fields(image, ("filename", "sentences", "split"), path, place)
        yield place, image, _checked_list(sentences, path, place)


def _list_of(content: Any, name: str, path: Path) -> list[Any]:
    return _checked_list(content.get(name) if isinstance(content, dict) else None, path, name)


def _checked_list(value: Any, path: Path, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise bad_file(f"{path}, {place}", f"is {type(value).__name__}, but a list was expected", _RESTORE)
    return value


def _fields(record: Any, names: Sequence[str], path: Path, place: str) -> list[Any]:
    for name in names:
        if not isinstance(record, dict) or name not in record:
            raise bad_file(f"{path}, {place}", f"lacks {name!r}", _RESTORE)
    return [record[name] for name in names]


READERS: dict[str, Callable[[Path], Rows]] = {
    "jsonl": _read_jsonl,
    "coco": _read_coco,
    "karpathy": _read_karpathy,
    "flickr": _read_flickr,
    "senticap": _read_senticap,
    "flickrstyle": _read_flickrstyle,
    "artemis": _read_artemis,
}
"""By form. Each raises UserError where a file is of another form."""

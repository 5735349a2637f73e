"""The artwork: which packages it comes from, how they are fetched, matched to concepts and drawn.

Every style is an icon-set package of one uniform form (`icons.json` with SVG bodies, `info.json` with the licence).
Knows nothing of captions, scenes or training.
"""

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

DRAWN_SIDE = 160
SPRITE_SIDE = 112


@dataclass(frozen=True)
class Style:
    """One art style: its package, pinned version, licence and its part in the study."""

    name: str
    package: str
    version: str
    spdx: str
    role: str  # "train", "dev" (chooses the recipe, never trained on) or "test" (looked at once, at the end)


STYLES = (
    Style("twemoji", "@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "train"),
    Style("noto", "@iconify-json/noto", "1.2.9", "Apache-2.0", "train"),
    Style("noto-v1", "@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "train"),
    Style("emojione", "@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "train"),
    Style("emojione-monotone", "@iconify-json/emojione-monotone", "1.2.1", "CC-BY-4.0", "train"),
    Style("fluent", "@iconify-json/fluent-emoji", "1.2.7", "MIT", "train"),
    Style("fluent-flat", "@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "train"),
    Style("fluent-high-contrast", "@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT", "train"),
    Style("fxemoji", "@iconify-json/fxemoji", "1.2.2", "Apache-2.0", "dev"),
    Style("openmoji", "@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0", "test"),
)
NAMES_PACKAGE = ("emojibase-data", "17.0.0")
RASTERISER = ("@resvg/resvg-js", "2.6.2")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which replaces what was there when it is whole."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def fetch(package: str, version: str, work: Path, sha256: str | None = None) -> Path:
    """Fetch one package at its pinned version with npm and unpack it; a folder that is there already is kept."""
    folder = work / "packages" / f"{package.strip('@').replace('/', '-')}-{version}"
    if folder.is_dir():
        return folder
    tarballs = work / "tarballs"
    tarballs.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(tarballs)]
    done = subprocess.run([*command, f"{package}@{version}"], check=True, capture_output=True, text=True)
    tarball = tarballs / done.stdout.strip().splitlines()[-1]
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if sha256 not in (None, found):
        raise SystemExit(f"{tarball} has sha256 {found}, but {sha256} was expected. Remove it and try again.")
    with new_folder(folder) as part:
        unpack(tarball, part)
        (part / "sha256").write_text(found + "\n")
    return folder


def unpack(tarball: Path, folder: Path) -> None:
    with tarfile.open(tarball) as archive:
        archive.extractall(folder, filter="data")


def fetch_rasteriser(work: Path) -> Path:
    """Install the SVG rasteriser (no scripts run) and return its `node_modules` folder."""
    folder = work / "rasteriser"
    modules = folder / "node_modules"
    if not (modules / RASTERISER[0]).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}\n')
        spec = "@".join(RASTERISER)
        subprocess.run(["npm", "install", "--ignore-scripts", "--silent", spec], cwd=folder, check=True)
    return modules


def read_json(path: Path) -> dict:
    """Read one JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def emoji_key(hexcode: str) -> str:
    """A code point sequence without variation selectors, lower case: the key of one emoji in every package."""
    return "-".join(p for p in hexcode.lower().split("-") if p not in ("fe0f", "fe0e"))


def squeeze(name: str) -> str:
    """A name reduced to its letters and digits, for matching."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("&", "and"))


def name_table(work: Path) -> dict[str, str]:
    """Every known name of an emoji (squeezed) -> its key; names that two emoji share keep their first owner."""
    folder = fetch(*NAMES_PACKAGE, work) / "package"
    table: dict[str, str] = {}
    entries = read_json(folder / "en" / "data.json")
    for entry in entries:
        table.setdefault(squeeze(entry["label"]), emoji_key(entry["hexcode"]))
    for style in STYLES:
        chars = fetch(style.package, style.version, work) / "package" / "chars.json"
        for key, name in (read_json(chars) if chars.is_file() else {}).items():
            table.setdefault(squeeze(name), emoji_key(key))
    for entry in entries:
        if len(entry["emoji"].replace("\ufe0f", "")) == 1:
            table.setdefault(squeeze(unicodedata.name(entry["emoji"][0], "")), emoji_key(entry["hexcode"]))
    for shortcodes in sorted((folder / "en" / "shortcodes").glob("*.json")):
        for key, names in read_json(shortcodes).items():
            for name in [names] if isinstance(names, str) else names:
                table.setdefault(squeeze(name), emoji_key(key))
    table.pop("", None)
    return table


def icon_svg(icons: dict, name: str) -> str:
    """One icon as an SVG document, aliases followed (without their flips)."""
    alias = icons.get("aliases", {}).get(name)
    if alias is not None:
        return icon_svg(icons, alias["parent"])
    icon = icons["icons"][name]
    left, top = icon.get("left", icons.get("left", 0)), icon.get("top", icons.get("top", 0))
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'{head} width="{side}" height="{side}" viewBox="{box}">{icon["body"]}</svg>'


def style_icons(style: Style, table: dict[str, str], work: Path) -> dict[str, str]:
    """The SVG of every emoji of one style: key -> document. Flipped aliases are left out."""
    folder = fetch(style.package, style.version, work) / "package"
    spdx = read_json(folder / "info.json")["license"]["spdx"]
    if spdx != style.spdx:
        raise SystemExit(f"{style.package} says its licence is {spdx}, expected {style.spdx}. Check before using it.")
    icons = read_json(folder / "icons.json")
    aliases = {n: a for n, a in icons.get("aliases", {}).items() if not (a.keys() - {"parent"})}
    found: dict[str, str] = {}
    for name in [*sorted(icons["icons"]), *sorted(aliases)]:
        key = table.get(squeeze(name))
        if key is not None and key not in found:
            found[key] = icon_svg(icons, name)
    return found


def draw(documents: list[str], work: Path) -> np.ndarray:
    """Draw SVG documents. Returns [N, 4, side, side] uint8, colour premultiplied with alpha; blank where it failed."""
    modules, script = fetch_rasteriser(work), Path(__file__).with_name("draw.cjs")
    source, target = work / "documents.jsonl", work / "documents.raw"
    source.write_text("".join(json.dumps(d) + "\n" for d in documents), encoding="utf-8")
    command = ["node", str(script), str(modules), str(source), str(target), str(DRAWN_SIDE)]
    blank = bytes(DRAWN_SIDE * DRAWN_SIDE * 4)
    target.write_bytes(b"")
    while (done := target.stat().st_size // len(blank)) < len(documents):
        run = subprocess.run([*command, str(done)], capture_output=True)
        if run.returncode:  # the rasteriser died of one document: leave it blank and go on behind it
            drawn = target.stat().st_size // len(blank)
            with target.open("r+b") as out:
                out.seek(drawn * len(blank))
                out.write(blank)
    pixels = np.fromfile(target, dtype=np.uint8).reshape(len(documents), DRAWN_SIDE, DRAWN_SIDE, 4)
    source.unlink()
    target.unlink()
    return np.stack([fill_box(image) for image in pixels])


def fill_box(pixels: np.ndarray) -> np.ndarray:
    """Scale a drawing [s, s, 4] to fill its square box [4, side, side], so that size means the same in every style."""
    rows, columns = (np.nonzero(pixels[:, :, 3].max(axis) > 8)[0] for axis in (1, 0))
    if not len(rows):
        return np.zeros((4, SPRITE_SIDE, SPRITE_SIDE), np.uint8)
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    top, left = (rows[0] + rows[-1] + 1 - side) // 2, (columns[0] + columns[-1] + 1 - side) // 2
    padded = np.pad(pixels, ((side, side), (side, side), (0, 0)))[top + side :, left + side :][:side, :side]
    box = (SPRITE_SIDE, SPRITE_SIDE)
    planes = [Image.fromarray(np.ascontiguousarray(padded[:, :, c])).resize(box, Image.BICUBIC) for c in range(4)]
    filled = np.stack([np.asarray(plane) for plane in planes])
    return np.minimum(filled, filled[3:])

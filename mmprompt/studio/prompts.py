"""The frozen models of a studio, each loaded once and shared by all; the folders that a person's prompts lie in, and a
prompt as a file that a browser can take and bring.
"""

from __future__ import annotations

import logging
import threading
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from mmprompt.core.file import load
from mmprompt.core.header import HEADER, TENSORS, read_header
from mmprompt.errors import UserError, bad_file, unknown_name
from mmprompt.files import BROKEN_ZIP, make_folder, write_bytes
from mmprompt.models.dual_encoder.load import MODEL_OF, load_backbone
from mmprompt.models.packaged import PHOTOS, is_fetched

_log = logging.getLogger(__name__)
MAX_BYTES = 64 * 2**20
ADVICE = f"Give the zip file that a studio's download gave, or {HEADER} and {TENSORS} of a run folder."
IN_PLACE = ("weights", "layer-norms")
"""Sources that change a model's own weights while it reads."""


class Models:
    """The frozen models that are offered, by kind of prompt: `tiny`, those that were fetched and those named."""

    def __init__(
        self,
        backbones: Sequence[str] = (),
        captioners: Sequence[str] = (),
        language_models: Sequence[str] = (),
        device: str = "auto",
    ) -> None:
        known = {"classification": PHOTOS, "captioning": ("photo",), "language": ("smollm2",)}
        more = {"classification": backbones, "captioning": captioners, "language": language_models}
        self.offered = {
            kind: tuple(dict.fromkeys(("tiny", *filter(is_fetched, known[kind]), *more[kind]))) for kind in known
        }
        self.device = device
        self._loaded: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def get(self, kind: str, name: str) -> Any:
        """Return the frozen model of a name that is offered for prompts of a kind."""
        if name not in self.offered[kind]:
            raise unknown_name("frozen model", name, self.offered[kind])
        with self._lock:
            if (kind, name) not in self._loaded:
                self._loaded[kind, name] = load_backbone(name, self.device, kind=MODEL_OF[kind])
            return self._loaded[kind, name]

    def load(self, folder: Path, kind: str) -> Any:
        """Load a prompt on the shared model that it names, which must be one that is offered.

        One that puts other weights in place while a model reads gets a model of its own: others read with the shared
        one meanwhile.
        """
        header = read_header(folder, kind)
        name = header["backbone"]["name"]
        if name not in self.offered[kind]:
            raise UserError(
                f"this prompt was learned on {name}, but this studio has {', '.join(self.offered[kind])}. "
                "Give a prompt of one of these, or start the studio with that model."
            )
        is_in_place = any(part["kind"] in IN_PLACE for part in header["sources"])
        return load(folder, name if is_in_place else self.get(kind, name), self.device)


def new_run(folder: Path) -> Path:
    """Make a person's next run folder, named by a number."""
    runs = make_folder(folder / "runs")
    number = len(list(runs.iterdir())) + 1
    while True:
        with suppress(FileExistsError):
            (runs / str(number)).mkdir()
            return runs / str(number)
        number += 1


def newest_first(folder: Path, kind: str) -> list[Path]:
    """List a person's run folders that hold a sound prompt of a kind."""
    found = []
    for path in sorted(folder.glob(f"*/*/{HEADER}"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        with suppress(UserError):
            read_header(path.parent, kind)
            found.append(path.parent)
    return found


def take_up(folder: Path, kind: str, open_prompt: Callable[[Path], None]) -> None:
    """Open a person's last prompt of a kind that can still be used."""
    for run in newest_first(folder, kind):
        try:
            open_prompt(run)
        except UserError as error:
            _log.warning("%s is passed over: %s", run, error)
        else:
            return


def pack(folder: Path, archive: Path) -> Path:
    """Write the prompt of a run folder as a zip file, whose path is returned."""
    make_folder(archive.parent)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as handle:
        for name in (HEADER, TENSORS):
            handle.write(folder / name, f"{archive.stem}/{name}")
    return archive


def unpack(given: Sequence[Path], folder: Path) -> None:
    """Put the two files of a prompt, from one sound zip file or as they are, into a folder."""
    found: dict[str, bytes] = {}
    for path in given:
        if len(given) == 1 and zipfile.is_zipfile(path):
            found = _in_zip(path)
        elif path.stat().st_size > MAX_BYTES:
            raise bad_file(path.name, f"is larger than {MAX_BYTES // 2**20} MiB", ADVICE)
        elif path.name in (HEADER, TENSORS):
            found[path.name] = path.read_bytes()
    for name in (HEADER, TENSORS):
        if name not in found:
            raise bad_file(given[0].name if given else "nothing", f"holds no {name}", ADVICE)
        write_bytes(folder / name, found[name])


def _in_zip(archive: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(archive) as handle:
            for info in handle.infolist():
                name = PurePosixPath(info.filename).name
                if name not in (HEADER, TENSORS):
                    continue
                if name in found:
                    raise bad_file(archive.name, f"holds {name} twice", "Give one prompt at a time.")
                with handle.open(info) as member:
                    found[name] = member.read(MAX_BYTES + 1)
                if len(found[name]) > MAX_BYTES:
                    raise bad_file(archive.name, f"{name} in it is larger than {MAX_BYTES // 2**20} MiB", ADVICE)
    except BROKEN_ZIP as error:
        raise bad_file(archive.name, f"is a damaged archive ({error})", ADVICE) from None
    return found

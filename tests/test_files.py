from __future__ import annotations

from pathlib import Path

import pytest

from mmprompt.errors import UserError
from mmprompt.files import SafeRoot


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with links of every kind."""
    for folder in ("root/real", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "outside" / "secret.png").touch()
    folder = tmp_path / "root"
    (folder / "real" / "a.png").touch()
    (folder / "real" / "inside.png").symlink_to(folder / "real" / "a.png")
    (folder / "real" / "out.png").symlink_to(tmp_path / "outside" / "secret.png")
    (folder / "real" / "nowhere.png").symlink_to(tmp_path / "outside" / "gone.png")
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "same").symlink_to(folder / "real")
    return folder


@pytest.mark.parametrize(
    "path", ["real/a.png", "real/inside.png", "same/a.png", "not/there.png", "real/../real/a.png", "", "."]
)
def test_paths_that_stay_below_the_root_are_joined(root: Path, path: str) -> None:
    assert SafeRoot(root).join(path) == root / path


@pytest.mark.parametrize(
    "path",
    [
        "real/out.png",
        "real/nowhere.png",
        "linked/secret.png",
        "linked",
        "linked/new/deep.png",
        "../outside/secret.png",
        "real/../../outside/secret.png",
        "..",
        "real/../..",
        "linked/..",
        "/etc/passwd",
        "a\0b",
    ],
)
def test_paths_that_leave_the_root_are_refused(root: Path, path: str) -> None:
    inside = SafeRoot(root)
    inside.join("real/a.png")  # a folder that is known already opens no door
    with pytest.raises(UserError, match="leaves the data folder"):
        inside.join(path)


def test_a_root_may_be_reached_by_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert SafeRoot(tmp_path / "link").join("real/a.png").exists()

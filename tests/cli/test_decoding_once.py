"""A picture whose features are stored was decoded as it is now, so no command opens it again to see if it is broken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mmprompt.cli.main import main
from mmprompt.data import check
from mmprompt.data.images import read_image
from mmprompt.models import image_features
from tests.fixtures.cli_run import COLOURS, write_pictures

FOUR = {**COLOURS, "grey": (120, 120, 120)}


class Decodes(list[Path]):
    """The picture files that were decoded, to be checked or to be encoded."""

    def __call__(self, source: Path) -> object:
        self.append(source)
        return read_image(source)

    def take(self) -> list[str]:
        """The names since the last call."""
        names = [path.name for path in self]
        self.clear()
        return names


@pytest.fixture
def decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Decodes:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MMPROMPT_CACHE_LIMIT", "1GB")
    counted = Decodes()
    for module in (check, image_features):
        monkeypatch.setattr(module, "read_image", counted)
    return counted


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """4 classes: 3 pictures each to train, 2 to test."""
    for part, n in (("train", 3), ("test", 2)):
        write_pictures(tmp_path / "own" / part, FOUR, n)
    return tmp_path / "own"


@pytest.fixture
def train(tiny_open_clip_folder: Path, own: Path) -> list[str]:
    quick = ["--n-ctx", "2", "--shots", "3", "--epochs", "2", "--augment", "none", "--device", "cpu"]
    return ["train", "--data", str(own), "--backbone", str(tiny_open_clip_folder), *quick]


def first_decodes(own: Path) -> int:
    """Each file is checked, and each content encoded: a few of the plain pictures are the same."""
    return 20 + len({path.read_bytes() for path in own.rglob("*.png")})


def test_a_second_training_decodes_nothing(train: list[str], own: Path, decodes: Decodes) -> None:
    assert main([*train, "--out", "one"]) == 0
    assert len(decodes.take()) == first_decodes(own)
    assert main([*train, "--out", "two"]) == 0
    assert decodes.take() == []
    assert main(["eval", "two", "--device", "cpu"]) == 0
    assert decodes.take() == []


def test_without_a_store_every_training_checks_every_picture(
    train: list[str], decodes: Decodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMPROMPT_CACHE_LIMIT", "0")
    for out in ("one", "two"):
        assert main([*train, "--out", out]) == 0
        assert len(decodes.take()) == 2 * 20


def test_a_changed_picture_is_checked_again(train: list[str], own: Path, decodes: Decodes) -> None:
    assert main([*train, "--out", "one"]) == 0
    decodes.take()
    write_pictures(own.parent / "new", {"other": (9, 9, 9)}, 1)
    shutil.copy(own.parent / "new" / "other" / "0.png", own / "train" / "red" / "2.png")
    assert main([*train, "--out", "two"]) == 0
    assert decodes.take() == ["2.png", "2.png"]


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_picture_broken_since_is_refused_by_name_or_left_out(
    part: str, train: list[str], own: Path, decodes: Decodes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*train, "--out", "one"]) == 0
    decodes.take()
    picture = own / part / "red" / "1.png"
    picture.write_bytes(picture.read_bytes()[:60])
    assert main([*train, "--out", "two"]) == 2
    assert f"{part}/red/1.png" in capsys.readouterr().err.replace("\n", "")
    assert decodes.take() == ["1.png"]
    assert not Path("two").exists()
    assert main([*train, "--out", "three", "--skip-broken"]) == 0
    assert "Broken images left out, 1" in capsys.readouterr().out
    assert decodes.take() == ["1.png"]


def test_leaving_broken_ones_out_of_a_comparison_opens_no_known_picture(
    tiny_open_clip_folder: Path, own: Path, decodes: Decodes
) -> None:
    words = ["compare", "--data", str(own), "--backbone", str(tiny_open_clip_folder), "--method", "nearest-class-mean"]
    words += ["--shots", "3", "--seed", "1", "--device", "cpu", "--skip-broken"]
    assert main(words) == 0
    assert len(decodes.take()) >= first_decodes(own)
    assert main([*words, "--results", "other"]) == 0
    assert decodes.take() == []

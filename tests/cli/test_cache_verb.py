"""`mmprompt data cache`: what is kept, how much of how much, dropping it, and a store that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmprompt.cli.main import main
from mmprompt.models.feature_store import FILE_HASHES

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default store, not made yet."""
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MMPROMPT_CACHE_LIMIT", "1MB")
    return tmp_path / "cache" / "features"


@pytest.fixture
def filled(store: Path, train_words: Callable[..., list[str]], tmp_path: Path, capsys: Capture) -> Path:
    """The store after a training on three views of 6 pictures and a test on 3 others."""
    assert main(train_words(tmp_path / "run")) == 0
    capsys.readouterr()
    return store


def document(capsys: Capture, *more: str) -> dict:
    assert main(["data", "cache", "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_store_that_is_not_there_is_empty_and_not_made(store: Path, capsys: Capture) -> None:
    assert main(["data", "cache"]) == 0
    assert f"0.0 MB of at most 1.0 MB (MMPROMPT_CACHE_LIMIT) in {store}." in capsys.readouterr().out
    assert not store.exists()


def test_rows_and_size_are_listed_by_backbone_and_transform(
    filled: Path, tiny_open_clip_folder: Path, capsys: Capture
) -> None:
    found = document(capsys)
    (space,) = (held for held in found["features"] if held["backbone"] != FILE_HASHES.backbone)
    assert (space["backbone"], space["rows"]) == (str(tiny_open_clip_folder), 6 * 3 + 3)
    assert space["transform"].startswith("shorter side to 32")
    assert found["size_bytes"] >= space["size_bytes"] > 21 * 4 * 24
    assert found["limit_bytes"] == 2**20
    assert main(["data", "cache"]) == 0
    said = capsys.readouterr().out
    assert "shorter side to 32" in said
    assert " 21 " in said


def test_clearing_says_what_went_and_leaves_nothing(filled: Path, capsys: Capture) -> None:
    held = document(capsys)
    gone = document(capsys, "--clear")
    assert gone["is_cleared"]
    assert gone["features"] == held["features"]
    assert document(capsys)["features"] == []
    assert not list(filled.glob("*/*"))
    assert main(["data", "cache", "--clear"]) == 0
    assert "Nothing to drop" in capsys.readouterr().out


def test_what_another_version_left_is_listed_and_stops_nothing(
    filled: Path, train_words: Callable[..., list[str]], tmp_path: Path, capsys: Capture
) -> None:
    (filled / "index.sqlite").write_bytes(bytes(5000))
    for words in (train_words(tmp_path / "again"), ["eval", str(tmp_path / "run"), "--device", "cpu"]):
        assert main(words) == 0
    capsys.readouterr()
    assert 5000 in [held["size_bytes"] for held in document(capsys)["features"]]
    assert main(["data", "cache", "--clear"]) == 0
    assert "of another version" in capsys.readouterr().out
    assert document(capsys)["features"] == []


@pytest.mark.parametrize("variable", ["MMPROMPT_CACHE_LIMIT", "MMPROMPT_MEMORY_LIMIT"])
def test_a_limit_that_is_no_size_is_refused(
    variable: str,
    store: Path,
    train_words: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setenv(variable, "lots")
    assert main(train_words(tmp_path / "run")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{variable} is 'lots', but a size was expected. Use 500MB, 4GB, or 0 for" in line
    assert not (tmp_path / "run").exists()


def test_the_store_stays_below_the_limit(
    store: Path, train_words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("MMPROMPT_CACHE_LIMIT", "1KB")
    assert main(train_words(tmp_path / "run")) == 0
    capsys.readouterr()
    assert document(capsys)["size_bytes"] <= 2**10
    assert sum(path.stat().st_size for path in store.glob("*/*")) <= 2**10

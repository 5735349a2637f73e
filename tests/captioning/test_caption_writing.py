"""Captions of many images: rows in order, broken images as rows, and a run that was killed goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprompt.captioning.cli.write import caption_rows, find_images
from mmprompt.captioning.predictor import Caption
from mmprompt.errors import UserError

SETTINGS = {"prompt": "a", "strength": 1.0}


def images(n: int) -> list[tuple[str, Path]]:
    return [(f"{place:03d}.png", Path(f"/images/{place:03d}.png")) for place in range(n)]


class Describer:
    """Names the number of each image, and remembers what it was asked for."""

    def __init__(self, broken: tuple[int, ...] = (), killed_at: int | None = None) -> None:
        self.broken, self.killed_at, self.asked = broken, killed_at, []

    def __call__(self, paths, numbers):
        if self.killed_at is not None and self.killed_at in numbers:
            raise KeyboardInterrupt
        self.asked += list(numbers)
        return [
            UserError(f"{path} is damaged.")
            if number in self.broken
            else Caption(f"image {number}", -1.0, -0.5, 2, False)
            for path, number in zip(paths, numbers, strict=True)
        ]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_picture_has_a_row_in_order_and_a_broken_one_an_error(tmp_path):
    out = tmp_path / "captions.jsonl"
    rows = caption_rows(Describer(broken=(1,)), images(3), out, SETTINGS)
    assert lines(out) == rows
    assert [row["image"] for row in rows] == ["000.png", "001.png", "002.png"]
    assert rows[0]["caption"] == "image 0"
    assert rows[1]["error"] == "/images/001.png is damaged."
    assert "caption" not in rows[1]


def test_a_killed_run_goes_on_and_ends_in_the_same_file(tmp_path):
    whole, halves = tmp_path / "whole.jsonl", tmp_path / "halves.jsonl"
    caption_rows(Describer(), images(100), whole, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        caption_rows(Describer(killed_at=70), images(100), halves, SETTINGS)
    assert not halves.exists()
    second = Describer()
    caption_rows(second, images(100), halves, SETTINGS)
    assert second.asked == list(range(64, 100))
    assert halves.read_bytes() == whole.read_bytes()


def test_a_row_that_was_torn_is_written_again(tmp_path):
    out = tmp_path / "captions.jsonl"
    caption_rows(Describer(), images(3), out, SETTINGS)
    whole = out.read_bytes()
    out.rename(tmp_path / "captions.jsonl.part").write_bytes(whole[:-20])
    again = Describer()
    caption_rows(again, images(3), out, SETTINGS)
    assert again.asked == [2]
    assert out.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["captions.jsonl"]


def test_new_pictures_get_rows_and_old_rows_stay(tmp_path):
    out = tmp_path / "captions.jsonl"
    caption_rows(Describer(), images(4)[1:], out, SETTINGS)
    again = Describer()
    rows = caption_rows(again, images(4), out, SETTINGS)
    assert again.asked == [0]
    assert [row["image"] for row in rows] == [name for name, _ in images(4)]


def test_a_broken_picture_is_looked_at_again(tmp_path):
    out = tmp_path / "captions.jsonl"
    caption_rows(Describer(broken=(1,)), images(3), out, SETTINGS)
    again = Describer()
    assert caption_rows(again, images(3), out, SETTINGS)[1]["caption"] == "image 1"
    assert again.asked == [1]


@pytest.mark.parametrize("change", ["another image of that name", "the image is not asked for"])
def test_captions_of_other_pictures_are_neither_taken_nor_lost(tmp_path, change):
    image, out = tmp_path / "a.png", tmp_path / "captions.jsonl"
    image.write_text("one image")
    caption_rows(Describer(), [("a.png", image)], out, SETTINGS)
    before = out.read_bytes()
    image.write_text("another" if change.startswith("another") else "one image")
    asked = [("a.png" if change.startswith("another") else "b.png", image)]
    with pytest.raises(UserError, match=r"holds a caption of a.png, which is gone or another image now"):
        caption_rows(Describer(), asked, out, SETTINGS)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "captions.jsonl"]


def test_rows_of_other_settings_are_refused_and_left_alone(tmp_path):
    out = tmp_path / "captions.jsonl"
    caption_rows(Describer(), images(2), out, SETTINGS)
    before = out.read_bytes()
    with pytest.raises(UserError, match="holds captions of other settings"):
        caption_rows(Describer(), images(2), out, SETTINGS | {"strength": 2.0})
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["captions.jsonl"]


def test_a_file_of_something_else_is_refused(tmp_path):
    out = tmp_path / "notes.txt"
    out.write_text("milk\n")
    with pytest.raises(UserError, match=r"notes.txt.*line 1.*is no row of captions"):
        caption_rows(Describer(), images(2), out, SETTINGS)
    assert out.read_text() == "milk\n"


WRITER = """
import sys
from pathlib import Path
from mmprompt.captioning.cli.write import caption_rows
from mmprompt.captioning.predictor import Caption

def describe(paths, numbers):
    print("writing", flush=True)
    sys.stdin.readline()
    return [Caption(f"image {number}", -1.0, -0.5, 2, False) for number in numbers]

images = [(f"{place:03d}.png", Path(f"/images/{place:03d}.png")) for place in range(2)]
caption_rows(describe, images, Path(sys.argv[1]), {"prompt": "a", "strength": 1.0})
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of writing `tmp_path/captions.jsonl`; it ends when its input gets a line."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "captions.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process


def test_two_cannot_write_one_file_at_once(tmp_path, other):
    out = tmp_path / "captions.jsonl"
    second = Describer()
    with pytest.raises(UserError, match=r"captions.jsonl: is being written by another process. Wait until"):
        caption_rows(second, images(2), out, SETTINGS)
    other.communicate("go on\n")
    assert second.asked == []
    assert [row["caption"] for row in lines(out)] == ["image 0", "image 1"]
    assert [path.name for path in tmp_path.iterdir()] == ["captions.jsonl"]


def test_the_file_of_a_killed_process_is_taken_over(tmp_path, other):
    other.kill()
    other.wait()
    caption_rows(Describer(), images(2), tmp_path / "captions.jsonl", SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["captions.jsonl"]


def test_pictures_of_a_folder_go_by_their_relative_path(tmp_path):
    for name in ("b/2.jpg", "a.PNG", "notes.txt", "b/1.jpg", ".small/1.jpg", "b/._1.jpg", "__MACOSX/b/1.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert [name for name, _ in find_images([tmp_path])] == ["a.PNG", "b/1.jpg", "b/2.jpg"]


def test_pictures_of_one_name_in_two_folders_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").touch()
    assert [name for name, _ in find_images([Path("a"), Path("b")])] == ["a/x.png", "b/x.png"]
    (tmp_path / "a" / "x.png").unlink()
    found = find_images([tmp_path / "a", tmp_path / "b"])
    assert found == [(f"{tmp_path.as_posix()}/b/x.png", tmp_path / "b" / "x.png")]


def test_a_place_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no image in"):
        find_images([tmp_path])
    with pytest.raises(UserError, match="is not there"):
        find_images([tmp_path / "nowhere"])

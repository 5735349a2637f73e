"""The count of pictures that are checked and encoded: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mmprompt.cli.main import main
from mmprompt.terminal import counter
from mmprompt.terminal.counter import Counter


class SlowWork:
    """A clock by which eleven seconds pass between two looks."""

    def __init__(self) -> None:
        self.monotonic = itertools.count(0, 11).__next__


def shown(is_terminal: bool, counts: list[tuple[int, int]]) -> str:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80)
    with Counter("encoding pictures", console) as count:
        for done, total in counts:
            count(done, total)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_terminal_gets_a_bar_with_what_is_counted() -> None:
    said = shown(True, [(2, 10), (10, 10)])
    assert "encoding pictures" in said
    assert "━" in said
    assert "10/10" in said


def test_short_work_writes_no_line_elsewhere() -> None:
    assert shown(False, [(2, 10), (10, 10)]) == ""


def test_long_work_writes_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter, "time", SlowWork())
    assert shown(False, [(2, 10), (10, 10)]) == "encoding pictures 2/10\nencoding pictures 10/10\n"


def test_an_error_takes_the_bar_down() -> None:
    """And shows the cursor again."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80)

    def meet_a_broken_picture() -> None:
        with Counter("encoding pictures", console) as count:
            count(2, 10)
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        meet_a_broken_picture()
    assert console.file.getvalue().count("\x1b[?25h") == 1  # type: ignore[attr-defined]


def test_training_and_evaluation_count_the_pictures_that_they_check_and_encode(
    train_words: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(counter, "time", SlowWork())
    assert main(train_words(tmp_path / "run")) == 0
    said = capsys.readouterr().err
    assert "checking pictures 9/9" in said
    assert "encoding pictures 18/18" in said  # three views of six
    assert "encoding pictures 3/3" in said
    assert main(["eval", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "encoding pictures 3/3" in capsys.readouterr().err

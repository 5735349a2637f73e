"""How far a long command is, and how long it will still take: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mmprompt import progress
from mmprompt.cli.main import main
from mmprompt.progress import ProgressDisplay, doing, duration, never_silent, spoke


class Clock:
    """A clock that a test sets, or that moves on by itself with every look."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 1000.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def text_of(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def lines_of(clock: Clock, steps: list[tuple[float, int]], n_all: int) -> list[str]:
    """What is written off a terminal while so many cells are done at these seconds."""
    console, began = Console(file=io.StringIO(), force_terminal=False), clock.now
    with ProgressDisplay(console) as display:
        for at, n_done in steps:
            clock.now = began + at
            display.show("cells", n_done, n_all)
    return text_of(console).splitlines()


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80)


def test_the_time_left_follows_the_pace_of_the_whole_stage(clock: Clock) -> None:
    said = lines_of(clock, [(0, 0), (600, 1), (1200, 2)], 6)
    assert said == ["cells 1/6  50 min left", "cells 2/6  40 min left"]


def test_a_time_left_that_is_over_is_not_said(clock: Clock) -> None:
    steps = [(0, 0), (5, 0), (10, 1), (100, 1)]
    assert lines_of(clock, steps, 2) == ["cells 0/2  5 s so far", "cells 1/2  10 s left", "cells 1/2  2 min so far"]


def test_work_done_before_is_no_part_of_the_pace(clock: Clock) -> None:
    assert lines_of(clock, [(0, 90), (60, 91)], 93) == ["cells 91/93  2 min left"]


def test_lines_come_now_and_then_and_at_the_end(clock: Clock) -> None:
    steps = [(0, 0), (11, 1), (12, 2), (13, 3)]
    assert lines_of(clock, steps, 3) == ["cells 1/3  22 s left", "cells 3/3"]


def test_short_work_writes_no_line(clock: Clock) -> None:
    assert lines_of(clock, [(0, 0), (1, 1), (2, 2)], 2) == []


def test_work_that_begins_again_has_a_pace_of_its_own(clock: Clock) -> None:
    assert lines_of(clock, [(0, 0), (1, 9), (100, 0), (120, 1)], 9)[-1] == "cells 1/9  3 min left"


def test_a_bar_that_comes_back_wipes_no_line_that_was_written_meanwhile() -> None:
    console = terminal()
    with ProgressDisplay(console) as display:
        display.show("checking", 1, 2)
        display.show("encoding", 2, 2)
        display.show("checking", 2, 2)
        written = len(text_of(console))
        display.show("testing", 1, 2)
        assert "\x1b[1A" not in text_of(console)[written:]  # a line up


def test_a_piece_of_work_that_takes_long_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BEAT_S", 0.01)
    console = Console(file=io.StringIO(), force_terminal=False)
    with ProgressDisplay(console, seconds_between_lines=0.02) as display:
        display.show("cells", 0, 2)
        until = time.monotonic() + 20
        while text_of(console).count("\n") < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert text_of(console).splitlines()[:3] == ["cells 0/2"] * 3


def test_a_terminal_gets_a_bar_with_the_time_left(clock: Clock) -> None:
    console = terminal()
    with ProgressDisplay(console) as display:
        display.show("cells", 0, 3)
        clock.now += 7200
        display.show("cells", 1, 3)
    said = text_of(console)
    assert all(part in said for part in ("cells", "━", "1/3", "4 h 00 min left"))


def test_an_error_takes_the_bar_down() -> None:
    """And shows the cursor again."""
    console = terminal()

    def meet_a_broken_image() -> None:
        with ProgressDisplay(console) as display:
            display.show("encoding", 2, 10)
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        meet_a_broken_image()
    assert text_of(console).count("\x1b[?25h") == 1


def test_a_bar_that_is_full_leaves_the_terminal_to_others() -> None:
    console = terminal()
    with ProgressDisplay(console) as display:
        display.show("encoding", 10, 10)
        assert text_of(console).count("\x1b[?25h") == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h 00 min"), (3900, "1 h 05 min")]
)
def test_a_time_is_said_in_the_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_training_and_evaluation_count_the_pictures_that_they_check_and_encode(
    train_words: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "time", Clock(step=11))
    assert main(train_words(tmp_path / "run")) == 0
    said = capsys.readouterr().err
    assert "checking images 9/9" in said
    assert "encoding images 18/18" in said  # three views of six
    assert "encoding images 3/3" in said
    assert main(["eval", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "encoding images 3/3" in capsys.readouterr().err


def test_silence_is_broken_with_what_is_being_done() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with never_silent(console, patience=0.05), doing("drawing the report"):
        wait_for(lambda: "drawing the report" in text_of(console))
    assert re.fullmatch(r"(drawing the report: \d+ s so far\n)+", text_of(console))


def test_nothing_is_added_while_something_is_said() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with never_silent(console, patience=0.5):
        for _ in range(20):
            time.sleep(0.05)
            spoke()
    assert text_of(console) == ""


def wait_for(is_true: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not is_true():
        assert time.monotonic() - began < 10
        time.sleep(0.01)

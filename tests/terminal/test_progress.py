"""How far a long command is, and how long it will still take."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mmprompt.terminal import progress
from mmprompt.terminal.progress import Stages, duration


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines_of(clock: Clock, steps: list[tuple[float, int]], n_all: int) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Stages(console) as stages:
        for now, n_done in steps:
            clock.now = now
            stages.show("cells", n_done, n_all)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_time_left_follows_the_pace_of_the_whole_stage(clock: Clock) -> None:
    said = lines_of(clock, [(0, 0), (600, 1), (1200, 2)], 6)
    assert said == ["cells: 0 of 6", "cells: 1 of 6, about 50 min left", "cells: 2 of 6, about 40 min left"]


def test_what_was_done_before_is_no_part_of_the_pace(clock: Clock) -> None:
    assert lines_of(clock, [(0, 90), (60, 91)], 93)[-1] == "cells: 91 of 93, about 2 min left"


def test_lines_come_now_and_then_and_at_the_end(clock: Clock) -> None:
    said = lines_of(clock, [(0, 0), (1, 1), (2, 2), (3, 3)], 3)
    assert said == ["cells: 0 of 3", "cells: 3 of 3"]


def test_a_bar_shows_the_time_left_of_long_cells(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Stages(console) as stages:
        stages.show("cells", 0, 3)
        clock.now += 7200
        stages.show("cells", 1, 3)
    assert "4 h 00 min left" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h 00 min"), (3900, "1 h 05 min")]
)
def test_a_time_is_said_in_the_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text

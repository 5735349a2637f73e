"""What is set for the whole process while something is done is put back, also where threads overlap."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import pytest
from transformers import dynamic_module_utils

from mmprompt.models.dual_encoder.load import find_source, one_line_errors
from mmprompt.quiet import quiet
from mmprompt.reports.figures import LIGHT, drawing


def settings_of_the_process() -> tuple[Any, ...]:
    return (
        logging.root.manager.disable,
        dynamic_module_utils.TIME_OUT_REMOTE_CODE,
        list(warnings.filters),
        mpl.rcParams.copy(),
    )


@pytest.mark.parametrize(
    "held",
    [quiet, lambda: one_line_errors("tiny", find_source("tiny"), None), lambda: drawing(LIGHT, 1, 1)],
    ids=["warnings", "loading", "drawing"],
)
def test_threads_that_overlap_leave_everything_as_it_was(held: Callable[[], AbstractContextManager[Any]]) -> None:
    before = settings_of_the_process()
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with held():
            first_is_in.set()
            second_is_in.wait(0.2)  # or it waits for this thread
        first_is_out.set()

    def second() -> None:
        first_is_in.wait()
        with held():
            second_is_in.set()
            first_is_out.wait()

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert settings_of_the_process() == before


def test_what_is_held_back_by_its_beginning_leaves_the_rest() -> None:
    with warnings.catch_warnings(record=True) as seen, quiet("Glyph"):
        warnings.warn("Glyph 5 missing", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert [str(one.message) for one in seen] == ["another"]

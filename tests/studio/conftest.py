from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmprompt.studio.jobs import Job
from mmprompt.studio.prompts import Models
from mmprompt.studio.session import Session, Studio


@pytest.fixture(scope="session")
def models() -> Models:
    return Models(device="cpu")


@pytest.fixture
def studio(tmp_path: Path, models: Models) -> Studio:
    return Studio(tmp_path / "studio", models)


@pytest.fixture
def session(studio: Studio) -> Session:
    return studio.session()


@pytest.fixture
def ended() -> Callable[[Job], Job]:
    """Waits for the end of a training."""

    def wait(job: Job) -> Job:
        until = time.monotonic() + 60
        while job.is_alive and time.monotonic() < until:
            time.sleep(0.01)
        assert not job.is_alive, "the training took more than a minute"
        return job

    return wait

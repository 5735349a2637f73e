from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmprompt.models import image_reading as decoding
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_reading import WORTH_WORKERS, Job, PictureReader, can_be_sent, choose_workers, decode

PROGRAM = """
import multiprocessing, sys
sys.path.insert(0, {checkout!r})
from pathlib import Path
import torch
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.image_reading import Job, PictureReader, decode

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    reader = PictureReader.of(load_backbone({model!r}, "cpu"))
    jobs = [Job(Path(path), (None,)) for path in sys.argv[1:]]
    alone, helped = (torch.stack(list(decode(reader, jobs, n))) for n in (0, 1))
    assert torch.equal(alone, helped)
    print(len(helped))
"""


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    rng = np.random.default_rng(2)
    found = [Job(tmp_path / f"{i}.png", (None,)) for i in range(20)]
    for job in found:
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(job.path)
    return found


@pytest.mark.parametrize("kind", ["tiny_clip_backbone", "tiny_hf_clip_backbone"])
def test_transforms_of_both_libraries_can_be_sent_to_workers(kind: str, request: pytest.FixtureRequest) -> None:
    assert can_be_sent(PictureReader.of(request.getfixturevalue(kind)))


def test_few_pictures_are_read_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert choose_workers(WORTH_WORKERS - 1) == 0
    assert choose_workers(WORTH_WORKERS) == decoding.MAX_WORKERS


def test_one_processor_is_no_reason_for_a_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert choose_workers(10**6) == 0


def test_workers_that_are_spawned_read_the_same(jobs: list[Job], tiny_open_clip_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.format(checkout=str(Path(__file__).parents[2]), model=str(tiny_open_clip_folder)))
    command = [sys.executable, str(script), *(str(job.path) for job in jobs[:4])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "4"), done.stderr


class Deadly:
    """A transform that ends any process but the first."""

    def __init__(self, home: int) -> None:
        self.home = home

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if decoding.os.getpid() != self.home:
            decoding.os._exit(1)
        return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)


def test_a_worker_that_dies_costs_no_picture(jobs: list[Job], caplog: pytest.LogCaptureFixture) -> None:
    reader = PictureReader(Deadly(decoding.os.getpid()), torch.clone, 40)
    assert len(list(decode(reader, jobs, 1))) == len(jobs)
    assert "ended early" in caplog.text


def test_a_transform_that_cannot_be_sent_is_run_here(jobs: list[Job], tiny_clip_backbone: DualEncoder) -> None:
    reader = PictureReader(lambda image: tiny_clip_backbone.preprocess(image), torch.clone, 32)
    assert len(list(decode(reader, jobs, 2))) == len(jobs)

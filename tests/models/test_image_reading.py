from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_reading import Job, View, decode

PROGRAM = """
import multiprocessing, sys
sys.path.insert(0, {checkout!r})
from pathlib import Path
import torch
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.image_reading import Job, decode

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    backbone = load_backbone({model!r}, "cpu")
    jobs = [Job(Path(path), (None,)) for path in sys.argv[1:]]
    alone, helped = (torch.stack(list(decode(backbone, jobs, n))) for n in (0, 1))
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
def test_workers_read_what_this_process_reads(kind: str, jobs: list[Job], request: pytest.FixtureRequest) -> None:
    backbone: DualEncoder = request.getfixturevalue(kind)
    viewed = [Job(job.path, (None, View(1, 2, index))) for index, job in enumerate(jobs)]
    alone, helped = (torch.stack(list(decode(backbone, viewed, n))) for n in (0, 2))
    assert torch.equal(alone, helped)
    assert torch.equal(alone[::2], torch.stack(list(decode(backbone, jobs, 0))))


def test_workers_that_are_spawned_read_the_same(jobs: list[Job], tiny_open_clip_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.format(checkout=str(Path(__file__).parents[2]), model=str(tiny_open_clip_folder)))
    command = [sys.executable, str(script), *(str(job.path) for job in jobs[:4])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "4", "")

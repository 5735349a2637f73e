"""Several processes learn the prompt of one: shares of the batch, shares of the classes, and a process that dies."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mmprompt.files import read_tensors
from mmprompt.models import ranks
from mmprompt.training.run_files import run_lock
from tests import small_models
from tests.processes import run_program
from tests.training.rank_driver import SETTINGS

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("rank_driver.py")


def launch(n_processes, *arguments, **environment):
    """Run a job as `torchrun` does, in processes that it might have started."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": str(n_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | environment

    def rank(number):
        own = {"RANK": str(number), "LOCAL_RANK": str(number)}
        return run_program(DRIVER, *map(str, arguments), folder=ROOT, **job, **own)

    with ThreadPoolExecutor(n_processes) as pool:
        return list(pool.map(rank, range(n_processes)))


def torchrun(n_processes, *arguments, **environment):
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command = [sys.executable, *several, str(DRIVER), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_models.save_open_clip(tmp_path_factory.mktemp("ranks") / "model")


def learned(n_processes, folder, out, names, **environment):
    """What some processes learn, by method."""
    out.mkdir(exist_ok=True)
    for done in launch(n_processes, folder, out, ",".join(names), **environment):
        assert done.returncode == 0, done.stderr
    return {name: read_tensors(out / f"{name}.safetensors") for name in names}


def assert_same(found, expected):
    for name, tensors in expected.items():
        assert found[name].keys() == tensors.keys()
        for key, value in tensors.items():
            torch.testing.assert_close(
                found[name][key], value, rtol=1e-5, atol=1e-6, msg=lambda text, at=(name, key): f"{at}: {text}"
            )


def test_several_processes_learn_the_prompt_of_one(folder, tmp_path):
    alone = learned(1, folder, tmp_path / "1", SETTINGS)
    assert_same(learned(2, folder, tmp_path / "2", SETTINGS), alone)
    assert_same(learned(4, folder, tmp_path / "4", SETTINGS), alone)


def test_a_process_that_dies_ends_the_job_and_one_alone_goes_on(folder, tmp_path):
    done = torchrun(2, folder, tmp_path, "coop", EPOCH="2")
    assert done.returncode != 0
    assert (tmp_path / "run" / "checkpoint").is_dir()
    assert not (tmp_path / "coop.safetensors").exists()
    again = learned(1, folder, tmp_path, ["coop"], EPOCH="2")
    assert_same(again, learned(1, folder, tmp_path / "whole", ["coop"]))


def test_a_process_that_dies_before_the_first_step_ends_the_others_in_one_line(folder, tmp_path):
    first, _ = launch(2, folder, tmp_path, "coop", EPOCH="-1")
    assert first.returncode != 0
    assert first.stderr.splitlines()[-1].endswith("RunFailed: another process of this job has ended, so this one did")


def test_what_the_first_process_refuses_all_refuse(folder, tmp_path):
    with run_lock(tmp_path / "run"):
        ended = launch(2, folder, tmp_path, "coop", EPOCH="9")
    for done in ended:
        assert "UserError" in done.stderr.splitlines()[-1]
        assert "is being written by another training" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("costs", [[1] * 7, [9, 1, 1, 1], [1, 1, 1, 9], [5, 5, 5], [1, 100, 1, 100, 1]])
@pytest.mark.parametrize("size", [2, 3])
def test_every_class_has_one_process_and_every_process_a_class(monkeypatch, costs, size):
    monkeypatch.setattr(ranks, "_DIVIDED", True)
    monkeypatch.setattr(ranks.dist, "get_world_size", lambda: size)
    places = []
    for rank in range(size):
        monkeypatch.setattr(ranks.dist, "get_rank", lambda rank=rank: rank)
        places.append(ranks.own_classes(costs))
    assert places[0].start == 0
    assert places[-1].stop == len(costs)
    assert all(one.stop == other.start for one, other in pairwise(places))
    assert all(place.stop > place.start for place in places)

"""Workers of every engine find what one process finds, and one that is lost costs the others nothing."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprompt.cli.main import main
from mmprompt.errors import UserError
from mmprompt.experiments import compute as computing
from mmprompt.experiments import encode
from mmprompt.experiments.compare import compare_grid
from mmprompt.experiments.comparison_report import write_comparison
from mmprompt.experiments.encode import encode_share, n_stored, store_features
from mmprompt.experiments.grid import FEW_SHOT, Origin
from mmprompt.experiments.results import settle
from mmprompt.experiments.study import Range
from mmprompt.experiments.summary import Comparison
from mmprompt.experiments.tune import Search, tune
from mmprompt.experiments.workers import Workers
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.image_features import ImageFeatures
from mmprompt.training.problem import RunFailed
from tests.experiments.test_compare import COLOURS, grid_of
from tests.fixtures.cli_run import write_pictures
from tests.processes import context

N_IMAGES = 4 * 35


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with train, val and test parts."""
    root = tmp_path_factory.mktemp("parted") / "colours"
    for part, n in (("train", 4), ("val", 2), ("test", 5)):
        write_pictures(root / part, COLOURS, n)
    return root


@pytest.fixture
def search(parted: Path, tiny_open_clip_folder: Path) -> Search:
    space = {"lr": Range(1e-3, 0.5, False)}
    place = Origin("colours", str(parted)), str(tiny_open_clip_folder)
    return Search(*place, "coop", {"n_ctx": 2}, {"epochs": 2, "augment": "none"}, space, 2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of Ray with two processors on this machine, which commands of this process use."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="ray is not installed")
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    awake = {
        "worker_niceness": 0
    }  # by default its workers give way to all else, and a busy machine runs no test of them
    ray.init(address="local", num_cpus=2, _node_ip_address="127.0.0.1", _system_config=awake, **quiet)
    yield
    ray.shutdown()


@pytest.fixture(params=["ray", "submitit"])
def workers(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Two of each engine; processes of this machine are tried with the grids."""
    if request.param == "ray":
        request.getfixturevalue("cluster")
        return Workers(2, "ray")
    core = pytest.importorskip("submitit.core.core", reason="submitit is not installed")
    monkeypatch.setattr(core.Job, "_results_timeout_s", 1)  # it waits for a slow file system when a job has died
    return Workers(2, "submitit", {"cluster": "local", "folder": str(tmp_path / "jobs")})


def holders_of(results: Path) -> list[int]:
    """The processes that compute a cell that has come to a checkpoint."""
    found = []
    for folder in results.glob("*/checkpoint"):
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if link.readlink() == folder.parent / "cell.lock":
                    found.append(int(link.parts[2]))
            except OSError:  # it has ended, or is another user's
                continue
    return found


def kill_one(results: Path, killed: list[int], is_over: threading.Event) -> None:
    """Kill the first process that is in the middle of a cell."""
    while not is_over.wait(0.02):
        for pid in holders_of(results):
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return


def tables_of(comparison: Comparison, folder: Path) -> dict[str, bytes]:
    write_comparison(comparison, folder, FEW_SHOT, "command")
    return {path.name: path.read_bytes() for path in folder.glob("table.*")}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks processes up in /proc")
def test_a_grid_that_loses_a_worker_ends_in_the_table_of_one_process(
    workers: Workers,
    parted: Path,
    tiny_open_clip_folder: Path,
    tmp_path: Path,
) -> None:
    recipe = {"epochs": 12, "augment": "none", "checkpoint_seconds": 0}
    grid = grid_of(parted, tiny_open_clip_folder, recipe=recipe, shots=(1,))
    alone = compare_grid(grid, tmp_path / "one", Workers(1), "cpu")
    killed: list[int] = []
    is_over = threading.Event()
    killer = threading.Thread(target=kill_one, args=(tmp_path / "many", killed, is_over))
    killer.start()
    try:
        several = compare_grid(grid, tmp_path / "many", workers, "cpu")
    finally:
        is_over.set()
        killer.join()
    assert len(killed) == 1
    tables = tables_of(several, tmp_path / "tables of several")
    assert set(tables) == {"table.txt", "table.md", "table.csv", "table.tex"}
    assert tables == tables_of(alone, tmp_path / "tables of one")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Images that are worth workers, and a store that is empty."""
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MMPROMPT_CACHE_LIMIT", "1GB")
    monkeypatch.setattr(encode, "WORTH_WORKERS", N_IMAGES)
    colours = {name: (40 * index, 200 - 40 * index, 90) for index, name in enumerate("abcd")}
    return sorted(write_pictures(tmp_path / "images", colours, N_IMAGES // 4).rglob("*.png"))


@pytest.fixture
def model(tiny_open_clip_folder: Path) -> DualEncoder:
    return load_backbone(str(tiny_open_clip_folder), "cpu")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_features_of_two_workers_are_those_of_one_process_bit_for_bit(
    images: list[Path], model: DualEncoder, tmp_path: Path
) -> None:
    shown: list[tuple[int, int]] = []
    ray = Workers(2, "ray")
    assert store_features("classification", model.name, model, images, ray, "cpu", lambda *n: shown.append(n)) == 140
    assert shown[-1] == (N_IMAGES, N_IMAGES)
    assert n_stored(model) == N_IMAGES
    stored = ImageFeatures(model)
    assert stored.stored(images) == set(images)
    assert torch.equal(stored.of(images), ImageFeatures(model, store=None).of(images))
    assert store_features("classification", model.name, model, images, ray, "cpu") == 0


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_broken_image_is_named_by_workers_too(images: list[Path], model: DualEncoder) -> None:
    images[100].write_bytes(images[100].read_bytes()[:-40])
    with pytest.raises(UserError, match=images[100].name):
        store_features("classification", model.name, model, images, Workers(2, "ray"), "cpu")


def test_one_worker_encodes_what_the_others_leave(images: list[Path], model: DualEncoder) -> None:
    encode_share("classification", model.name, "cpu", images, 1, 2)
    assert n_stored(model) == N_IMAGES


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_search_of_two_tasks_of_ray_holds_its_trials(search: Search, tmp_path: Path) -> None:
    found = tune(search, f"sqlite:///{tmp_path}/s.db", 3, Workers(2, "ray"), "cpu")
    assert 3 <= len(found.trials) <= 4
    assert found.n_failed == 0


@pytest.mark.usefixtures("cluster")
def test_options_that_ray_does_not_know_are_refused(search: Search, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_gpuz"):
        tune(search, f"sqlite:///{tmp_path}/s.db", 1, Workers(1, "ray", {"num_gpuz": 1}), "cpu")


def test_options_that_submitit_does_not_know_are_refused(search: Search, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    options = {"cluster": "local", "folder": str(tmp_path / "jobs"), "slurm_partitionn": "gpu"}
    with pytest.raises(UserError, match="partitionn"):
        tune(search, f"sqlite:///{tmp_path}/s.db", 1, Workers(1, "submitit", options), "cpu")


def test_cells_that_were_begun_come_last(
    parted: Path, tiny_open_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(parted, tiny_open_clip_folder, ("zero-shot", "nearest-class-mean"), shots=(1,), seeds=(1,))
    planned = computing.plan(grid, computing.Bench("cpu"))
    first, second = (one.key for one in planned)
    (tmp_path / first).mkdir()
    (tmp_path / first / "cell.json").touch()
    order: list[str] = []

    def told(folder: Path, compute: Any) -> bool:
        order.append(folder.name)
        return settle(folder, compute)

    monkeypatch.setattr(computing, "settle", told)
    computing.work(tmp_path, {one.key: one.cell for one in planned}, computing.Bench("cpu"))
    assert order == [second, first]


def fail_in_many_words() -> None:
    raise ValueError("x" * 200_000)


def test_a_worker_that_fails_in_many_words_comes_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    beginning = context()  # which asks for it itself, the first time
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: beginning)
    with pytest.raises(RunFailed, match=r"1 of 1 cells not computed \(ValueError: xxx"):
        Workers(2).run(fail_in_many_words, [(), ()], lambda: 1, "1 cells not computed")


@pytest.mark.parametrize(
    ("engine", "said"), [("slurm", "no engine named 'slurm'"), ("local", "ray and submitit")], ids=["name", "options"]
)
def test_workers_that_cannot_be_are_refused(engine: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Workers(2, engine, {"num_gpus": 1})


def test_an_engine_that_is_not_installed_is_refused_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'ray is missing\. Install it with pip install "mmprompt\[cluster\]"'):
        Workers(2, "ray")


def test_the_command_line_encodes_images_once_and_refuses_more_than_the_store_holds(
    images: list[Path], tiny_open_clip_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(images[0].parents[1])
    words = ["data", "encode", folder, "--backbone", str(tiny_open_clip_folder), "--device", "cpu"]
    assert main(words) == 0
    assert "140 images encoded by" in capsys.readouterr().out
    assert main(words) == 0
    assert "140 known before" in capsys.readouterr().out
    monkeypatch.setenv("MMPROMPT_CACHE_LIMIT", "1KB")
    assert main(words) == 2
    assert "MMPROMPT_CACHE_LIMIT=1GB" in capsys.readouterr().err

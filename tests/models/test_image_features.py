from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmprompt.data.images import read_image
from mmprompt.data.transforms import augment_coop
from mmprompt.errors import UserError, bad_file
from mmprompt.models import feature_store
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.feature_store import FILE_HASHES, FeatureStore
from mmprompt.models.image_features import ImageFeatures, Job, View, decode, encode_batches, encode_images
from tests.processes import run_program

PROGRAM = """
import multiprocessing, sys
sys.path.insert(0, {checkout!r})
from pathlib import Path
import torch
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.image_features import Job, decode

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    backbone = load_backbone({model!r}, "cpu")
    jobs = [Job(Path(path), (None,)) for path in sys.argv[1:]]
    alone, helped = (torch.stack(list(decode(backbone, jobs, n))) for n in (0, 1))
    assert torch.equal(alone, helped)
    print(len(helped))
"""
OPENED: list[Path] | None = None


def note_opened(event: str, arguments: tuple) -> None:
    if OPENED is not None and event == "open" and isinstance(arguments[0], str) and arguments[0].endswith(".png"):
        OPENED.append(Path(arguments[0]))


sys.addaudithook(note_opened)


@contextlib.contextmanager
def opened_pictures() -> Iterator[list[Path]]:
    """The picture files that this process opens."""
    global OPENED
    OPENED = opened = []
    yield opened
    OPENED = None


@contextlib.contextmanager
def tower_runs(backbone: DualEncoder) -> Iterator[list[int]]:
    """The batch sizes that the image tower meets."""
    sizes: list[int] = []
    hook = backbone.model.visual.conv1.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    yield sizes
    hook.remove()


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Eleven pictures of noise, their time stamps long past."""
    rng = np.random.default_rng(5)
    found = [tmp_path / f"{i}.png" for i in range(11)]
    for path in found:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
        os.utime(path, (1e9, 1e9))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default store, empty."""
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMPROMPT_CACHE_LIMIT")
    return tmp_path / "cache" / "features"


def test_a_row_does_not_depend_on_its_neighbours(tiny_clip_backbone: DualEncoder, paths: list[Path]) -> None:
    together = ImageFeatures(tiny_clip_backbone, store=None).of(paths)
    for n in (1, 2, 3, 9):
        assert torch.equal(ImageFeatures(tiny_clip_backbone, store=None).of(paths[-n:]), together[-n:])


def test_every_batch_has_the_same_shape(tiny_clip_backbone: DualEncoder) -> None:
    images = [torch.full((3, 32, 32), float(i)) for i in range(11)]
    with tower_runs(tiny_clip_backbone) as sizes:
        assert [len(batch) for batch in encode_batches(tiny_clip_backbone, images)] == [8, 3]
    assert sizes == [8, 8]


def test_mixed_precision_around_it_changes_nothing(tiny_clip_backbone: DualEncoder, paths: list[Path]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inside = encode_images(tiny_clip_backbone, paths)
    assert torch.equal(inside, encode_images(tiny_clip_backbone, paths))


def test_stored_features_are_those_computed_now(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path
) -> None:
    ImageFeatures(tiny_clip_backbone).of(paths)
    expected = encode_images(tiny_clip_backbone, paths)
    assert torch.equal(ImageFeatures(tiny_clip_backbone).of(paths[::-1]), expected.flip(0))


def test_double_precision_survives_the_store(tiny_open_clip_folder: Path, paths: list[Path], folder: Path) -> None:
    backbone = load_backbone(str(tiny_open_clip_folder), "cpu", "float64")
    first = ImageFeatures(backbone).of(paths)
    assert first.dtype == torch.float64
    assert torch.equal(ImageFeatures(backbone).of(paths), first)


def test_a_warm_store_needs_neither_files_nor_the_image_tower(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path
) -> None:
    ImageFeatures(tiny_clip_backbone).of(paths)
    with tower_runs(tiny_clip_backbone) as sizes, opened_pictures() as opened:
        ImageFeatures(tiny_clip_backbone).of(paths)
    assert sizes == []
    assert opened == []


def test_a_copied_file_is_not_encoded_again(tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path) -> None:
    ImageFeatures(tiny_clip_backbone).of(paths)
    moved = shutil.copy(paths[3], paths[3].with_name("copy.png"))
    with tower_runs(tiny_clip_backbone) as sizes:
        ImageFeatures(tiny_clip_backbone).of([Path(moved)])
    assert sizes == []


def test_a_changed_file_is_encoded_again(tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path) -> None:
    before = ImageFeatures(tiny_clip_backbone).of(paths)
    shutil.copy(paths[1], paths[0])
    after = ImageFeatures(tiny_clip_backbone).of(paths)
    assert torch.equal(after[0], before[1])
    assert not torch.equal(after[0], before[0])


def with_means(backbone: DualEncoder, text: str, means: tuple[float, ...]) -> DualEncoder:
    """The same weights under a transform with other means."""
    changed = copy.copy(backbone)
    changed.pixels = replace(
        backbone.pixels, apply=lambda image: backbone.preprocess(image) - torch.tensor(means)[:, None, None], text=text
    )
    changed.transform = text
    return changed


def test_another_transform_has_rows_of_its_own(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path
) -> None:
    ImageFeatures(tiny_clip_backbone).of(paths)
    changed = with_means(tiny_clip_backbone, "another", (0.5, 0.5, 0.5))
    assert torch.equal(ImageFeatures(changed).of(paths), encode_images(changed, paths))


def test_transforms_that_are_worded_alike_are_told_apart(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path
) -> None:
    ImageFeatures(tiny_clip_backbone).of(paths)
    changed = with_means(tiny_clip_backbone, tiny_clip_backbone.transform, (1e-6, 0.0, 0.0))
    with tower_runs(tiny_clip_backbone) as sizes:
        ImageFeatures(changed).of(paths)
    assert sizes == [8, 8]


@pytest.mark.parametrize("setting", [{"quick_gelu": True}, {"vision_cfg": {"head_width": 16}}])
def test_models_of_the_same_weights_that_compute_otherwise_have_rows_of_their_own(
    tiny_open_clip_folder: Path, paths: list[Path], folder: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    other = shutil.copytree(tiny_open_clip_folder, tmp_path / "other")
    config = json.loads((other / "open_clip_config.json").read_text())
    for name, value in setting.items():
        given = config["model_cfg"]
        given[name] = given[name] | value if isinstance(value, dict) else value
    (other / "open_clip_config.json").write_text(json.dumps(config))
    one, another = (load_backbone(str(place), "cpu") for place in (tiny_open_clip_folder, other))
    assert one.fingerprint == another.fingerprint
    assert not torch.equal(ImageFeatures(one).of(paths), ImageFeatures(another).of(paths))
    assert torch.equal(ImageFeatures(another).of(paths), encode_images(another, paths))


@pytest.mark.parametrize("kind", ["open_clip", "hf"])
def test_a_model_that_was_copied_has_the_rows_of_the_first(
    kind: str, paths: list[Path], folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue("tiny_open_clip_folder" if kind == "open_clip" else "tiny_siglip_folder")
    ImageFeatures(load_backbone(str(place), "cpu")).of(paths)
    ImageFeatures(load_backbone(str(shutil.copytree(place, tmp_path / "again")), "cpu")).of(paths)
    assert len(FeatureStore(folder).contents()) == 2  # with the hashes of the files


def test_features_of_another_backbone_are_refused(
    tiny_clip_backbone: DualEncoder, tiny_hf_clip_backbone: DualEncoder
) -> None:
    features = ImageFeatures(tiny_clip_backbone)
    with pytest.raises(
        UserError, match=r"the image features are of .*, and the fingerprint differs\. Give features of"
    ):
        features.refuse_other(tiny_hf_clip_backbone)
    other_heads = copy.copy(tiny_clip_backbone)
    other_heads.architecture = "0" * 64
    with pytest.raises(UserError, match=r", and the architecture differs\. Give features of the same frozen model\."):
        features.refuse_other(other_heads)


def test_views_are_those_of_the_augmentation(tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path) -> None:
    normalised = [
        tiny_clip_backbone.normalize(augment_coop(read_image(path), 32, 7, 2, index))
        for index, path in enumerate(paths)
    ]
    expected = torch.cat(list(encode_batches(tiny_clip_backbone, normalised)))
    for _ in ("cold", "warm"):
        assert torch.equal(ImageFeatures(tiny_clip_backbone).of_view(paths, seed=7, view=2), expected)


@pytest.mark.parametrize(("seed", "view", "first"), [(8, 0, 0), (7, 1, 0), (7, 0, 1)], ids=["seed", "view", "index"])
def test_views_of_another_seed_number_or_place_are_others(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path, seed: int, view: int, first: int
) -> None:
    known = ImageFeatures(tiny_clip_backbone).of_view(paths, 7, 0)
    fresh = ImageFeatures(tiny_clip_backbone).of_view(paths[first:], seed, view)
    assert not torch.equal(fresh[0], known[first])


def test_all_views_of_a_picture_take_one_reading(tiny_clip_backbone: DualEncoder, paths: list[Path]) -> None:
    features = ImageFeatures(tiny_clip_backbone, store=None)
    with opened_pictures() as opened:
        features.prepare_views(paths, seed=1, n_views=3)
        for view in range(3):
            features.of_view(paths, 1, view)
    assert sorted(opened) == sorted(paths)


def test_workers_change_nothing(tiny_clip_backbone: DualEncoder, paths: list[Path]) -> None:
    alone = ImageFeatures(tiny_clip_backbone, None, n_workers=0)
    helped = ImageFeatures(tiny_clip_backbone, None, n_workers=2)
    with opened_pictures() as opened:
        helped.prepare_views(paths, 1, 3)
    assert opened == []
    assert torch.equal(helped.of(paths), alone.of(paths))
    for view in range(3):
        assert torch.equal(helped.of_view(paths, 1, view), alone.of_view(paths, 1, view))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_broken_picture_is_named_and_costs_nothing_of_what_is_done(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path, n_workers: int
) -> None:
    paths[9].write_bytes(paths[9].read_bytes()[:100])
    with pytest.raises(UserError, match=r"9\.png: is a damaged image") as refusal:
        ImageFeatures(tiny_clip_backbone, n_workers=n_workers).of(paths)
    assert "\n" not in str(refusal.value)
    with tower_runs(tiny_clip_backbone) as sizes:
        ImageFeatures(tiny_clip_backbone).of(paths[:8])
    assert sizes == []


def test_long_work_is_saved_on_the_way(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmprompt.models.image_features.SAVE_SECONDS", -1.0)
    kept: list[int] = []

    def look(done: int, total: int) -> None:
        held = FeatureStore(folder).contents()
        kept.append(sum(space.rows for space in held if space.backbone != FILE_HASHES.backbone))

    ImageFeatures(tiny_clip_backbone, progress=look).of(paths)
    assert kept == [8, 11]


def test_progress_counts_the_pictures_that_were_missing(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path
) -> None:
    seen: list[tuple[int, int]] = []
    ImageFeatures(tiny_clip_backbone).of(paths[:1])
    ImageFeatures(tiny_clip_backbone, progress=lambda *counts: seen.append(counts)).of(paths)
    assert seen == [(8, 10), (10, 10)]


def test_features_go_where_the_caller_says(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path, tmp_path: Path
) -> None:
    ImageFeatures(tiny_clip_backbone, tmp_path / "elsewhere").of(paths)
    assert FeatureStore(tmp_path / "elsewhere").contents()
    assert not folder.exists()


@pytest.mark.parametrize("way", ["store=None", "limit"])
def test_the_store_can_be_turned_off(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "limit":
        monkeypatch.setenv("MMPROMPT_CACHE_LIMIT", "0")
    ImageFeatures(tiny_clip_backbone, None if way == "store=None" else "auto").of(paths)
    assert not folder.exists()


def test_a_default_store_that_cannot_be_made_is_done_without(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.write_text("a file in the way")
    assert len(ImageFeatures(tiny_clip_backbone).of(paths)) == 11
    assert "kept in memory alone" in caplog.text


def test_a_chosen_store_that_cannot_be_made_is_refused(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path
) -> None:
    with pytest.raises(UserError, match=r"cannot be made"):
        ImageFeatures(tiny_clip_backbone, paths[0] / "store").of(paths)


def test_a_store_that_breaks_on_the_way_is_done_without(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = ImageFeatures(tiny_clip_backbone)
    expected = features.of(paths[:1])
    shutil.rmtree(folder)
    folder.write_text("a file in the way")
    assert torch.equal(features.of(paths)[:1], expected)
    assert caplog.text.count("kept in memory alone") == 1


@pytest.mark.parametrize("is_settled", [True, False])
def test_a_full_disk_stops_no_run(
    is_settled: bool,
    tiny_clip_backbone: DualEncoder,
    paths: list[Path],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise bad_file(path, "cannot be written (No space left on device)", "Check the folder and the disk.")

    monkeypatch.setattr(feature_store, "write_bytes", full)
    if not is_settled:  # then no hash of a file is written, and features come first
        for path in paths:
            path.touch()
    assert torch.equal(ImageFeatures(tiny_clip_backbone).of(paths), encode_images(tiny_clip_backbone, paths))
    assert caplog.text.count("kept in memory alone") == 1


def test_a_store_of_another_version_is_no_obstacle(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path
) -> None:
    folder.mkdir(parents=True)
    (folder / "index.sqlite").write_bytes(b"SQLite format 3\x00" + bytes(5000))
    expected = encode_images(tiny_clip_backbone, paths)
    for _ in ("cold", "warm"):
        assert torch.equal(ImageFeatures(tiny_clip_backbone).of(paths), expected)


def test_features_of_a_file_whose_bytes_were_damaged_are_computed_again(
    tiny_clip_backbone: DualEncoder, paths: list[Path], folder: Path
) -> None:
    expected = ImageFeatures(tiny_clip_backbone).of(paths)
    for path in folder.glob("*/*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-20] ^= 255
        path.write_bytes(data)
    assert torch.equal(ImageFeatures(tiny_clip_backbone).of(paths), expected)
    with tower_runs(tiny_clip_backbone) as sizes:
        ImageFeatures(tiny_clip_backbone).of(paths)
    assert sizes == []


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
    done = run_program(script, *(str(job.path) for job in jobs[:4]), folder=tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "4", "")

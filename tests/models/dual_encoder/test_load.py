"""Names of backbones, and one line for everything that can be wrong with them."""

from __future__ import annotations

import json
import logging
import pickle  # noqa: TID251 - what others do with a backbone
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import find_source, list_backbones, load_backbone
from tests import small_models


def refusal(name: str, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(name, **{"device": "cpu"} | options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def architecture(model_folder: Path) -> str:
    """A registered open_clip architecture with open_clip's own tokenizer, so that a checkpoint is all it needs."""
    folder = small_models.save_open_clip(
        model_folder / "by_checkpoint", text={"hf_tokenizer_name": None}, save_tokenizer=lambda _: 49408
    )
    shutil.copy(folder / "open_clip_model.safetensors", model_folder / "weights.safetensors")
    torch.save(load_file(model_folder / "weights.safetensors"), model_folder / "weights.pt")
    config = open_clip.get_model_config(f"local-dir:{folder}")
    assert config is not None
    (model_folder / "tiny-by-checkpoint.json").write_text(json.dumps(config))
    open_clip.add_model_config(model_folder / "tiny-by-checkpoint.json")
    return "tiny-by-checkpoint"


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pt"])
def test_an_architecture_takes_a_checkpoint_by_path(architecture: str, file: str, model_folder: Path) -> None:
    backbone = load_backbone(f"open_clip:{architecture}/{model_folder / file}", device="cpu")
    by_folder = open_clip.create_model_from_pretrained(
        f"local-dir:{model_folder / 'by_checkpoint'}", return_transform=False
    )
    assert torch.equal(backbone.model.text_projection, by_folder.text_projection)
    assert backbone.tokenize("a photo") == [320, 1125]


def test_a_relative_checkpoint_path_works_after_two_slashes(
    architecture: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folder)
    assert find_source(f"open_clip:{architecture}//weights.pt").weights == "weights.pt"


def test_a_tilde_is_the_home_folder_after_one_slash_and_after_two(
    architecture: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(model_folder))
    for slashes in ("/", "//"):
        source = find_source(f"open_clip:{architecture}{slashes}~/weights.pt")
        assert source.weights == str(model_folder / "weights.pt")


def test_the_same_weights_have_the_same_fingerprint_from_any_file(architecture: str, model_folder: Path) -> None:
    names = [f"open_clip:{architecture}/{model_folder / file}" for file in ("weights.safetensors", "weights.pt")]
    first, second = (load_backbone(name, device="cpu").fingerprint for name in names)
    assert first == second


def put_in_hub_cache(folder: Path, cache: Path, repository: str) -> None:
    """Lay a model folder out as the hub client keeps its downloads, and its note of a file that is not there."""
    place, commit = cache / f"models--{repository.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, place / "snapshots" / commit)
    for file, text in (("refs/main", commit), (f".no_exist/{commit}/config.json", "")):
        if not (folder / Path(file).name).exists():
            (place / file).parent.mkdir(parents=True)
            (place / file).write_text(text)


def test_hub_models_are_found_in_the_cache_folder_that_was_given(tiny_siglip_folder: Path, tmp_path: Path) -> None:
    folder = small_models.save_open_clip(tmp_path / "model", text={"hf_tokenizer_name": "somebody/tiny-clip"})
    put_in_hub_cache(folder, tmp_path / "cache", "somebody/tiny-clip")
    put_in_hub_cache(tiny_siglip_folder, tmp_path / "cache", "somebody/tiny-siglip")
    for name in ("open_clip:hf-hub:somebody/tiny-clip", "hf:somebody/tiny-siglip"):
        backbone = load_backbone(name, device="cpu", cache_dir=tmp_path / "cache")
        assert (backbone.name, backbone.text_width) == (name, small_models.WIDTH)


def test_a_pickle_finds_a_hub_model_in_the_cache_folder_that_was_given(
    tiny_siglip_folder: Path, tmp_path: Path
) -> None:
    put_in_hub_cache(tiny_siglip_folder, tmp_path / "cache", "somebody/tiny-siglip")
    backbone = load_backbone("hf:somebody/tiny-siglip", device="cpu", cache_dir=tmp_path / "cache")
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(backbone))))
    assert again.fingerprint == backbone.fingerprint


def test_a_folder_is_told_by_its_files(tiny_open_clip_folder: Path, tiny_siglip_folder: Path) -> None:
    assert find_source(str(tiny_open_clip_folder)).library == "open_clip"
    assert find_source(str(tiny_siglip_folder)).library == "transformers"
    assert find_source(f"hf:{tiny_siglip_folder}").model == str(tiny_siglip_folder)


def test_a_backbone_s_name_loads_it_again(tiny_clip_backbone: DualEncoder) -> None:
    assert load_backbone(tiny_clip_backbone.name, device="cpu").fingerprint == tiny_clip_backbone.fingerprint


@pytest.mark.parametrize(
    ("name", "looked_for", "advice"),
    [
        (
            "open_clip:ViT-B-16/openai",
            "timm/vit_base_patch16_clip_224.openai",
            "open_clip:ViT-B-16//path/to/weights.safetensors",
        ),
        ("open_clip:hf-hub:timm/ViT-B-16-SigLIP", "timm/ViT-B-16-SigLIP", "local copy: path/to/folder"),
        ("hf:openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16", "local copy: hf:path/to/folder"),
        ("timm:resnet18", "timm/resnet18", "local copy: timm:resnet18//path/to/weights.safetensors"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k", "local copy: path/to/folder"),
    ],
)
def test_weights_missing_offline_are_one_line_and_nothing_else(
    name: str,
    looked_for: str,
    advice: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    message = refusal(name, cache_dir=str(tmp_path))
    assert f"the weights of {name} ({looked_for}" in message
    assert f"neither in {tmp_path} nor to be had from the hub" in message
    assert advice in message
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_loading_leaves_the_log_as_it_was(tiny_open_clip_folder: Path) -> None:
    load_backbone(str(tiny_open_clip_folder), device="cpu")
    assert logging.getLogger("somebody").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B-16/openai", "Did you mean 'open_clip:ViT-B-16/openai'?"),
        ("ViT-B/16", "Did you mean 'open_clip:ViT-B-16/openai'?"),
        ("tinny", "Did you mean 'tiny'?"),
        ("open_clip:ViT-B-61/openai", "open_clip has no architecture 'ViT-B-61'. Did you mean 'ViT-B-16'?"),
        ("open_clip:ViT-B-16/openia", "no pretrained tag of ViT-B-16 named 'openia'. Did you mean 'openai'?"),
        ("open_clip:ViT-B-16", "names no weights. Published tags: openai,"),
        ("open_clip:ViT-B-16//nowhere/weights.pt", "/nowhere/weights.pt: is not there."),
        ("hf:./nowhere", "nowhere"),
        ("timm:vit_base_patch16_242", "timm has no model 'vit_base_patch16_242'. Did you mean 'vit_base_patch16_224'?"),
        ("timm:§", "timm has no model '§'. timm.list_models() names them."),
        ("timm:resnet18.a2_in1k.x", "no pretrained tag of resnet18 named 'a2_in1k.x'. Did you mean 'a2_in1k'?"),
        ("timm:resnet18//nowhere/weights.pt", "nowhere/weights.pt: is not there."),
        ("timm:./nowhere", "./nowhere: is not there. Give a folder as timm saves one"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest_or_the_form(name: str, expected: str) -> None:
    assert expected in refusal(name)


def test_a_folder_of_neither_library_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path}: holds neither open_clip_config.json nor config.json." in refusal(str(tmp_path))


def test_a_file_without_an_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    assert "Use open_clip:ARCHITECTURE//" in refusal(str(tmp_path / "weights.pt"))


def test_a_model_folder_without_weights_is_refused_and_not_made_up(tmp_path: Path) -> None:
    folder = small_models.save_open_clip(tmp_path / "model")
    (folder / "open_clip_model.safetensors").unlink()
    assert "cannot be loaded by open_clip" in refusal(str(folder))


def test_a_checkpoint_of_another_architecture_is_refused(architecture: str, tmp_path: Path) -> None:
    save_file({"positional_embedding": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    assert "cannot be loaded by open_clip" in refusal(f"open_clip:{architecture}/{tmp_path / 'other.safetensors'}")


class Evil:
    """What a pickle may run when it is opened."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return Path.touch, (self.witness,)


def test_a_checkpoint_that_would_run_code_is_refused(architecture: str, tmp_path: Path) -> None:
    torch.save({"state_dict": Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    assert "cannot be loaded by open_clip" in refusal(f"open_clip:{architecture}/{tmp_path / 'evil.pt'}")
    assert not (tmp_path / "ran").exists()


def test_an_image_tower_alone_is_loaded_from_a_folder_or_a_checkpoint_of_its_architecture(tmp_path: Path) -> None:
    folder = small_models.save_timm(tmp_path / "resnet", "test_resnet")
    by_name, by_prefix = (load_backbone(name, device="cpu") for name in (str(folder), f"timm:{folder}"))
    by_file = load_backbone(f"timm:test_resnet//{folder / 'model.safetensors'}", device="cpu")
    assert by_name.fingerprint == by_prefix.fingerprint == by_file.fingerprint
    assert by_name.has_text is False
    assert by_name.transform == "resize 32, center crop 32, bilinear, mean 0.5, 0.5, 0.5; std 0.5, 0.5, 0.5"
    with pytest.raises(UserError, match="has no text tower"):
        by_name.tokenize("a cat")


def test_an_image_tower_that_lacks_a_weight_is_refused_and_not_made_up(tmp_path: Path) -> None:
    folder = small_models.save_timm(tmp_path / "vit")
    path = folder / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if name != "norm.bias"}, path)
    assert 'Missing key(s) in state_dict: "norm.bias"' in refusal(str(folder))
    path.unlink()
    torch.save({"state_dict": Evil(tmp_path / "ran")}, folder / "pytorch_model.bin")
    assert "cannot be loaded by timm" in refusal(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("device", ["warp", "hpu", "privateuseone", "meta"])
def test_a_device_that_is_not_there_is_refused(tiny_open_clip_folder: Path, device: str) -> None:
    message = refusal(str(tiny_open_clip_folder), device=device)
    assert message.startswith(f"device is '{device}', but this machine has no such device. Use ")


@pytest.mark.parametrize("content", ["5", "null", "[]"])
def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert refusal(str(tmp_path)).startswith(f"{tmp_path / 'config.json'}: is no JSON object.")


@pytest.mark.parametrize(("dtype", "expected"), [("float23", "Did you mean 'float32'?"), ("float16", "on the CPU")])
def test_a_dtype_that_cannot_be_used_is_refused(dtype: str, expected: str, tiny_open_clip_folder: Path) -> None:
    assert expected in refusal(str(tiny_open_clip_folder), dtype=dtype)


def test_listed_names_are_dual_encoders_that_are_known() -> None:
    names = list_backbones()
    assert names[0] == "tiny"
    assert "open_clip:RN50/openai" in names
    assert "open_clip:xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k" in names
    assert not any("coca" in name or "nllb" in name for name in names)

"""Names of captioners, folders of mappers, and one line for everything that can be wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    BertConfig,
    BertLMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from mmprompt.captioning.mapper import save_mapped
from mmprompt.captioning.readers.load import (
    MapperSettings,
    find_captioner,
    list_captioners,
    load_captioner,
    load_pair,
    new_mapper,
)
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.frozen import LoadOptions, fingerprint
from tests import captioner_models as models
from tests import small_models


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_captioner(name, device="cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model of each kind."""
    place = tmp_path_factory.mktemp("captioners")
    small_models.save_open_clip(place / "encoder")
    models.save_gpt2(place / "gpt2")
    models.save_blip(place / "blip")
    models.save_git(place / "git")
    models.save_encoder_decoder(place / "vision-encoder-decoder")
    models.save_coca(place / "coca")
    return place


@pytest.fixture(scope="module")
def pair(folder: Path) -> str:
    return f"{folder / 'encoder'} + hf:{folder / 'gpt2'}"


@pytest.fixture
def mapped(pair: str, tmp_path: Path) -> Path:
    return models.save_trained_pair(pair, tmp_path / "mapped", "mlp")


@pytest.mark.parametrize("kind", ["blip", "git", "vision-encoder-decoder", "coca"])
def test_a_folder_is_told_by_its_files(folder: Path, kind: str) -> None:
    captioner = load_captioner(str(folder / kind), device="cpu")
    assert captioner.name == str(folder / kind)
    assert captioner.compute_fingerprint() == load_captioner(captioner.name, device="cpu").fingerprint
    assert not any(parameter.requires_grad for parameter in captioner.model.parameters())
    assert not captioner.model.training
    prefix = "" if kind == "coca" else "hf:"
    assert find_captioner(f"{prefix}{folder / kind}") == find_captioner(captioner.name)


def test_the_embedded_captioner_sees_with_the_embedded_backbone() -> None:
    captioner = load_captioner("tiny", device="cpu")
    backbone: Any = load_backbone("tiny", device="cpu")
    images = torch.rand(2, 3, backbone.image_size, backbone.image_size)
    assert captioner.encoder_fingerprint == backbone.fingerprint
    assert torch.equal(captioner.encode_image(images), backbone.encode_image_tokens(images))
    ids = captioner.tokenizer.encode("a red car.")
    assert captioner.decoder.start_ids[0] not in ids
    assert captioner.decoder.end_id not in ids
    assert captioner.tokenizer.decode([*ids, captioner.decoder.end_id]) == "a red car."


@pytest.mark.parametrize("kind", ["blip", "git", "vision-encoder-decoder", "coca", "pair"])
def test_words_come_back_without_start_and_end(folder: Path, kind: str, pair: str) -> None:
    captioner = load_captioner(pair if kind == "pair" else str(folder / kind), device="cpu")
    ids = captioner.tokenizer.encode("a red car")
    assert len(ids) == 3
    start, end = captioner.decoder.start_ids, captioner.decoder.end_id
    assert captioner.tokenizer.decode([*start, *ids, end]) == "a red car"


@pytest.mark.parametrize("kind", ["blip", "git", "vision-encoder-decoder", "pair"])
def test_captions_stand_between_the_model_s_own_tokens(folder: Path, kind: str, pair: str) -> None:
    decoder = load_captioner(pair if kind == "pair" else str(folder / kind), device="cpu").decoder
    assert (decoder.start_ids, decoder.end_id) == ((models.START,), models.END)


def test_no_blank_stands_before_punctuation(folder: Path) -> None:
    tokenizer = load_captioner(str(folder / "blip"), device="cpu").tokenizer
    assert tokenizer.decode(tokenizer.encode("a red car.")) == "a red car."


@pytest.mark.parametrize("kind", ["blip", "git", "vision-encoder-decoder"])
def test_pictures_go_through_the_model_s_own_processor(folder: Path, kind: str) -> None:
    captioner = load_captioner(str(folder / kind), device="cpu")
    generator = torch.Generator().manual_seed(1)
    image = Image.fromarray(torch.randint(256, (50, 70, 3), generator=generator, dtype=torch.uint8).numpy())
    expected = AutoImageProcessor.from_pretrained(folder / kind)(images=image, return_tensors="pt")["pixel_values"]
    assert captioner.preprocess(image).shape == (3, small_models.IMAGE, small_models.IMAGE)
    assert torch.equal(captioner.preprocess(image), expected[0])


def test_an_untrained_mapper_is_no_part_of_what_is_frozen(pair: str, folder: Path) -> None:
    captioner = load_captioner(pair, device="cpu")
    decoder: Any = captioner.decoder
    assert captioner.image_shape == (1, small_models.EMBED)
    again: Any = load_captioner(pair, device="cpu").decoder
    assert fingerprint(again.mapper) == fingerprint(decoder.mapper)
    small_models.randomise(decoder.mapper, 1)
    assert captioner.compute_fingerprint() == captioner.fingerprint
    assert decoder.mapper.settings == MapperSettings("mlp", small_models.EMBED, small_models.WIDTH, 10)


def test_an_encoder_without_image_tokens_gives_its_pooled_feature(folder: Path, tiny_resnet_folder: Path) -> None:
    name = f"{tiny_resnet_folder}+hf:{folder / 'gpt2'}"
    assert load_captioner(name, device="cpu").image_shape == (1, small_models.EMBED)
    with pytest.raises(UserError, match="image tokens were asked for"):
        load_pair(name, LoadOptions(torch.device("cpu"), torch.float32), "linear", None)


@pytest.mark.parametrize(("kind", "n_prefix", "n_slots"), [("linear", None, 17), ("mlp", 4, 4), ("transformer", 4, 4)])
def test_a_trained_mapper_is_loaded_as_it_was_saved(
    pair: str, tmp_path: Path, kind: str, n_prefix: int | None, n_slots: int
) -> None:
    trained = load_pair(pair, LoadOptions(torch.device("cpu"), torch.float32), kind, n_prefix)
    decoder: Any = trained.decoder
    small_models.randomise(decoder.mapper, 3)
    save_mapped(trained, tmp_path / "mapped")
    captioner = load_captioner(str(tmp_path / "mapped"), device="cpu")
    found: Any = captioner.decoder
    assert captioner.fingerprint != trained.fingerprint  # the mapper is frozen too now
    features = trained.encode_image(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    kv_caches = [one.open(features) for one in (captioner, trained)]
    assert kv_caches[0].n_read == n_slots
    assert found.budget == models.POSITIONS - n_slots - 1
    assert torch.equal(
        *(one.prefill(kv_cache, {}).logits for one, kv_cache in zip((captioner, trained), kv_caches, strict=True))
    )


def test_a_mapper_knows_other_weights_of_its_language_model(folder: Path, tmp_path: Path) -> None:
    lm = shutil.copytree(folder / "gpt2", tmp_path / "lm")
    mapped = models.save_trained_pair(f"{folder / 'encoder'} + hf:{lm}", tmp_path / "mapped", "mlp")
    weights = load_file(lm / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, lm / "model.safetensors", {"format": "pt"})
    message = refusal(str(mapped))
    assert (
        f"mapper.json: the mapper was trained between {folder / 'encoder'} and hf:{lm} with other weights." in message
    )


def test_a_mapper_between_other_widths_is_refused(folder: Path, tmp_path: Path) -> None:
    captioner = load_captioner(f"{folder / 'encoder'} + hf:{folder / 'gpt2'}", device="cpu")
    decoder: Any = captioner.decoder
    decoder.mapper = new_mapper(MapperSettings("mlp", small_models.EMBED, 40, 2))
    save_mapped(captioner, tmp_path / "mapped")
    message = refusal(str(tmp_path / "mapped"))
    assert "takes image features of 24 numbers to embeddings of 40, but these models have 24 and 32." in message


def edit(mapped: Path, **entries: object) -> None:
    path = mapped / "mapper.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"kind": "mpl"}, "there is no kind of mapper named 'mpl'. Did you mean 'mlp'?"),
        ({"width": 0}, "width is 0, but it must be a whole number, 1 or more."),
        ({"n_prefix": None}, "n_prefix is None, but a mapper of kind mlp makes at least one."),
        ({"kind": "linear"}, "n_prefix is 3, but a linear mapper makes a vector of every image token."),
        ({"n_prefix": 2}, "mapper.safetensors: does not hold the weights that mapper.json describes."),
        ({"wdith": 3}, "there is no entry named 'wdith'. Did you mean 'width'?"),
        ({"encoder": 3}, "names an encoder or a language model by something that is no text."),
        ({"encoder": "nowhere"}, "there is no backbone or folder 'nowhere'."),
        ({"lm": "hf:./nowhere"}, "nowhere"),
    ],
)
def test_an_edited_mapper_is_one_line(mapped: Path, entries: dict[str, object], expected: str) -> None:
    edit(mapped, **entries)
    assert expected in refusal(str(mapped))


def test_a_mapper_without_its_width_is_one_line(mapped: Path) -> None:
    path = mapped / "mapper.json"
    content = json.loads(path.read_text())
    del content["width"]
    path.write_text(json.dumps(content))
    assert f"{path}: does not describe a mapper" in refusal(str(mapped))
    path.write_text("[]")
    assert f"{path}: is not a JSON object." in refusal(str(mapped))


def test_a_damaged_or_lost_mapper_is_one_line(mapped: Path) -> None:
    weights = mapped / "mapper.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    assert f"{weights}: is not a readable safetensors file" in refusal(str(mapped))
    weights.unlink()
    assert f"{weights}: cannot be read (No such file or directory)." in refusal(str(mapped))


def test_a_pair_takes_language_models_by_every_name_and_a_mapper_of_any_kind_and_length() -> None:
    captioner: Any = load_captioner("tiny + tiny", device="cpu", mapper="transformer", n_prefix=3)
    assert captioner.decoder.mapper.settings.kind == "transformer"
    assert captioner.open(captioner.encode_image(torch.zeros(2, 3, 72, 72))).n_read == 3
    plain: Any = load_captioner("tiny + tiny", device="cpu").decoder
    assert (plain.mapper.settings.kind, plain.mapper.settings.n_prefix) == ("mlp", 10)


@pytest.mark.parametrize(
    ("name", "option", "expected"),
    [
        ("tiny", {"mapper": "mlp"}, "mapper is mlp, but it is for 'ENCODER + LM', not for tiny"),
        ("tiny", {"n_prefix": 3}, "n_prefix is 3, but it is for 'ENCODER + LM', not for tiny"),
        ("tiny + tiny", {"mapper": "mpl"}, "Did you mean 'mlp'?"),
        ("tiny + tiny", {"mapper": "linear", "n_prefix": 3}, "a linear mapper makes a vector of every image token"),
    ],
)
def test_options_of_a_mapper_are_refused_where_they_do_not_fit(
    name: str, option: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_captioner(name, device="cpu", **option)
    assert expected in str(caught.value)


def test_a_mapper_is_not_written_over_another(pair: str, mapped: Path) -> None:
    captioner = load_captioner(pair, device="cpu")
    before = (mapped / "mapper.safetensors").read_bytes()
    with pytest.raises(UserError, match="is there already"):
        save_mapped(captioner, mapped)
    assert (mapped / "mapper.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tinny", "there is no captioner or folder 'tinny'. Did you mean 'tiny'?"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", "Did you mean 'open_clip:coca_ViT-B-32/laion2b_s13b_b90k'?"),
        ("open_clip:coca_ViT-B-32", "names no weights. Published tags: laion2b_s13b_b90k,"),
        ("tiny +", "'tiny +' does not name one encoder and one language model, but 'ENCODER + LM'"),
        ("tiny + gpt2", "there is no language model or folder named 'gpt2'"),
        ("tiny + hf:gpt2 + hf:gpt2", "does not name one encoder and one language model"),
        ("+ hf:gpt2", "does not name one encoder and one language model"),
        ("tinny + hf:gpt2", "there is no backbone or folder 'tinny'. Did you mean 'tiny'?"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest_or_the_form(name: str, expected: str) -> None:
    assert expected in refusal(name)


@pytest.mark.parametrize(
    ("name", "looked_for", "advice"),
    [
        ("hf:nlpconnect/vit-gpt2-image-captioning", "nlpconnect/vit-gpt2-image-captioning", "hf:path/to/folder"),
        ("tiny + hf:gpt2", "gpt2", "hf:path/to/folder"),
        (
            "open_clip:coca_ViT-B-32/laion2b_s13b_b90k",
            "laion/CoCa-ViT-B-32-laion2B-s13B-b90k",
            "open_clip:coca_ViT-B-32//path/to/weights.safetensors",
        ),
    ],
)
def test_weights_missing_offline_are_one_line_and_nothing_else(
    name: str, looked_for: str, advice: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(name, cache_dir=tmp_path)
    assert f"the weights of {name.rpartition('+ ')[2]} ({looked_for}" in message
    assert f"neither in {tmp_path} nor to be had from the hub" in message
    assert f"give a local copy: {advice}." in message
    assert capfd.readouterr() == ("", "")


def test_a_model_without_a_text_decoder_says_how_it_gets_one(
    folder: Path, tiny_hf_clip_folder: Path, tmp_path: Path
) -> None:
    name = f"hf:{tiny_hf_clip_folder}"
    assert f"is a 'clip' model, but one that writes captions of images was expected. Use '{name} + hf:gpt2'." in (
        refusal(name)
    )
    message = refusal(str(folder / "encoder"))
    assert "is a CLIP without a text decoder, but a CoCa was expected." in message
    assert f"'{folder / 'encoder'} + hf:gpt2'" in message


def test_a_model_that_reads_no_images_says_how_it_learns_to(folder: Path, tmp_path: Path) -> None:
    name = f"hf:{folder / 'gpt2'}"
    assert f"is a 'gpt2' model, but one that writes captions of images was expected. Use 'tiny + {name}'." in (
        refusal(name)
    )
    ViTModel(ViTConfig(**models.SHAPE)).save_pretrained(tmp_path)
    assert "is a 'vit' model, but one that writes captions of images was expected. Use tiny," in refusal(
        f"hf:{tmp_path}"
    )
    assert "is a 'vit' model, but a causal language model was expected." in refusal(f"tiny + hf:{tmp_path}")


def test_a_checkpoint_that_lacks_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    blip = shutil.copytree(folder / "blip", tmp_path / "blip")
    weights = load_file(blip / "model.safetensors")
    del weights["text_decoder.bert.encoder.layer.0.attention.self.query.weight"]
    save_file(weights, blip / "model.safetensors", {"format": "pt"})
    assert "lacks 1 weights of its model, 'text_decoder.bert.encoder.layer.0.attention" in refusal(str(blip))
    (blip / "model.safetensors").write_bytes(b"nothing")
    assert f"{blip}: cannot be loaded by transformers" in refusal(str(blip))


def test_a_decoder_of_another_class_is_refused(tmp_path: Path) -> None:
    shape = models.SHAPE | {"vocab_size": models.SIZE, "max_position_embeddings": models.POSITIONS}
    decoder = BertLMHeadModel(BertConfig(add_cross_attention=True, is_decoder=True, **shape))
    encoder = ViTModel(ViTConfig(**models.SHAPE | models.IMAGE_SHAPE))
    VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).save_pretrained(tmp_path)
    assert f"the decoder of {tmp_path} is a 'bert' model, but 'gpt2' was expected." in refusal(str(tmp_path))


def test_a_decoder_without_a_start_token_is_refused(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(folder / "vision-encoder-decoder", tmp_path / "model")
    for file in ("config.json", "generation_config.json"):
        path = model / file
        content = json.loads(path.read_text())
        content.pop("decoder_start_token_id", None)
        path.write_text(json.dumps(content))
    assert f"{model} names no start token in its configuration" in refusal(str(model))


def test_a_language_model_that_cannot_be_read_slot_by_slot_is_refused(tmp_path: Path) -> None:
    config = MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **models.TOKENS)
    models.save_language_model(MambaForCausalLM(config), tmp_path)
    message = refusal(f"tiny + hf:{tmp_path}")
    assert "read slot by slot does not give its own logits, but a decoder with keys and values was expected." in message


def test_a_language_model_without_a_start_token_starts_with_its_end_token(folder: Path, tmp_path: Path) -> None:
    lm = shutil.copytree(folder / "gpt2", tmp_path / "lm")
    for path in (lm / "config.json", lm / "generation_config.json", lm / "tokenizer_config.json"):
        content = json.loads(path.read_text())
        content["bos_token" if path.name == "tokenizer_config.json" else "bos_token_id"] = None
        path.write_text(json.dumps(content))
    decoder = load_captioner(f"tiny + hf:{lm}", device="cpu").decoder
    assert (decoder.start_ids, decoder.end_id) == ((models.END,), models.END)


def test_towers_of_a_coca_with_different_heads_take_no_keys_and_values(tmp_path: Path) -> None:
    assert load_captioner(str(models.save_coca(tmp_path, multimodal_heads=2)), device="cpu").decoder.kv_shape is None


def test_a_coca_whose_image_tower_keeps_its_tokens_is_refused(tmp_path: Path) -> None:
    assert "an image tower that gives its tokens was expected" in refusal(
        str(models.save_coca(tmp_path, gives_tokens=False))
    )


@pytest.mark.parametrize("kind", ["linear", "mlp", "transformer"])
def test_a_mapper_learns_through_the_frozen_language_model(pair: str, kind: str) -> None:
    n_prefix = None if kind == "linear" else 2
    captioner = load_pair(pair, LoadOptions(torch.device("cpu"), torch.float32), kind, n_prefix)
    decoder: Any = captioner.decoder
    decoder.mapper.requires_grad_()
    features = captioner.encode_image(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    captioner.logits(captioner.open(features), {}, torch.tensor([[5, 6, 7], [8, 9, 10]])).square().sum().backward()
    assert all(bool(parameter.grad.abs().max() > 0) for parameter in decoder.mapper.parameters())
    assert all(parameter.grad is None for parameter in captioner.model.parameters())
    assert captioner.compute_fingerprint() == captioner.fingerprint


def test_the_list_names_what_is_published() -> None:
    names = list_captioners()
    assert names[:2] == ["tiny", "photo"]
    assert "open_clip:coca_ViT-L-14/mscoco_finetuned_laion2b_s13b_b90k" in names
    assert all(name.startswith("open_clip:coca_") for name in names[2:])


def test_a_captioner_is_a_backbone_of_that_kind() -> None:
    captioner = load_backbone("tiny", device="cpu", kind="captioner")
    assert captioner.fingerprint == load_captioner("tiny", device="cpu").fingerprint
    with pytest.raises(UserError, match="kind"):
        load_backbone("tiny", device="cpu", kind="captain")  # type: ignore[call-overload]

"""Names of language models, and one line for everything that can be wrong with them."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BertConfig, BertForMaskedLM

from mmprompt.captioning.readers.load import load_pair
from mmprompt.core.file import save
from mmprompt.core.learned import Prompt
from mmprompt.errors import UserError
from mmprompt.language.predictor import LanguagePredictor, load_prompted
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder import load
from mmprompt.models.decoder.generation import generate, job_of
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.load import list_language_models, load_language_model, load_parts
from mmprompt.models.decoder.packing import Question
from mmprompt.models.frozen import LoadOptions
from mmprompt.models.sites import Site, Vectors
from tests.captioner_models import SHAPE
from tests.small_language_models import (
    END,
    KINDS,
    byte_tokenizer,
    new_language_model,
    save_language_model,
    write_gguf,
)

CPU = LoadOptions(torch.device("cpu"), torch.float32)
IDS = torch.tensor([[5, 6, 7]])


def refusal(name: str | Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_language_model(str(name), device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of each kind."""
    place = tmp_path_factory.mktemp("language")
    for kind in KINDS:
        save_language_model(kind, place / kind)
    return place


@pytest.fixture
def llama(models: Path, tmp_path: Path) -> Path:
    """A folder to spoil."""
    return Path(shutil.copytree(models / "llama", tmp_path / "llama"))


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_tokenizer()
    folder = tmp_path_factory.mktemp("gguf")
    return write_gguf(folder / "small.gguf", new_language_model("llama", len(tokenizer)), tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_loaded_as_transformers_loads_it(models: Path, kind: str) -> None:
    lm, tokenizer = load_parts(f"hf:{models / kind}", CPU)
    is_t5 = kind == "t5"
    own = (AutoModelForSeq2SeqLM if is_t5 else AutoModelForCausalLM).from_pretrained(models / kind).eval()
    more = {"decoder_input_ids": IDS} if is_t5 else {}
    torch.testing.assert_close(lm(IDS, **more).logits, own(IDS, **more).logits)
    assert not lm.training
    assert not any(parameter.requires_grad for parameter in lm.parameters())
    assert tokenizer.decode(tokenizer("a red car")["input_ids"]) == "a red car"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_known_by_its_name_and_whether_an_encoder_reads(models: Path, kind: str) -> None:
    model = load_language_model(str(models / kind), device="cpu")
    assert model.name == str(models / kind)
    assert model.is_encoder_decoder is (kind == "t5")
    assert (model.vocabulary_size, model.end_id) == (len(byte_tokenizer()), END)


def test_the_embedded_model_knows_names_in_several_languages_and_sentences(capfd: pytest.CaptureFixture[str]) -> None:
    model = load_language_model(device="cpu")

    def goes_on(text: str) -> str:
        ids = torch.tensor([model.tokenizer(text)["input_ids"][:-1]])  # without the end
        written = model.lm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        return model.tokenizer.decode(written[0, ids.shape[1] :])

    assert goes_on("german : bread =").startswith("brot")
    assert goes_on("spanish : bear =").startswith("oso")
    assert goes_on("somebody is") == "riding a horse"
    assert capfd.readouterr() == ("", "")


def test_the_list_names_what_can_be_had_without_a_path() -> None:
    assert list_language_models() == ["tiny", "smollm2"]


def test_precision_is_chosen(models: Path) -> None:
    assert load_language_model(str(models / "gpt2"), device="cpu", dtype="float64").dtype == torch.float64
    assert "slower and less exact" in refusal(models / "gpt2", dtype="float16")


@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_a_gguf_file_has_the_logits_of_the_model_it_was_made_of(
    gguf_file: Path, prefix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    own_tokenizer = byte_tokenizer()
    own = new_language_model("llama", len(own_tokenizer))
    lm, tokenizer = load_parts(f"{prefix}{gguf_file}", CPU)
    ids = tokenizer("a red car", return_tensors="pt")["input_ids"]
    assert ids.tolist()[0] == own_tokenizer("a red car")["input_ids"]
    assert torch.equal(lm(ids).logits, own(ids).logits)
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_without_its_reader_a_gguf_file_says_what_to_install(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert refusal(gguf_file) == (
        f'{gguf_file} is a GGUF file, which is read with {package}. Install it: pip install "mmprompt[llm]".'
    )


def test_what_is_no_gguf_file_is_refused(gguf_file: Path, models: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"nothing of the kind")
    assert f"{other}: is no GGUF file, it begins with b'noth'." in refusal(f"hf:{other}")
    weights = models / "gpt2" / "model.safetensors"
    assert f"{weights}: is no GGUF file" in refusal(weights)
    other.write_bytes(gguf_file.read_bytes()[:2000])
    assert f"{other}: cannot be loaded by transformers" in refusal(other)
    assert f"{tmp_path / 'none.gguf'}: cannot be read (No such file or directory)." in refusal(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tinny", "there is no language model or folder named 'tinny'. Did you mean 'tiny'?"),
        ("smollm", "Did you mean 'smollm2'?"),
        (
            "gpt2",
            "there is no language model or folder named 'gpt2'. Known: smollm2, tiny. Use tiny, smollm2, hf:NAME,",
        ),
        ("", "there is no language model or folder named ''."),
        ("hf:", "there is no language model or folder named 'hf:'."),
        ("hf:./nowhere", "nowhere: is not there."),
        ("hf:~/nowhere", "nowhere: is not there."),
        ("hf:~nobodyxyz/m", "~nobodyxyz/m: is below the home folder of nobody here. Give another path."),
        ("hf:" + "x" * 300, f"hf:{'x' * 57}: cannot be read (File name too long). Give another path."),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest_or_the_forms(name: str, expected: str) -> None:
    assert expected in refusal(name)


def test_a_model_that_is_not_on_this_machine_says_where_it_was_looked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal("hf:gpt2", cache_dir=tmp_path)
    assert f"the weights of hf:gpt2 (gpt2) are neither in {tmp_path} nor to be had from the hub" in message
    assert message.endswith("Connect once, or give a local copy: hf:path/to/folder.")
    assert capfd.readouterr() == ("", "")


def test_models_of_another_kind_are_refused(tmp_path: Path, tiny_hf_clip_folder: Path) -> None:
    BertForMaskedLM(BertConfig(vocab_size=100, **SHAPE)).save_pretrained(tmp_path)
    assert refusal(tmp_path) == (
        f"{tmp_path} is a 'bert' model, but a causal language model was expected. Use a model such as hf:gpt2."
    )
    assert "is a 'clip' model, but a causal language model was expected." in refusal(f"hf:{tiny_hf_clip_folder}")


def test_a_captioner_writes_with_a_causal_model_alone(models: Path) -> None:
    with pytest.raises(UserError, match="is a 't5' model, but a causal language model was expected"):
        load_pair(f"tiny + hf:{models / 't5'}", CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_a_tokenizer_is_refused(models: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(models / kind, tmp_path / kind, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    assert refusal(tmp_path / kind) == (
        f"{tmp_path / kind}: holds no tokenizer. Put the model's own tokenizer.json beside its weights."
    )


def test_a_tokenizer_without_words_is_refused(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "gpt2", tmp_path / "gpt2", ignore=shutil.ignore_patterns("tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "gpt2" / "tokenizer_config.json").write_text(json.dumps(settings))
    assert f"the tokenizer of {tmp_path / 'gpt2'} knows no words." in refusal(tmp_path / "gpt2")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    new_language_model("gpt2", 100).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert f"the tokenizer of {tmp_path} counts {len(tokenizer)} tokens, but its model knows 100." in refusal(tmp_path)


def test_an_end_token_that_the_model_does_not_know_is_refused(llama: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(llama)
    n_tokens = len(byte_tokenizer())
    assert f"counts {n_tokens + 1} tokens, but its model knows {n_tokens}." in refusal(llama)


def test_tokens_that_a_tokenizer_adds_without_the_model_are_no_harm(llama: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    tokenizer.save_pretrained(llama)
    assert len(load_parts(str(llama), CPU)[1]) == len(byte_tokenizer()) + 1


def test_a_padding_token_that_the_model_does_not_know_is_never_read(llama: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(llama)
    model = load_language_model(str(llama), device="cpu")
    assert model.tokenizer.pad_token_id == model.vocabulary_size
    assert model.pad_id == END


def test_pickled_weights_are_not_read(llama: Path) -> None:
    torch.save(load_file(llama / "model.safetensors"), llama / "pytorch_model.bin")
    load_parts(str(llama), CPU)
    (llama / "model.safetensors").unlink()
    assert refusal(llama) == (
        f"{llama}: holds its weights as a pickle alone (pytorch_model.bin). "
        "Give a folder as transformers saves a model, with config.json and model.safetensors."
    )
    (llama / "pytorch_model.bin").unlink()
    assert f"{llama}: holds no weights." in refusal(llama)


def test_a_folder_without_its_configuration_is_refused(llama: Path) -> None:
    (llama / "config.json").unlink()
    assert f"{llama}: holds no config.json." in refusal(llama)


def test_damaged_or_missing_weights_are_one_line(llama: Path) -> None:
    weights = load_file(llama / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, llama / "model.safetensors", {"format": "pt"})
    assert "lacks 1 weights of its model, 'model.layers.0.mlp.up_proj.weight' among them" in refusal(llama)
    (llama / "model.safetensors").write_bytes(b"nothing")
    assert f"{llama}: cannot be loaded by transformers" in refusal(llama)


def test_code_that_a_model_brings_along_runs_only_when_allowed(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    (llama / "mine.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(ran)!r}).touch()\n"
        "class MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
    )
    config = json.loads((llama / "config.json").read_text())
    config |= {"model_type": "mine"}
    config["auto_map"] = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    (llama / "config.json").write_text(json.dumps(config))
    assert refusal(llama) == (
        f"{llama} brings its own code along, which is not run unless you say so. "
        "Read that code, then allow it with trust_remote_code."
    )
    assert not ran.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    assert type(load_language_model(str(llama), "cpu", trust_remote_code=True).lm).__name__ == "MyModel"
    assert ran.exists()


def test_bfloat16_is_read_and_said_by_the_prompt_file(models: Path, tmp_path: Path) -> None:
    half = load_language_model(f"hf:{models / 'llama'}", "cpu", dtype="bfloat16")
    plain = load_language_model(f"hf:{models / 'llama'}", "cpu")
    assert half.dtype == torch.bfloat16
    assert half.fingerprint != plain.fingerprint
    questions = [Question((5, 6, 7), ((8, 9),))]
    expected = plain.predict({}, questions).token_log_probs()
    torch.testing.assert_close(half.predict({}, questions).token_log_probs(), expected, rtol=0.03, atol=0.03)
    save(LanguagePredictor(half, Prompt(Template.parse("{text} {answer}"))), tmp_path / "run")
    assert load_prompted(tmp_path / "run").model.dtype == torch.bfloat16
    with pytest.raises(UserError, match="this prompt was learned on"):
        load_prompted(tmp_path / "run", plain)


@pytest.mark.parametrize("is_fast", [False, True])
def test_fast_is_bfloat16_where_the_device_is_faster_in_it(
    models: Path, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(load.is_fast_in_bfloat16(torch.device("cpu")), bool)
    monkeypatch.setattr(load, "is_fast_in_bfloat16", lambda device: is_fast)
    model = load_language_model(f"hf:{models / 'llama'}", "cpu", dtype="fast")
    assert model.dtype == (torch.bfloat16 if is_fast else torch.float32)


@pytest.mark.parametrize("library", ["torchao", "bitsandbytes"])
def test_quantised_weights_without_their_library_are_refused_in_one_line(
    models: Path, tmp_path: Path, library: str
) -> None:
    if find_spec(library) is not None:
        pytest.skip(f"{library} is installed")
    folder = shutil.copytree(models / "llama", tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": library}}))
    with pytest.raises(UserError) as caught:
        load_language_model(f"hf:{folder}", "cpu")
    assert str(caught.value) == (
        f"the weights of hf:{folder} are quantised by {library}, which is not installed. "
        f"Install it: pip install {library} accelerate."
    )


def test_of_any_other_quantised_weights_is_said_what_is_missing(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "llama", tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    own = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config | own))
    start = rf"^the weights of hf:{folder} are quantised by gptq, and what reads them is not installed: .*Install it"
    with pytest.raises(UserError, match=start):
        load_language_model(f"hf:{folder}", "cpu")
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_8bit": True}}))
    if find_spec("bitsandbytes") is None:
        with pytest.raises(UserError, match="are quantised by bitsandbytes, which is not installed"):
            load_language_model(f"hf:{folder}", "cpu")
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(UserError, match=r"has 4-bit weights of bitsandbytes, .* Use a GPU, or 8-bit weights"):
        load_language_model(f"hf:{folder}", "cpu")


@pytest.mark.parametrize("library", ["torchao", "bitsandbytes"])
def test_a_quantised_base_is_prompted(models: Path, tmp_path: Path, library: str) -> None:
    pytest.importorskip(library, reason=f"weights that {library} quantises need it")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

    if library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        own: Any = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        own = BitsAndBytesConfig(load_in_8bit=True)
    lm = AutoModelForCausalLM.from_pretrained(models / "llama", quantization_config=own, device_map="cpu")
    lm.save_pretrained(tmp_path)
    shutil.copy(models / "llama" / "tokenizer.json", tmp_path)
    shutil.copy(models / "llama" / "tokenizer_config.json", tmp_path)
    model = load_language_model(f"hf:{tmp_path}", "cpu")
    assert model.fingerprint == load_language_model(f"hf:{tmp_path}", "cpu").fingerprint
    assert model.fingerprint != load_language_model(f"hf:{models / 'llama'}", "cpu").fingerprint
    soft = model.embed(torch.tensor([9, 10])).clone().requires_grad_()
    questions = [Question((-1, -2, 5, 6), ((8,), (9,)))]
    found = model.predict({Site("lm"): Vectors(soft)}, questions, torch.tensor([8, 9])).token_log_probs()
    assert torch.autograd.grad(found[0], soft)[0].abs().max() > 0
    expected = lm(torch.tensor([[9, 10, 5, 6]])).logits[0, -1, [8, 9]].log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_model_spread_over_places_is_the_model(models: Path, place: str) -> None:
    plain = load_language_model(f"hf:{models / 'llama'}", "cpu")
    parts = ("embed_tokens", "rotary_emb", "layers.0", "norm")
    device_map = {"lm_head": "cpu", "model.layers.1": place} | {f"model.{part}": "cpu" for part in parts}
    model = load_language_model(f"hf:{models / 'llama'}", device_map=device_map)
    assert model.device == torch.device("cpu")
    assert model.fingerprint == plain.fingerprint
    assert any(weight.is_meta for weight in model.lm.parameters()) is (place == "disk")
    soft = plain.embed(torch.tensor([9, 10])).clone().requires_grad_()
    questions = [Question((-1, -2, 5, 6), ((8, 7), (9,)))]
    found, expected = (one.predict({Site("lm"): Vectors(soft)}, questions).token_log_probs() for one in (model, plain))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(each.sum(), soft)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)
    jobs = [job_of(one, {Site("lm"): Vectors(soft.detach())}, (-1, -2, 5)) for one in (model, plain)]
    assert generate(model, jobs[:1], Generation(4)) == generate(plain, jobs[1:], Generation(4))


def test_an_unknown_device_map_is_refused(models: Path) -> None:
    assert refusal(models / "gpt2", device_map="balance").startswith("there is no device_map named 'balance'. Did")


@pytest.mark.parametrize("device", ["meta", "hpu", "warp", 9])
def test_a_device_map_to_what_is_not_there_is_refused(models: Path, device: Any) -> None:
    message = refusal(models / "gpt2", device_map={"": device})
    assert message.startswith(f"device_map is {device!r}, but this machine has no such device. Give each part ")


def test_a_device_map_needs_accelerate(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmprompt.models.decoder.load.find_spec", lambda name: None)
    assert refusal(models / "gpt2", device_map="auto").startswith("a device_map needs accelerate. Install it:")

"""Low-rank terms are PEFT's LoRA: the same logits, losses and gradients, and folders that each reads of the other."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmprompt.core.file import load, save
from mmprompt.core.learned import Prompt
from mmprompt.core.soft import LoRA, PromptTuning
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow
from mmprompt.language.methods import Adapter
from mmprompt.language.peft import load_peft
from mmprompt.language.peft_save import save_peft
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.task import LanguageTask
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.inserts import linear_layers
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from tests.language_models import CAUSAL, ENCODED, OTHER_CAUSAL, frozen_model, tolerance_of

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what it does itself

FAMILIES = (*CAUSAL, *OTHER_CAUSAL, *ENCODED)
TARGETS = (("all",), ("attention",))
ANSWER = (5, 40, 7)
SLOTS = (6, 9, 11, 30)
ROWS = tuple(TextRow({"text": text}, label) for text, label in (("a red car", "good"), ("a cat", "bad")))
DATA = TextData("days", ROWS, (), ROWS, labels=("bad", "good"))


def ours(model: FrozenLanguageModel, method: Any) -> LanguagePredictor:
    """A method's prompt with all that learns moved from where it started, in the model's precision."""
    prompted = LanguageTask(DATA).predictor(method, model, 1)
    prompted.prompt.to(model.dtype)
    torch.manual_seed(1)
    for parameter in prompted.prompt.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    prompted.prompt.requires_grad_(True)
    return prompted


def peft_logits(lm: Any, model: FrozenLanguageModel) -> Tensor:
    """What a model of transformers predicts at the tokens of the answer."""
    if model.is_encoder_decoder:
        read = [*SLOTS, *model.reader.behind]  # type: ignore[union-attr]
        start = [model.reader.start_id, *ANSWER[:-1]]  # type: ignore[union-attr]
        return lm(input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([start])).logits[0]
    return lm(input_ids=torch.tensor([[*SLOTS, *ANSWER[:-1]]])).logits[0, -len(ANSWER) :]


def our_logits(prompted: LanguagePredictor) -> Tensor:
    predicted = prompted.model.predict(prompted.inserts(), [Question(SLOTS, (ANSWER,))])
    return predicted.logits[predicted.at]


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_loss_and_gradient_are_those_of_peft(family: str, targets: tuple[str, ...]) -> None:
    model = frozen_model(family)
    prompted = ours(model, LoRA(rank=3, alpha=5.0, targets=targets))
    names = [site.part for site in prompted.prompt.sources[0].sites]
    config = peft.LoraConfig(r=3, lora_alpha=5.0, target_modules=names)
    theirs = peft.inject_adapter_in_model(config, copy.deepcopy(model.lm)).to(model.dtype).eval()
    learned = {name: value for name, value in theirs.named_parameters() if "lora_" in name}
    terms: Any = prompted.prompt.sources[0]
    with torch.no_grad():
        for name, a, b in zip(names, terms.a, terms.b, strict=True):
            learned[f"{name}.lora_A.default.weight"].copy_(a)
            learned[f"{name}.lora_B.default.weight"].copy_(b)
    assert len(learned) == 2 * len(names)
    found, expected = our_logits(prompted), peft_logits(theirs, model)
    values, gradients = tolerance_of(family)
    torch.testing.assert_close(found, expected, rtol=values, atol=values * float(expected.abs().max()))
    labels = torch.tensor(ANSWER)
    losses = [torch.nn.functional.cross_entropy(logits, labels) for logits in (found, expected)]
    torch.testing.assert_close(losses[0], losses[1], rtol=values, atol=values)
    for loss in losses:
        loss.backward()
    for name, a, b in zip(names, terms.a, terms.b, strict=True):
        for own, side in ((a, "A"), (b, "B")):
            want = learned[f"{name}.lora_{side}.default.weight"].grad
            own_gradient = torch.zeros_like(own) if own.grad is None else own.grad
            want = torch.zeros_like(own) if want is None else want
            torch.testing.assert_close(
                own_gradient, want, rtol=gradients, atol=gradients * float(want.abs().max()) + 1e-14
            )


def as_transformers(model: FrozenLanguageModel) -> Any:
    return copy.deepcopy(model.lm)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_reads_what_was_learned_here(family: str, tmp_path: Path) -> None:
    model = frozen_model(family, torch.float32)
    prompted = ours(model, LoRA(rank=2))
    save_peft(prompted, tmp_path)
    theirs = peft.PeftModel.from_pretrained(as_transformers(model), str(tmp_path)).eval()
    torch.testing.assert_close(our_logits(prompted), peft_logits(theirs, model), rtol=1e-4, atol=1e-4)
    again = load_peft(tmp_path, model)
    torch.testing.assert_close(our_logits(again), our_logits(prompted), rtol=1e-5, atol=1e-5)
    assert again.template == prompted.template
    assert again.label_words == prompted.label_words


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_what_peft_learned_is_read_here_and_kept(family: str, use_rslora: bool, tmp_path: Path) -> None:
    model = frozen_model(family, torch.float32)
    task = "SEQ_2_SEQ_LM" if model.is_encoder_decoder else "CAUSAL_LM"
    layers = list(linear_layers(model.lm))[::2]
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=layers, task_type=task, use_rslora=use_rslora)
    theirs = peft.get_peft_model(as_transformers(model), config).eval()
    torch.manual_seed(2)
    for name, parameter in theirs.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) if "lora_" in name else 0.0
    theirs.save_pretrained(tmp_path / "peft")
    prompted = load_peft(tmp_path / "peft", model)
    torch.testing.assert_close(our_logits(prompted), peft_logits(theirs, model), rtol=1e-4, atol=1e-4)
    save(prompted, tmp_path / "run")
    assert torch.equal(our_logits(load(tmp_path / "run", model)), our_logits(prompted))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_terms_beside_weights_that_peft_changed_are_read_once_they_are_saved_for_plain_ones(
    start: str, tmp_path: Path
) -> None:
    model = frozen_model("llama", torch.float32)
    layers = list(linear_layers(model.lm))[::2]
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=layers, task_type="CAUSAL_LM", init_lora_weights=start)
    theirs = peft.get_peft_model(as_transformers(model), config).eval()
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = start
    torch.manual_seed(2)
    for name, parameter in theirs.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) if "lora_" in name else 0.0
    theirs.save_pretrained(tmp_path / "peft")
    with pytest.raises(UserError) as caught:
        load_peft(tmp_path / "peft", model)
    assert str(caught.value) == (
        f"{tmp_path / 'peft' / 'adapter_config.json'}: init_lora_weights is {start}, which changed the model's own "
        "weights before these terms learned. Save it with PEFT's path_initial_model_for_weight_conversion, or train it "
        "with another."
    )
    theirs.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    prompted = load_peft(tmp_path / "plain", model)
    torch.testing.assert_close(our_logits(prompted), peft_logits(theirs, model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "eva", "mica", False])
def test_terms_beside_weights_that_stayed_are_read_however_they_started(start: Any, tmp_path: Path) -> None:
    model = frozen_model("llama", torch.float32)
    save_peft(ours(model, LoRA(rank=2)), tmp_path)
    spoil_config(init_lora_weights=start)(tmp_path)
    assert load_peft(tmp_path, model).changes_weights


def test_the_terms_of_a_combination_are_written_alone(tmp_path: Path) -> None:
    model = frozen_model("llama", torch.float32)
    prompted = ours(model, PromptTuning(2) + LoRA(rank=2))
    with pytest.raises(UserError) as caught:
        save_peft(prompted, tmp_path)
    assert str(caught.value) == (
        "this prompt has vectors and changes of weights, but a folder of PEFT's has one or the other. "
        "Use `kind='lora'`, which writes low-rank terms alone."
    )
    save_peft(prompted, tmp_path, "lora")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    terms = LanguagePredictor(model, Prompt(Template.parse("{text}{answer}"), prompted.prompt.sources[1]))
    theirs = peft.PeftModel.from_pretrained(as_transformers(model), str(tmp_path)).eval()
    torch.testing.assert_close(our_logits(terms), peft_logits(theirs, model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [None, "lora"])
def test_what_is_no_lora_is_not_written_as_one(kind: Any, tmp_path: Path) -> None:
    prompted = ours(frozen_model("llama", torch.float32), Adapter(4))
    with pytest.raises(UserError, match="has no low-rank terms alone at the model's layers, but PEFT's LoRA has"):
        save_peft(prompted, tmp_path / "new", kind)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("method", [LoRA(rank=2), Adapter(4)], ids=["terms", "adapter"])
def test_changes_of_weights_are_not_written_as_a_prefix(method: Any, tmp_path: Path) -> None:
    prompted = ours(frozen_model("llama", torch.float32), method)
    with pytest.raises(UserError) as caught:
        save_peft(prompted, tmp_path / "new", "prefix")
    assert str(caught.value) == (
        "kind is prefix, but this prompt changes weights and has no vectors to compile. Leave kind out."
    )
    assert not (tmp_path / "new").exists()


def spoil_config(**changes: Any) -> Any:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def spoil_tensors(change: Any) -> Any:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)

    return spoil


LAYER = "model.layers.0.self_attn.q_proj"
KEY = f"base_model.model.{LAYER}.lora_A.weight"
SPOILT: dict[str, tuple[Any, str]] = {
    "rank": (spoil_config(r=0), "r is 0, but a whole number of 1 or more was expected"),
    "another rank": (spoil_config(r=3), "but llama takes A of [3, 48] and B of [32, 3]"),
    "alpha": (spoil_config(lora_alpha=None), "lora_alpha is None, but a number above 0 was expected"),
    "dora": (spoil_config(use_dora=True), "use_dora is True, but only plain low-rank terms of one rank are read"),
    "bias": (spoil_config(bias="all"), "bias is all, but only plain low-rank terms of one rank are read"),
    "modules": (spoil_config(modules_to_save=["lm_head"]), "keeps modules of the model too"),
    "encoder": (spoil_config(task_type="SEQ_2_SEQ_LM"), "is a prompt for SEQ_2_SEQ_LM"),
    "none": (spoil_tensors(lambda tensors: {}), "holds no low-rank terms"),
    "half": (
        spoil_tensors(lambda tensors: {name: value for name, value in tensors.items() if name != KEY}),
        f"holds for {LAYER} {{'B': [32, 2]}}, but llama takes",
    ),
    "other tensors": (
        spoil_tensors(lambda tensors: tensors | {"base_model.model.a.lora_magnitude_vector": torch.zeros(2)}),
        "holds base_model.model.a.lora_magnitude_vector, which no plain LoRA has",
    ),
    "other layers": (
        spoil_tensors(lambda tensors: {name.replace("q_proj", "c_attn"): value for name, value in tensors.items()}),
        "holds terms of model.layers.0.self_attn.c_attn, which is no linear layer of llama",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_folder_of_more_or_less_than_plain_terms_is_refused(name: str, tmp_path: Path) -> None:
    model = frozen_model("llama", torch.float32)
    save_peft(ours(model, LoRA(rank=2)), tmp_path)
    (tmp_path / "mmprompt.json").unlink()
    spoil, message = SPOILT[name]
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        load_peft(tmp_path, model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

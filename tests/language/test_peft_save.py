"""Prompts of ours as PEFT reads them: the same logits and tokens, and loaded again as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mmprompt.core.learned import Prompt
from mmprompt.language.peft import load_peft
from mmprompt.language.peft_save import save_peft
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.model import FrozenLanguageModel
from tests.language_models import CAUSAL
from tests.peft_models import (
    ANSWER,
    FRONT,
    METHODS,
    ROWS,
    TEXTS,
    WIDE,
    N,
    again,
    close,
    our_logits,
    our_tokens,
    ours,
    peft_logits,
    peft_model,
    peft_tokens,
    same_as_peft,
    saved,
    tolerance_of,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what it does itself


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_peft_reads_what_we_write(model: FrozenLanguageModel, name: str, tmp_path: Path) -> None:
    prompted = ours(model, name)
    save_peft(prompted, tmp_path)
    same_as_peft(prompted, again(model, tmp_path), tolerance_of(name, model))


@pytest.mark.parametrize("name", METHODS)
def test_what_was_written_is_loaded_as_it_was(model: FrozenLanguageModel, name: str, tmp_path: Path) -> None:
    prompted = ours(model, name, "{soft}{bos}It says: {text:cut}\n{answer}")
    save_peft(prompted, tmp_path)
    loaded = load_peft(tmp_path, model)
    assert loaded.template == prompted.template
    assert loaded.label_words == prompted.label_words
    assert loaded.bound.n_soft == prompted.bound.n_soft
    assert loaded.tasks == prompted.tasks
    assert not any(parameter.requires_grad for parameter in loaded.prompt.parameters())
    close(loaded.label_log_probs(ROWS), prompted.label_log_probs(ROWS))
    other = load_peft(tmp_path, model, "{soft}{bos}{text} {answer}", Verbalizer({"a": "a", "b": "the"}))
    assert [list(one.probabilities) for one in other.classify(ROWS[:1])] == [["a", "b"]]
    assert other.template.text == ("{soft*3}" if loaded.bound.n_soft else "") + "{bos}{text} {answer}"


@pytest.mark.parametrize("name", ["prompt", "prefix", "multitask"])
def test_the_files_are_in_pefts_form(model: FrozenLanguageModel, name: str, tmp_path: Path) -> None:
    saved(peft_model(model, name, num_transformer_submodules=1), tmp_path / "theirs")
    save_peft(ours(model, name), tmp_path / "ours")
    texts = [(tmp_path / who / "adapter_config.json").read_text() for who in ("ours", "theirs")]
    own, theirs = map(json.loads, texts)
    theirs["base_model_name_or_path"] = theirs["base_model_name_or_path"] or None  # "" in older transformers
    assert texts[0] == json.dumps(own, indent=2, sort_keys=True) + "\n"
    free = {"peft_version"}  # which PEFT fills in
    if name == "prefix":
        free |= {"encoder_hidden_size"}  # of a network that is not kept
        free |= {"num_layers", "num_transformer_submodules"} if model.is_encoder_decoder else set()
    assert own.keys() == theirs.keys()
    assert {key: own[key] for key in own if key not in free} == {key: theirs[key] for key in own if key not in free}
    tensors, expected = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    shapes = {key: list(value.shape) for key, value in expected.items()}
    if name == "prefix" and model.is_encoder_decoder:
        shapes["prompt_embeddings"][1] *= 2
    assert {key: list(value.shape) for key, value in tensors.items()} == shapes
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    with safe_open(tmp_path / "ours" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("kind", CAUSAL, indirect=True)
@pytest.mark.parametrize(
    "template", [FRONT, "Text: {soft*2:a} is{soft} {text}\n{answer}"], ids=["front", "among words"]
)
@torch.no_grad()
def test_a_compiled_prompt_is_a_prefix_to_peft(model: FrozenLanguageModel, template: str, tmp_path: Path) -> None:
    prompted = ours(model, "prompt", template, n_soft=N if template == FRONT else N + 2)
    save_peft(prompted, tmp_path, kind="prefix")
    built = again(model, tmp_path)
    opening = prompted.bound.opening
    assert json.loads((tmp_path / "adapter_config.json").read_text())["num_virtual_tokens"] == len(opening)
    loaded = load_peft(tmp_path, model)
    for text in TEXTS:
        slots = prompted.question({"text": text}, (ANSWER,)).slots
        assert slots[: len(opening)] == opening
        expected = our_logits(prompted, slots)
        close(peft_logits(model, built, slots[len(opening) :]), expected, 1e-6)  # keys and values are kept in float32
        assert peft_tokens(model, built, slots[len(opening) :]) == our_tokens(prompted, text)
        close(our_logits(loaded, slots), expected)
    assert loaded.template == prompted.template == Template.parse(template).with_soft(N)
    close(loaded.label_log_probs(ROWS), prompted.label_log_probs(ROWS))
    for name in ("mmprompt.json", "mmprompt.safetensors"):
        (tmp_path / name).unlink()
    alone = load_peft(tmp_path, model)
    assert alone.n_prefix == len(opening)
    close(our_logits(alone, slots[len(opening) :]), expected, 1e-6)


@torch.no_grad()
def test_one_task_of_several_is_written_alone(model: FrozenLanguageModel, tmp_path: Path) -> None:
    prompted = ours(model, "multitask")
    save_peft(prompted, tmp_path / "one", task="second")
    assert json.loads((tmp_path / "one" / "adapter_config.json").read_text())["peft_type"] == "PROMPT_TUNING"
    slots = prompted.question({"text": TEXTS[0]}, (ANSWER,)).slots
    close(our_logits(load_peft(tmp_path / "one", model), slots), our_logits(prompted, slots, "second"))
    if not model.is_encoder_decoder:
        save_peft(prompted, tmp_path / "prefix", kind="prefix", task="second")
        found = peft_logits(model, again(model, tmp_path / "prefix"), slots[N:])
        close(found, our_logits(prompted, slots, "second"), 1e-6)


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_a_later_prompt_in_the_same_folder_is_the_one_that_is_loaded(
    model: FrozenLanguageModel, tmp_path: Path
) -> None:
    save_peft(ours(model, "prompt", WIDE, n_soft=N + 2), tmp_path, kind="prefix")
    later = ours(model, "p-tuning")
    save_peft(later, tmp_path)
    assert not (tmp_path / "mmprompt.safetensors").exists()
    assert torch.equal(load_peft(tmp_path, model).label_log_probs(ROWS), later.label_log_probs(ROWS))


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
@torch.no_grad()
def test_vectors_and_keys_and_values_are_compiled_together(model: FrozenLanguageModel, tmp_path: Path) -> None:
    soft, prefix = ours(model, "prompt"), ours(model, "prefix")
    both = LanguagePredictor(
        model, Prompt(soft.template, *soft.prompt.sources, *prefix.prompt.sources), soft.label_words
    )
    save_peft(both, tmp_path, kind="prefix")
    slots = both.question({"text": TEXTS[0]}, (ANSWER,)).slots
    close(peft_logits(model, again(model, tmp_path), slots[N:]), our_logits(both, slots), 1e-6)
    close(our_logits(load_peft(tmp_path, model), slots), our_logits(both, slots))

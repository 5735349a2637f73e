"""Weights of a copy that learn, alone and beside a prompt, on small models."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow
from mmprompt.language.methods import PromptTuning
from mmprompt.language.predictor import load_prompted
from mmprompt.language.weights import RECIPES, fit_weights
from mmprompt.models.decoder.packing import Question
from mmprompt.models.decoder.tuned import Adapters, FullTuning, Lora, Tuning, read_lora, tuned_copy
from tests.language_models import frozen_model

pytestmark = pytest.mark.usefixtures("feature_store")

KINDS = (Lora(rank=2), Adapters(width=4), FullTuning())
TEXTS = ("a fine day", "a fine film", "what a fine meal", "a poor day", "a poor film", "what a poor meal")
ROWS = tuple(TextRow({"text": text}, "good" if "fine" in text else "bad") for text in TEXTS)
DATA = TextData("days", ROWS, (), ROWS[:2], labels=("bad", "good"), template="{soft} {text:cut} {answer}")
QUESTIONS = [Question((5, 6, 7), ((8, 9), (10,))), Question((5, 11), ((12,),))]


def named(kind: Tuning) -> str:
    return type(kind).__name__


def quick(kind: Tuning) -> dict:
    return {"recipe": replace(RECIPES[type(kind)], epochs=8, batch_size=3, lr=0.01)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_a_copy_says_what_the_model_says_before_it_learns(family: str, kind: Tuning) -> None:
    model = frozen_model(family)
    tuned = tuned_copy(model, kind)
    expected, found = (one.predict({}, QUESTIONS).token_log_probs() for one in (model, tuned.model))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert not any(weight.requires_grad for weight in model.lm.parameters())
    n_trained = sum(weight.numel() for weight in tuned.weights.values())
    n_all = sum(weight.numel() for weight in model.lm.parameters())
    assert n_trained == n_all if isinstance(kind, FullTuning) else 0 < n_trained < n_all


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_a_copy_learns_and_the_model_stays_as_it_was(kind: Tuning) -> None:
    model = frozen_model("llama", torch.float32)
    result = fit_weights(DATA, kind, model, **quick(kind))
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]
    assert model.compute_fingerprint() == model.fingerprint
    assert result.tuned.model.compute_fingerprint() != model.fingerprint
    assert result.prompted.bound.n_soft == 0


def test_lora_and_a_prompt_are_learned_kept_and_loaded_together(tmp_path) -> None:
    model = frozen_model("llama", torch.float32)
    kind = Lora(rank=2)
    result = fit_weights(DATA, kind, model, PromptTuning(3), out=tmp_path / "run", **quick(kind))
    assert result.prompted.bound.n_soft == 3
    n_lora = sum(weight.numel() for weight in result.tuned.weights.values())
    assert result.n_trained == n_lora + 3 * model.width
    loaded = load_prompted(tmp_path / "run", model)
    torch.testing.assert_close(loaded.label_log_probs(ROWS), result.prompted.label_log_probs(ROWS))
    assert loaded.model.fingerprint == result.tuned.model.compute_fingerprint() != model.fingerprint


def test_peft_reads_the_lora_beside_a_prompt(tmp_path) -> None:
    peft = pytest.importorskip("peft")
    model = frozen_model("llama", torch.float32)
    kind = Lora(rank=2)
    result = fit_weights(DATA, kind, model, PromptTuning(3), out=tmp_path / "run", **quick(kind))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model.lm), str(tmp_path / "run" / "lora"))
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(theirs(ids).logits, result.tuned.model.lm(ids).logits)


def test_lora_of_another_model_is_refused(tmp_path) -> None:
    kind = Lora(rank=2)
    fit_weights(DATA, kind, frozen_model("llama", torch.float32), out=tmp_path / "run", **quick(kind))
    with pytest.raises(UserError, match="does not fit gpt2"):
        read_lora(tmp_path / "run" / "lora", frozen_model("gpt2", torch.float32))


def test_a_finished_folder_is_not_written_over(tmp_path) -> None:
    kind, model = Lora(rank=2), frozen_model("llama", torch.float32)
    fit_weights(DATA, kind, model, PromptTuning(2), out=tmp_path / "run", **quick(kind))
    with pytest.raises(UserError, match="never overwritten"):
        fit_weights(DATA, kind, model, PromptTuning(2), out=tmp_path / "run", **quick(kind))


def test_numbers_below_one_and_a_bad_template_are_refused() -> None:
    with pytest.raises(UserError, match="rank"):
        Lora(rank=0)
    with pytest.raises(UserError, match="width"):
        Adapters(width=0)
    with pytest.raises(UserError, match="answer"):
        fit_weights(DATA.task(template="{text}"), Lora(), frozen_model("llama", torch.float32))

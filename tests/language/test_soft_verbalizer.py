"""Output rows that are learned in place of the words of labels, beside a plain and slow form of the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor

from mmprompt.core.fit import fit
from mmprompt.core.learned import Prompt
from mmprompt.core.soft import DecoderMethod, PrefixTuning, PromptTuning
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow
from mmprompt.language.knowledge import calibrate_words
from mmprompt.language.measure import measure_language, plain_model
from mmprompt.language.methods import SoftVerbalizer
from mmprompt.language.peft_save import save_peft
from mmprompt.language.predictor import LanguagePredictor, classify_texts, load_prompted
from mmprompt.language.task import LanguageProblem
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import Site
from tests.captioner_models import SHAPE
from tests.language_models import family_tokenizer, frozen_model
from tests.models.decoder.test_whole_rows import model_of as whole_row_model
from tests.reference import plain_language
from tests.small_models import randomise

ROWS = tuple(
    TextRow({"text": text}, label)
    for text, label in (("a red cat", "x"), ("the house", "y"), ("a blue dog is", "x"), ("tree of", "y"))
)
WORDS = {"x": "a", "y": "e"}  # a token each
DATA = TextData("small", ROWS, ROWS[:1], ROWS, ("x", "y"), template="{soft} {text}:{answer}", verbalizer=WORDS)
METHOD = PromptTuning(3) + SoftVerbalizer()


@cache
def model_of(kind: str, dtype: torch.dtype = torch.float64) -> FrozenLanguageModel:
    if kind == "phi":
        tokenizer, shape = family_tokenizer("gpt2"), SHAPE | {"num_key_value_heads": 4}
        lm = hf.PhiForCausalLM(hf.PhiConfig(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, **shape))
        randomise(lm, 1)
        return FrozenLanguageModel(kind, lm.to(dtype).eval().requires_grad_(False), tokenizer)
    return whole_row_model(kind) if kind in ("Mamba", "RecurrentGemma") else frozen_model(kind, dtype)


def problem_of(method: DecoderMethod, kind: str = "llama", **options: object) -> LanguageProblem:
    prompted = DATA.task(**options).predictor(method, model_of(kind), 1)
    prompted.prompt.double()
    return LanguageProblem(prompted, prompted.prompt, ROWS, (), "choices")


@pytest.mark.parametrize("kind", ["llama", "opt", "opt_narrow", "gemma2", "t5", "RecurrentGemma", "bart", "phi"])
def test_before_it_learns_it_says_what_the_words_say(kind: str) -> None:
    soft, words = (problem_of(method, kind).prompted for method in (METHOD, PromptTuning(3)))
    tolerance = 1e-4 if kind == "RecurrentGemma" else 1e-5  # learned numbers are kept in single precision
    found, expected = (one.label_log_probs(ROWS).double() for one in (soft, words))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_a_row_starts_as_the_mean_over_the_tokens_of_the_first_word() -> None:
    model = model_of("llama")
    verbalizer = Verbalizer({"x": ("house", "a"), "y": "e"})
    prompted = DATA.task(verbalizer=verbalizer).predictor(METHOD, model, 1)
    ids = model.tokenizer("house", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    expected = model.lm.lm_head.weight[ids].mean(0)
    assert prompted.label_rows is not None
    torch.testing.assert_close(prompted.label_rows.rows[0].double(), expected, rtol=1e-6, atol=1e-7)


def plain_loss(prompted: LanguagePredictor, soft: Tensor, rows: Tensor) -> Tensor:
    """Each row read alone by the model's own forward, its last state by the learned rows, cross entropy."""
    lm, losses, states = prompted.model.lm, [], []
    behind = prompted.model.reader.behind if prompted.model.is_encoder_decoder else ()
    head = lm.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, given: states.append(given[0][0]))
    for row in ROWS:
        slots = prompted.bound.encode(row.fields, 200)
        plain_language.answer_logits(lm, slots, [0], soft=soft, behind=behind)
        state = states[-1][0 if prompted.model.is_encoder_decoder else len(slots) - 1]
        width = len(state)
        logits = torch.stack([(state * one[:width]).sum() + one[width:].sum() for one in rows])  # a bias stands last
        losses.append(F.cross_entropy(logits[None], torch.tensor(["xy".index(row.label or "")])))
    hook.remove()
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("kind", "width"), [("gpt2", 32), ("phi", 33), ("bart", 33)])
def test_loss_gradient_and_ten_steps_are_those_of_a_plain_implementation(kind: str, width: int) -> None:
    problem = problem_of(METHOD, kind)
    prompted = problem.prompted
    source, head = prompted.prompt.sources[0], prompted.label_rows
    assert head is not None
    assert head.values.shape == (2, width)
    units = source.unit.double(), head.unit.double()  # type: ignore[union-attr, operator]
    ours = [source.values, head.values]
    plain = [value.detach().clone().requires_grad_() for value in ours]
    optimizers = [torch.optim.AdamW(values, lr=0.03, weight_decay=0.0) for values in (ours, plain)]
    for _ in range(10):
        expected = plain_loss(prompted, *(value * unit for value, unit in zip(plain, units, strict=True)))
        (loss,) = problem.step([0, 1, 2, 3], 0).losses.values()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-8)
        for optimizer, value in zip(optimizers, (loss, expected), strict=True):
            optimizer.zero_grad()
            value.backward()
        for one, other in zip(ours, plain, strict=True):
            assert one.grad.abs().max() > 1e-6  # type: ignore[union-attr]
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-7, atol=1e-9)
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)  # Adam divides by gradients near zero


@pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
@pytest.mark.parametrize(
    "method", [METHOD, SoftVerbalizer(), PrefixTuning(2, hidden=8) + SoftVerbalizer()], ids=["soft", "alone", "prefix"]
)
def test_what_was_learned_is_loaded_and_says_the_same(method: DecoderMethod, kind: str, tmp_path: Path) -> None:
    model = model_of(kind, torch.float32)
    template = DATA.template if method.n_vectors else "{text}:{answer}"
    task = DATA.task(template=template)
    result = fit(method, model, task, tmp_path / "run", epochs=30, lr=0.05, progress=False)
    assert result.history[-1]["loss"] < 0.9 * result.history[0]["loss"]
    assert model.compute_fingerprint() == model.fingerprint
    loaded = load_prompted(tmp_path / "run", model)
    assert torch.equal(loaded.label_log_probs(ROWS), result.predictor.label_log_probs(ROWS))
    words = LanguagePredictor(model, Prompt(Template.parse("{text} {answer}")), Verbalizer(WORDS))
    mixed = classify_texts([loaded, words, loaded, words], ROWS)
    for one, row, found in zip([loaded, words] * 2, ROWS, mixed, strict=True):
        assert found.probabilities == pytest.approx(one.predict(row).probabilities, abs=1e-5)


def test_what_needs_words_or_their_text_is_refused(tmp_path: Path) -> None:
    model = model_of("llama", torch.float32)
    result = fit(METHOD, model, DATA, tmp_path / "run", epochs=1, progress=False)
    with pytest.raises(UserError, match="has learned rows in their place"):
        calibrate_words(result.predictor, ROWS)
    with pytest.raises(UserError, match="calibration is for words of labels"):
        measure_language(result.predictor, DATA, is_calibrated=True)
    with pytest.raises(UserError, match="has output rows, but PEFT's files are of vectors"):
        save_peft(result.predictor, tmp_path / "peft")
    with pytest.raises(UserError, match=r"a soft verbalizer has none\. End it with"):
        fit(METHOD, model, DATA.task(template="{soft} {text} is {answer} ."), progress=False)
    answers = TextData("a", tuple(TextRow(row.fields, answer="yes") for row in ROWS), (), ())
    with pytest.raises(UserError, match="a soft verbalizer tells labels apart, but these rows have answers"):
        fit(METHOD, model, answers, progress=False)
    prompt = result.predictor.prompt
    with pytest.raises(UserError, match="but output rows of 3 labels, 32 wide, were expected"):
        LanguagePredictor(model, prompt, Verbalizer({"x": "a", "y": "e", "z": "o"}))
    assert Site("lm") in prompt.sites


@pytest.mark.parametrize("method", [METHOD, SoftVerbalizer()], ids=["beside vectors", "alone"])
def test_rows_of_labels_are_not_learned_by_the_loss_of_answers(method: DecoderMethod) -> None:
    template = DATA.template if method == METHOD else "{text}:{answer}"
    with pytest.raises(UserError, match="tells labels apart, but the objective is answer"):
        fit(method, model_of("llama"), DATA.task(template=template, objective="answer"), progress=False)


def test_no_prompt_beside_learned_rows_is_asked_as_they_are() -> None:
    words = Verbalizer({"x": "red", "y": "house"})
    prompted = DATA.task(template="{text} is {answer}", verbalizer=words).predictor(
        SoftVerbalizer(), model_of("llama"), 1
    )
    plain = plain_model(prompted.model, DATA, prompted)
    assert (plain.template.text, plain.label_words) == ("{text} is {answer}", words)

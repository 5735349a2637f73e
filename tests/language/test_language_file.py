"""The prompt file of a language model: what was saved says the same again, and nothing else is taken for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from mmprompt.core.prompt import Prompt, SiteSources
from mmprompt.core.sources import FreeVectors
from mmprompt.language.file import load_language, read_language_header, save_language
from safetensors.torch import load_file

from mmprompt.captioning.predictor import FocusPrompt, save_focus
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.template import TextLayout
from mmprompt.core.file import HEADER, TENSORS, save
from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.language.generation import generate_texts
from mmprompt.language.methods import (
    DeepPrompts,
    HardPrompt,
    LanguageMethod,
    MultitaskPrompt,
    PrefixTuning,
    PromptTuning,
    PTuning,
)
from mmprompt.language.predictor import LanguagePrompt, PromptedModel
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.sites import Site
from tests.language_models import frozen_model
from tests.small_captioners import small_captioner
from tests.small_language_models import save_language_model

METHODS: list[LanguageMethod] = [
    PromptTuning(3),
    PTuning(3, hidden=4),
    PTuning(3, encoder="lstm", hidden=4),
    PrefixTuning(2, hidden=4),
    PrefixTuning(2, reparametrise=False),
    DeepPrompts(2),
    MultitaskPrompt(3, rank=2),
    HardPrompt(),
]
ROWS = [TextRow({"text": text}, task=("one", "two")[n % 2]) for n, text in enumerate(("a red car", "fish", "a cat"))]
VERBALIZER = Verbalizer({"animal": ("dog", "red cat"), "thing": ("car",)}, "mean", True)


@cache
def model_of(kind: str) -> FrozenLanguageModel:
    return frozen_model(kind, torch.float32)


def learned(method: LanguageMethod, kind: str = "llama", verbalizer: Verbalizer | None = VERBALIZER) -> PromptedModel:
    """A prompt with all that learns moved from where it started."""
    model = model_of(kind)
    n_start = method.n_vectors or method.n_start
    start = model.embed(torch.arange(40, 40 + n_start))
    torch.manual_seed(0)
    sources = method.sources(model, start, ("one", "two"))
    with torch.no_grad():
        for parameter in sources.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    template = Template.parse("{soft} {text}\nIt is {answer}")
    return PromptedModel(model, LanguagePrompt(template, sources, verbalizer, method.n_vectors))


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_saved_prompt_says_the_same(method: LanguageMethod, kind: str, tmp_path: Path) -> None:
    before = learned(method, kind)
    save_language(before, tmp_path / "run")
    after = load_language(tmp_path / "run", model_of(kind))
    assert torch.equal(after.label_log_probs(ROWS), before.label_log_probs(ROWS))
    assert after.prompt.verbalizer == VERBALIZER
    assert after.prompt.sources.tasks == before.prompt.sources.tasks
    assert not any(parameter.requires_grad for parameter in after.prompt.sources.parameters())
    if kind == "llama":
        settings = Generation(4)
        assert generate_texts(after, ROWS, settings) == generate_texts(before, ROWS, settings)


def test_a_saved_prompt_is_small_and_holds_vectors_alone(tmp_path: Path) -> None:
    save_language(learned(PTuning(3, hidden=64)), tmp_path, {"seed": 7})
    assert sorted(path.name for path in tmp_path.iterdir()) == [HEADER, TENSORS]
    assert {name: list(value.shape) for name, value in load_file(tmp_path / TENSORS).items()} == {"lm.input": [3, 32]}
    header = read_language_header(tmp_path)
    assert header["kind"] == "language model"
    assert header["template"] == "{soft} {text}\nIt is {answer}"
    assert header["n_soft"] == 3
    assert header["training"] == {"seed": 7}
    assert header["backbone"]["fingerprint"] == model_of("llama").fingerprint
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5_000


def test_a_prompt_that_generates_has_no_verbalizer(tmp_path: Path) -> None:
    save_language(learned(PromptTuning(2), verbalizer=None), tmp_path)
    assert load_language(tmp_path, model_of("llama")).prompt.verbalizer is None


def test_the_file_names_the_model_it_is_loaded_on(tmp_path: Path) -> None:
    name = str(save_language_model("gpt2", tmp_path / "gpt2"))
    model = load_language_model(name, device="cpu")
    sources = PromptTuning(2).sources(model, model.embed(torch.tensor([7, 8])))
    save_language(
        PromptedModel(model, LanguagePrompt(Template.parse("{soft}{text}{answer}"), sources, None, 2)), tmp_path / "run"
    )
    for given in (None, name):
        loaded = load_language(tmp_path / "run", given)
        assert loaded.model.name == name
        assert torch.equal(loaded.prompt.sources.tensors()["lm.input"], sources.tensors()["lm.input"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_language(learned(PromptTuning(2)), tmp_path / "run")
    return tmp_path / "run"


def refusal(folder: Path, kind: str = "llama") -> str:
    with pytest.raises(UserError) as caught:
        load_language(folder, model_of(kind))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_template(folder: Path) -> None:
    header = json.loads((folder / HEADER).read_text())
    (folder / HEADER).write_text(json.dumps(header | {"template": "{soft} {text} {answer}"}))


def edit_vectors(folder: Path) -> None:
    data = bytearray((folder / TENSORS).read_bytes())
    data[-1] ^= 1
    (folder / TENSORS).write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (edit_template, "prompt.json: was edited after it was saved (its hash does not match)."),
        (edit_vectors, "prompt.safetensors: was changed after it was saved (its hash does not match)."),
        (lambda folder: (folder / TENSORS).unlink(), "prompt.safetensors"),
        (lambda folder: (folder / HEADER).unlink(), "holds no prompt.json, so it is no saved prompt."),
        (lambda folder: (folder / HEADER).write_text("{"), "prompt.json"),
    ],
)
def test_a_damaged_or_edited_file_is_refused(run: Path, spoil: Callable[[Path], None], expected: str) -> None:
    spoil(run)
    assert expected in refusal(run)


def test_a_prompt_of_another_model_is_refused(run: Path) -> None:
    assert refusal(run, "qwen2").startswith(f"{run}: this prompt was learned on llama (")
    assert refusal(run, "qwen2").endswith("Load it with the same backbone and weights, or train on this one.")


def test_a_prompt_of_the_same_model_with_other_weights_is_refused(run: Path) -> None:
    other = frozen_model("llama", torch.float32)
    other.lm.model.norm.weight.data[0] += 1e-3
    again = FrozenLanguageModel("llama", other.lm, other.tokenizer)
    with pytest.raises(UserError, match="this prompt was learned on llama"):
        load_language(run, again)


def test_a_prompt_of_a_classifier_or_a_captioner_is_refused(tiny_clip_backbone: DualEncoder, tmp_path: Path) -> None:
    prompt = Prompt(TextLayout(), {})
    save(Classifier(tiny_clip_backbone, prompt, ["cat", "dog"]), tmp_path / "classifier")
    assert refusal(tmp_path / "classifier").endswith(
        "is the prompt of a classifier, not of a language model. See mmprompt predict."
    )
    sources = SiteSources({Site("lm"): FreeVectors(torch.ones(2, 32))})
    save_focus(FocusPrompt("numbers", sources), small_captioner(), tmp_path / "captioner")
    assert refusal(tmp_path / "captioner").endswith(
        "is the prompt of a captioner, not of a language model. See mmprompt caption write."
    )

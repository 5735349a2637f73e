"""The prompt file of a language model: what was saved says the same again, and nothing else is taken for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmprompt.captioning.predictor import Captioner, CaptionTemplate, Guidance
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.template import ClassTemplate
from mmprompt.core.file import save
from mmprompt.core.header import HEADER, TENSORS, read_header
from mmprompt.core.learned import Learned, Prompt
from mmprompt.core.soft import DecoderMethod
from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.language.generation import generate_texts
from mmprompt.language.methods import DeepPrompts, HardPrompt, MultitaskPrompt, PrefixTuning, PromptTuning, PTuning
from mmprompt.language.predictor import LanguagePredictor, load_prompted
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.sites import Site
from tests.language_models import frozen_model, prompt_from
from tests.small_captioners import small_captioner
from tests.small_language_models import save_language_model

METHODS: list[DecoderMethod] = [
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


def learned(
    method: DecoderMethod, kind: str = "llama", verbalizer: Verbalizer | None = VERBALIZER
) -> LanguagePredictor:
    """A prompt with all that learns moved from where it started."""
    model = model_of(kind)
    start = model.embed(torch.arange(40, 40 + (method.n_vectors or 2)))
    torch.manual_seed(0)
    prompt = prompt_from(method, model, start, ("one", "two"), "{soft} {text}\nIt is {answer}")
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return LanguagePredictor(model, prompt, verbalizer)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_saved_prompt_says_the_same(method: DecoderMethod, kind: str, tmp_path: Path) -> None:
    before = learned(method, kind)
    save(before, tmp_path / "run")
    after = load_prompted(tmp_path / "run", model_of(kind))
    assert torch.equal(after.label_log_probs(ROWS), before.label_log_probs(ROWS))
    assert after.label_words == VERBALIZER
    assert after.tasks == before.tasks
    assert not any(parameter.requires_grad for parameter in after.prompt.parameters())
    if kind == "llama":
        settings = Generation(4)
        assert generate_texts(after, ROWS, settings) == generate_texts(before, ROWS, settings)


def test_a_saved_prompt_is_small_and_holds_vectors_alone(tmp_path: Path) -> None:
    save(learned(PTuning(3, hidden=64)), tmp_path, {"seed": 7})
    assert sorted(path.name for path in tmp_path.iterdir()) == [HEADER, TENSORS]
    assert {name: list(value.shape) for name, value in load_file(tmp_path / TENSORS).items()} == {"lm.input": [3, 32]}
    header = read_header(tmp_path)
    assert header["kind"] == "language"
    assert header["template"] == "{soft*3} {text}\nIt is {answer}"
    assert header["head"] is None
    assert header["training"] == {"seed": 7}
    assert header["backbone"]["fingerprint"] == model_of("llama").fingerprint
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5_000


def test_a_prompt_that_generates_has_no_verbalizer(tmp_path: Path) -> None:
    save(learned(PromptTuning(2), verbalizer=None), tmp_path)
    assert load_prompted(tmp_path, model_of("llama")).label_words is None


def test_the_file_names_the_model_it_is_loaded_on(tmp_path: Path) -> None:
    name = str(save_language_model("gpt2", tmp_path / "gpt2"))
    model = load_language_model(name, device="cpu")
    prompted = LanguagePredictor(model, prompt_from(PromptTuning(2), model, model.embed(torch.tensor([7, 8]))))
    save(prompted, tmp_path / "run")
    for given in (None, name):
        loaded = load_prompted(tmp_path / "run", given)
        assert loaded.model.name == name
        assert torch.equal(loaded.vectors()[Site("lm")].values, prompted.vectors()[Site("lm")].values)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(learned(PromptTuning(2)), tmp_path / "run")
    return tmp_path / "run"


def refusal(folder: Path, kind: str = "llama") -> str:
    with pytest.raises(UserError) as caught:
        load_prompted(folder, model_of(kind))
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
        load_prompted(run, again)


def test_a_prompt_of_a_classifier_or_a_captioner_is_refused(tiny_clip_backbone: DualEncoder, tmp_path: Path) -> None:
    prompt = Prompt(ClassTemplate("a photo of a {}."))
    save(Classifier(tiny_clip_backbone, prompt, ["cat", "dog"]), tmp_path / "classifier")
    assert refusal(tmp_path / "classifier").endswith(
        "is a prompt for classification, not for language. Use mmprompt predict."
    )
    prompt = Prompt(CaptionTemplate("numbers"), Learned(Site("lm"), torch.ones(2, 32)))
    save(Captioner(small_captioner(), Guidance(((prompt, 1.0),))), tmp_path / "captioner")
    assert refusal(tmp_path / "captioner").endswith(
        "is a prompt for captioning, not for language. Use mmprompt caption write."
    )

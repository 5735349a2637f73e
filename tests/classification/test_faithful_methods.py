"""Published methods held to plain versions of them, written from their papers: loss, gradient, and ten steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from mmprompt.classification.methods import (
    IVLP,
    METHODS,
    CLIPLoRA,
    CoCoOp,
    DeepText,
    KgCoOp,
    MaPLe,
    ProGrad,
    PromptSRC,
)
from mmprompt.classification.task import ClassificationTask
from mmprompt.classification.template import ClassTemplate
from mmprompt.core.fit import fit
from mmprompt.core.method import Method, Start
from mmprompt.core.sources import Coupled
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from tests import small_models
from tests.classification.side_by_side import TOLERANCE, DoubleTask, Recorder, assert_close, batches_of
from tests.reference import plain_methods
from tests.reference.plain_methods import Frozen, Learning

NAMES = ["cat", "red_car", "a dog house", "sad bird"]
TEMPLATE = "the photo of the {}, a flower."  # not the words that KgCoOp starts from: its term would be zero there
HINT_FIRST = "a flower, the photo of the {}."
LIBRARIES = ["open_clip", "transformers"]
TRAINED: dict[str, Method] = {
    "cocoop": CoCoOp(),
    "kgcoop": KgCoOp(),
    "prograd": ProGrad(),
    "deep-text": DeepText(),
    "ivlp": IVLP(),
    "maple": MaPLe(),
    "promptsrc": PromptSRC(gpa_mean=3.0),
    "clip-lora": CLIPLoRA(lora_dropout=0.0),
}
PLAIN = plain_methods.METHODS | {
    "promptsrc": replace(plain_methods.METHODS["promptsrc"], gaussian=(3.0, 1.0)),
}
N_EPOCHS, N_STEPS, BATCH = 5, 10, 4


@dataclass(frozen=True)
class Both:
    """One method on one library's model, ours and the plain version from the same start."""

    ours: Recorder
    plain: Learning
    kept: list[Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Towers of different widths and depths, with slots for the longest of the published templates."""
    place = tmp_path_factory.mktemp("faithful")
    vision, text = {"width": 24, "layers": 2}, {"context_length": 77, "layers": 3}
    settings = {"max_position_embeddings": 77, "num_hidden_layers": 3, "hidden_size": 24}
    return {
        "open_clip": small_models.save_open_clip(place / "open_clip", vision, text),
        "transformers": small_models.save_hf_clip(place / "transformers", **settings),
    }


@pytest.fixture(scope="module")
def task() -> DoubleTask:
    """Two images of each of four classes."""
    images = list(np.random.default_rng(5).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    return DoubleTask("random", NAMES, images, [0, 1, 2, 3] * 2, template=TEMPLATE, augment="none")


@pytest.fixture(scope="module")
def learned(folders: dict[str, Path], task: DoubleTask) -> Callable[[str, str], Both]:
    """Trains a method on a library's model when it is first asked for."""
    found: dict[tuple[str, str], Both] = {}

    def train(name: str, library: str) -> Both:
        backbone: Any = load_backbone(str(folders[library]), device="cpu", dtype="float64")
        ours, length = Recorder(), {"n_steps": N_STEPS} if name == "clip-lora" else {"epochs": N_EPOCHS}
        result = fit(
            TRAINED[name], backbone, task, callbacks=[ours], batch_size=BATCH, progress=False, seed=1, **length
        )
        clip = frozen(backbone, folders[library], HINT_FIRST if name == "prograd" else TEMPLATE)
        plain = plain_methods.learn(
            PLAIN[name], clip, ours.start, batches_of(task, backbone, N_EPOCHS, BATCH), N_EPOCHS
        )
        return Both(ours, plain, [value.detach() for value in result.predictor.prompt.parameters()])

    def find(name: str, library: str) -> Both:
        if (name, library) not in found:
            found[name, library] = train(name, library)
        return found[name, library]

    return find


def frozen(backbone: FrozenDualEncoder, folder: Path, template: str) -> Frozen:
    """The library's own model and tokenizer."""
    n_heads = 3 if hasattr(backbone.model, "visual") else small_models.HEADS
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    return Frozen(backbone.model, tokenizer, NAMES, template, 2, n_heads)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=list(TRAINED))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def both(learned: Callable[[str, str], Both], name: str, library: str) -> Both:
    return learned(name, library)


def test_each_term_of_the_loss_is_the_paper_s(both: Both) -> None:
    expected = {term: value.item() for term, value in both.plain.terms[0].items()}
    assert {term: both.ours.terms[term] for term in expected} == pytest.approx(expected, rel=TOLERANCE)
    assert both.ours.terms["loss"] == pytest.approx(sum(expected.values()), rel=TOLERANCE)


def test_the_gradient_of_the_first_step_is_the_paper_s(both: Both) -> None:
    assert_close(both.ours.gradients[0], both.plain.gradients[0])


def test_ten_steps_lead_where_the_paper_s_do(both: Both) -> None:
    assert len(both.ours.places) == len(both.plain.places) == N_STEPS
    for ours, plain in zip(both.ours.places, both.plain.places, strict=True):
        assert_close(ours, plain, both.ours.start)
    assert_close(both.kept, both.plain.last, both.ours.start)


def test_some_gradients_of_prograd_run_against_what_is_known_and_some_do_not(
    learned: Callable[[str, str], Both], library: str
) -> None:
    both = learned("prograd", library)
    changed = [not torch.equal(used[0], own[0]) for used, own in zip(both.plain.gradients, both.plain.own, strict=True)]
    assert set(changed) == {True, False}


# Khattak et al. 2023 (a: MaPLe, b: PromptSRC), Yao et al. 2023, Zhu et al. 2023, Zanella and Ben Ayed 2024, Zhou et
# al. 2022b, and the configurations that they released.
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "warmup_epochs": 1, "warmup_lr": 1e-5, "min_lr": 0}
SGD |= {"schedule": "epoch"}
ADAMW = {"optimizer": "adamw", "weight_decay": 1e-2, "warmup_epochs": 0, "schedule": "step", "min_lr": 1e-6}
RECIPES: dict[str, dict[str, Any]] = {
    "cocoop": SGD | {"lr": 0.002, "batch_size": 1, "epochs": 10},
    "kgcoop": SGD | {"lr": 0.002, "batch_size": 128, "epochs": 100},
    "prograd": SGD | {"lr": 0.002, "batch_size": 32, "epochs": None},
    "deep-text": SGD | {"lr": 0.0025, "batch_size": 4, "epochs": 5},
    "ivlp": SGD | {"lr": 0.0035, "batch_size": 4, "epochs": 5},
    "maple": SGD | {"lr": 0.0035, "batch_size": 4, "epochs": 5},
    "promptsrc": SGD | {"lr": 0.0025, "batch_size": 4, "epochs": 20},
    "clip-lora": ADAMW | {"lr": 2e-4, "batch_size": 32, "steps_per_shot": 500, "eps": 1e-8},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "cocoop": {"ctx_init": "a photo of a", "class_position": "end"},
    "kgcoop": {"ctx_init": "a photo of a", "knowledge_weight": 8},
    "prograd": {"strength": 1},
    "deep-text": {"n_ctx": 4, "ctx_init": "a photo of a", "paper_depth": 12},
    "ivlp": {"n_ctx": 2, "n_visual": 2, "ctx_init": "a photo of a", "paper_depth": 12},
    "maple": {"n_ctx": 2, "ctx_init": "a photo of a"},
    "promptsrc": {"n_ctx": 4, "n_visual": 4, "paper_depth": 9, "text_weight": 25, "image_weight": 10, "logit_weight": 1}
    | {"gpa_mean": 15, "gpa_std": 1, "ctx_init": "a photo of a"},
    "clip-lora": {"rank": 2, "alpha": 1, "lora_dropout": 0.25, "lora_towers": "both"},
}


def test_recipe_and_settings_are_the_published_ones(name: str) -> None:
    method = METHODS[name]()
    assert {setting: getattr(method.recipe, setting) for setting in RECIPES[name]} == RECIPES[name]
    assert {setting: getattr(method, setting) for setting in SETTINGS[name]} == SETTINGS[name]


@pytest.fixture(scope="module", params=LIBRARIES)
def backbone(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    return load_backbone(str(folders[request.param]), device="cpu", dtype="float64")


def start_of(method: Method, backbone: Any, task: ClassificationTask) -> list[Tensor]:
    prompt = ClassificationTask.predictor(task, method, backbone, 1).prompt
    return [value.detach().double() for value in prompt.parameters()]


def embedded(backbone: Any, words: str) -> Tensor:
    return backbone.token_vectors(torch.tensor(backbone.tokenize(words)))


def test_as_many_vectors_learn_as_the_paper_says(name: str, backbone: Any, task: ClassificationTask) -> None:
    text, vision, joint = backbone.text_width, backbone.vision_width, backbone.embed_dim
    inner, outer = [(2, text)] * 9 + [(2, vision)] * 6, [(text, 2)] * 9 + [(vision, 2)] * 6
    expected = {
        "cocoop": [(4, text), (8, joint), (8,), (text, 8), (text,)],
        "kgcoop": [(4, text)],
        "prograd": [(16, text)],
        "deep-text": [(4, text)] * 3,
        "ivlp": [(2, text)] * 3 + [(2, vision)] * 2,
        "maple": [(2, text)] * 2 + [(vision, text), (vision,)] * 2,
        "promptsrc": [(4, text)] * 3 + [(4, vision)] * 2,
        "clip-lora": inner + outer,
    }
    assert [tuple(value.shape) for value in start_of(TRAINED[name], backbone, task)] == expected[name]


@pytest.mark.parametrize(("name", "depth"), [("deep-text", 12), ("ivlp", 12), ("maple", 9), ("promptsrc", 9)])
def test_layers_beyond_the_published_depth_have_no_vectors_of_their_own(
    name: str, depth: int, model_folder: Path
) -> None:
    layers = {"layers": 13}
    deep: Any = load_backbone(str(small_models.save_open_clip(model_folder / "thirteen", layers, layers)), "cpu")
    sites = TRAINED[name].prompt(deep, Start(torch.Generator(), ClassTemplate("{}"), NAMES)).sites
    text = {site.layer for site in sites if site.tower == "text"}
    vision = {site.layer for site in sites if site.tower == "vision"}
    assert text == set(range(depth))
    assert vision == (set() if name == "deep-text" else text)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cocoop", "a photo of a"),
        ("kgcoop", "a photo of a"),
        ("deep-text", "a photo of a"),
        ("ivlp", "a photo"),
        ("maple", "a photo"),
        ("promptsrc", "a photo of a"),
    ],
)
def test_the_first_vectors_start_as_words(name: str, words: str, backbone: Any, task: ClassificationTask) -> None:
    torch.testing.assert_close(start_of(TRAINED[name], backbone, task)[0], embedded(backbone, words))


def test_prograd_starts_from_zeros_and_the_template_s_words_with_the_hint_first(
    backbone: Any, task: ClassificationTask
) -> None:
    (values,) = start_of(ProGrad(), backbone, task)
    words = embedded(backbone, "a flower, the photo of the")
    assert len(values) == 16
    assert not values[: 16 - len(words)].any()
    torch.testing.assert_close(values[16 - len(words) :], words)


@pytest.mark.parametrize(
    ("settings", "template", "n_ctx"),
    [
        ({}, "a photo of a {}.", 8),
        ({}, "a photo of a {}, a type of pet.", 12),
        ({"ctx_init": "a photo"}, "{}", 8),
        ({"n_ctx": 5}, "a photo of a {}.", 5),
    ],
)
def test_prograd_has_eight_vectors_on_tiny_or_more_for_longer_words(
    settings: dict[str, Any], template: str, n_ctx: int
) -> None:
    classifier = ProGrad(**settings).build(load_backbone("tiny", "cpu"), NAMES, template=template)
    assert classifier.prompt.template.n_ctx == n_ctx


def test_prograd_takes_braces_of_the_template_for_braces(backbone: Any) -> None:
    classifier = ProGrad().build(backbone, NAMES, template="a {{}} {}, a {{kind}}.")
    words = embedded(backbone, "a {kind}, a {}").float()
    torch.testing.assert_close(classifier.prompt.sources[0].vectors[-len(words) :], words)


@pytest.mark.parametrize("name", ["deep-text", "ivlp", "maple", "promptsrc"])
def test_deeper_and_visual_vectors_start_small(name: str, backbone: Any, task: ClassificationTask) -> None:
    drawn = start_of(TRAINED[name], backbone, task)[1 : 2 if name == "maple" else None]
    assert torch.cat([values.flatten() for values in drawn]).std().item() == pytest.approx(0.02, rel=0.25)


def test_the_maps_of_maple_start_as_linear_layers_and_the_deeper_ones_alike() -> None:
    source = Coupled(2, 32, 24, 4).start_from(torch.ones(2, 32), torch.Generator().manual_seed(0))
    first, second, *deeper = (torch.cat([layer.weight, layer.bias[:, None]], 1) for layer in source.maps)
    assert first.abs().max().item() == pytest.approx(32**-0.5, rel=0.02)
    assert not torch.equal(first, second)
    assert all(torch.equal(layer, second) for layer in deeper)


def test_low_rank_terms_start_as_nothing(backbone: Any, task: ClassificationTask) -> None:
    values = start_of(CLIPLoRA(), backbone, task)
    half = len(values) // 2
    assert half == 3 * (backbone.text_layers + backbone.vision_layers)
    assert not any(outer.any() for outer in values[half:])
    for inner in values[:half]:
        assert len(inner) == 2
        assert inner.abs().max().item() == pytest.approx(inner.shape[1] ** -0.5, rel=0.1)

"""What a classifier is said to have learned, against plain definitions and on a finished run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mmprompt as mp
from mmprompt.classification.explanation import temperature_of, without_vector
from mmprompt.classification.forms import Calibrated, calibrated
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.template import ClassTemplate
from mmprompt.classification.words import spelled
from mmprompt.core.confidence import doubtful, out_of_fold
from mmprompt.core.learned import Learned, Prompt
from mmprompt.core.metrics import one_a_class
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.sites import Site

NAMES = ("red car", "green tree", "blue house")


def values(*shape: int) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def classifier_of(backbone: DualEncoder, text: str, *sources: Learned) -> Classifier:
    return Classifier(backbone, Prompt(ClassTemplate(text), *sources).requires_grad_(False), NAMES)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("shape", [(3,), (3, 3)])
def test_without_a_vector_it_is_the_classifier_of_the_others(
    tiny_clip_backbone: DualEncoder, place: int, shape: tuple[int, ...]
) -> None:
    backbone = tiny_clip_backbone
    scope = "class" if len(shape) == 2 else "shared"
    whole = values(*shape, backbone.text_width)
    before, after = ("{soft*2} {name} {soft*1}.", "{soft*2} {name}." if place == 2 else "{soft*1} {name} {soft*1}.")
    kept = [other for other in range(3) if other != place]
    found = without_vector(classifier_of(backbone, before, Learned(Site("text"), whole, scope)), "text", place)
    plain = classifier_of(backbone, after, Learned(Site("text"), whole[..., kept, :], scope))
    assert torch.allclose(found.class_features(), plain.class_features(), atol=1e-6)


def test_without_the_only_vector_nothing_is_left_but_the_words(tiny_clip_backbone: DualEncoder) -> None:
    whole = classifier_of(tiny_clip_backbone, "{soft*1} {name}.", Learned(Site("text"), values(1, 32)))
    plain = classifier_of(tiny_clip_backbone, "{name}.")
    assert torch.allclose(without_vector(whole, "text", 0).class_features(), plain.class_features(), atol=1e-6)


def test_a_vector_of_the_image_tower_is_left_out_of_all_its_layers(
    tiny_clip_backbone: DualEncoder, pixels: torch.Tensor
) -> None:
    backbone = tiny_clip_backbone
    both = [values(3, backbone.vision_width), values(3, backbone.vision_width) + 1]
    sites = [Site("vision"), Site("vision", 1)]
    whole = classifier_of(backbone, "a {}", *map(Learned, sites, both))
    plain = classifier_of(backbone, "a {}", *(Learned(s, v[[0, 2]]) for s, v in zip(sites, both, strict=True)))
    images = backbone.normalize(pixels)
    assert torch.allclose(without_vector(whole, "vision", 1)(images), plain(images), atol=1e-5)


def test_without_a_vector_it_keeps_its_temperature(tiny_clip_backbone: DualEncoder, pixels: torch.Tensor) -> None:
    whole = classifier_of(tiny_clip_backbone, "{soft*3} {name}.", Learned(Site("text"), values(3, 32)))
    images = tiny_clip_backbone.normalize(pixels)
    calm, plain = (without_vector(one, "text", 1)(images) for one in (calibrated(whole, 4.0), whole))
    assert torch.allclose(calm, plain / 4)


def test_words_take_the_places_of_vectors() -> None:
    assert spelled("{soft*2} {name} {soft*1}.", ["a", "b", "c"]) == "a b {name} c."
    assert spelled("{soft*2} {name}.", ["", "b"]) == "b {name}."
    assert spelled("{soft*2} {name}.", ["", ""]) == "{name}."


def test_places_take_turns_between_classes() -> None:
    assert one_a_class(np.array([0, 1, 2, 3, 5]), np.array([4, 4, 4, 7, 1, 1])) == [0, 3, 5, 1, 2]


def test_a_wrong_label_among_clear_clusters_is_found() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 12)
    features = np.eye(8)[labels] + 0.1 * rng.normal(size=(36, 8))
    labels[5] = 2
    table = out_of_fold(torch.tensor(features), labels.tolist())
    assert table.shape == (36, 3)
    assert np.allclose(table.sum(1), 1)
    assert doubtful(table, labels.tolist()) == [5]


@pytest.fixture(scope="module")
def explained(tiny_clip_backbone: DualEncoder, picture_folder: Path) -> tuple[mp.Result, Dataset, mp.Explanation]:
    data = mp.ImageFolder(picture_folder, shots=4, seed=1, augment="none")
    result = mp.fit(mp.CoOp(3), tiny_clip_backbone, data, epochs=4, progress=False)
    return result, data, mp.explain(result.predictor, data, to_words=True)


def test_a_classifier_is_explained_section_by_section(explained: tuple[mp.Result, Dataset, mp.Explanation]) -> None:
    result, data, told = explained
    names = [section.name for section in told.sections]
    expected = "words worth changes maps features calibration in_words labels next".split()
    assert [name for name in expected if name in names] == expected
    test = result.evaluate(data.test)
    assert told.headline.startswith(f"Right in {100 * test.accuracy:.1f} % of {test.n} images held out, zero-shot in ")
    changes = {row["class"]: row["with the prompt"] for row in told.tables["changes"]}
    assert changes == test.per_class
    assert told.tables["calibration"][0]["calibration error"] == pytest.approx(test.calibration_error)
    assert len(told.tables["worth"]) == 3
    words = {row[""]: row["right"] for row in told.tables["in_words"]}
    assert words["soft prompt"] == test.accuracy
    assert "hand-written" in words
    assert len(told.tables["maps"]) == 6
    assert {row["class"] for row in told.tables["features"]} == set(data.class_names)


def test_images_that_it_learned_from_are_said_not_to_be_held_out(
    explained: tuple[mp.Result, Dataset, mp.Explanation],
) -> None:
    result, data, told = explained
    own = mp.explain(result.predictor, data, split="train")
    assert "held out" not in str(own)
    assert "images of the train part" in own.headline
    assert own.headline.endswith("Of what it learned from, the figures flatter it.")
    assert "flatter" not in told.headline


def test_what_a_vector_is_worth_is_measured_on_images_held_out(
    explained: tuple[mp.Result, Dataset, mp.Explanation],
) -> None:
    result, data, told = explained
    classifier, labels = result.predictor, [item.label for item in data.test]
    paths = [item.path for item in data.test]

    def loss(one: Classifier) -> float:
        return -float(np.log(one.probabilities(paths)[range(len(labels)), labels]).mean())

    for row in told.tables["worth"]:
        other = without_vector(classifier, "text", int(row["without"].split()[-1]) - 1)
        assert row["loss grows by"] == pytest.approx(loss(other) - loss(classifier), abs=1e-6)


def test_a_page_and_its_tables_are_saved(explained: tuple[mp.Result, Dataset, mp.Explanation], tmp_path: Path) -> None:
    page = explained[2].save(tmp_path / "told")
    text = page.read_text()
    assert page.name == "explanation.html"
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text.split("</style>")[1])
    names = {path.name for path in page.parent.iterdir()}
    assert names >= {
        "explanation.json",
        "worth_1.png",
        "changes_1.png",
        "maps_1.png",
        "features_1.png",
        "calibration_1.png",
    }
    for section in explained[2].sections:
        assert section.title in text


@pytest.mark.parametrize("method", [mp.VPT(2, depth=2), mp.CoCoOp(), mp.MaPLe(depth=1), mp.TipAdapter()])
def test_methods_of_every_form_are_explained(tiny_clip_backbone: DualEncoder, data: Dataset, method: mp.Method) -> None:
    recipe = mp.Recipe(epochs=1) if method.is_trained else None
    result = mp.fit(method, tiny_clip_backbone, data, recipe=recipe, progress=False)
    told = mp.explain(result.predictor, data, to_words=True)
    tables = told.tables
    n_vectors = {"VPT": 2, "CoCoOp": 4, "MaPLe": 4, "TipAdapter": 0}[type(method).__name__]
    assert len(tables.get("worth", [])) == n_vectors
    assert {"changes", "calibration", "maps"} <= set(tables)
    assert str(told).startswith("Right in ")


def test_an_image_tower_alone_is_explained_without_zero_shot(tiny_timm_backbone: DualEncoder, data: Dataset) -> None:
    result = mp.fit(mp.LinearProbe(), tiny_timm_backbone, data, progress=False)
    told = mp.explain(result.predictor, data)
    assert "zero-shot" not in told.headline
    assert {"calibration", "maps"} <= set(told.tables)
    assert "changes" not in told.tables


def test_a_tower_without_image_tokens_has_maps_of_its_pixels(tiny_resnet_backbone: DualEncoder, data: Dataset) -> None:
    told = mp.explain(mp.fit(mp.CoOp(2), tiny_resnet_backbone, data, epochs=1, progress=False).predictor, data)
    (maps,) = (section for section in told.sections if section.name == "maps")
    assert "gradient times input" in maps.note


def test_a_calibrated_classifier_is_saved_and_divides_its_logits(
    tiny_clip_backbone: DualEncoder, explained: tuple[mp.Result, Dataset, mp.Explanation], tmp_path: Path
) -> None:
    result, data, _ = explained
    temperature = temperature_of(result.predictor, replace(data, val=data.test))
    mp.save(calibrated(result.predictor, temperature), tmp_path / "calibrated")
    loaded = mp.load(tmp_path / "calibrated", tiny_clip_backbone)
    assert isinstance(loaded, Calibrated)
    paths = [item.path for item in data.test]
    logits = np.log(result.predictor.probabilities(paths)) / temperature
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(loaded.probabilities(paths), expected, atol=1e-6)
    assert calibrated(loaded, 2.0).temperature == pytest.approx(2 * temperature)
    assert loaded.with_class_names(["a", "b"]).temperature == temperature


def test_what_cannot_be_looked_at_is_refused(
    explained: tuple[mp.Result, Dataset, mp.Explanation], tiny_clip_backbone: DualEncoder
) -> None:
    result, data, _ = explained
    with pytest.raises(UserError, match="Give `data`"):
        mp.explain(result.predictor)
    with pytest.raises(UserError, match=r"the test part of .* is empty"):
        mp.explain(result.predictor, replace(data, test=()))
    with pytest.raises(UserError, match="no validation images"):
        temperature_of(result.predictor, replace(data, val=()))
    with pytest.raises(UserError, match="temperature is 0"):
        Calibrated(tiny_clip_backbone, result.predictor.prompt, NAMES, temperature=0.0)

"""What a notebook shows: short text, HTML with the numbers of the report, tables as DataFrames."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mmprompt as mp
from mmprompt import display
from mmprompt.core.metrics import evaluate_probabilities
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from tests.language_models import frozen_model


@pytest.fixture(scope="module")
def result(tiny_clip_backbone: DualEncoder, picture_folder: Path) -> mp.Result:
    data = mp.ImageFolder(picture_folder, shots=2, seed=1)
    return mp.fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, epochs=3, progress=False)


def html_of(thing: object) -> str:
    return thing._repr_html_()  # type: ignore[attr-defined, no-any-return]


def test_a_data_set_shows_its_classes_with_counts_and_some_images(data: Dataset) -> None:
    html = html_of(data)
    for name in data.class_names:
        assert f">{name}<" in html
    assert html.count("data:image/png;base64,") == len(data.class_names)
    assert f"test {len(data.test)}" in html


def test_names_from_a_stranger_are_no_html(data: Dataset) -> None:
    names = ("<script>alert(1)</script>", *data.class_names[1:])
    html = html_of(replace(data, class_names=names))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_data_set_whose_images_are_gone_is_shown_without_them(data: Dataset) -> None:
    items = tuple(replace(item, path=Path("gone.png")) for item in data.train)
    assert "data:image" not in html_of(replace(data, train=items))


def test_a_data_set_is_a_table_of_its_images(data: Dataset) -> None:
    table = data.to_frame()
    assert len(table) == len(data.train) + len(data.val) + len(data.test)
    tested = table[table["split"] == "test"]
    assert tested["path"].tolist() == [str(item.path) for item in data.test]
    assert tested["class"].tolist() == [data.class_names[item.label] for item in data.test]


def test_an_evaluation_shows_its_numbers_and_the_weakest_class_first() -> None:
    labels = [0, 0, 0, 0, 1, 1]
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.6, 0.4], [0.9, 0.1]])
    found = evaluate_probabilities(probabilities, labels, ("cat", "dog"))
    html = html_of(found)
    assert "accuracy 50.0%" in html
    assert html.index("dog") < html.index("cat")
    assert "<td" in html
    table = found.to_frame()
    assert table["correct"].tolist() == [True, True, True, False, False, False]
    assert table["predicted"].tolist() == ["cat", "cat", "cat", "dog", "cat", "cat"]
    assert found.answered(0.0) == (1.0, 0.5)
    assert found.answered(0.65) == (pytest.approx(4 / 6), 0.75)
    assert found.answered(1.0) == (0.0, None)
    with pytest.raises(UserError, match="threshold"):
        found.answered(65)


def test_a_result_shows_what_was_learned_and_how_the_loss_went(result: mp.Result) -> None:
    html = html_of(result)
    assert "<polyline" in html
    assert f"{sum(p.numel() for p in result.predictor.parameters()):,}" in html
    assert "text.input" in html
    assert result.to_frame()["loss"].tolist() == [record["loss"] for record in result.history]


def test_a_prediction_shows_the_most_probable_classes(result: mp.Result, picture_folder: Path) -> None:
    image = next(picture_folder.rglob("*.png"))
    said = result.predictor.predict(image)
    html = html_of(said)
    assert f"<strong>{said.label}</strong>" in html
    assert f"{said.probability:.1%}" in html
    assert "I don&#x27;t know" in html_of(result.predictor.predict(image, threshold=1))
    assert said.to_frame()["probability"].sum() == pytest.approx(1)


def test_texts_are_short(result: mp.Result, data: Dataset) -> None:
    shown = [data, result, result.predictor, result.evaluate()]
    shown += [mp.load_texts("somebody"), mp.load_captions("openart-scenes")]
    assert [repr(one) for one in shown if len(repr(one)) > 200 or "object at 0x" in repr(one)] == []


def test_a_language_model_with_a_prompt_shows_template_and_labels() -> None:
    from mmprompt.core.learned import Prompt
    from mmprompt.language.predictor import LanguagePredictor
    from mmprompt.language.templates.template import Template

    html = html_of(LanguagePredictor(frozen_model(), Prompt(Template.parse("{text} is{answer}"))))
    assert "{text} is{answer}" in html


def test_without_pandas_it_is_said_what_to_install(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        data.to_frame()


def test_a_curve_keeps_within_its_frame() -> None:
    html = display.curve("loss", [2.0, 2.0, 2.0])
    assert "nan" not in html
    assert display.curve("loss", [1.0]) == ""


def test_a_result_is_measured_on_the_test_part_of_its_data(result: mp.Result, picture_folder: Path) -> None:
    data = mp.ImageFolder(picture_folder, shots=2, seed=1)
    assert result.evaluate() == result.evaluate(data.test)

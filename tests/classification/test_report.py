from __future__ import annotations

import base64
import builtins
import io
import json
import re
import shlex
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmprompt.classification.cli.train import read_call
from mmprompt.classification.methods import GDA, METHODS, TPT, CoOp, KgCoOp, TwoStage
from mmprompt.classification.report import choose_examples, read_record, write_report
from mmprompt.classification.task import ClassificationTask
from mmprompt.core.fit import describe_method
from mmprompt.core.method import resolved_recipe, settled
from mmprompt.core.metrics import one_a_class
from mmprompt.errors import UserError
from mmprompt.files import read_json, write_json
from mmprompt.reports import figures, pages, tables
from mmprompt.terminal import output
from mmprompt.training.recipe import Recipe
from tests.fixtures.written_run import MakeRun, write_run

NAMES = ["red car", "oak tree", "tiger"]
words_alone = pytest.mark.usefixtures("blank_figures")
PNGS = ("learning_curve", "accuracy", "confusion", "examples_right", "examples_wrong")


class Page(HTMLParser):
    """The texts, the addresses and the tags of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.addresses, self.tags = "", [], []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}]

    def handle_data(self, data: str) -> None:
        self.text += re.sub(r"[ \n]+", " ", data)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an ordinary run, only looked at."""
    return write_report(write_run(tmp_path_factory.mktemp("plain") / "run", NAMES))


def test_the_page_holds_everything_it_shows(plain: Path) -> None:
    source = plain.read_text()
    page = Page(source)
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", source)
    assert "url(" not in source
    assert "@import" not in source


def test_every_embedded_picture_is_a_picture(plain: Path) -> None:
    for address in Page(plain.read_text()).addresses:
        assert base64.b64decode(address.split(",")[1], validate=True).startswith(b"\x89PNG")


def test_the_figures_lie_beside_the_page(plain: Path) -> None:
    folder = plain.parent
    for name in PNGS:
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 300


def test_equal_runs_give_equal_reports(plain: Path) -> None:
    assert write_report(write_run(plain.parents[1] / "run2", NAMES)).read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("n_classes", [2, 130])
def test_any_number_of_classes_is_drawn(make_run: MakeRun, n_classes: int) -> None:
    names = [f"class number {i}" for i in range(n_classes)]
    page = Page(write_report(make_run(names, n=2 * n_classes)).read_text())
    assert f"of {n_classes} classes" in page.text


@pytest.mark.parametrize("n_classes", [121, 1000])
def test_a_confusion_of_very_many_classes_is_no_wider_than_a_page(n_classes: int) -> None:
    names = [f"class number {i}" for i in range(n_classes)]
    with Image.open(io.BytesIO(figures.draw_confusion(np.eye(n_classes).tolist(), names, figures.LIGHT))) as drawn:
        assert drawn.width <= 7.6 * figures.DPI


@words_alone
def test_names_are_escaped(make_run: MakeRun) -> None:
    hostile = ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a & b"]
    source = write_report(make_run(hostile)).read_text()
    assert "<script" not in source
    assert "<img src=x" not in source
    assert hostile[0] in Page(source).text


def test_names_with_dollars_are_not_read_as_formulas(make_run: MakeRun) -> None:
    assert write_report(make_run(["$x^{$", "$$", "ordinary"])).is_file()


@words_alone
def test_the_headline_says_what_was_measured(make_run: MakeRun) -> None:
    folder = make_run(NAMES, (0.2, 0.4, 0.9), n=200)
    metrics = read_json(folder / "metrics.json")
    learned, bare = (100 * metrics[key]["accuracy"] for key in ("learned", "zero_shot_name"))
    said = f"The learned prompt raised accuracy from {bare:.1f}\u202f% to {learned:.1f}\u202f%."
    assert said in Page(write_report(folder).read_text()).text


@words_alone
@pytest.mark.parametrize(
    ("accuracies", "said"), [((0.9, 0.8, 0.3), "lowered accuracy"), ((0.5, 0.5, 0.5), "made no clear difference")]
)
def test_a_loss_is_called_a_loss_and_a_gain_within_chance_no_gain(
    make_run: MakeRun, accuracies: tuple[float, float, float], said: str
) -> None:
    assert f"The learned prompt {said}" in Page(write_report(make_run(NAMES, accuracies, n=100)).read_text()).text


@words_alone
def test_novel_concepts_get_a_column_where_there_are_some(make_run: MakeRun, plain: Path) -> None:
    assert "new concepts" not in Page(plain.read_text()).text
    folder = make_run(NAMES)
    metrics = read_json(folder / "metrics.json")
    for key in ("zero_shot_name", "zero_shot_template", "learned"):
        metrics[key]["novel"] = {"accuracy": 0.123, "n": 9}
    write_json(folder / "metrics.json", metrics)
    text = Page(write_report(folder).read_text()).text
    assert "new concepts" in text
    assert "12.3\u202f%" in text


def test_the_nearest_words_come_with_a_warning(plain: Path) -> None:
    text = Page(plain.read_text()).text
    assert "beside0.38" in text
    assert "a hint and no more" in text


@words_alone
def test_a_run_without_text_vectors_says_so(make_run: MakeRun) -> None:
    folder = make_run(NAMES)
    (folder / "nearest_words.json").unlink()
    assert "No vectors of this prompt stand among the words" in Page(write_report(folder).read_text()).text


def test_a_run_made_in_python_gets_the_command_that_comes_to_the_same(make_run: MakeRun) -> None:
    command = read_record(make_run(NAMES)).command
    assert command.startswith("mmprompt train --data openart-left --backbone tiny --method coop --n-ctx 4 --shots 16")
    assert "--class-specific" not in command


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (TPT(n_views=2, augmix=False), {}),
        (TPT(), {}),
        (KgCoOp(ctx_init=None), {"lr": 0.5}),
        (CoOp(class_specific=True) + GDA(), {"n_steps": 7}),
        (TwoStage(), {"restart_after": None}),
    ],
    ids=str,
)
def test_that_command_is_read_as_the_same_method_and_recipe(
    make_run: MakeRun, method: Any, given: dict[str, Any]
) -> None:
    method = settled(method, "tiny", "classification")
    recipe = ClassificationTask("openart-left", NAMES, [], []).complete(
        resolved_recipe(method, ("tiny", "classification"), {}, Recipe(**given))
    )
    folder = make_run(NAMES)
    made = {"method": describe_method(method, METHODS), "recipe": asdict(recipe)}
    write_json(folder / "run.json", read_json(folder / "run.json") | made)
    call = read_call(shlex.split(read_record(folder).command)[2:], "mmprompt train")
    assert describe_method(call.method, METHODS) == made["method"]
    assert call.recipe == recipe or not method.is_trained  # then there are no steps for it


def test_the_command_of_the_command_line_is_kept(make_run: MakeRun) -> None:
    folder = make_run(NAMES)
    write_json(folder / "run.json", read_json(folder / "run.json") | {"call": {"command": "mmprompt train --seed 3"}})
    assert read_record(folder).command == "mmprompt train --seed 3"


def test_right_examples_show_every_class_before_a_second_of_any(make_run: MakeRun) -> None:
    right, wrong, _ = choose_examples((record := read_record(make_run(NAMES))).shown, record.class_names)
    assert {example.label for example in right[:3]} == set(NAMES)
    assert all(example.label == example.predicted for example in right)
    assert all(example.label != example.predicted for example in wrong)


def test_wrong_examples_are_the_surest_and_at_most_two_of_a_class(make_run: MakeRun) -> None:
    record = read_record(make_run(NAMES, (0.3, 0.3, 0.2), n=90))
    _, wrong, _ = choose_examples(record.shown, record.class_names)
    assert [sum(e.label == name for e in wrong) for name in NAMES] == [2, 2, 2]
    surest = max(s.probability for s in record.shown if s.label != s.predicted)
    assert wrong[0].probability == f"{100 * surest:.0f} %"


def test_turns_keep_the_order_within_a_class(make_run: MakeRun) -> None:
    shown = read_record(make_run(NAMES)).shown
    turned = [shown[place] for place in one_a_class(range(len(shown)), [one.label for one in shown])]
    assert [s for s in turned if s.label == 0] == [s for s in shown if s.label == 0]


@words_alone
def test_pictures_that_are_gone_are_counted_and_not_shown(make_run: MakeRun) -> None:
    folder = make_run(NAMES)
    for path in (folder / "pictures").iterdir():
        path.unlink()
    page = Page(write_report(folder).read_text())
    assert "14 of the images that were to be shown can no longer be read" in page.text
    assert "figcaption" not in page.tags


@words_alone
def test_a_perfect_run_shows_no_mistakes(make_run: MakeRun) -> None:
    text = Page(write_report(make_run(NAMES, (0.3, 0.5, 1.0))).read_text()).text
    assert "Pictures it got wrong" not in text
    assert "taken for" not in text


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished run"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [{"learned": None}, {"predictions": [{}]}, {"zero_shot_name": {"accuracy": 1}}])
def test_damaged_metrics_are_refused(make_run: MakeRun, damage: dict[str, object]) -> None:
    folder = make_run(NAMES)
    write_json(folder / "metrics.json", read_json(folder / "metrics.json") | damage)
    with pytest.raises(UserError, match=r"metrics\.json does not hold what a run writes"):
        write_report(folder)


def test_without_the_extra_one_line_says_how_to_install_it(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pages.importlib.util.find_spec
    monkeypatch.setattr(pages.importlib.util, "find_spec", lambda name: None if name == "jinja2" else found(name))
    with pytest.raises(UserError, match=r'jinja2 is missing: pip install "mmprompt\[report\]"'):
        write_report(make_run(NAMES))


def test_reading_a_record_needs_no_plots(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        assert not name.startswith(("matplotlib", "jinja2"))
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert read_record(make_run(NAMES)).measured["learned"].accuracy > 0


def test_pages_write_numbers_with_real_minus_signs_and_thin_spaces_a_console_without() -> None:
    assert tables.between((-0.012, 0.3), with_sign=True) == "\u22121.2 to +30.0"
    assert tables.percent(0.624) == "62.4\u202f%"
    assert output.between((-0.012, 0.3), signed=True) == "-1.2 to +30.0"
    assert output.percent(0.624) == "62.4 %"


def test_metrics_stay_json(make_run: MakeRun) -> None:
    assert json.loads((make_run(NAMES) / "metrics.json").read_text())["class_names"] == NAMES

"""The report of caption prompts holds what was measured, shows it whole, and reaches for nothing."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from mmprompt.captioning import measure as caption_measure
from mmprompt.captioning.data import CaptionData
from mmprompt.captioning.measure import CaptionMeasure, measure_captions
from mmprompt.captioning.metrics.adherence import Confusion, Lift
from mmprompt.captioning.predictor import hard_prompt
from mmprompt.captioning.report import (
    SIDE,
    choose_images,
    draw_adherence,
    draw_strip,
    speaker_table,
    strength_table,
    whole_in_square,
    wrap,
    write_caption_report,
)
from mmprompt.errors import UserError
from mmprompt.files import read_json
from mmprompt.reports import pages
from mmprompt.reports.figures import DARK, LIGHT, drawing
from tests.small_captioners import small_captioner, small_captions

COMMAND = "mmprompt caption eval --prompts runs/low runs/<high> --out report"
LOW, HIGH = "low", "<b>high & dry</b>"


class Page(HTMLParser):
    """The tables, texts, addresses and tags of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.addresses, self.tags, self.tables = "", [], [], []
        self.is_cell = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.is_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.is_cell = self.is_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.is_cell:
            self.tables[-1][-1][-1] += data.strip()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    """Images of one colour, captions of numbers, and a lexicon that tells low ones from high ones."""
    lexicon = {
        LOW: {str(n): f"number {n}" for n in range(2, 12)},
        HIGH: {str(n): f"number {n}" for n in range(12, 40)},
    }
    return replace(small_captions(tmp_path_factory.mktemp("data")), lexicon=lexicon, notes=("It is small.",))


@pytest.fixture(scope="module")
def measure(data: CaptionData) -> Iterator[CaptionMeasure]:
    """Two prompts of a random captioner on the eight images of the train part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(caption_measure.HARD_WORDS, LOW, ("3 4",))
        patch.setitem(caption_measure.HARD_WORDS, HIGH, ("20 30", "25"))
        captioner = small_captioner()
        prompts = [hard_prompt(captioner, LOW, "2 5 7 9"), hard_prompt(captioner, HIGH, "33 21")]
        yield measure_captions(captioner, data, prompts, "train", strengths=(0.0, 1.0, 2.0))


@pytest.fixture(scope="module")
def report(measure: CaptionMeasure, data: CaptionData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report, only looked at."""
    written = write_caption_report(measure, data, tmp_path_factory.mktemp("report") / "new", COMMAND)
    assert written is not None
    return written


def with_lifts(measure: CaptionMeasure, *lifts: tuple[float, float, float], of: str = "adherence") -> CaptionMeasure:
    """The same with other gains over no prompt: low end, difference, high end."""
    changed: dict[str, dict[str, Lift]] = {}
    for (focus, old), (low, difference, high) in zip(measure.lifts.items(), lifts, strict=False):
        changed[focus] = dict(old) | {f"{of} over none": Lift(focus, of, difference, (low, high), 8)}
    return replace(measure, lifts=changed)


def test_the_page_holds_everything_it_shows(report: Path) -> None:
    source = report.read_text()
    page = Page(source)
    assert len(page.addresses) == 2 * 3 + 6  # a matrix and two curves in two themes, six images
    for address in page.addresses:
        assert address.startswith("data:image/png;base64,")
        assert base64.b64decode(address.split(",")[1], validate=True).startswith(b"\x89PNG")
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    bare = re.sub(r"base64,[A-Za-z0-9+/=]+", "", source)
    assert not any(word in bare for word in ("http", "url(", "@import"))


def test_every_number_of_the_gains_is_that_of_the_measure(report: Path, measure: CaptionMeasure) -> None:
    rows = Page(report.read_text()).tables[0][1:]
    for focus in (LOW, HIGH):
        start = rows.index([focus])
        scores = measure.focus_scores
        for (label, learned, people, bare, over_none, words, over_words), name in zip(
            rows[start + 1 : start + 7],
            ("adherence", "grounded_precision_all", "recall", "density", "mean_length", "distinct_ratio"),
            strict=True,
        ):
            assert [learned, people, bare, words] == [
                shown(label, value)
                for value in (
                    scores[focus][focus].values[name],
                    scores[focus][focus].human[name],
                    scores["no prompt"][focus].values[name],
                    scores[f"words: {focus}"][focus].values[name],
                )
            ]
            assert over_none == shown_lift(measure.lifts[focus].get(f"{name} over none"))
            assert over_words == shown_lift(measure.lifts[focus].get(f"{name} over words"))
        assert rows[start + 1][4]


def shown(label: str, value: float | None) -> str:
    if value is None:
        return "-"
    decimals = {"items a caption": 2, "words a caption": 1}.get(label)
    return f"{100 * value:.1f}\u202f%" if decimals is None else f"{value:.{decimals}f}"


def shown_lift(lift: Lift | None) -> str:
    if lift is None:
        return ""
    one, low, high = (f"{100 * x:+.1f}".replace("-", "\u2212") for x in (lift.difference, *lift.interval))
    return f"{one} ({low} to {high})"


def test_the_curves_and_all_captioners_stand_in_tables(report: Path, measure: CaptionMeasure) -> None:
    _, curves, captioners = Page(report.read_text()).tables
    for focus in (LOW, HIGH):
        start = curves.index([focus])
        assert curves[start + 1 : start + 4] == strength_table(measure.strengths[focus])[1]
    assert captioners == [speaker_table(measure)[0], *speaker_table(measure)[1]]


def test_what_was_said_of_the_pictures_is_what_is_shown(report: Path, measure: CaptionMeasure) -> None:
    text = " ".join(Page(report.read_text()).text.split())
    for place in (0, 1, 3, 4, 6, 7):  # six of eight at even distances
        said = [(one.name, one.said[f"{place}.png"]) for one in measure.speakers if "words" not in one.name]
        assert " ".join(f"{name} {caption or '-'}" for name, caption in said) in text


def test_figures_tables_and_metrics_lie_beside_the_page(report: Path, measure: CaptionMeasure) -> None:
    for name in ("confusion", "strength_1", "strength_2", "strip"):
        with Image.open(report.parent / f"{name}.png") as image:
            assert image.width > 300
    assert read_json(report.parent / "metrics.json") == json.loads(json.dumps(measure.to_dict()))
    for name in ("captioners", "focuses"):
        assert HIGH in (report.parent / f"{name}.md").read_text()
        assert (report.parent / f"{name}.csv").read_text().count("\n") > 2


def test_each_number_of_a_focus_stands_beside_that_of_people_in_files_too(
    report: Path, measure: CaptionMeasure
) -> None:
    headers, *rows = csv.reader((report.parent / "focuses.csv").open(encoding="utf-8"))
    assert headers[:4] == ["focus", "measure", "learned", "people"]
    page = Page(report.read_text()).tables[0][1:]
    assert [row for row in page if len(row) > 1] == [row[1:] for row in rows]
    assert [row[0] for row in rows] == [LOW] * 6 + [HIGH] * 6


def test_notes_settings_and_the_command_are_there(report: Path, measure: CaptionMeasure) -> None:
    text = Page(report.read_text()).text
    (ceiling,) = measure.focus_scores[LOW][LOW].notes
    for expected in (COMMAND, "It is small.", *measure.notes, ceiling, "lexicon of captions", "max tokens", "“3 4”"):
        assert expected in text


def test_without_the_extra_metrics_alone_are_written(
    measure: CaptionMeasure, data: CaptionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pages.importlib.util.find_spec
    monkeypatch.setattr(pages.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    assert write_caption_report(measure, data, tmp_path, COMMAND) is None
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert "matplotlib is missing: pip install" in (pages.missing_extra() or "")


def text_of(measure: CaptionMeasure, data: CaptionData, folder: Path) -> str:
    """What a page says, without images."""
    items = tuple(replace(item, image=folder / "gone.png") for item in data.items)
    report = write_caption_report(measure, replace(data, items=items), folder, COMMAND)
    assert report is not None
    return " ".join(Page(report.read_text()).text.split())


@pytest.mark.parametrize(
    ("lifts", "said"),
    [
        ([(0.1, 0.2, 0.3)], "The learned prompt raised adherence to low by 20.0 points over the captioner without it."),
        ([(-0.3, -0.2, -0.1)], "The learned prompt lowered adherence to low by 20.0 points over"),
        ([(-0.1, -0.05, 0.0)], "no clear difference to adherence to low: \u22125.0 points over"),
        ([(0.1, 0.2, 0.3), (0.3, 0.4, 0.5)], "raised adherence to their focus by 20.0 to 40.0 points over"),
        ([(0.1, 0.2, 0.3), (0.1, 0.2, 0.3)], "raised adherence to their focus by 20.0 points over"),
        ([(0.1, 0.2, 0.3), (-0.1, 0.4, 0.5)], "1 of 2 learned prompts clearly raised"),
    ],
)
def test_the_headline_claims_what_the_intervals_allow(
    measure: CaptionMeasure, data: CaptionData, tmp_path: Path, lifts: list[tuple[float, float, float]], said: str
) -> None:
    changed = replace(with_lifts(measure, *lifts), strengths={})
    assert said in text_of(changed, data, tmp_path)


def test_a_loss_of_grounding_is_said_where_it_is_clear(
    measure: CaptionMeasure, data: CaptionData, tmp_path: Path
) -> None:
    measure = replace(measure, strengths={})
    clear = text_of(with_lifts(measure, (-0.3, -0.2, -0.1), of="grounded_precision_all"), data, tmp_path)
    assert (
        f"for {LOW}, captions are less grounded than without one: \u221220.0 points (\u221230.0 to \u221210.0)" in clear
    )
    unclear = text_of(with_lifts(measure, (-0.3, -0.1, 0.1), of="grounded_precision_all"), data, tmp_path)
    assert f"for {LOW}, captions are less" not in unclear


@pytest.mark.parametrize(("own", "which"), [(0.9, " Every learned"), (0.2, " Not every learned")])
def test_whether_the_matrix_is_diagonal_is_said(
    measure: CaptionMeasure, data: CaptionData, tmp_path: Path, own: float, which: str
) -> None:
    adherence = {speaker.name: (0.5, 0.5) for speaker in measure.speakers} | {LOW: (own, 0.1), HIGH: (0.1, own)}
    confusion = Confusion(tuple(adherence), (LOW, HIGH), tuple(adherence.values()))
    assert which in text_of(replace(measure, confusion=confusion, strengths={}), data, tmp_path)


def test_the_highest_point_of_each_measure_is_named(measure: CaptionMeasure, data: CaptionData, tmp_path: Path) -> None:
    point = replace(measure.strengths[LOW][0], adherence=0.5, grounded_precision=0.9, cider_d=0.1, strength=0.0)
    points = (point, replace(point, strength=1, adherence=0.7), replace(point, strength=2, cider_d=0.3))
    bare = tuple(replace(one, grounded_precision=None) for one in points)
    text = text_of(replace(measure, strengths={LOW: points, HIGH: bare}), data, tmp_path)
    assert (
        f"For {LOW}, highest is adherence at strength 1, grounded precision at strength 0 and CIDEr-D at strength 2."
        in text
    )
    assert f"For {HIGH}, highest is adherence at strength 1 and CIDEr-D at strength 2." in text


def test_a_measure_without_curves_has_a_page_without_them(
    measure: CaptionMeasure, data: CaptionData, tmp_path: Path
) -> None:
    report = write_caption_report(replace(measure, strengths={LOW: (), HIGH: ()}), data, tmp_path, COMMAND)
    assert report is not None
    assert "What focus costs" not in Page(report.read_text()).text
    assert not list(tmp_path.glob("strength*"))


def test_pictures_that_are_gone_are_counted_and_not_shown(
    measure: CaptionMeasure, data: CaptionData, tmp_path: Path
) -> None:
    items = tuple(replace(item, image=tmp_path / "gone.png") for item in data.items)
    report = write_caption_report(measure, replace(data, items=items), tmp_path / "report", COMMAND)
    assert report is not None
    page = Page(report.read_text())
    assert "6 of the images that were to be shown can no longer be read" in page.text
    assert "figcaption" not in page.tags
    with pytest.raises(UserError, match="no image of captions can be read any more"):
        draw_strip(measure, replace(data, items=items), 4, LIGHT)


def test_a_strip_shows_its_pictures_in_the_colours_of_the_page(measure: CaptionMeasure, data: CaptionData) -> None:
    drawn = {}
    for theme in (LIGHT, DARK):
        with Image.open(io.BytesIO(draw_strip(measure, data, 5, theme))) as image:
            drawn[theme.name] = np.asarray(image.convert("RGB"))
    assert drawn["light"][0, 0].tolist() == [255, 255, 255]
    assert drawn["dark"][0, 0].tolist() == [0x17, 0x19, 0x1B]
    for theme in (LIGHT, DARK):
        assert count_pixels(drawn[theme.name], ImageColor.getrgb(theme.ink)) > 500
    for one in choose_images(measure, data, 5)[0]:
        colour = np.asarray(one.image)[SIDE // 2, SIDE // 2, :3]
        assert count_pixels(drawn["light"], colour) > 10_000


def count_pixels(image: np.ndarray, colour: Any) -> int:
    return int((image == colour).all(-1).sum())


def test_what_is_meant_to_be_high_lies_on_a_diagonal() -> None:
    confusion = Confusion(("no prompt", "b", "a"), ("a", "b"), ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)))
    with Image.open(io.BytesIO(draw_adherence(confusion, LIGHT))) as image:
        high = (np.asarray(image.convert("RGB")) == ImageColor.getrgb(LIGHT.accent)).all(-1)
    rows, columns = np.nonzero(high)
    middle = (rows.min() + rows.max()) / 2
    assert columns[rows < middle - 5].max() < columns[rows > middle + 5].min()  # b above, at the left


def test_a_strip_of_no_picture_is_refused(measure: CaptionMeasure, data: CaptionData) -> None:
    with pytest.raises(UserError, match="n_images is 0"):
        draw_strip(measure, data, 0, LIGHT)


def test_a_wide_picture_is_shown_whole() -> None:
    image = Image.new("RGB", (80, 20), "red")
    image.paste("blue", (70, 0, 80, 20))
    square: Any = np.asarray(whole_in_square(image))
    assert square.shape == (SIDE, SIDE, 4)
    assert square[SIDE // 2, -1].tolist() == [0, 0, 255, 255]
    assert square[0, 0, 3] == 0


@pytest.mark.parametrize("text", ["a cat and a dog " * 4, "$x^{$ and more of it than fits", "w" * 60])
def test_captions_are_broken_to_the_width_of_their_picture(text: str) -> None:
    from matplotlib.textpath import TextPath

    with drawing(LIGHT, 1, 1):
        lines = wrap(text, 1.2)
        widths = [TextPath((0, 0), line, size=8.0).get_extents().width / 72 for line in lines]
    assert len(lines) > 1
    assert max(widths) <= 1.2
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_very_long_caption_is_cut_and_an_empty_one_marked() -> None:
    with drawing(LIGHT, 1, 1):
        lines = wrap("word " * 200, 1.2)
        assert (len(lines), lines[-1][-1]) == (8, "…")
        assert wrap("", 1.2) == ["-"]

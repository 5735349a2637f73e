"""`mp.compare`: methods by name on data sets of any kind, computed by the same grid."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmprompt as mp
from mmprompt.captioning.data import CaptionData
from mmprompt.errors import UserError
from mmprompt.experiments.compare import origins_of
from mmprompt.experiments.compute import Bench, plan
from mmprompt.experiments.grid import Contender, Grid
from mmprompt.language.data import TextData
from mmprompt.language.methods import PromptInit
from tests.processes import context

PLAIN: dict[str, Any] = {"device": "cpu", "progress": False}
QUICK: dict[str, Any] = {"epochs": 1, **PLAIN}


@pytest.fixture(scope="session")
def texts() -> TextData:
    data = mp.load_texts("somebody")
    return replace(data, test=data.test[:6])


@pytest.fixture(scope="session")
def captions() -> CaptionData:
    data = mp.load_captions("openart-scenes")
    return replace(data, items=(*data.train[:4], *data.test[:5]))


def keys_of(task: Any, method: Any, **changes: Any) -> list[str]:
    grid = Grid(
        origins_of([task]), (Contender("prompt", method, "tiny"),), **{"shots": (None,), "seeds": (1,)} | changes
    )
    return [one.key for one in plan(grid, Bench("cpu"))]


def test_prompts_of_a_language_model_are_compared_over_draws_of_the_rows(texts: TextData, tmp_path: Path) -> None:
    methods = {"prompt": (mp.PromptTuning(2), "tiny"), "prefix": (mp.PrefixTuning(1), "tiny")}
    comparison = mp.compare(methods, [texts], shots=(2,), seeds=(1, 2), out=tmp_path, **QUICK)
    assert [(line.label, line.correct.shape) for line in comparison.lines] == [("prompt", (2, 6)), ("prefix", (2, 6))]
    assert "prefix" in str(comparison)
    line = comparison.lines[0]
    for cell, value in zip(line.cells, line.values, strict=True):
        right = [
            one.label == row.label
            for one, row in zip(mp.load(cell.folder).predict(texts.test), texts.test, strict=True)
        ]
        assert np.mean(right) == value
        assert cell.facts["n_train"] == 2 * len(texts.labels)


def test_shots_and_seeds_may_be_numbers_of_numpy(texts: TextData, tmp_path: Path) -> None:
    one = np.int64(1)
    data = mp.load_dataset("openart-large", shots=one, seed=one)  # type: ignore[arg-type]
    data = replace(data, test=data.test[:20])
    fitted = mp.fit(mp.CoOp(2), "tiny", data, seed=one, out=tmp_path / "run", epochs=1, progress=False)  # type: ignore[arg-type]
    assert fitted.evaluate(data.test).accuracy >= 0
    many = {"shots": np.array([1]), "seeds": np.arange(1, 3)}
    (line,) = mp.compare({"prompt": (mp.PromptTuning(2), "tiny")}, [texts], **many, out=tmp_path, **QUICK).lines
    assert (line.shots, line.correct.shape) == (1, (2, 6))


def test_focuses_of_a_captioner_are_compared_with_words(captions: CaptionData, tmp_path: Path) -> None:
    methods = {"prompt": (mp.PromptTuning(2), "tiny"), "words": (mp.HardPrompt("the feelings are"), "tiny")}
    tasks = [captions.focus(name) for name in ("emotions", "actions")]
    comparison = mp.compare(methods, tasks, seeds=(1, 2), out=tmp_path, **QUICK)
    assert [(line.label, line.source, line.correct.shape) for line in comparison.lines] == [
        ("prompt", "openart-scenes: emotions", (2, 5)),
        ("words", "openart-scenes: emotions", (1, 5)),
        ("prompt", "openart-scenes: actions", (2, 5)),
        ("words", "openart-scenes: actions", (1, 5)),
    ]
    line = comparison.lines[1]
    scores = captions.focus("emotions").evaluate(mp.load(line.cells[0].folder), captions.test)
    assert line.mean == pytest.approx(scores.values["adherence"])
    assert line.numbers["mean_length"] == scores.values["mean_length"]


def test_a_method_may_be_named_as_for_fit(texts: TextData, tmp_path: Path) -> None:
    both = {"named": ("hard", "tiny"), "made": (mp.HardPrompt(), "tiny")}
    named, made = mp.compare(both, [texts], out=tmp_path, **PLAIN).lines
    assert named.cells == made.cells


def test_images_lie_in_a_folder_or_are_at_hand(pictures: Path, tiny_open_clip_folder: Path, tmp_path: Path) -> None:
    zero_shot, model = mp.METHODS["zero-shot"], str(tiny_open_clip_folder)
    methods = {"bare name": (zero_shot("{}"), model), "zero-shot": (zero_shot(), model)}
    data = mp.ImageFolder(pictures, shots=1)
    by_place = mp.compare(methods, {data.name: str(pictures)}, out=tmp_path, **PLAIN)
    assert len(list(tmp_path.iterdir())) == 2
    by_path = mp.compare(methods, [pictures], out=tmp_path, **PLAIN)
    assert [line.values for line in by_path.lines] == [line.values for line in by_place.lines]
    at_hand = mp.compare(methods, [data], out=tmp_path, **PLAIN)
    assert len(list(tmp_path.iterdir())) == 2
    assert [line.values for line in by_place.lines] == [line.values for line in at_hand.lines]
    assert [line.label for line in by_place.lines] == ["bare name", "zero-shot"]
    assert [gain is None for gain in by_place.gains] == [False, True]


def test_the_key_depends_on_how_a_model_is_asked(texts: TextData) -> None:
    plain = keys_of(texts, mp.PromptTuning(2))
    assert keys_of(texts.task(), mp.PromptTuning(2)) == plain
    for other in (
        texts.task(template="{soft} {text:cut}\n{answer}"),
        texts.task(objective="answer"),
        texts.task(init=PromptInit("random")),
        replace(texts, train=texts.train[:-1]),
    ):
        assert keys_of(other, mp.PromptTuning(2)) != plain
    assert keys_of(texts, mp.PromptTuning(3)) != plain


def test_the_key_depends_on_the_focus(captions: CaptionData) -> None:
    one, other = (keys_of(captions.focus(name), mp.PromptTuning(2)) for name in ("emotions", "actions"))
    assert one != other


def test_several_processes_take_tasks_at_hand(texts: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beginning = context()  # which asks for it itself, the first time
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: beginning)
    methods = {"words": (mp.HardPrompt(), "tiny")}
    tasks = {words: texts.task(template=f"{{text}} {words} {{answer}}") for words in ("is", "says")}
    comparison = mp.compare(methods, tasks, workers=2, out=tmp_path, **PLAIN)
    assert [line.source for line in comparison.lines] == ["is", "says"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            {"a": mp.CoOp()},
            r"methods\['a'\] is of type CoOp, but a pair of a method and the name of a frozen model was expected",
        ),
        ({"a": (mp.CoOp(), "tiny", 3)}, r"methods\['a'\] is of type tuple, but a pair of"),
        ({"a": (mp.CoOp(), 3)}, r"methods\['a'\] is of type tuple, but a pair of"),
        ({"a": (mp.CoOp, "tiny")}, "method is CoOp, but a method or the name of one was expected"),
        ({"a": ("copo", "tiny")}, "no method named 'copo'. Did you mean 'coop'"),
        ({"a": (mp.PromptTuning(2), "tiny")}, "method is PromptTuning, but it is for captioning and language"),
    ],
)
def test_what_is_no_method_for_the_data_on_a_model_is_refused(methods: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        mp.compare(methods, ["openart-left"], out=tmp_path / "cells", **QUICK)
    assert not (tmp_path / "cells").exists()


def test_texts_that_are_only_tested_on_are_targets(texts: TextData, tmp_path: Path) -> None:
    target = replace(texts, name="only tested", train=(), val=())
    methods = {"words": (mp.HardPrompt(), "tiny")}
    comparison = mp.compare(methods, [texts], targets=[target], out=tmp_path, **PLAIN)
    by_target = {line.target: line.mean for line in comparison.lines}
    assert by_target["only tested"] == by_target[texts.name]
    assert f"{texts.name}: only tested" in str(comparison)


def test_targets_of_another_kind_are_refused_before_anything_is_computed(captions: CaptionData, tmp_path: Path) -> None:
    methods, targets = {"coop": (mp.CoOp(), "tiny")}, [captions.focus("emotions")]
    with pytest.raises(UserError, match=r"targets is openart-scenes: emotions, but it is for captioning"):
        mp.compare(methods, ["openart-left"], targets=targets, out=tmp_path / "cells", **QUICK)
    assert not (tmp_path / "cells").exists()


def test_a_setting_that_no_recipe_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no setting of a recipe named 'epoch'\. Did you mean 'epochs'"):
        mp.compare({"coop": ("coop", "tiny")}, ["openart-left"], out=tmp_path / "cells", epoch=3)
    assert not (tmp_path / "cells").exists()


def test_a_setting_of_steps_is_refused_where_none_are_taken(tmp_path: Path) -> None:
    methods = {"plain": ("zero-shot", "tiny"), "gaussians": ("gda", "tiny")}
    with pytest.raises(
        UserError, match=r"^lr is 3\.0, but plain and gaussians are not trained by steps\. Leave `lr` out"
    ):
        mp.compare(methods, ["openart-left"], out=tmp_path / "cells", lr=3.0)
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(
    ("tasks", "shots", "message"),
    [
        ("openart-left", (None,), "tasks is 'openart-left', but it must be a list or a mapping"),
        ([3], (None,), "data is of type int"),
        ([], (None,), "tasks is empty"),
        ({"mine": "openart-left"}, (None,), "a data set of the catalogue goes by its own name"),
        ("at hand", (2,), "the shots of openart-left, which is at hand, were drawn before"),
        ("task", (None,), "data is of type ClassificationTask, but a comparison takes the data set itself"),
        (["openart-left"], (0,), "shots is 0, but it must be a whole number, 1 or more"),
    ],
)
def test_what_is_no_comparison_is_refused(
    tasks: Any, shots: tuple[int | None, ...], message: str, tmp_path: Path
) -> None:
    at_hand = mp.load_dataset("openart-left")
    tasks = {"at hand": [at_hand], "task": [at_hand.task()]}.get(tasks, tasks) if isinstance(tasks, str) else tasks
    with pytest.raises(UserError, match=message):
        mp.compare({"coop": (mp.CoOp(), "tiny")}, tasks, shots=shots, out=tmp_path / "cells", **QUICK)
    assert not (tmp_path / "cells").exists()

"""A start that is learned over tasks: Reptile's rule, what it is kept as, and that prompts begin there."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprompt.core.file import save
from mmprompt.core.fit import fit
from mmprompt.core.header import HEADER, read_header
from mmprompt.core.learned import Learned, Prompt
from mmprompt.core.meta import drawn
from mmprompt.core.soft import DecoderMethod
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow
from mmprompt.language.meta import MetaResult, few_steps, meta_init
from mmprompt.language.methods import MultitaskPrompt, PrefixTuning, PromptInit, PromptTuning, PTuning
from mmprompt.language.predictor import LanguagePredictor, load_prompted
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import Site
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import RunFailed
from mmprompt.training.recipe import Recipe
from mmprompt.training.seeds import derive_seed, epoch_order
from tests.language_models import frozen_model

pytestmark = pytest.mark.usefixtures("feature_store")

WORDS = {"animal": ("cat", "dog", "bird", "fish"), "thing": ("car", "tree", "house", "flower")}
COLOURS = ("red", "blue", "green")
METHOD = PromptTuning(4)
RECIPE = replace(PromptTuning.recipe, batch_size=4)


@cache
def model_of(kind: str = "llama") -> FrozenLanguageModel:
    return frozen_model(kind, torch.float32)


def kinds() -> TextData:
    """What something is."""
    rows = tuple(TextRow({"text": f"a {word}"}, label) for label, words in WORDS.items() for word in words)
    return TextData("kinds", rows, (), rows, ("animal", "thing"), "{soft} {text}\nIt is {answer}")


def colours() -> TextData:
    """What colour something has: other fields, labels and words of them."""
    rows = tuple(TextRow({"name": f"the {colour} {word}"}, colour) for colour in COLOURS for word in WORDS["thing"])
    verbalizer = {colour: (f"so {colour}",) for colour in COLOURS}
    return TextData("colours", rows, (), rows, COLOURS, "{name}: {soft} {answer}", verbalizer)


def echoes() -> TextData:
    """Texts to be generated."""
    rows = tuple(TextRow({"text": word}, None, f"the {word}") for word in WORDS["animal"])
    return TextData("echoes", rows, (), rows, (), "{soft} {text} {answer}")


def learn(out: Path | None = None, **more: Any) -> MetaResult:
    settings = {"n_rounds": 3, "n_inner": 2, "recipe": RECIPE, "method": METHOD} | more
    datas = settings.pop("datas", None) or (kinds(), colours())
    return meta_init(datas, settings.pop("model", None) or model_of(), out=out, **settings)


def start_of(vectors: Tensor, folder: Path) -> PromptInit:
    assert (folder / HEADER).exists()
    assert load_prompted(folder, model_of()).vectors()[Site("lm")].values.equal(vectors)
    return PromptInit(start="prompt", from_prompt=folder)


def trained(start: PromptInit, number: int, seed: int, n_inner: int = 2) -> tuple[str, Tensor]:
    """What `fit` comes to on the rows of a round, and the task's name."""
    datas = (kinds(), colours())
    data = datas[epoch_order(derive_seed(seed, "tasks"), number // 2, 2)[number % 2]]
    rows = drawn(data.train, 4 * n_inner, derive_seed(seed, "rows", number))
    round_seed = derive_seed(seed, "round", number)
    recipe = replace(RECIPE, epochs=1)
    task = replace(data, train=rows).task(init=start)
    found = fit(METHOD, model_of(), task, recipe=recipe, seed=round_seed, progress=False)
    return data.name, found.predictor.vectors()[Site("lm")].values


def test_rounds_move_the_start_a_falling_share_of_the_way_to_the_vectors_of_their_task(tmp_path: Path) -> None:
    """Reptile: theta + rate (theta' - theta), theta' being a plain training from theta on rows of one task."""
    words = PromptInit(start="words", words="red car by the house")
    ids = model_of().tokenizer(words.words, add_special_tokens=False)["input_ids"][:4]
    theta = model_of().embed(torch.tensor(ids))
    start, names = words, []
    for number, rate in enumerate((0.8, 0.4)):  # of 0.8, all of it and then a half
        name, there = trained(start, number, seed=3)
        names.append(name)
        assert not torch.allclose(there, theta, atol=1e-3)
        theta = theta + rate * (there - theta)
        start = kept_start(theta, tmp_path / "between")
    result = learn(n_rounds=2, start=words, rate=0.8, seed=3)
    assert [record["task"] for record in result.history] == names
    torch.testing.assert_close(result.vectors, theta, rtol=1e-4, atol=1e-5)


def kept_start(vectors: Tensor, folder: Path) -> PromptInit:
    prompt = Prompt(Template.parse("{soft*4} {answer}"), Learned(Site("lm"), vectors))
    save(LanguagePredictor(model_of(), prompt), folder)
    return PromptInit(start="prompt", from_prompt=folder)


def test_every_task_comes_equally_often_and_learns() -> None:
    result = learn(datas=(kinds(), colours(), echoes()), n_rounds=9, n_inner=4)
    names = [record["task"] for record in result.history]
    for start in range(0, 9, 3):
        assert sorted(names[start : start + 3]) == ["colours", "echoes", "kinds"]
    assert [record["round"] for record in result.history] == list(range(1, 10))
    for name in ("kinds", "echoes"):
        losses = [record["loss"] for record in result.history if record["task"] == name]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", [METHOD, PTuning(4, hidden=16)], ids=str)
def test_prompts_begin_at_the_saved_start(method: DecoderMethod, tmp_path: Path) -> None:
    result = learn(tmp_path / "start", method=method, recipe=replace(type(method).recipe, batch_size=4))
    start = start_of(result.vectors, tmp_path / "start")
    recipe = replace(RECIPE, epochs=1, lr=1e-9)
    prompted = fit(METHOD, model_of(), colours().task(init=start), recipe=recipe, progress=False).predictor
    torch.testing.assert_close(prompted.vectors()[Site("lm")].values, result.vectors)
    header = read_header(tmp_path / "start")
    assert header["training"]["meta"]["tasks"] == {data.name: data.fingerprint for data in (kinds(), colours())}
    assert header["training"]["meta"]["n_inner"] == 2
    assert result.prompted.bound.n_soft == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 7},
        {"n_steps": 7},
        {"patience": 2},
        {"warmup_epochs": 1},
        {"augment": "coop"},
        {"views": 3},
        {"restart_after": 0.5},
    ],
    ids=str,
)
def test_a_setting_that_counts_for_nothing_in_a_round_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    (name,) = settings
    with pytest.raises(UserError, match=rf"^{name} is .*, but a round takes n_inner steps .* Leave `{name}` out\.$"):
        learn(tmp_path / "start", recipe=Recipe(**settings))
    assert not (tmp_path / "start").exists()


def test_the_start_is_the_same_for_the_same_seed() -> None:
    assert learn(seed=2).vectors.equal(learn(seed=2).vectors)
    assert not learn(seed=2).vectors.equal(learn(seed=3).vectors)


def test_a_few_steps_are_exactly_so_many(tmp_path: Path) -> None:
    data = few_steps(kinds(), 5, 4, seed=2)
    assert len(data.train) == 20
    assert sorted(map(repr, data.train[:8])) == sorted(map(repr, kinds().train))
    assert data.train[:8] != data.train[8:16]
    assert data.test == kinds().test
    steps: list[int] = []

    class Count(Callback):
        def on_step_end(self, run: Any, step: int, logs: Any) -> None:
            steps.append(step)

    fit(METHOD, model_of(), data, recipe=replace(RECIPE, epochs=1), callbacks=[Count()], progress=False)
    assert len(steps) == 5


def test_rows_are_drawn_in_passes_over_all() -> None:
    rows = kinds().train
    assert len(drawn(rows, 3, 1)) == 3
    passes = drawn(rows, 20, 1)
    for start in (0, 8):
        assert set(map(repr, passes[start : start + 8])) == set(map(repr, rows))
    assert passes != drawn(rows, 20, 2)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"datas": (kinds(),)}, "there are 1 tasks"),
    ({"method": PrefixTuning(3)}, "vectors among the tokens"),
    ({"method": MultitaskPrompt(4)}, "vectors among the tokens"),
    ({"n_rounds": 0}, "n_rounds is 0"),
    ({"n_inner": 0}, "n_inner is 0"),
    ({"rate": 0.0}, "rate is 0.0"),
    ({"rate": 1.5}, "rate is 1.5"),
    (
        {"datas": (kinds(), replace(colours(), template="{soft} {name} {soft*2} {answer}"))},
        "the template of colours has 6 soft slots",
    ),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        learn(tmp_path / "start", **settings)
    assert not (tmp_path / "start").exists()


def test_a_finished_start_is_not_overwritten(tmp_path: Path) -> None:
    learn(tmp_path / "start")
    with pytest.raises(UserError, match="already holds a finished run"):
        learn(tmp_path / "start")


def test_weights_that_changed_are_noticed(tmp_path: Path) -> None:
    model = frozen_model("gpt2", torch.float32)
    with torch.no_grad():
        next(model.lm.parameters()).add_(0.01)
    with pytest.raises(RunFailed, match="weights of gpt2 changed"):
        learn(tmp_path / "start", model=model)
    assert not (tmp_path / "start" / HEADER).exists()

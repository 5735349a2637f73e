"""The scripts in README and docs that take minutes or hours, with the options that the page gives: cut down to a few
steps of a small model, so that first figures come in seconds.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pytest
import tyro

import mmprompt as mp
from mmprompt.core.method import resolved_recipe
from mmprompt.data import catalog
from tests.processes import run_program
from tests.small_language_models import CHAT_TEMPLATE
from tests.test_docs import ROOT, fit_shortly
from tests.test_docs_commands import NOT_HERE, PAGES, as_reader, lay_out, lines_of, reader  # noqa: F401

SMALL_VIT = {"MODELS": ("vit-b-16",), "N_FEW": 32, "load": lambda name, folder: mp.load_backbone("clip")}
POOL = {
    "POOL": ("intent", "questions"),
    "META": ("intent", "questions", "seasons"),
    "HELD_OUT": ("questions",),
    "SHOTS": 1,
}
FEW = {"DRAWS": (1, 2), "N_ROUTED": 4, "N_ADAPTED": 4, "ADAPT_SEEDS": (1,), "RATES": (0.03,), "N_STEPS": 1}
AN_EPOCH = resolved_recipe(mp.PromptTuning(), ("tiny", "captioning"), {"epochs": 1}, None)
CUT: dict[str, tuple[str, dict[str, Any]]] = {
    "bench/captioning": ("", {"N_TOKENS": 2, "N_WRITTEN": 2, "RECIPE": AN_EPOCH}),
    "bench/end_to_end": ("--rows vit-b-16", SMALL_VIT),
    "bench/language": (
        "--rows mixed",
        {"N_LAYERS": 1, "WIDTH": 64, "VOCABULARY": 1000, "REPEATS": 1, "N_MIXED_NEW": 2},
    ),
    "bench/memory": ("--one 100", {"vit_b_16": lambda with_image_tower: mp.load_backbone("clip")}),
    "bench/methods": ("--quick --repeats 1 --rows coop", {}),
    "bench/scale": ("--one images 1000", {}),
    "bench/serving": ("--prompts 2 --processes 1 --clients 2 --seconds 0.5", {}),
    "bench/table": ("", {}),
    "bench/text_step": ("--rows text-100-m4 --repeats 1", {"vit_b_16": lambda: mp.load_backbone("clip")}),
    "compare_language": ("--model tiny --one 'prompt tuning' 1", {"SHOTS": 1}),
    "draw_captions": ("--n-images 2", {}),
    "measure_captions": ("--seeds 1", {"SETS": ("openart-scenes",) * 2, "N_STEERED": 4}),
    "measure_composition": ("--model tiny --ways orthogonal", {"N_STEPS_LANGUAGE": {"tiny": 1}}),
    "measure_context_start": (
        "",
        {
            "SEEDS": (1,),
            "SHOTS": (1,),
            "EPOCHS": (1,),
            "LEARNED_ON": ["openart-left", "openart-large"],
            "HELD_OUT": ["openart-right"],
            "ROUNDS": {"n_rounds": 1, "n_inner": 1},
        },
    ),
    "measure_dynamic": (
        "--models tiny",
        POOL | FEW | {"OTHER": "intent", "N_ROUNDS": 1, "N_INNER": 1, "N_STEPS_LANGUAGE": {"tiny": 1}},
    ),
    "measure_ensembles": ("--tasks openart-left --shots 1 --draws 1", {}),
    "measure_export": ("--architecture ViT-S-16-alt --forms npy", {}),
    "measure_language": ("--model hf:lm", {"TASKS": ("questions",), "SEEDS": (1,), "SHOTS": 1}),
    "measure_membership": ("--seeds 1 --shots 1 --methods coop", {}),
    "measure_openart": ("--tasks openart-left --shots 1", {"SEEDS": (1, 2)}),
    "soak/serving": (
        "--minutes 0.05 --clients 2 --crowd 2",
        {"CROWD_SECONDS": 1, "N_SLOW": 0, "SAMPLE_SECONDS": 0.5, "MOST_GROWTH": 2.0},
    ),
    "sweep_language": (
        "--models tiny --methods p-tuning",
        {"SHOTS": 1, "N_JUDGED": 4, "RATES": {"p-tuning": (0.001,)}},
    ),
    "sweep_methods": ("--backbone tiny --shots 1 --factors 1 --methods coop", {}),
}
"""What is added to a script's line, and constants of it that are made smaller."""


NOT_CUT = {
    "soak/kills": "stops the clock of its process",
    "soak/fuzz": "is run by atheris, which ends its own process",
    "make_text_sets": "makes sets of packages that are fetched",
}
NEEDS_LINGUA = re.compile("measure_composition|--part languages")
KEPT = re.compile(r"--table|bench/table|draw_")
"""Lines that show what is there already."""


def script_lines() -> list[str]:
    lines = {re.sub(r"^([A-Z_]+=\S* )+", "", line): None for page in PAGES for line in lines_of(page)}
    not_run = "|".join([*NOT_HERE, *NOT_CUT])
    return [line for line in lines if line.startswith("python scripts/") and not re.search(not_run, line)]


@pytest.fixture(scope="module")
def desk(reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Where a reader stands, with a model that chats, and without figures that were measured before."""
    folder = tmp_path_factory.mktemp("desk") / "here"
    shutil.copytree(reader, folder, symlinks=True, ignore=shutil.ignore_patterns("results"))
    (folder / "docs/results").mkdir(parents=True)
    (folder / "lm/chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def few_rows(load: Any, *args: Any, **more: Any) -> Any:
    """One test row of twenty."""
    data = load(*args, **more)
    return replace(data, test=data.test[::20])


def few_scenes(load: Any, *args: Any) -> Any:
    """One scene of sixty."""
    data = load(*args)
    return replace(data, items=data.items[::60])


def few_images(read: Any, *args: Any) -> Any:
    """A few images of each class."""
    splits = read(*args)
    parts = {name: sorted(getattr(splits, name), key=lambda item: item.label) for name in ("train", "val", "test")}
    few = {
        name: tuple(item for _, some in groupby(items, lambda item: item.label) for item in islice(some, 4))
        for name, items in parts.items()
    }
    return replace(splits, **few)


SHORTER = {
    "fit": fit_shortly, "compare": fit_shortly,
    "load_texts": few_rows, "load_captions": few_scenes,
}  # fmt: skip
"""What takes the place of functions of the package, and calls them for less."""


@pytest.mark.parametrize("line", script_lines(), ids=str)
def test_scripts_on_the_pages_run_cut_down(line: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if NEEDS_LINGUA.search(line):
        pytest.importorskip("lingua", reason="tells languages apart")
    monkeypatch.chdir(desk)
    words = shlex.split(as_reader(line))[1:]
    if KEPT.search(line):
        shutil.copytree(ROOT / "docs/results", "docs/results", dirs_exist_ok=True)
        lay_out(words)
    path = ROOT / words[0]
    more, smaller = CUT[str(path.relative_to(ROOT / "scripts").with_suffix(""))]
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", words if "--table" in words else [*words, *shlex.split(more)])
    for name, shorter in SHORTER.items():
        monkeypatch.setattr(mp, name, functools.partial(shorter, getattr(mp, name)))
    monkeypatch.setattr(catalog, "read_splits", functools.partial(few_images, catalog.read_splits))
    monkeypatch.delitem(sys.modules, path.stem, raising=False)  # one name may stand in two folders
    script = importlib.import_module(path.stem)
    for name, value in smaller.items():
        monkeypatch.setattr(script, name, value)
    call = functools.partial(tyro.cli, script.main) if inspect.signature(script.main).parameters else script.main
    with pytest.raises(SystemExit, match=r"^0$") if "soak/" in line else contextlib.nullcontext():
        call()
    if "--json" in words and "--one" not in more:
        assert (desk / words[words.index("--json") + 1]).is_file()


def test_the_line_of_kills_runs_for_one(desk: Path) -> None:
    (line,) = [line for line in lines_of(ROOT / "docs/reliability.md") if "soak/kills" in line]
    words = shlex.split(line)
    script, *options = words[words.index("python") + 1 :]
    cut = [*options, "--kills", "1", "--verbs", "train"]
    done = run_program(ROOT / script, *cut, folder=desk, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((desk / "docs/results/kills.json").read_text())["rows"]
    assert (row["verb"], row["kills"], row["same"]) == ("train", 1, 1)

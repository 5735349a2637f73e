"""What it takes for a task prompt and a language prompt that were learned apart to work together, on a real model.

    mmprompt backbones get smollm2
    pip install lingua-language-detector                 # judges the language of a name
    python scripts/measure_composition.py --json docs/results/language_composition.json
    python scripts/measure_composition.py --json docs/results/language_composition.json --table

The task is a form, `<NAME>`; answers count that keep it, and that are in the language. German, Spanish and French are
partners where a task is learned beside languages; Italian is met when all is learned. Finished cells are kept in the
file, trained prompts in --work: run again, it goes on.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

import mmprompt as mp
from markdown import percent, table
from measure_dynamic import (
    DATA,
    FORMS,
    N_NAMES,
    N_SOFT,
    N_STEPS_LANGUAGE,
    Cells,
    Judge,
    Made,
    Partners,
    beside,
    fitted,
    frozen,
    learned_beside,
    of_language,
)
from measuring import read_figures, run_main
from mmprompt.core.learned import Given, Inserts, Learned, Source
from mmprompt.core.soft import DecoderMethod
from mmprompt.language.data import TextData
from mmprompt.language.methods import DeepPrompts, PromptTuning
from mmprompt.language.start import MOST_USED
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import LM_INPUT, Vectors
from mmprompt.training.seeds import generator

PARTNERS, OTHERS = ("de", "es", "fr"), ("it",)
N_DEEP, ALONE = 10, "task alone/en"
WAYS = (
    "apart, vectors",  # both alone, the language's vectors before the task's
    "beside partners",  # the task behind the vectors of German, Spanish and French, a row each
    "beside random vectors",  # the task behind the vectors of 20 words, drawn anew each step
    "apart, keys and values",  # both alone, the language in keys and values of every block
    "stacked",  # the task over English in keys and values, in whose place the language comes (Pfeiffer et al. 2020)
    "orthogonal",  # the language in vectors orthogonal to all of the task's, which was learned before
)


class Orthogonal(Source):
    """Learned vectors without what lies in the span of others."""

    sites = (LM_INPUT,)

    def __init__(self, own: Learned, others: Tensor) -> None:
        super().__init__()
        self.own = own
        self.register_buffer("basis", torch.linalg.qr(others.T)[0])  # [D, P]

    def forward(self, given: Given) -> Inserts:
        vectors = self.own.vectors
        return {LM_INPUT: Vectors(vectors - vectors @ self.basis @ self.basis.T)}


def random_words(model: FrozenLanguageModel, seed: int = 1) -> Callable[[], Inserts]:
    """The embeddings of other words each time."""
    drawn, n_words = generator(seed, "partners"), min(MOST_USED, model.vocabulary_size)
    return lambda: {LM_INPUT: Vectors(model.embed(torch.randint(300, n_words, (N_SOFT,), generator=drawn)))}


def measure(model: FrozenLanguageModel, cells: Cells, work: Path, ways: Sequence[str]) -> None:
    data = replace(mp.load_texts(DATA / "emoji_languages.jsonl"), template="{soft} {text:cut}\n{answer}")
    judge = Judge(data, FORMS[model.name], "\n")
    each = {code: of_language(data, code) for code in (*PARTNERS, *OTHERS)}
    english = replace(each["de"], train=tuple(replace(row, answer=row.fields["text"]) for row in each["de"].train))
    form = judge.form.format
    in_form = [replace(row, answer=form(row.answer)) for row in english.train]
    rows = [replace(row, task=code, answer=form(row.answer)) for code in PARTNERS for row in each[code].train]

    def learned(name: str, rows: TextData, method: DecoderMethod) -> mp.LanguagePredictor:
        return fitted(model, rows, work / f"{model.name}-{name}", method, n_wanted=N_STEPS_LANGUAGE[model.name])

    def add(way: str, partners: Partners, learn: Callable[[], Learned]) -> None:
        if way in ways and not all(f"{way}/{code}" in cells.part for code in partners):
            both = beside(model, str(data.template), partners, learn())
            for code in partners:
                cells.add(f"{way}/{code}", partial(judge.measure, both, judge.rows[code], code))

    def alone(kind: str, method: DecoderMethod, codes: Sequence[str]) -> Partners:
        prompts = {code: learned(f"{kind}-{code}", each[code], method) for code in codes}
        for code, one in prompts.items():
            cells.add(f"language alone, {kind}/{code}", partial(judge.measure, one, judge.rows[code], code))
        return {code: frozen(one) for code, one in prompts.items()}

    task = learned("form", replace(english, train=tuple(in_form)), PromptTuning(N_SOFT))
    cells.add(ALONE, partial(judge.measure, task, judge.rows["de"], None))
    apart = Learned(LM_INPUT, task.vectors()[LM_INPUT].values.detach())
    if {"apart, vectors", "beside partners", "beside random vectors"} & set(ways):
        vectors = alone("vectors", PromptTuning(N_SOFT), (*PARTNERS, *OTHERS))
        add("apart, vectors", vectors, lambda: apart)
        known = {code: vectors[code] for code in PARTNERS}
        add("beside partners", vectors, partial(learned_beside, model, data, known, rows))
        add("beside random vectors", vectors, partial(learned_beside, model, data, {"": random_words(model)}, in_form))
    if {"apart, keys and values", "stacked"} & set(ways):
        values = alone("keys and values", DeepPrompts(N_DEEP), OTHERS)
        add("apart, keys and values", values, lambda: apart)
        stack = {"": frozen(learned("english", english, DeepPrompts(N_DEEP)))}
        add("stacked", values, partial(learned_beside, model, data, stack, in_form))
    if "orthogonal" in ways and not all(f"orthogonal/{code}" in cells.part for code in OTHERS):
        method = Made(source=partial(Orthogonal, others=apart.vectors.detach()))
        epochs = N_STEPS_LANGUAGE[model.name] * PromptTuning.recipe.batch_size // N_NAMES
        fits = {code: mp.fit(method, model, each[code], epochs=epochs, progress=False) for code in OTHERS}
        add("orthogonal", {code: frozen(one.predictor) for code, one in fits.items()}, lambda: apart)


def page(cells: dict[str, Any]) -> str:
    """Of each language the form kept, and in brackets the answers that are in the language and those that are right."""
    codes = (*PARTNERS, *OTHERS)
    shown = {}
    for name, cell in cells.items():
        shares = (cell["in_form"], cell["judged"].get(name[-2:]), cell.get("exact", 0.0))
        shown[name] = "{} ({}, {})".format(*map(percent, shares))
    ways = dict.fromkeys(name.rpartition("/")[0] for name in cells if name != ALONE)
    rows = [(way, *(shown.get(f"{way}/{code}", "") for code in codes)) for way in ways]
    return table(("", *codes), rows) + f"\n\nThe task alone, in English: form {percent(cells[ALONE]['in_form'])}."


def main(
    json_file: Annotated[Path, tyro.conf.arg(name="json")],
    model: str = "smollm2",
    ways: tuple[str, ...] = WAYS,
    work: Path = Path("runs/composition"),
    table_only: Annotated[bool, tyro.conf.arg(name="table")] = False,
) -> None:
    """Measure, and print the table.

    Args:
        json_file: keeps all figures.
        ways: to put them together.
        work: trained prompts.
        table_only: print the table of the file and measure nothing.
    """
    if not table_only:
        torch.set_num_threads(1)
        measure(mp.load_language_model(model, device="cpu"), Cells(json_file, model), work, ways)
    print(page(read_figures(json_file)[model]))


if __name__ == "__main__":
    run_main(main, __doc__)

"""What a language model's prompt has learned, section by section; `reports.explanation.explain` calls it for a run.

The measures are those of `language.explain`, on rows held out; words are chosen on the training rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmprompt.core.learned import Prompt
from mmprompt.core.metrics import evaluate_probabilities
from mmprompt.core.words import token_gaps
from mmprompt.errors import UserError, bad_value
from mmprompt.language.data import TextData, TextRow, load_texts, sample_shots
from mmprompt.language.explain import ablate, attention_mass, drift, nearest_tokens, prompt_effect_kl
from mmprompt.language.measure import measure_language, plain_model
from mmprompt.language.methods import METHODS, CoordinateSearch, PromptInit
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.search.task import exchange, prepare
from mmprompt.language.task import LanguageTask
from mmprompt.models.decoder.vectors import LM_INPUT
from mmprompt.reports.explanation import Asked, Section
from mmprompt.reports.sections import (
    calibration_section,
    changes_section,
    evenly,
    kept_of,
    next_section,
    words_section,
    worth_section,
)
from mmprompt.reports.tables import counted
from mmprompt.training.run_files import RUN, place_of_data, read_run

MOST_ROWS = 256
"""Rows that are looked at, evenly taken."""
LOOKED_AT = 32
"""Rows on which it is measured whether the prompt is heard."""
IGNORED = 0.01
"""Nats: below, a prompt changes nothing."""


def data_for(folder: Path | None, training: Mapping[str, Any], data: Any) -> TextData:
    """Return rows, those of a name or path, or those that a run learned from, drawn as they were.

    Raises:
        UserError: nothing says which.
    """
    if isinstance(data, TextData):
        return data
    if data is not None:
        return load_texts(data)
    if folder is None:
        raise bad_value("data", None, "the prompt does not say which rows to look at", "Give `data`.")
    place = place_of_data(folder, training)
    rows = load_texts(place["data"])
    return rows if place.get("shots") is None else sample_shots(rows, place["shots"], training.get("seed", 1))


def sections_of(prompted: LanguagePredictor, data: TextData, asked: Asked) -> tuple[str, list[Section]]:
    """Return the headline and all sections."""
    held_out = data.rows(asked.split)
    if not held_out:
        raise UserError(f"the {asked.split} part of {data.name} is empty. Choose another `split`.")
    rows = evenly(held_out, MOST_ROWS)
    seen = f"of {counted(len(rows), 'row')} held out"
    nats = prompt_effect_kl(prompted, rows[:LOOKED_AT]) if prompted.prompt.sites else 0.0
    sections = [
        _words(prompted, asked.k),
        _drift(prompted, data, asked),
        _worth(prompted, rows, seen),
        _heard(prompted, rows[:LOOKED_AT], nats),
    ]
    if prompted.label_words is None:
        headline = f"The prompt moves what {prompted.model.name} says next by {nats:.2f} nats."
    else:
        plain = plain_model(prompted.model, data, prompted)
        after, before = (_table(one, rows, asked) for one in (prompted, plain))
        labels = np.array([prompted.verbalizer.labels.index(str(row.label)) for row in rows])
        learned, bare = (
            evaluate_probabilities(t, labels.tolist(), prompted.verbalizer.labels) for t in (after, before)
        )
        headline = f"Right in {100 * learned.accuracy:.1f} % {seen}, without a prompt in {100 * bare.accuracy:.1f} %."
        n_trained = Counter(str(row.label) for row in data.train)
        sections += [
            changes_section(bare, learned, "no prompt"),
            calibration_section((after, labels), _validation(prompted, data, asked)),
            next_section(learned, n_trained, "row", "Collect"),
        ]
    if asked.to_words:
        sections.append(_in_words(prompted, data, asked))
    return headline, [section for section in sections if section is not None]


def _table(prompted: LanguagePredictor, rows: Sequence[TextRow], asked: Asked) -> np.ndarray:
    """Return the probabilities [N, C] of the labels."""
    progress, parts = asked.count("answering"), []
    for start in range(0, len(rows), LOOKED_AT):
        parts.append(prompted.label_log_probs(rows[start : start + LOOKED_AT]))
        progress(min(start + LOOKED_AT, len(rows)), len(rows))
    return torch.cat(parts).exp().double().cpu().numpy()


def _validation(prompted: LanguagePredictor, data: TextData, asked: Asked) -> tuple[np.ndarray, np.ndarray] | None:
    if not data.val or asked.split == "val":
        return None
    labels = [prompted.verbalizer.labels.index(str(row.label)) for row in data.val[:MOST_ROWS]]
    return _table(prompted, data.val[:MOST_ROWS], asked), np.array(labels)


def _words(prompted: LanguagePredictor, k: int) -> Section | None:
    near = []
    for task in prompted.tasks or ("",):
        vectors = prompted.vectors(task).get(LM_INPUT)
        rows = [] if vectors is None else nearest_tokens(prompted.model, vectors.values, k)
        near += [(f"{task} vector {place}".strip(), pairs) for place, pairs in enumerate(rows, 1)]
    if not near:
        return None
    model = prompted.model
    real = token_gaps(model.embed, model.vocabulary_size, model.device, lambda token: model.tokenizer.decode([token]))
    return words_section(near, real, is_distance=False)


def _drift(prompted: LanguagePredictor, data: TextData, asked: Asked) -> Section | None:
    """Make the start again, and say how far the vectors went from there."""
    vectors, method = prompted.vectors().get(LM_INPUT), asked.training.get("method", {})
    is_known = asked.folder is not None and (asked.folder / RUN).is_file() and method.get("name") in METHODS
    if vectors is None or prompted.tasks or not is_known or not asked.training["method"]["settings"]:
        return None
    assert asked.folder is not None, "it was looked at"
    kept = read_run(asked.folder).get("init", {})
    template = prompted.template.text
    try:
        task = LanguageTask(data, template, prompted.label_words, init=PromptInit(**kept))
        first = task.predictor(METHODS[method["name"]](**method["settings"]), prompted.model, asked.training["seed"])
    except (UserError, TypeError):  # of other data, or of an earlier version
        return None
    moved = drift(prompted.model, [first.vectors()[LM_INPUT].values.detach(), vectors.values.detach()])
    rows = [(f"vector {place}", *each.words, each.cosine, each.size) for place, each in enumerate(moved, 1)]
    n_left = sum(each.words[0] != each.words[1] for each in moved)
    said = (
        f"{n_left} of {counted(len(moved), 'vector')} have another nearest word than they started from; they turned to "
    )
    said += f"a cosine of {np.mean([each.cosine for each in moved]):.2f} with their start."
    columns = {"vector": "", "started at": "", "ended at": "", "cosine": ".2f", "size": ".2f"}
    return Section(
        "drift", "How far the vectors went", said, "Sizes are in those of the model's tokens.", columns, rows
    )


def _worth(prompted: LanguagePredictor, rows: Sequence[TextRow], seen: str) -> Section | None:
    n_soft, n_prefix = prompted.bound.n_soft if prompted.prompt.sites else 0, prompted.n_prefix
    names = [f"vector {place + 1}" for place in range(n_soft)]
    names += [f"keys and values {place + 1}" for place in range(n_prefix)]
    if not names:
        return None
    found = ablate(prompted, rows)
    falls = None if prompted.label_words is None else [float(each.accuracy or 0.0) for each in found]
    return worth_section(names, [each.loss for each in found], falls, seen)


def _heard(prompted: LanguagePredictor, rows: Sequence[TextRow], nats: float) -> Section | None:
    if not prompted.prompt.sites:
        return None
    said = f"What {prompted.model.name} says next is {nats:.3f} nats (KL divergence) from what it says without: the "
    said += "prompt is heard. " if nats >= IGNORED else "prompt is ignored. "
    columns: dict[str, str] = {}
    cells: list[tuple[Any, ...]] = []
    try:
        masses = attention_mass(prompted, rows)  # [J, P]
    except UserError as error:
        said += str(error)
    else:
        if masses.shape[1]:
            share = masses.sum(1)
            said += f"Where the answer is predicted, {share.mean():.1%} of the attention goes to it, most in block "
            said += f"{int(share.argmax()) + 1} of {len(share)} ({share.max():.1%})."
            columns = {"vector": "", "attention, mean": "percent", "most": "percent", "in block": ","}
            each = zip(masses.mean(0).tolist(), masses.max(0).values.tolist(), masses.argmax(0).tolist(), strict=True)
            cells = [(f"vector {n}", mean, most, block + 1) for n, (mean, most, block) in enumerate(each, 1)]
    note = f"On {counted(len(rows), 'row')}. Attention is no proof of use; leaving a vector out is."
    return Section("heard", "Whether it is heard", said, note, columns, cells)


def _in_words(prompted: LanguagePredictor, data: TextData, asked: Asked) -> Section:
    """Exchange the words nearest to the vectors, by the loss of training rows, and measure what they keep."""
    title, vectors = "The prompt in words", prompted.vectors().get(LM_INPUT)
    if vectors is None or prompted.tasks or asked.folder is None:
        said = "Only a saved prompt with vectors among the tokens, the same for all tasks, can be put into words."
        return Section("in_words", title, said)
    search, progress = CoordinateSearch(), asked.count("putting it into words")
    try:
        task = LanguageTask(data, prompted.template.text, prompted.label_words)
        setting = prepare(prompted.model, search, task, PromptInit(from_prompt=asked.folder), None, 1)
    except UserError as error:
        return Section("in_words", title, f"It cannot be put into words: {error}")
    best = setting.start
    for done, (found, _) in enumerate(exchange(setting, search, 1), 1):
        best = found
        progress(done, search.n_steps)
    chosen = {"nearest words": setting.start, "best words": best}
    spoken = {
        name: LanguagePredictor(prompted.model, Prompt(setting.objective.words.template(one.ids)), prompted.label_words)
        for name, one in chosen.items()
    }
    every = {"soft prompt": prompted, **spoken, "no prompt": plain_model(prompted.model, data, prompted)}
    scores = {name: measure_language(one, data, asked.split, name) for name, one in every.items()}
    texts = {name: setting.text(one.ids) for name, one in chosen.items()}
    rows = [(name, texts.get(name, ""), float(one.right.mean()), *one.interval) for name, one in scores.items()]
    soft, words, bare = (float(scores[name].right.mean()) for name in ("soft prompt", "best words", "no prompt"))
    said = (
        f"As “{texts['best words']}” it is right in {100 * words:.1f} %, as vectors in {100 * soft:.1f} % and without "
    )
    said += f"a prompt in {100 * bare:.1f} %" + kept_of(words, soft, bare)
    note = f"Words were exchanged by the loss of {counted(len(setting.objective.rows), 'training row')}, from those "
    note += "nearest to the vectors on; shares are of rows held out."
    columns = {"": "", "words": "", "right": "percent", "95 % from": "percent", "to": "percent"}
    return Section("in_words", title, said, note, columns, rows)

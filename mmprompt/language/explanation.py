"""What a language model's prompt has learned, section by section; `reports.explanation.explain` calls it for a run.

The measures are those of `language.explain`, on rows held out; words are chosen on the training rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch

from mmprompt.core.learned import Prompt
from mmprompt.core.metrics import evaluate_probabilities, one_a_class
from mmprompt.core.words import token_gaps
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow, load_texts, sample_shots
from mmprompt.language.explain import (
    IGNORED,
    ablate,
    attention_mass,
    drift,
    nearest_tokens,
    prompt_effect_kl,
    token_relevance,
)
from mmprompt.language.measure import NO_PROMPT, measure_language, plain_model, refuse_other_rows
from mmprompt.language.methods import CoordinateSearch, PromptInit, make_method
from mmprompt.language.pool import joined_fields, text_features
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.search.task import exchange, prepare
from mmprompt.language.task import LanguageTask
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.sites import LM_INPUT
from mmprompt.reports.explanation import Asked, Section
from mmprompt.reports.explanation_figures import draw_tokens
from mmprompt.reports.figures import short
from mmprompt.reports.sections import (
    calibration_section,
    changes_section,
    evenly,
    kept_of,
    labels_section,
    next_section,
    words_section,
    worth_section,
)
from mmprompt.reports.tables import counted, percent
from mmprompt.training.run_files import RUN, read_run

MOST_ROWS = 256
"""Rows that are looked at, evenly taken."""
N_MAPPED, N_SPEAKING = 6, 3
"""Rows of which maps are shown, and tokens of a row that are named."""
MOST_LETTERS = 64
"""Of a row in a table."""
LOOKED_AT = 32
"""Rows on which it is measured whether the prompt is heard."""


def data_at(place: Mapping[str, Any], training: Mapping[str, Any]) -> TextData:
    """Load rows from where `place_of_data` says that they lie, drawn as they were."""
    rows = load_texts(place["data"])
    return rows if place.get("shots") is None else sample_shots(rows, place["shots"], training.get("seed", 1))


def sections_of(prompted: LanguagePredictor, data: TextData, asked: Asked) -> tuple[str, list[Section]]:
    """Return the headline and all sections."""
    held_out = data.rows(asked.split)
    if not held_out:
        raise UserError(f"the {asked.split} part of {data.name} is empty. Choose another `split`.")
    refuse_other_rows(prompted, data)
    rows = evenly(held_out, MOST_ROWS)
    seen = f"of {counted(len(rows), 'row')} {asked.seen}"
    if prompted.label_words is not None:
        prompted.say_cut(rows, prompted.longest_answer(Generation()), f"{asked.split} rows")
    nats = prompt_effect_kl(prompted, rows[:LOOKED_AT]) if prompted.prompt.sites else 0.0
    sections = [
        _words(prompted, asked.k),
        _drift(prompted, data, asked),
        _worth(prompted, rows, seen),
        _heard(prompted, rows[:LOOKED_AT], nats),
    ]
    plain = plain_model(prompted.model, data, prompted)
    if prompted.label_words is None:
        headline = f"The prompt moves what {prompted.model.name} says next by {nats:.2f} nats."
        sections.append(_maps({NO_PROMPT: plain, "learned": prompted}, rows[:N_MAPPED]))
    else:
        headline, of_labels = _of_labels(prompted, plain, data, rows, asked)
        sections += of_labels
    if asked.to_words:
        sections.append(_in_words(prompted, data, asked))
    return headline, [section for section in sections if section is not None]


def _of_labels(
    prompted: LanguagePredictor, plain: LanguagePredictor, data: TextData, rows: Sequence[TextRow], asked: Asked
) -> tuple[str, list[Section]]:
    names = prompted.verbalizer.labels
    labels = np.array([names.index(str(row.label)) for row in rows])
    after, before = (_table(one, rows, asked) for one in (prompted, plain))
    learned, bare = (evaluate_probabilities(table, labels.tolist(), names) for table in (after, before))
    is_changed = np.array(learned.predictions) != np.array(bare.predictions)
    ranked = [place for some in (is_changed, ~is_changed) for place in one_a_class(np.flatnonzero(some), labels)]
    shown = ranked[:N_MAPPED]
    shares = [table[shown, labels[shown]] for table in (before, after)]
    texts, val, validation = joined_fields([prompted], data.train), data.val[:MOST_ROWS], None
    if val and asked.split != "val":
        validation = _table(prompted, val, asked), np.array([names.index(str(row.label)) for row in val])
    headline = f"Right in {100 * learned.accuracy:.1f} % of {counted(len(rows), 'row')} {asked.seen}, without "
    return f"{headline}a prompt in {100 * bare.accuracy:.1f} %.", [
        changes_section(bare, learned, NO_PROMPT, asked),
        _maps({NO_PROMPT: plain, "learned": prompted}, [rows[place] for place in shown], shares),
        calibration_section((after, labels), validation),
        labels_section(
            [(short(text, MOST_LETTERS), str(row.label)) for text, row in zip(texts, data.train, strict=True)],
            lambda some: text_features(prompted.model, [texts[place] for place in some]),
            "row",
        ),
        next_section(learned, Counter(str(row.label) for row in data.train), "row", "Collect", asked),
    ]


def _table(prompted: LanguagePredictor, rows: Sequence[TextRow], asked: Asked) -> np.ndarray:
    """Return the probabilities [N, C] of the labels."""
    progress, parts = asked.count("answering"), []
    for start in range(0, len(rows), LOOKED_AT):
        parts.append(prompted.label_log_probs(rows[start : start + LOOKED_AT]))
        progress(min(start + LOOKED_AT, len(rows)), len(rows))
    return torch.cat(parts).exp().double().cpu().numpy()


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
    is_known = asked.folder is not None and (asked.folder / RUN).is_file() and method.get("settings")
    if vectors is None or prompted.tasks or asked.folder is None or not is_known:
        return None
    kept = read_run(asked.folder).get("init", {})
    template = prompted.template.text
    try:
        task = LanguageTask(data, template, prompted.label_words, init=PromptInit(**kept))
        settings = {name: value for name, value in method["settings"].items() if name != "n_soft"}  # the template says
        own = make_method(method["name"], settings)
        first = task.predictor(own, prompted.model, asked.training["seed"])
    except (UserError, TypeError):  # of other data, or of an earlier version
        return None
    moved = drift(prompted.model, [first.vectors()[LM_INPUT].values.detach(), vectors.values.detach()])
    rows = [(f"vector {place}", *each.words, each.cosine, each.size) for place, each in enumerate(moved, 1)]
    n_left = sum(each.words[0] != each.words[1] for each in moved)
    said = f"{n_left} of {counted(len(moved), 'vector')} ended at another word than they started at; they turned to "
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


def _maps(
    ways: Mapping[str, LanguagePredictor], rows: Sequence[TextRow], shares: Sequence[np.ndarray] | None = None
) -> Section:
    """Show which tokens speak for the label or answer of some rows, without the prompt and with it, by name.

    Of each way `shares` [N] has the probability of the label; None where there are no labels.
    """
    what, likeness = "answer" if shares is None else "label", []
    cells: list[tuple[Any, ...]] = []
    figures = []
    for n, row in enumerate(rows):
        wanted, maps, pieces = str(row.answer if shares is None else row.label), [], {}
        for way, (name, prompted) in enumerate(ways.items()):
            tokenizer = prompted.model.tokenizer
            every, values = token_relevance(prompted, row)
            kept = [place for place, slot in enumerate(every) if slot not in tokenizer.all_special_ids]
            slots, found = [every[place] for place in kept], values[kept]
            is_text = torch.tensor(slots) >= 0
            maps.append(([slot for slot in slots if slot >= 0], found[is_text]))
            scale = max([*maps[-1][1].abs().tolist(), 1e-12])
            pieces[name] = _pieces(tokenizer, slots, (found / scale).tolist())
            best = sorted((one for one in pieces[name] if one[0].strip()), key=lambda one: -abs(one[1]))
            spoken = [(text.strip(), number) for text, number in best[:N_SPEAKING]]
            to_prompt = float(found[~is_text].abs().sum() / found.abs().sum().clamp_min(1e-12))
            share = None if shares is None else float(shares[way][n])
            text = short(" / ".join(row.fields.values()), MOST_LETTERS)
            cells.append((text, wanted, name, share, spoken, to_prompt))
        if maps[0][0] == maps[1][0] and len(maps[0][0]) > 2:  # the same tokens
            likeness.append(float(torch.corrcoef(torch.stack([found for _, found in maps]))[0, 1]))
        title = wanted if shares is None else f"{wanted}, {percent(shares[0][n])} → {percent(shares[1][n])}"
        figures.append((title, pieces))
    said = f"What speaks for the {what} in {counted(len(rows), 'row')}"
    said += "." if shares is None else " (those whose answer changed first)."
    if likeness:
        said += f" The two maps of a row correlate by {np.mean(likeness):.2f} on average: near 1, the prompt lets the "
        said += "model read the same words as without it."
    note = "Gradient times input at the embedding of each token, each map by itself. Green speaks for the "
    note += f"{what}, red against it; the prompt's share is what its vectors have of the whole, signs aside. It shows "
    note += "what the score is sensitive to, not why."
    columns = {"row": "", what: "", "read with": "", "probability": "percent", "speak most": ""}
    columns |= {"the prompt's share": "percent"}
    chart = {"Texts whose tokens are shaded by what they speak for": partial(draw_tokens, figures)}
    return Section("maps", "What it reads", said, note, columns, cells, chart)


def _pieces(tokenizer: Any, slots: Sequence[int], numbers: Sequence[float]) -> list[tuple[str, float]]:
    """Spell tokens as they stand in the text, each with its number; vectors in a row are one, without a number."""
    found: list[tuple[str, float]] = []
    for is_soft, group in groupby(zip(slots, numbers, strict=True), key=lambda pair: pair[0] < 0):
        pairs = list(group)
        if is_soft:
            found.append((f"[{counted(len(pairs), 'vector')}] ", 0.0))
            continue
        ids: list[int] = []
        before, total = "", 0.0
        for slot, number in pairs:
            ids, total = [*ids, slot], total + number
            text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            if not text.endswith("\ufffd"):  # else a part of a letter, whose rest follows
                found.append((text[len(before) :].replace("\n", "↵"), total))
                before, total = text, 0.0
    return found


def _in_words(prompted: LanguagePredictor, data: TextData, asked: Asked) -> Section:
    """Exchange the words nearest to the vectors, by the loss of training rows, and measure what they keep."""
    title, vectors = "The prompt in words", prompted.vectors().get(LM_INPUT)
    if vectors is None or prompted.tasks or asked.folder is None:
        said = "Only a saved prompt with vectors among the tokens, the same for all tasks, can be put into words."
        return Section("in_words", title, said)
    search, progress = CoordinateSearch(), asked.count("putting it into words")
    try:
        start = PromptInit(from_prompt=asked.folder)
        task = LanguageTask(data, prompted.template.text, prompted.label_words, init=start)
        setting = prepare(prompted.model, search, task, None, 1)
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
    note += f"nearest to the vectors on; shares are of rows {asked.seen}."
    columns = {"": "", "words": "", "right": "percent", "95 % from": "percent", "to": "percent"}
    return Section("in_words", title, said, note, columns, rows)

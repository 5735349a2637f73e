"""Searched prompts: words, not vectors, that make the answers of given rows probable to a frozen language model.

What comes out is a template of words alone, saved and used as any other prompt.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmprompt.core.file import save
from mmprompt.core.fit import describe_method, new_run, refuse_changed, run_config
from mmprompt.core.learned import Learned, Prompt
from mmprompt.core.soft import HardPrompt
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.language.data import TextData, load_texts
from mmprompt.language.methods import SEARCHES, CoordinateSearch, Projection, PromptInit, WordSearch
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.search.objective import Scored, WordObjective, best_of, row_order
from mmprompt.language.search.words import TokenIds, Vocabulary, allowed_tokens, readable, start_words
from mmprompt.language.start import field_tokens, start_vectors
from mmprompt.language.task import LanguageProblem, LanguageTask, verbalizer_of
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import LM_INPUT
from mmprompt.settings import Count, check, checked
from mmprompt.training.callbacks import Callback, WriteConfig
from mmprompt.training.checkpoint import checkpoint_folders
from mmprompt.training.problem import Run
from mmprompt.training.run_files import append_log, provenance, write_log
from mmprompt.training.seeds import generator

N_TOKENS = 10
"""Tokens of a template's bare `{soft}` where nothing says how many."""
N_NEAREST = 64
"""Tokens near a vector that may stand for it."""
_log = logging.getLogger(__name__)

Steps = Iterator[tuple[Scored, float]]
"""After each step the best prompt so far, and the loss over the rows of that step's gradient."""


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Args:
        prompted: the frozen model with the words that were found.
        text: the words; those of several places are parted by " ... ".
        token_ids: their tokens, which the text gives back in every row.
        loss, start_loss: over the training rows that were scored, and of the words that the search started from.
        history: one dict per step, as in `log.jsonl`.
        folder: the run folder, None if nothing was written.
        notices: what a careful reader should know, one sentence each.
    """

    prompted: LanguagePredictor
    text: str
    token_ids: TokenIds
    loss: float
    start_text: str
    start_loss: float
    history: list[dict[str, Any]]
    data: TextData
    folder: Path | None
    notices: tuple[str, ...] = ()


@checked
def search_words(
    data: TextData | LanguageTask | Path | str,
    model: FrozenLanguageModel | str = "tiny",
    template: str | None = None,
    search: WordSearch | None = None,
    n_tokens: int | None = None,
    start: PromptInit | None = None,
    out: Path | str | None = None,
    seed: int = 1,
    callbacks: Sequence[Callback] = (),
) -> SearchResult:
    """Search a prompt in words for a frozen language model.

    Args:
        data: rows, the path of a JSONL file, or a task with verbalizer and objective of its own.
        model: a model or the name of one.
        template: whose soft slots become words; by default that of the task, or the data's own.
        search: `CoordinateSearch()` by default, or `Projection()`.
        n_tokens: of the template's bare `{soft}`; by default as many as the words that the search starts from, or 10.
        start: words, or vectors whose nearest tokens the search starts from; by default that of the task.
        out: a new run folder; nothing is written without.
        seed: of what is drawn.
        callbacks: told of each step as of an epoch.
    Returns:
        the best words on the way, the start among them.
    Raises:
        UserError: something in the input cannot be, or another process writes to `out`; nothing is written then.
        RunFailed: weights of the model changed.
    """
    task = (load_texts(data) if isinstance(data, Path | str) else data).task()
    task = task if template is None else replace(task, template=template)
    task = task if start is None else replace(task, init=start)
    data = task.data
    model = load_language_model(model) if isinstance(model, str) else model
    search = search or CoordinateSearch()
    with new_run(out) as folder:
        if folder is not None and checkpoint_folders(folder / "checkpoint"):
            raise bad_file(folder, "holds the checkpoints of a training", "Give another output folder.")
        setting = prepare(model, search, task, n_tokens, seed)
        objective, first = setting.objective, setting.start
        config = run_config(task, HardPrompt(), objective.prompted, search.recipe, seed)
        config |= {"method": describe_method(search, SEARCHES), "n_tokens": objective.prompted.bound.n_soft}
        best, history = _follow(setting, search, config, folder, callbacks, seed)
        refuse_changed(model)
        notices = []
        if best.ids == first.ids:
            notices.append("The search found nothing better than the words it started from.")
        if len(objective.rows) < len(data.train):
            notices.append(f"Prompts were scored on {len(objective.rows)} of {len(data.train)} training rows.")
        for notice in notices:
            _log.warning("%s", notice)
        prompted = LanguagePredictor(model, Prompt(objective.words.template(best.ids)), objective.prompted.label_words)
        text = setting.text(best.ids)
        if folder is not None:
            facts = {"text": text, "token_ids": list(best.ids), "loss": best.loss, "notices": notices}
            save(prompted, folder, provenance(config) | facts)
    start_text = setting.text(first.ids)
    return SearchResult(
        prompted, text, best.ids, best.loss, start_text, first.loss, history, data, folder, tuple(notices)
    )


@dataclass(frozen=True)
class Setting:
    """What a search moves in: the loss, tokens that a prompt may hold, and vectors [P, D] and words to start from."""

    objective: WordObjective
    vocabulary: Vocabulary
    vectors: Tensor
    start: Scored

    def text(self, ids: TokenIds) -> str:
        """Return the words of all places of a prompt."""
        return " ... ".join(part.strip() for part in self.objective.words.texts(ids))


def prepare(
    model: FrozenLanguageModel,
    search: WordSearch,
    task: LanguageTask,
    n_tokens: int | None,
    seed: int,
) -> Setting:
    """Bring template, rows and tokens together, and score the words that the search starts from."""
    check("n_tokens", n_tokens, Count | None, "Leave `n_tokens` out for the default.")
    given, words = Template.parse(task.template_text), task.init.words
    template = start_words(given, words) if words else given.with_soft(n_tokens or N_TOKENS)
    prompted = LanguagePredictor(model, Prompt(template), verbalizer_of(task.data, task.verbalizer))
    if not prompted.bound.n_soft:
        raise UserError("a search puts words in the places of soft vectors, but the template has no {soft}. Add it.")
    if n_tokens not in (None, prompted.bound.n_soft) and (words or not given.has_bare_soft):
        n_soft, advice = prompted.bound.n_soft, "give other `words`" if words else "write {soft} in the template"
        expected = (
            f"the words to start from have {n_soft}" if words else f"the template has {n_soft} soft slots of its own"
        )
        raise bad_value("n_tokens", n_tokens, expected, f"Leave `n_tokens` out, or {advice}.")
    kept = sorted(row_order(task.data.train, generator(seed, "rows"))[: search.n_rows])
    rows = [task.data.train[row] for row in kept]
    objective = WordObjective(prompted, rows, task.objective_of(prompted), search.fluency)
    allowed = allowed_tokens(model.tokenizer, model.vocabulary_size, search.ascii_only).to(model.device)
    vocabulary = Vocabulary(objective.embeddings, allowed)
    vectors = start_vectors(model, task.init, prompted.bound, 0, prompted.answers, field_tokens(model, rows), seed)
    nearest = vocabulary.nearest(vectors, N_NEAREST).tolist()
    pairs = zip(nearest, prompted.bound.soft_starts, strict=True)  # words that the user gave are left as they are
    ids = readable([some if token is None else [token] for some, token in pairs], objective.first_misread)
    if ids is None or not objective.reads_back(ids):
        raise UserError(
            "the words to start from are not read back within the template: as one text they give other tokens. "
            "Put a blank before and after {soft}, or start from other words."
        )
    return Setting(objective, vocabulary, vectors, objective.score(ids))


def _follow(
    setting: Setting,
    search: WordSearch,
    config: dict[str, Any],
    folder: Path | None,
    callbacks: Sequence[Callback],
    seed: int,
) -> tuple[Scored, list[dict[str, Any]]]:
    """Search to the end: return the best prompt, and the record of each step."""
    objective = setting.objective
    if isinstance(search, Projection):
        steps = project(setting, search, seed)
    else:
        assert isinstance(search, CoordinateSearch), "there is no third way"
        steps = exchange(setting, search, seed)
    problem = LanguageProblem(objective.prompted, objective.prompted.prompt, objective.rows)
    run = Run(problem, search.recipe, search.n_steps, 1)
    listeners = callbacks if folder is None else (WriteConfig(folder, config), *callbacks)
    best = setting.start
    with contextlib.ExitStack() as stack:
        for listener in listeners:
            stack.callback(listener.close)
            listener.on_train_begin(run)
        if folder is not None:
            write_log(folder / "log.jsonl", [])
        began = time.monotonic()
        for best, batch_loss in steps:
            record: dict[str, Any] = {"epoch": len(run.history) + 1, "loss": best.loss, "batch_loss": batch_loss}
            record |= {"text": setting.text(best.ids), "seconds": round(time.monotonic() - began, 3)}
            for listener in listeners:
                listener.on_epoch_end(run, len(run.history), record)
            run.history.append(record)
            if folder is not None:
                append_log(folder / "log.jsonl", record)
            if run.is_stopped:
                break
            began = time.monotonic()
        for listener in listeners:
            listener.on_train_end(run)
    return best, run.history


def project(setting: Setting, search: Projection, seed: int) -> Steps:
    """Move soft vectors by the gradient at the words nearest to them."""
    objective, best = setting.objective, setting.start
    module = Learned(LM_INPUT, setting.vectors, unit=torch.tensor(objective.prompted.model.embedding_rms))
    optimizer = torch.optim.AdamW([module.values], lr=search.lr, weight_decay=search.weight_decay)
    seen = {best.ids}
    for step in range(search.n_steps):
        order = row_order(objective.rows, generator(seed, "rows", step))
        which = order[: search.batch_size]
        nearest = setting.vocabulary.nearest(module.vectors.detach(), N_NEAREST).tolist()
        ids = readable(nearest, objective.first_misread)
        gradient = objective.gradient(ids or tuple(some[0] for some in nearest), which)
        optimizer.zero_grad()
        module.vectors.backward(gradient.by_embedding.float())
        optimizer.step()
        if ids is not None and ids not in seen and gradient.loss < objective.loss_of(best, which):
            best = best_of(objective, [ids], best, order, search.batch_size) or best
            seen.add(ids)
        yield best, gradient.loss


def exchange(setting: Setting, search: CoordinateSearch, seed: int) -> Steps:
    """Exchange one token at a time for the best of those that the gradient proposes."""
    objective, best = setting.objective, setting.start
    seen = {best.ids}
    n_waited = 0
    for step in range(search.n_steps):
        draw = generator(seed, "candidates", step)
        order = row_order(objective.rows, generator(seed, "rows", step))
        gradient = objective.gradient(best.ids, order[: search.batch_size])
        by_token = gradient.by_token(objective.embeddings)
        proposed = setting.vocabulary.proposals(by_token, best.ids, search.top_k)  # [P, k]
        candidates: list[TokenIds] = []  # which differ in one place
        for pair in torch.randperm(proposed.numel(), generator=draw).tolist():
            place, rank = divmod(pair, proposed.shape[1])
            other = (*best.ids[:place], int(proposed[place, rank]), *best.ids[place + 1 :])
            if other not in seen and objective.first_misread(other) is None:
                candidates.append(other)
            if len(candidates) == search.n_candidates:
                break
        seen |= set(candidates)
        better = best_of(objective, candidates, best, order, search.batch_size) if candidates else None
        n_waited = n_waited + 1 if better is None else 0
        best = better or best
        yield best, gradient.loss
        if n_waited == search.patience:
            return

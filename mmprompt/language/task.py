"""The text-only path: a frozen language model and rows of text give a prompt of a few kilobytes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprompt.core.site_file import check_new, describe_backbone
from mmprompt.errors import UserError, unknown_name
from mmprompt.files import write_json
from mmprompt.language.data import TextData, TextRow, load_texts
from mmprompt.language.explain import heard
from mmprompt.language.file import save_language
from mmprompt.language.methods import LANGUAGE_METHODS, LanguageMethod, PromptTuning
from mmprompt.language.predictor import LanguagePrompt, PromptedModel
from mmprompt.language.start import Start, start_vectors
from mmprompt.language.templates.template import BoundTemplate, Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.language.watch import VectorWatch
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from mmprompt.training.callbacks import Callback, WriteConfig
from mmprompt.training.config import provenance, run_id_of, surroundings
from mmprompt.training.lock import run_lock
from mmprompt.training.loop import train
from mmprompt.training.problem import RunFailed, StepResult
from mmprompt.training.recipe import Recipe
from mmprompt.training.seeds import batches, derive_seed

Objective = Literal["auto", "answer", "choices"]
N_STEPS = 80
"""Steps that a prompt is trained for at least where the recipe names no epochs, however few rows there are."""
IGNORED, LOOKED_AT = 0.01, 8
"""Nats: prompts that change what the model says next by less are called ignored; rows that this is looked at on."""
_log = logging.getLogger(__name__)


class LanguageProblem:
    """What the loop trains: vectors that make the answers of given rows probable.

    Args:
        prompted: the frozen model and the untrained prompt.
        module: what learns.
        rows: to learn from.
        val: rows to validate on, () for none.
        objective: the probability of the answer's tokens among all (answer), or of the label among labels (choices).
        is_recomputed: keep less for the gradient and read rows again.
    """

    def __init__(
        self,
        prompted: PromptedModel,
        module: nn.Module,
        rows: Sequence[TextRow],
        val: Sequence[TextRow] = (),
        objective: Objective = "answer",
        is_recomputed: bool = False,
    ) -> None:
        self.prompted, self.rows, self.val = prompted, rows, val
        self.objective, self.is_recomputed = objective, is_recomputed
        self._module = module
        if is_recomputed:
            prompted.model.check_recomputed()
        self.questions = [self._question(row) for row in rows]

    @property
    def module(self) -> nn.Module:
        """What learns; nothing frozen is in it."""
        return self._module

    @property
    def n_items(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def step(self, indices: list[int], epoch: int) -> StepResult:
        """The mean loss of some rows: cross entropy in nats a token of the answers, or a row over the labels."""
        sources = self.prompted.prompt.sources
        total, n_counted, n_correct = torch.zeros((), device=self.prompted.model.device), 0, 0
        for task in dict.fromkeys(self.rows[index].task if sources.tasks else "" for index in indices):
            some = [index for index in indices if not sources.tasks or self.rows[index].task == task]
            loss, counted, correct = self._loss(some, sources.vectors_of(task))
            total, n_counted, n_correct = total + loss, n_counted + counted, n_correct + correct
        return StepResult({self.objective: total / n_counted}, n_correct if self.objective == "choices" else None)

    def validate(self) -> float | None:
        """The accuracy on the rows kept for that, None where there are none or none has a label."""
        labelled = [row for row in self.val if row.label is not None]
        if not labelled or self.prompted.prompt.verbalizer is None:
            return None
        found = self.prompted.classify(labelled)
        return sum(one.label == row.label for one, row in zip(found, labelled, strict=True)) / len(labelled)

    def _loss(self, indices: Sequence[int], vectors: Mapping[Any, Any]) -> tuple[Tensor, int, int]:
        """The sum of the losses, over how many it is taken, and how many labels were right."""
        prompted = self.prompted
        questions = [self.questions[index] for index in indices]
        if self.objective == "answer":
            found = prompted.model.predict(vectors, questions, is_recomputed=self.is_recomputed).token_log_probs()
            return -found.sum(), len(found), 0
        verbalizer = prompted.verbalizer
        predicted = prompted.model.predict(vectors, questions, prompted.words, self.is_recomputed)
        words = predicted.answer_log_probs().unflatten(0, (len(indices), -1))
        scores = verbalizer.label_scores(words, predicted.lengths[: words.shape[1]])
        wanted = [verbalizer.labels.index(self.rows[index].label) for index in indices]
        labels = torch.tensor(wanted, device=scores.device)
        n_correct = int((scores.argmax(1) == labels).sum())
        return F.cross_entropy(scores, labels, reduction="sum"), len(indices), n_correct

    def _question(self, row: TextRow) -> Question:
        prompted = self.prompted
        if self.objective == "choices":
            return prompted.question(row.fields, prompted.answers)
        return prompted.question(row.fields, answers_of(row, prompted))


def answers_of(row: TextRow, prompted: PromptedModel) -> tuple[tuple[int, ...], ...]:
    """The tokens that a row's answer has, with an end where it is to be generated; the first word of its label else."""
    if row.answer is not None:
        (answer,) = prompted.bound.answers([row.answer])
        return ((*answer, prompted.model.end_id),)
    assert row.label is not None, "data files hold one or the other"
    return prompted.bound.answers([prompted.verbalizer.words[row.label][0]])


@dataclass(frozen=True)
class LanguageResult:
    """A finished training.

    Args:
        prompted: the frozen model with what was learned.
        history: one dict per epoch, as in `log.jsonl`.
        data: what it was trained on.
        folder: the run folder, None if nothing was written.
        notices: what a careful reader should know, one sentence each.
    """

    prompted: PromptedModel
    history: list[dict[str, Any]]
    data: TextData
    folder: Path | None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class LanguageTask:
    """What is asked of a model, beside the method: template, words of the labels, objective.

    Args:
        template: by default the data's own, or `{soft}`, the fields and `{answer}`.
        verbalizer: by default the data's own, or the labels themselves.
        objective: auto is choices where there are labels, else answer.
        is_recomputed: keep less for the gradient and read rows again.
    Raises:
        UserError: the objective is unknown.
    """

    template: str | None = None
    verbalizer: Verbalizer | None = None
    objective: Objective = "auto"
    is_recomputed: bool = False

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise unknown_name("objective", self.objective, get_args(Objective))


def fit_language(
    data: TextData | Path | str,
    method: LanguageMethod | None = None,
    model: FrozenLanguageModel | str = "tiny",
    task: LanguageTask | None = None,
    start: Start | None = None,
    out: Path | str | None = None,
    recipe: Recipe | None = None,
    seed: int = 1,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> LanguageResult:
    """Learn a prompt for a frozen language model.

    Args:
        data: rows, or the path of a JSONL file.
        method: `PromptTuning()` by default.
        model: a model or the name of one.
        task: template, verbalizer and objective.
        start: where the vectors start.
        out: a new run folder; nothing is written without.
        recipe: optimiser and schedule; the method's own by default.
        seed: of the order of the rows and of what is drawn.
        callbacks: called as training goes.
        resume: go on from the newest checkpoint in `out`.
    Raises:
        UserError: something in the input cannot be, or another process trains in `out`; nothing is written then.
        RunFailed: the loss stopped being finite, or weights of the model changed.
    """
    data = data if isinstance(data, TextData) else load_texts(data)
    model = load_language_model(model) if isinstance(model, str) else model
    method = PromptTuning() if method is None else method
    recipe = type(method).recipe if recipe is None else recipe
    task, start = task or LanguageTask(), start or Start()
    folder = None if out is None else Path(out)
    with contextlib.nullcontext() if folder is None else run_lock(folder):
        if folder is not None:
            check_new(folder)
        prompted = untrained(model, data, method, task, start, seed)
        objective = objective_of(task, prompted)
        module = prompted.prompt.sources
        problem = LanguageProblem(prompted, module, data.train, data.val, objective, task.is_recomputed)
        refuse_unfit(prompted, data)
        config = language_config(method, model, data, task, start, recipe, seed, prompted)
        watch = VectorWatch(model, module)
        listeners = (watch, *callbacks) if folder is None else (WriteConfig(folder, config), watch, *callbacks)
        history = []
        if any(parameter.requires_grad for parameter in module.parameters()):
            n_epochs = epochs_of(recipe, problem.n_items)
            history = train(problem, recipe, seed, n_epochs, folder, run_id_of(config), listeners, resume)
        elif folder is not None:
            write_json(folder / "run.json", config)
        refuse_changed(model)
        module.requires_grad_(False)
        ignored = notice_ignored(problem)
        notices = (*watch.alarms.values(), *ignored)
        if folder is not None:
            save_language(prompted, folder, provenance(config) | {"notices": list(notices)})
    return LanguageResult(prompted, history, data, folder, notices)


def untrained(
    model: FrozenLanguageModel, data: TextData, method: LanguageMethod, task: LanguageTask, start: Start, seed: int
) -> PromptedModel:
    """The model with a prompt as learning starts.

    Raises:
        UserError: template, method and data do not go together.
    """
    template = Template.parse(task.template or data.template or default_template(data))
    bound = template.bind(model.tokenizer, model.start_ids, method.n_vectors, model.is_encoder_decoder)
    refuse_mismatch(template, bound, method)
    verbalizer = verbalizer_of(data, task.verbalizer)
    labels = () if verbalizer is None else bound.answers(verbalizer.flat)
    texts = [
        model.tokenizer(text, add_special_tokens=False)["input_ids"]
        for row in data.train
        for text in row.fields.values()
    ]
    values = start_vectors(model, start, bound, method.n_start, labels, texts, seed)
    tasks = tuple(dict.fromkeys(row.task for row in data.train if row.task))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "sources"))
        sources = method.sources(model, values, tasks)
    return PromptedModel(model, LanguagePrompt(template, sources, verbalizer, method.n_vectors))


def refuse_unfit(prompted: PromptedModel, data: TextData) -> None:
    """Refuse rows held out that could not be read after the training.

    Raises:
        UserError: one does not fit into the model's context, its answer included.
    """
    for row in data.test:
        answers = prompted.answers if row.answer is None else answers_of(row, prompted)
        try:
            prompted.question(row.fields, answers)
        except UserError as error:
            begin = " ".join(row.fields.values())[:40]
            raise UserError(f"the test row that begins with {begin!r} cannot be read: {error}") from None


def with_soft(task: LanguageTask, data: TextData, has_soft: bool) -> LanguageTask:
    """The same task with a template that has its bare `{soft}`, or has none."""
    text = task.template or data.template or default_template(data)
    return task if has_soft else replace(task, template=text.replace("{soft} ", "").replace("{soft}", ""))


def default_template(data: TextData) -> str:
    """Soft vectors, the fields one after another, and the answer."""
    fields = "\n".join(f"{{{name}:cut}}" for name in data.train[0].fields)
    return f"{{soft}} {fields}\n{{answer}}"


def verbalizer_of(data: TextData, given: Verbalizer | None = None) -> Verbalizer | None:
    """The words of the labels: those given, the data's own, or the labels themselves; None where texts are generated.

    Raises:
        UserError: those given are the words of other labels than the data's.
    """
    if given is not None:
        refuse_other_labels(given, data)
        return given
    if not data.labels:
        return None
    return Verbalizer(data.verbalizer or {label: label for label in data.labels})


def refuse_other_labels(verbalizer: Verbalizer, data: TextData) -> None:
    """Refuse words of other labels than those of the data.

    Raises:
        UserError: the data has no labels, or a label has no word, or a word no label.
    """
    if not data.labels:
        raise UserError("a verbalizer was given, but these rows have answers and no labels. Leave it out.")
    for label in data.labels:
        if label not in verbalizer.labels:
            raise UserError(f"the verbalizer has no word for the label {label!r}. Add one.")
    for label in verbalizer.labels:
        if label not in data.labels:
            raise unknown_name("label", label, data.labels, "Take its words out of the verbalizer.")


def objective_of(task: LanguageTask, prompted: PromptedModel) -> Objective:
    """What `auto` comes to.

    Raises:
        UserError: choices were asked for, but there are no labels.
    """
    has_labels = prompted.prompt.verbalizer is not None
    if task.objective == "choices" and not has_labels:
        raise UserError("the objective choices needs labels, but these rows have answers. Use --objective answer.")
    if task.objective == "auto":
        return "choices" if has_labels else "answer"
    return task.objective


def refuse_mismatch(template: Template, bound: BoundTemplate, method: LanguageMethod) -> None:
    """Refuse a template whose soft slots are not what the method fills.

    Raises:
        UserError: there are none to fill, or some that it does not fill.
    """
    name = next((name for name, kind in LANGUAGE_METHODS.items() if type(method) is kind), type(method).__name__)
    if method.n_vectors and not bound.n_soft:
        raise UserError(
            f"{name} learns vectors among the tokens, but the template has no {{soft}}. Add {{soft}} to it."
        )
    if not method.n_vectors and bound.n_soft:
        raise UserError(
            f"the template has {bound.n_soft} soft slots, but {name} learns no vectors among the tokens. "
            "Take them out, or use prompt-tuning."
        )


def epochs_of(recipe: Recipe, n_rows: int) -> int:
    """The recipe's epochs, or as many as `N_STEPS` take, but 4 at least."""
    n_steps = len(batches(list(range(n_rows)), recipe.batch_size))
    return recipe.epochs or max(4, -(-N_STEPS // n_steps))


def refuse_changed(model: FrozenLanguageModel) -> None:
    """See that the frozen weights are what they were.

    Raises:
        RunFailed: they are not.
    """
    if model.compute_fingerprint() != model.fingerprint:
        raise RunFailed(f"weights of {model.name} changed while a prompt was trained, so nothing was saved")


def notice_ignored(problem: LanguageProblem) -> list[str]:
    """What to say of a prompt that hardly changes what the model says next."""
    if not problem.prompted.prompt.sources.sites:
        return []
    nats = heard(problem.prompted, problem.rows[:LOOKED_AT])
    if nats >= IGNORED:
        return []
    notice = (
        f"The prompt is ignored: what {problem.prompted.model.name} says next is {nats:.4f} nats from what it says "
        "without. Use a higher lr, more vectors, or prefix-tuning."
    )
    _log.warning("%s", notice)
    return [notice]


def language_config(
    method: LanguageMethod,
    model: FrozenLanguageModel,
    data: TextData,
    task: LanguageTask,
    start: Start,
    recipe: Recipe,
    seed: int,
    prompted: PromptedModel,
) -> dict[str, Any]:
    """All that is needed to repeat a run, JSON-ready: the content of `run.json`."""
    names = {kind: name for name, kind in LANGUAGE_METHODS.items()}
    settings = asdict(method)  # type: ignore[call-overload]
    verbalizer = prompted.prompt.verbalizer
    return {
        "format": 1,
        "backbone": describe_backbone(model),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "sizes": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
            "notes": list(data.notes),
        },
        "method": {"name": names.get(type(method), type(method).__name__), "settings": settings},
        "template": prompted.prompt.template.text,
        "verbalizer": None if verbalizer is None else verbalizer.to_dict(),
        "objective": objective_of(task, prompted),
        "start": {key: value if value is None else str(value) for key, value in asdict(start).items()},
        "recipe": asdict(recipe),
        "seed": seed,
    } | surroundings(model)

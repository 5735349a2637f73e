"""The text-only path: a frozen language model and rows of text give a prompt of a few kilobytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprompt.core.fit import Task, describe_method
from mmprompt.core.method import Method, Start, leading, parts_of
from mmprompt.core.soft import PromptTuning
from mmprompt.data.splits import SPLITS
from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.language.data import TextData, TextRow
from mmprompt.language.explain import IGNORED, VectorWatch, prompt_effect_kl
from mmprompt.language.methods import METHODS, Instruction, Objective, PromptInit, SearchedWords
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.start import field_tokens, label_rows, start_vectors, with_unit
from mmprompt.language.templates.bound import BoundTemplate
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from mmprompt.models.decoder.whole_rows import WholeRowReader
from mmprompt.models.sites import Insert, Site
from mmprompt.settings import check, check_settings
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import StepResult
from mmprompt.training.recipe import Recipe, refuse_views
from mmprompt.training.seeds import batches, derive_seed, generator

N_STEPS = 80
"""Steps that a prompt is trained for at least where the recipe names no epochs, however few rows there are."""
LOOKED_AT = 8
"""Rows on which it is looked at whether a prompt is ignored."""


class LanguageProblem:
    """What the loop trains: what `module` learns makes the answers of given rows probable.

    Among all tokens (answer), or as labels among labels (choices). With `is_recomputed` less is kept for the gradient
    and rows are read again.
    """

    def __init__(
        self,
        prompted: LanguagePredictor,
        module: nn.Module,
        rows: Sequence[TextRow],
        val: Sequence[TextRow] = (),
        objective: Objective = "answer",
        is_recomputed: bool = False,
    ) -> None:
        self.prompted, self.rows, self.val = prompted, rows, val
        self.objective, self.is_recomputed = objective, is_recomputed
        self.module, self.n_items = module, len(rows)
        self.noticed: list[str] = []  # said when it was seen
        self.task: LanguageTask | None = None  # that it is of, with its seed, for methods that look at it
        self.seed = 0
        if is_recomputed:
            prompted.model.check_recomputed()
        self.questions = [question_of(row, prompted, objective) for row in rows]

    def features(self) -> LanguageProblem:
        """Give what a method may look at when all is learned: the problem itself, for texts have no features."""
        return self

    def step(self, indices: list[int], epoch: int) -> StepResult:
        """Compute the mean loss of rows: cross entropy in nats a token of the answers, or a row over the labels."""
        has_tasks = bool(self.prompted.tasks)
        total, n_counted, n_correct = torch.zeros((), device=self.prompted.model.device), 0, 0
        for task in dict.fromkeys(self.rows[index].task if has_tasks else "" for index in indices):
            some = [index for index in indices if not has_tasks or self.rows[index].task == task]
            loss, counted, correct = self._loss(some, self.prompted.inserts(task))
            total, n_counted, n_correct = total + loss, n_counted + counted, n_correct + correct
        return StepResult(
            {self.objective: total / n_counted}, n_correct if self.objective == "choices" else None, None, n_counted
        )

    def validate(self) -> float | None:
        """Measure the accuracy on the rows kept for that; None where there are none or none has a label."""
        labelled = [row for row in self.val if row.label is not None]
        if not labelled or self.prompted.label_words is None:
            return None
        self.module.eval()
        pairs = zip(self.prompted.classify(labelled), labelled, strict=True)
        self.module.train()
        return sum(predicted.label == row.label for predicted, row in pairs) / len(labelled)

    def _loss(self, indices: Sequence[int], inserts: Mapping[Site, Insert]) -> tuple[Tensor, int, int]:
        """Return the sum of the losses, over how many it is taken, and how many labels were right."""
        prompted = self.prompted
        questions = [self.questions[index] for index in indices]
        if self.objective == "answer":
            log_probs = prompted.model.predict(inserts, questions, is_recomputed=self.is_recomputed).token_log_probs()
            return -log_probs.sum(), len(log_probs), 0
        scores = prompted.label_scores(inserts, questions, self.is_recomputed)
        wanted = [prompted.verbalizer.labels.index(str(self.rows[index].label)) for index in indices]
        labels = torch.tensor(wanted, device=scores.device)
        n_correct = int((scores.argmax(1) == labels).sum())
        return F.cross_entropy(scores, labels, reduction="sum"), len(indices), n_correct


def question_of(row: TextRow, prompted: LanguagePredictor, objective: Objective) -> Question:
    """Lay out a row with the words of all labels (choices), or with its answer, of a label the first word."""
    if objective == "choices":
        return prompted.asked(row.fields)
    if row.answer is not None:
        return prompted.question(row.fields, answers_of(row, prompted))
    assert row.label is not None, "data files hold one or the other"
    return prompted.asked(row.fields, [prompted.verbalizer.words[row.label][0]])


def answers_of(row: TextRow, prompted: LanguagePredictor) -> tuple[tuple[int, ...]]:
    """Return the tokens of a row's answer, with the end that is to be generated."""
    (answer,) = prompted.bound.answers([row.answer or ""])
    return ((*answer, prompted.model.end_id),)


@dataclass
class LanguageTask(Task[LanguagePredictor]):
    """Rows of text to learn from, and how a model is asked; see `core.fit.Task`.

    Args:
        data: rows.
        template: by default the data's own, or `{soft}`, the fields and `{answer}`.
        verbalizer: by default the data's own, or the labels themselves.
        objective: auto is choices where there are labels, else answer.
        is_recomputed: keep less for the gradient and read rows again.
        init: where the vectors start.
    Raises:
        UserError: the objective is unknown.
    """

    data: TextData
    template: str | None = None
    verbalizer: Verbalizer | None = None
    objective: Objective = "auto"
    is_recomputed: bool = False
    init: PromptInit = field(default_factory=PromptInit)

    kind = "language"
    methods = METHODS

    def __post_init__(self) -> None:
        check_settings(self)
        self.recipe: dict[str, Any] = {}

    def load_model(self, model: FrozenLanguageModel | str) -> FrozenLanguageModel:
        """Return a language model, or load the one of that name."""
        check("model", model, FrozenLanguageModel | str, "Use load_language_model.")
        return load_language_model(model) if isinstance(model, str) else model

    @property
    def template_text(self) -> str:
        """The template: the one given, the data's own, or the default."""
        return self.template or self.data.template or default_template(self.data)

    def predictor(self, method: Method, model: FrozenLanguageModel, seed: int) -> LanguagePredictor:
        """Make the model with a prompt as learning starts; refuse data without the rows that a method learns from."""
        if method.needs_shots and not self.data.train:
            raise UserError(f"{self.data.name} has no train rows, but a prompt is learned from some. Add some.")
        template = Template.parse(self.template_text).with_soft(getattr(method, "n_vectors", 0))
        bound = template.bind(model.tokenizer, model.start_ids, model.is_encoder_decoder)
        refuse_method(self, bound, method)
        verbalizer = verbalizer_of(self.data, self.verbalizer)
        labels = () if verbalizer is None else bound.answers(verbalizer.flat)
        texts = field_tokens(model, self.data.train)
        asked: list[int] = []  # how many vectors to start from

        def values(n: int) -> Tensor:
            asked.append(n)
            return start_vectors(model, self.init, bound, n, labels, texts, seed)

        def keys_values(n: int) -> list[tuple[Tensor, Tensor]]:
            assert not isinstance(model.reader, WholeRowReader), "it has no shape of keys and values"
            pairs = model.reader.keys_values_of(values(n).to(model.device, model.dtype))
            return [with_unit(pair) for pair in pairs]

        start = Start(
            generator(seed, "start"),
            template,
            templates=self.data.instructions,
            tasks=tuple(dict.fromkeys(row.task for row in self.data.train if row.task)),
            vectors=lambda n: (values(n), torch.tensor(model.embedding_rms, device=model.device)),
            keys_values=None if model.kv_shape is None else keys_values,
            label_rows=lambda: label_rows(model, bound, verbalizer),
            lr=leading(method).recipe.lr,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "sources"))
            prompt = method.prompt(model, start)
        if self.init != PromptInit() and not asked and not isinstance(method, SearchedWords):
            name = describe_method(method, METHODS)["name"]
            raise UserError(f"{name} starts from no vectors, but `init` says where they start. Leave it out.")
        return LanguagePredictor(model, prompt, verbalizer)

    def complete(self, recipe: Recipe) -> Recipe:
        """Return a recipe as it is; one that crops and flips is refused."""
        refuse_views(recipe, "texts")
        return recipe

    def n_epochs(self, recipe: Recipe) -> int:
        """Give the recipe's epochs, or as many as `N_STEPS` take, but 4 at least."""
        return epochs_of(recipe, len(self.data.train))

    def problem(self, method: Method, predictor: LanguagePredictor, recipe: Recipe, seed: int) -> LanguageProblem:
        """Make what the loop trains."""
        data, objective = self.data, self.objective_of(predictor)
        problem = LanguageProblem(predictor, predictor.prompt, data.train, data.val, objective, self.is_recomputed)
        for row in data.test:  # what is held out must fit too, with its answer
            try:
                question_of(row, predictor, "choices" if row.answer is None else "answer")
            except UserError as error:
                begin = " ".join(row.fields.values())[:40]
                raise UserError(f"the test row that begins with {begin!r} cannot be read: {error}") from None
        self._watch = VectorWatch(predictor)
        problem.task, problem.seed = self, seed
        for rows, what in ((data.train, "training rows"), (data.val, "validation rows")):
            each = (predictor.answers if row.answer is None else answers_of(row, predictor) for row in rows)
            said = predictor.say_cut(rows, [max(map(len, answers)) for answers in each], what)
            problem.noticed += [said] if said else []
        return problem

    def callbacks(self, predictor: LanguagePredictor) -> list[Callback]:
        """Watch the vectors while they learn."""
        return [self._watch]

    def objective_of(self, prompted: LanguagePredictor) -> Objective:
        """Say what `auto` comes to."""
        has_labels = prompted.label_words is not None
        if self.objective == "choices" and not has_labels:
            raise UserError(
                "the objective choices needs labels, but these rows have answers. Use `objective='answer'`."
            )
        if self.objective == "answer" and prompted.label_rows is not None:
            raise UserError(
                "a soft verbalizer tells labels apart, but the objective is answer. Use `objective='choices'`."
            )
        if self.objective == "auto":
            return "choices" if has_labels else "answer"
        return self.objective

    def describe(self, predictor: LanguagePredictor) -> dict[str, Any]:
        """Give its part of `run.json`."""
        data, words = self.data, predictor.label_words
        return {
            "data": {
                "name": data.name,
                "fingerprint": data.fingerprint,
                "sizes": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
                "notes": list(data.notes),
            },
            "template": predictor.template.text,
            "verbalizer": None if words is None else words.to_dict(),
            "objective": self.objective_of(predictor),
            "init": {key: value if value is None else str(value) for key, value in asdict(self.init).items()},
        }

    def notices(self, problem: LanguageProblem, predictor: LanguagePredictor) -> list[str]:
        """Say what looked wrong in training, and whether the prompt changes anything."""
        alarms = [*problem.noticed, *self._watch.alarms.values()]
        if not predictor.prompt.sites:
            return alarms
        nats = prompt_effect_kl(predictor, problem.rows[:LOOKED_AT])
        if nats < IGNORED:
            others = ", more vectors, or prefix-tuning" if predictor.vectors() else ""
            alarms.append(
                f"The prompt is ignored: what {predictor.model.name} says next is {nats:.4f} nats from what it says "
                f"without. Use a higher lr{others}."
            )
        return alarms

    @property
    def test(self) -> Sequence[TextRow]:
        """What `Result.evaluate` measures on."""
        return self.data.test

    def evaluate(self, predictor: LanguagePredictor, items: Sequence[TextRow]) -> Any:
        """Measure the answers to rows; see `language.measure.evaluate`."""
        from mmprompt.language.measure import evaluate

        return evaluate(predictor, replace(self.data, test=tuple(items)))


def default_template(data: TextData) -> str:
    """Write soft vectors, the fields one after another, and the answer."""
    names: Iterable[str] = next((row.fields for split in SPLITS for row in data.rows(split)), ())
    for name in names:
        if not is_field(name):
            raise UserError(
                f"the field {name!r} cannot stand in a template, where names are letters, digits, blanks, - and _. "
                f"Name it otherwise, in {data.name}.yaml perhaps: columns: {{label: THEIRS, text: {name!r}}}."
            )
    fields = "\n".join(f"{{{name}:cut}}" for name in names)
    return f"{{soft}} {fields}\n{{answer}}"


def is_field(name: str) -> bool:
    """Return whether a template can name a field so."""
    try:
        return Template.parse(f"{{{name}:cut}}{{answer}}").fields == (name,)
    except UserError:
        return False


def verbalizer_of(data: TextData, given: Verbalizer | None = None) -> Verbalizer | None:
    """Return the words of the labels: those given, the data's own, or the labels; None where texts are generated."""
    if given is None:
        return Verbalizer(data.verbalizer or {label: label for label in data.labels}) if data.labels else None
    if not data.labels:
        raise UserError("a verbalizer was given, but these rows have answers and no labels. Leave it out.")
    for label in data.labels:
        if label not in given.labels:
            raise UserError(f"the verbalizer has no word for the label {label!r}. Add one.")
    for label in given.labels:
        if label not in data.labels:
            raise unknown_name("label", label, data.labels, "Take its words out of the verbalizer.")
    return given


def refuse_method(task: LanguageTask, bound: BoundTemplate, method: Method) -> None:
    """Refuse a template that the method does not read, or whose soft slots are not what it fills."""
    name, n_vectors = describe_method(method, METHODS)["name"], getattr(method, "n_vectors", 0)
    if isinstance(method, Instruction):
        if task.template is not None:
            raise UserError(
                "an instruction is a template of the card of the data, but another one was given. Leave `template` "
                "out, or use hard."
            )
        return
    if n_vectors and not bound.n_soft:
        raise UserError(
            f"{name} learns vectors among the tokens, but the template has no {{soft}}. Add {{soft}} to it."
        )
    if not n_vectors and bound.n_soft and not isinstance(method, SearchedWords):
        raise UserError(
            f"the template has {bound.n_soft} soft slots, but {name} learns no vectors among the tokens. "
            "Take them out, or use prompt-tuning."
        )
    n_soft = next((part.n_soft for part in parts_of(method) if isinstance(part, PromptTuning)), None)
    taken = (None, PromptTuning().n_vectors, bound.n_soft)  # the default gives way to the template
    if n_soft not in taken and not Template.parse(task.template_text).has_bare_soft:
        expected = f"the template has {bound.n_soft} soft slots of its own"
        raise bad_value("n_soft", n_soft, expected, "Leave `n_soft` out, or write {soft} in the template.")


def epochs_of(recipe: Recipe, n_rows: int) -> int:
    """Return the recipe's epochs, or as many as `N_STEPS` take, but 4 at least."""
    n_steps = len(batches(list(range(n_rows)), recipe.batch_size))
    return recipe.epochs or max(4, -(-N_STEPS // n_steps))

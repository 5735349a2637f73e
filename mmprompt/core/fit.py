"""The one `fit`: a method, a frozen model and a task give a predictor and its run folder.

What is learned, from what and by which losses is the task's and the method's to say; what is the same for all of them
is here: one writer a folder, nothing overwritten, the settings in one order, the loop where there is something to
learn, the frozen weights looked at again, and the prompt written last.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import mmprompt.display as display
from mmprompt.core.file import Predictor, describe, describe_backbone, load, save
from mmprompt.core.header import HEADER, check_new, read_header
from mmprompt.core.method import Method, overrides, parts_of, refuse_idle_recipe, resolved_recipe, settled
from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.files import json_ready, make_folder, write_json
from mmprompt.models.ranks import PeerLostError, Ranks
from mmprompt.settings import check, checked
from mmprompt.training.callbacks import Callback, ProgressBar, WriteConfig
from mmprompt.training.loop import count_epochs, train
from mmprompt.training.problem import RunFailed
from mmprompt.training.recipe import Recipe, check_names
from mmprompt.training.run_files import RUN, provenance, read_log, refuse_other_run, run_id_of, run_lock, surroundings

if TYPE_CHECKING:
    from pandas import DataFrame

    from mmprompt.training.problem import Problem

P = TypeVar("P", bound=Predictor)
_log = logging.getLogger(__name__)


class Task(Protocol[P]):
    """What is learned from, and what it becomes.

    Attributes:
        kind: the name of the room, such as `"classification"`; what is measured for all of it goes by this name.
        methods: what may learn it, by name.
        recipe: what the data says of the recipe.
    """

    kind: str
    methods: Mapping[str, Any]
    recipe: dict[str, Any]

    def task(self) -> Self:
        """Return the task itself, so that `fit` takes tasks and data alike."""
        return self

    def load_model(self, model: Any) -> Any:
        """Return a frozen model, or load the one that a name means for this kind of task.

        Raises:
            UserError: it is a model of another kind, or there is none of that name.
        """
        ...

    def predictor(self, method: Method, model: Any, seed: int) -> P:
        """Make the untrained predictor.

        Raises:
            UserError: method, model and data do not go together.
        """
        ...

    def complete(self, recipe: Recipe) -> Recipe:
        """Fill in what a recipe leaves to the data; by default it leaves nothing.

        Raises:
            UserError: there is nothing to learn from, or what the recipe asks for is not there.
        """
        return recipe

    def problem(self, method: Method, predictor: P, recipe: Recipe, seed: int) -> Problem:
        """Make what the loop trains; whatever cannot be read is refused here."""
        ...

    def n_epochs(self, recipe: Recipe) -> int:
        """Say for how many epochs a recipe trains here."""
        ...

    def callbacks(self, predictor: P) -> Sequence[Callback]:
        """Give what listens to every training of this kind, such as a watch over the vectors; by default nothing."""
        return ()

    def describe(self, predictor: P) -> dict[str, Any]:
        """Give its part of `run.json`, JSON-ready: `data` at least."""
        ...

    def notices(self, problem: Any, predictor: P) -> list[str]:
        """Say what a careful reader should know of what was learned, one sentence each."""
        ...


@contextlib.contextmanager
def new_run(out: Path | str | None) -> Iterator[Path | None]:
    """Hold the folder of a run that is new, so that nothing is overwritten; None where nothing is written."""
    if out is None:
        yield None
        return
    with run_lock(Path(out)):
        check_new(Path(out))
        yield Path(out)


class Data(Protocol[P]):
    """Anything that gives a task: a data set, captions of one focus, rows of text, or a task itself."""

    def task(self) -> Task[P]:
        """Return what is to be learned."""
        ...


@dataclass(frozen=True)
class Result(Generic[P]):
    """A finished training.

    Args:
        predictor: ready to predict.
        history: one dict per epoch, as in `log.jsonl`; empty where nothing was to be learned.
        task: what it was trained on.
        folder: the run folder, None if nothing was written.
        notices: what a careful reader should know, one sentence each.
    """

    predictor: P
    history: list[dict[str, Any]]
    task: Any
    folder: Path | None
    notices: tuple[str, ...] = ()

    def evaluate(self, data: Any = None, split: str = "test") -> Any:
        """Score the predictor on data or labelled items, by default the test part of what it was trained on.

        Args:
            data: as for `mmprompt.evaluate`.
            split: which part of a data set that is given.
        Raises:
            UserError: as of `mmprompt.evaluate`.
        """
        if data is None and split != "test":
            raise bad_value("split", split, "the test part alone is at hand", "Give the data too.")
        data = self.task.test if data is None else data
        if isinstance(data, Sequence) and not isinstance(data, str):
            return self.task.evaluate(self.predictor, data)
        return evaluate(self.predictor, data, split)

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
        """Upload the prompt to the Hugging Face Hub, with a card of what was measured; see `core.hub.push_to_hub`."""
        from mmprompt.core.hub import push_to_hub

        return push_to_hub(self, repo_id, private, token=token)

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        numbers = ", ".join(f"{name} {last[name]:.3g}" for name in ("loss", "accuracy", "val_accuracy") if name in last)
        return f"<Result: {type(self.predictor).__name__}, {len(self.history)} epochs, {numbers or 'nothing trained'}>"

    def _repr_html_(self) -> str:
        last = self.history[-1] if self.history else {}
        numbers = {name: f"{value:.4g}" for name, value in last.items() if isinstance(value, float)}
        said = {"epochs": len(self.history), "run folder": self.folder} | numbers
        return display.section(
            f"trained {type(self.predictor).__name__}",
            display.facts(said | {f"note {number}": text for number, text in enumerate(self.notices, 1)}),
            display.curve("loss", [record["loss"] for record in self.history if "loss" in record]),
            self.predictor._repr_html_(),  # type: ignore[attr-defined]
        )

    def to_frame(self) -> DataFrame:
        """Return the history, a row an epoch, as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        names = dict.fromkeys(name for record in self.history for name in record)
        return display.frame({name: [record.get(name) for record in self.history] for name in names})


@checked
def fit(
    method: Method | str,
    model: Any = "tiny",
    data: Data[P] | str = "openart-large",
    out: Path | str | None = None,
    recipe: Recipe | None = None,
    seed: int = 1,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    progress: bool = True,
    call: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Result[P]:
    """Learn a prompt on a frozen model.

    The recipe is put together in one order: the method's paper, what was measured for this method on this model, the
    data set, and what is given here; each setting that is given changes that setting alone.

    Args:
        method: such as `CoOp(n_ctx=4)` or `PromptTuning(8)`, or the name of one, which is then taken as it is.
        model: a frozen model or the name of one; the task says which kind of model a name means.
        data: a data set, captions of one focus, rows of text, or the name of a data set in the catalogue.
        out: a new run folder; nothing is written without.
        recipe: settings of optimiser and schedule; those that it was given count, all others are as above.
        seed: of the start, the data order and the augmentation.
        callbacks: called as training goes.
        resume: go on from the newest checkpoint in `out`; a training that has ended is given back as it was saved.
        progress: show how far the training is, on the error stream.
        call: what `run.json` keeps of how this was called, JSON-ready; it counts for nothing else.
        settings: single settings of the recipe, such as `epochs=30`; they win over `recipe`.
    Raises:
        UserError: something in the input cannot be, or another process trains in `out`; nothing is written then.
        RunFailed: the loss, or what a callback adds to a record, is not finite, weights of the model changed, or
            another process of the job has ended.
    """
    check_names(settings)
    if resume and out is None:
        raise bad_value("resume", resume, "there is no folder to go on in", "Give `out`, the folder of the run.")
    task = task_of(data)
    method, model = method_of(method, task), task.load_model(model)
    method = settled(method, model.name, task.kind)
    user = Recipe(**((recipe.given if recipe else {}) | settings))
    recipe = _complete(resolved_recipe(method, (model.name, task.kind), task.recipe, user), task)
    predictor = task.predictor(method, model, seed)
    refuse_idle_recipe(user.given, {describe_method(method, task.methods)["name"]: method})
    folder = None if out is None else Path(out)
    ranks = Ranks()
    with _peers_watched(), contextlib.ExitStack() as held:
        config = run_config(task, method, predictor, recipe, seed)
        kept = {} if folder is None else json_ready(config | ({} if call is None else {"call": dict(call)}))
        if folder is not None and ranks.from_first(partial(_has_ended, held, folder, predictor, config, resume)):
            return _finished(folder, model, task)
        problem = task.problem(method, predictor, recipe, seed)
        history: list[dict[str, Any]] = []
        if any(parameter.requires_grad for parameter in predictor.prompt.parameters()):
            n_epochs = count_epochs(recipe, problem.n_items, task.n_epochs(recipe))
            writers = [] if folder is None else [WriteConfig(folder, kept)]
            bars = [] if not progress or any(isinstance(one, ProgressBar) for one in callbacks) else [ProgressBar()]
            every = [*writers, *task.callbacks(predictor), *callbacks, *method.callbacks(n_epochs), *bars]
            listeners = [one for one in every if ranks.is_first or not one.is_shown]
            history = train(problem, recipe, seed, n_epochs, folder, run_id_of(config), listeners, resume)
            predictor.prompt.requires_grad_(False)
        notices = _finish(method, predictor, task, problem)
        if ranks.is_first:
            for notice in notices:
                if notice not in getattr(problem, "noticed", ()):  # else it was said as it came up
                    _log.warning("%s", notice)
        if folder is not None and ranks.is_first:
            _write(predictor, folder, config, kept, notices)
    return Result(predictor, history, task, folder, notices)


@contextlib.contextmanager
def _peers_watched() -> Iterator[None]:
    """Fail in one line where another process of the job is gone."""
    try:
        yield
    except PeerLostError:
        raise RunFailed("another process of this job has ended, so this one did") from None


def _complete(recipe: Recipe, task: Any) -> Recipe:
    """Fill in what a recipe leaves to the data; refuse one that asks for shots of data that has none."""
    recipe = task.complete(recipe)
    if recipe.steps_per_shot is not None:
        advice = "Give `n_steps` or `epochs`."
        raise bad_value("steps_per_shot", recipe.steps_per_shot, f"data of {task.kind} has no shots", advice)
    return recipe


def _finish(method: Method, predictor: Predictor, task: Any, problem: Any) -> tuple[str, ...]:
    """Let a method finish what was trained, refuse a changed model, and return what is to be said of it all."""
    predictor.prompt.eval()
    said_by_method = method.finish(predictor, problem.features()) if overrides(method, "finish") else None
    refuse_changed(predictor.backbone)
    return (*(said_by_method or ()), *task.notices(problem, predictor))


def _write(
    predictor: Predictor, folder: Path, config: Mapping[str, Any], kept: dict[str, Any], notices: Sequence[str]
) -> None:
    """Write the prompt, after what `run.json` has to say of it."""
    said = {"notices": list(notices)} if notices else {}
    if said or not (folder / RUN).exists():
        write_json(make_folder(folder) / RUN, kept | said)
    save(predictor, folder, provenance(config) | said)


def _has_ended(
    held: contextlib.ExitStack, folder: Path, predictor: Predictor, config: Mapping[str, Any], resume: bool
) -> bool:
    """Hold the folder, and return whether the run to be gone on with is trained; refuse any other in the way."""
    held.enter_context(run_lock(folder))
    describe(predictor, {})  # what no file could keep is refused before it is trained
    if resume and (folder / RUN).is_file():
        refuse_other_run(folder, config)
        return (folder / HEADER).is_file()
    check_new(folder)
    return False


def _finished(folder: Path, model: Any, task: Any) -> Result[Any]:
    """Give back what a training that has ended left in its folder."""
    predictor = load(folder, model)
    predictor.prompt.requires_grad_(False)
    history = read_log(folder / "log.jsonl") if (folder / "log.jsonl").is_file() else []
    return Result(predictor, history, task, folder, tuple(read_header(folder)["training"].get("notices", ())))


def evaluate(predictor: Any, data: Any, split: str = "test", **options: Any) -> Any:
    """Score a predictor of any kind on labelled data.

    Args:
        predictor: a classifier, a captioner or a language model with its prompt.
        data: a data set, captions, rows of text, or labelled items of them.
        split: which part of a data set; nothing is ever chosen by what comes out.
        options: of the `measure` module of the predictor's room.
    Returns:
        Accuracy and more of a classifier, what captions keep to of a captioner, right answers of a language model.
    Raises:
        UserError: there is nothing to evaluate on, or the data is of another kind.
    """
    check("predictor", predictor, Predictor, "Give what load gave, or the `predictor` of a Result.")
    room = importlib.import_module(f"mmprompt.{predictor.kind}.measure")
    return room.evaluate(predictor, data, split, **options)


def task_of(data: Data[P] | str) -> Task[P]:
    """Return the task of some data, or of the data set that a name means in the catalogue; refuse anything else."""
    if isinstance(data, str):
        from mmprompt.data.catalog import load_dataset

        return load_dataset(data).task()  # type: ignore[return-value]
    if not callable(getattr(data, "task", None)):
        raise UserError(
            f"data is of type {type(data).__name__}, but a data set, captions of one focus or rows of text were "
            "expected. Use mp.load_dataset, mp.load_captions(...).focus(...) or mp.load_texts."
        )
    return data.task()


def method_of(method: Method | str, task: Any) -> Method:
    """Return a method that learns what a task asks for, or the one of that name; refuse one of another kind of task."""
    if isinstance(method, str):
        names = [part.strip() for part in method.split("+")]
        for name in names:
            if name not in task.methods:
                raise unknown_name("method", name, task.methods)
        return reduce(operator.add, (task.methods[name]() for name in names))
    if isinstance(method, type) or not callable(getattr(method, "prompt", None)):
        shown = method.__name__ if isinstance(method, type) else f"of type {type(method).__name__}"
        raise bad_value("method", shown, "a method or the name of one was expected", "Write CoOp(), for one.")
    for part in (method, *parts_of(method)):
        if not is_dataclass(part):
            expected = "a method is a frozen dataclass of its settings"
            raise bad_value(
                "method", f"of type {type(part).__name__}", expected, "Write @dataclass(frozen=True) above it."
            )
        kinds = getattr(part, "kinds", (task.kind,))
        if task.kind not in kinds:
            advice = f"Use one of {', '.join(task.methods)}."
            shown = " + ".join(type(one).__name__ for one in parts_of(part))
            raise bad_value("method", shown, f"it is for {' and '.join(kinds)}", advice)
    return method


def run_config(task: Any, method: Method, predictor: Any, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Give all that is needed to repeat a run, JSON-ready: the content of `run.json`."""
    return {
        "format": 2,
        "kind": task.kind,
        "backbone": describe_backbone(predictor.backbone),
        **task.describe(predictor),
        "method": describe_method(method, task.methods),
        "recipe": asdict(recipe),
        "seed": seed,
    } | surroundings(predictor.backbone)


def describe_method(method: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """Give a method's name and settings, JSON-ready; one that has no name goes by that of its class.

    Of several methods that have a setting in common, but not its value, the later ones' go by name and setting.
    """
    parts = getattr(method, "methods", None)
    if parts is not None:
        described = [describe_method(part, names) for part in parts]
        settings: dict[str, Any] = {}
        for part in described:
            for key, value in part["settings"].items():
                settings[key if settings.get(key, value) == value else f"{part['name']}.{key}"] = value
        return {"name": "+".join(part["name"] for part in described), "settings": settings}
    own = next((name for name, kind in names.items() if type(method) is kind), type(method).__name__)
    return {"name": own, "settings": {name: value for name, value in asdict(method).items() if name != "losses"}}


def refuse_changed(model: Any) -> None:
    """Raise `RunFailed` where frozen weights are not what they were."""
    if model.compute_fingerprint() != model.fingerprint:
        raise RunFailed(f"weights of {model.name} changed while a prompt was trained, so nothing was saved")

"""A start for prompts of tasks to come: vectors from which a few steps on a few rows of a new task suffice.

They are learned over several tasks by Reptile (Nichol et al. 2018, "On First-Order Meta-Learning Algorithms"): a prompt
is trained for a few steps on one task, and the start moves towards where that led, task after task. Each task keeps its
own template and words of its labels; the vectors alone are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmprompt.core.file import save
from mmprompt.core.fit import describe_method, new_run, refuse_changed
from mmprompt.core.learned import Learned, Prompt
from mmprompt.core.meta import Rounds, drawn, of_rounds
from mmprompt.core.method import Start
from mmprompt.core.soft import DecoderCombination, DecoderMethod, PromptTuning
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, load_texts
from mmprompt.language.methods import METHODS, MultitaskPrompt, PromptInit
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.start import field_tokens, start_vectors
from mmprompt.language.task import LanguageProblem, LanguageTask
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import LM_INPUT
from mmprompt.settings import checked
from mmprompt.training.recipe import Recipe
from mmprompt.training.run_files import surroundings
from mmprompt.training.seeds import derive_seed, generator

TEMPLATE = "{soft} {answer}"
"""Of the saved start: vectors alone, for whatever template comes."""


@dataclass(frozen=True)
class MetaResult:
    """A start that was learned: the frozen model with it and without any task, its vectors [P, D] in the model's own
    size, of each round `round`, `task` and `loss` (the mean over its steps), and the prompt folder, None for none.
    """

    prompted: LanguagePredictor
    vectors: Tensor
    history: list[dict[str, Any]]
    folder: Path | None


@checked
def meta_init(
    datas: Sequence[TextData | Path | str],
    model: FrozenLanguageModel | str = "tiny",
    method: DecoderMethod | None = None,
    recipe: Recipe | None = None,
    seed: int = 1,
    n_rounds: int = 24,
    n_inner: int = 10,
    out: Path | str | None = None,
    start: PromptInit | None = None,
    rate: float = 1.0,
) -> MetaResult:
    """Learn vectors that a new task is soon learned from: `PromptInit(start="prompt", from_prompt=out)`.

    Args:
        datas: two or more tasks, each with a template of its own (or the default one).
        model: a model or the name of one.
        method: one that learns vectors among the tokens; `PromptTuning()` by default.
        recipe: optimiser, learning rate and batch size of the steps on a task; the method's own by default. They begin
            anew in every round, and the rate stays as it is.
        seed: of the order of tasks and rows and of what is drawn.
        n_rounds: tasks that are trained on one after another; each comes equally often.
        n_inner: steps in a round.
        out: a new prompt folder; nothing is written without.
        start: where the first round starts; labels are those of all tasks.
        rate: the share of the way to a task's vectors that the start moves, falling to zero with the last round.
    Raises:
        UserError: something in the input cannot be; nothing is written then.
        RunFailed: the loss stopped being finite, or weights of the model changed.
    """
    tasks = [data if isinstance(data, TextData) else load_texts(data) for data in datas]
    model = load_language_model(model) if isinstance(model, str) else model
    method = PromptTuning() if method is None else method
    recipe = of_rounds(type(method).recipe if recipe is None else recipe, recipe)
    rounds = Rounds(n_rounds, n_inner, rate)
    if not method.n_vectors or isinstance(method, MultitaskPrompt | DecoderCombination):
        raise UserError("a start is learned for vectors among the tokens that all tasks share. Use prompt-tuning.")
    rounds.check(len(tasks))
    with new_run(out) as folder:
        each = _with_one_prompt(model, tasks, method, start or PromptInit(), seed)
        prompt = each[0].prompt

        def problem_of(place: int, rows_seed: int) -> LanguageProblem:
            rows = drawn(tasks[place].train, n_inner * recipe.batch_size, rows_seed)
            return LanguageProblem(each[place], prompt, rows, (), LanguageTask(tasks[place]).objective_of(each[place]))

        history = rounds.learn([data.name for data in tasks], problem_of, recipe, seed)
        refuse_changed(model)
        vectors = each[0].vectors()[LM_INPUT].values.detach().clone()
        alone = Prompt(Template.parse(TEMPLATE).with_soft(len(vectors)), Learned(LM_INPUT, vectors))
        prompted = LanguagePredictor(model, alone.to(model.device).requires_grad_(False))
        if folder is not None:
            meta = asdict(rounds) | {"tasks": {data.name: data.fingerprint for data in tasks}}
            facts = {"recipe": asdict(recipe), "seed": seed, **surroundings(model)}
            save(prompted, folder, facts | {"method": describe_method(method, METHODS), "meta": meta})
    return MetaResult(prompted, vectors, history, folder)


def few_steps(data: TextData, n_steps: int, batch_size: int, seed: int = 1) -> TextData:
    """Repeat and shuffle training rows until one epoch is exactly so many steps."""
    return replace(data, train=drawn(data.train, n_steps * batch_size, seed))


def _with_one_prompt(
    model: FrozenLanguageModel, tasks: Sequence[TextData], method: DecoderMethod, start: PromptInit, seed: int
) -> list[LanguagePredictor]:
    """Put each task's template and labels around the same vectors."""
    each = [LanguageTask(data, init=PromptInit(start="random")).predictor(method, model, seed) for data in tasks]
    for data, prompted in zip(tasks, each, strict=True):
        if prompted.bound.n_soft != method.n_vectors:
            raise UserError(
                f"the template of {data.name} has {prompted.bound.n_soft} soft slots, but all tasks share "
                f"{method.n_vectors} vectors. Write one {{soft}} and no other soft slots."
            )
    labels = [ids for prompted in each for ids in prompted.answers]
    texts = field_tokens(model, [row for data in tasks for row in data.train])
    values = start_vectors(model, start, each[0].bound, 0, labels, texts, seed)
    unit = torch.tensor(model.embedding_rms, device=model.device)
    shared = Start(generator(seed, "start"), each[0].template, vectors=lambda n: (values, unit))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "sources"))
        source = method.prompt(model, shared).sources[0]
    return [LanguagePredictor(model, Prompt(one.template, source).to(model.device), one.label_words) for one in each]

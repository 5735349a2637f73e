"""A start for context vectors of data sets to come, learned over several of them: `CoOp(ctx_init="runs/start")`.

Each data set keeps its own class names and images; the vectors alone are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mmprompt.classification.methods import METHODS
from mmprompt.classification.methods.base import Combination
from mmprompt.classification.methods.coop import CoOp
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.task import ClassificationProblem, ClassificationTask
from mmprompt.classification.template import ClassTemplate
from mmprompt.core.file import save
from mmprompt.core.fit import describe_method, method_of, new_run, refuse_changed
from mmprompt.core.meta import Rounds, drawn, of_rounds
from mmprompt.core.method import Method, Start, overrides, parts_of, resolved_recipe, settled
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.image_features import ImageFeatures
from mmprompt.settings import checked
from mmprompt.training.recipe import Recipe
from mmprompt.training.run_files import surroundings

BEYOND = ("begin", "finish", "callbacks", "predictor")
"""The hooks of what does more, at a beginning or an end that steps of single rounds have not."""


@dataclass(frozen=True)
class MetaResult:
    """A start that was learned: the backbone with it, over the class names of all data sets.

    `history` holds of each round `round`, `task` and `loss`; `folder` is the prompt folder, None if nothing was
    written.
    """

    predictor: Classifier
    history: list[dict[str, Any]]
    folder: Path | None


@checked
def meta_init(
    datas: Sequence[Dataset],
    model: DualEncoder | str = "tiny",
    method: CoOp | Combination | None = None,
    recipe: Recipe | None = None,
    seed: int = 1,
    n_rounds: int = 60,
    n_inner: int = 10,
    out: Path | str | None = None,
    rate: float = 1.0,
    features: ImageFeatures | None = None,
) -> MetaResult:
    """Learn context vectors that a new data set is soon learned from: `CoOp(ctx_init=out)`.

    They are learned by Reptile (Nichol et al. 2018, "On First-Order Meta-Learning Algorithms", section 3).

    Args:
        datas: two or more data sets; images are taken as they are, without augmentation.
        model: a backbone or the name of one.
        method: one with context vectors that all classes share, perhaps with further loss terms; `CoOp()` by default.
        recipe: settings of the steps on a data set: those that it was given count, all others are the method's own.
            They begin anew in every round, and the rate stays as it is; there is no warm-up and no early stopping.
        seed: of the start, the order of data sets and images.
        n_rounds: data sets that are trained on one after another; each comes equally often.
        n_inner: steps in a round.
        out: a new prompt folder; nothing is written without.
        rate: the share of the way to a data set's vectors that the start moves, falling to zero with the last round.
        features: shared features of image files.
    Raises:
        UserError: something in the input cannot be; nothing is written then.
        RunFailed: the loss stopped being finite, or weights of the backbone changed.
    """
    rounds = Rounds(n_rounds, n_inner, rate)
    rounds.check(len(datas))
    backbone = load_backbone(model) if isinstance(model, str) else model
    places = (backbone.name, "classification")
    learner = settled(method_of(CoOp() if method is None else method, ClassificationTask), *places)
    each = _with_one_prompt(backbone, datas, learner, seed)
    steps = of_rounds(resolved_recipe(learner, places, {}, recipe), recipe)
    stored = features or ImageFeatures(backbone)
    with new_run(out) as folder:

        def problem_of(place: int, images_seed: int) -> ClassificationProblem:
            items = drawn(datas[place].train, n_inner * steps.batch_size, images_seed)
            images, labels = [item.path for item in items], [item.label for item in items]
            return ClassificationProblem(
                learner, each[place], images, labels, steps, seed, (), stored, datas[place].template
            )

        history = rounds.learn([data.name for data in datas], problem_of, steps, seed)
        refuse_changed(backbone)
        prompt = each[0].prompt.requires_grad_(False)
        names = tuple(dict.fromkeys(name for data in datas for name in data.class_names))
        predictor = Classifier(backbone, prompt, names).eval()
        if folder is not None:
            meta = asdict(rounds) | {"tasks": {data.name: data.fingerprint for data in datas}}
            facts = {"recipe": asdict(steps), "seed": seed, **surroundings(backbone)}
            save(predictor, folder, facts | {"method": describe_method(learner, METHODS), "meta": meta})
    return MetaResult(predictor, history, folder)


def _with_one_prompt(backbone: DualEncoder, datas: Sequence[Dataset], method: Method, seed: int) -> list[Classifier]:
    """Put the class names of each data set behind the same vectors."""
    for data in datas:
        if not data.train:
            raise UserError(f"{data.name} has no training images, so no start can be learned from it. Leave it out.")
    method.check_whole(method)
    for part in parts_of(method):
        if part.meets_images_once or any(overrides(part, hook) for hook in BEYOND):
            said = f"{type(part).__name__} does more than learn context vectors or bring a loss"
            raise UserError(f"{said}, and a start is learned by these alone. Leave it out.")
    generator = torch.Generator().manual_seed(seed)
    prompt = method.prompt(backbone, Start(generator, ClassTemplate(datas[0].template), datas[0].class_names))
    if prompt.is_class_specific or not prompt.has("text") or prompt.has("vision") or prompt.needs_image:
        raise UserError("a start is learned for context vectors that all classes share. Use coop or kgcoop.")
    return [Classifier(backbone, prompt, data.class_names) for data in datas]

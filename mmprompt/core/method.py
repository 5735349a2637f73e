"""What a method is: which prompt, and what else differs from plain training. It knows no data and no loop.

Every hook but `prompt` has a default; CoOp overrides none. Methods are settings first: their files import torch where
they make something, not before, so that a command line is read at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mmprompt.errors import UserError, bad_value
from mmprompt.settings import check_settings
from mmprompt.training.recipe import LENGTHS, Recipe, check_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmprompt.core.learned import Outputs, Prompt
    from mmprompt.training.callbacks import Callback
    from mmprompt.training.problem import GradientRule


@dataclass(frozen=True)
class Start:
    """What a prompt may be made of before learning.

    Args:
        generator: CPU generator of random starts.
        template: the data's words around what is asked; kept where a method learns none of its own.
        class_names: C names, of a classifier.
        templates: the data's hand-written templates: an ensemble of a classifier, instructions of a language model.
        tasks: names of the tasks of the data, of a language model.
        vectors: given n, embeddings [n, D] to start from and their unit, of a decoder; where the template has slots of
            its own, as many as it has.
        keys_values: given n, keys and values [n, 2 H D/H] of every block to start from and their units, of a decoder.
        embed: given words, their embeddings [n, D], of a decoder whose template has no place for words.
        label_rows: gives the output layer's rows [C, D] that labels start from, [C, D + 1] with biases, and their unit,
            of a language model.
        lr: the learning rate of the recipe that all of a combination is trained by, of a decoder.
    """

    generator: torch.Generator
    template: Any
    class_names: Sequence[str] = ()
    templates: Sequence[str] = ()
    tasks: Sequence[str] = ()
    vectors: Callable[[int], tuple[Tensor, Tensor]] | None = None
    keys_values: Callable[[int], list[tuple[Tensor, Tensor]]] | None = None
    embed: Callable[[str], Tensor] | None = None
    label_rows: Callable[[], tuple[Tensor, Tensor]] | None = None
    lr: float | None = None


@dataclass(frozen=True)
class FrozenFeatures:
    """The training images as the image tower sees them, with what it has learned where that is over.

    Args:
        image_features: [N, E] of unit norm.
        labels: [N] int64.
        validation: gives features [N', E] and labels [N'] of the validation images, None where there are none.
        generator: CPU generator of what a method draws when it has seen them.
        wide: gives [N, E + W], the same features and, of a backbone that has some, the image tower's own before the
            projection, of unit norm.
    """

    image_features: Tensor
    labels: Tensor
    validation: Callable[[], tuple[Tensor, Tensor] | None]
    generator: torch.Generator
    wide: Callable[[], Tensor]


def cross_entropy(outputs: Outputs) -> Tensor:
    """Mean cross entropy over the batch, in float32 at least (Zhou et al. 2022, "Learning to Prompt", section 3.2)."""
    import torch
    import torch.nn.functional as F

    assert outputs.labels is not None, "a loss is taken of labelled images"
    logits = outputs.logits
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), outputs.labels)


def named_losses(method: Method, outputs: Outputs) -> Mapping[str, Tensor]:
    """Take the loss terms of a method; refuse what are no tensors by name."""
    from torch import Tensor

    terms = method.loss_terms(outputs)
    if not isinstance(terms, Mapping) or not all(isinstance(term, Tensor) for term in terms.values()):
        given, shown = f"what {type(method).__name__}.loss_terms gives", f"of type {type(terms).__name__}"
        raise bad_value(given, shown, "tensors by name were expected", 'Return {"my_loss": loss}, for one.')
    return terms


class Method(Protocol):
    """A frozen dataclass of settings that says which prompt is learned, and how.

    Attributes:
        recipe: the published optimiser and schedule; a recipe's own defaults are those of CoOp.
        needs_shots: whether it learns from labelled images, so that shots and seed matter.
        is_trained: whether it learns by steps of an optimiser, so that a recipe matters.
        makes_head: whether a classifier has its head from this method.
        meets_images_once: whether an epoch must not meet an image twice, as draws that repeat images do.
        averages_weights: whether what is kept is an average over epochs.
        learns: whether it has a prompt; what has none, such as a further loss term, joins a method that has.
        group: what it learns, as lists have it: prompts, weights, heads, test time, parts that join, or nothing.
    """

    recipe: ClassVar[Recipe] = Recipe()
    learns: ClassVar[bool] = True
    group: ClassVar[str] = "prompts"
    needs_shots: ClassVar[bool] = True
    is_trained: ClassVar[bool] = True
    makes_head: ClassVar[bool] = False
    meets_images_once: ClassVar[bool] = False
    averages_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make the untrained prompt for a backbone.

        Args:
            backbone: the frozen model.
            start: what to make it of.
        Raises:
            UserError: a setting cannot be used with this backbone.
        """
        ...

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Compute the named scalar terms whose sum is minimised."""
        return {"cross_entropy": cross_entropy(outputs)}

    def gradient_rule(self, n_epochs: int) -> GradientRule | None:
        """Give what is made of the gradients of the loss terms; their sum where there is none."""
        return None

    def check_whole(self, whole: Method) -> None:
        """Refuse to be a part of a method, such as one that undoes what it is there for."""
        return

    def teacher(self, backbone: Any, class_names: Sequence[str], template: str) -> Tensor | None:
        """Give class features [C, E] of a frozen teacher, whose `Outputs` the loss terms then see as `frozen`.

        Args:
            backbone: the frozen model.
            class_names: C names.
            template: the data's hand-written template.
        """
        return None

    def begin(self, predictor: Any, data: FrozenFeatures) -> None:
        """Look once at the frozen features of the training images and their labels, before the first step.

        It may give `predictor.prompt` a head that learns, or other values to start from.
        """
        return

    def finish(self, predictor: Any, data: FrozenFeatures) -> Sequence[str] | None:
        """Look once at the features after the last step, such as to fit a head that is solved and not trained.

        Returns:
            What a careful reader should know of it, one sentence each; None for nothing.
        """
        return None

    def callbacks(self, n_epochs: int) -> Sequence[Callback]:
        """Give what listens to the training, such as an averager of weights."""
        return ()

    def predictor(self, backbone: Any, prompt: Prompt, class_names: Sequence[str]) -> Any:
        """Give a classifier of the method's own, such as one that adapts to each image; None for the ordinary one."""
        return None


@dataclass(frozen=True)
class Combined(Method):
    """Several methods that learn at different sites, trained as one prompt by the first one's recipe."""

    methods: tuple[Method, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods:
            raise UserError("a combination of no methods learns nothing. Write CoOp(...) + VPT(...).")

    @property
    def is_trained(self) -> bool:  # type: ignore[override]
        """Whether steps are taken by one that has a prompt."""
        return any(part.learns and part.is_trained for part in parts_of(self))

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Join the sources of all methods in one prompt."""
        if len(self.methods) < 2 or not any(method.learns for method in self.methods):
            raise UserError("a combination needs two methods, one of which learns. Write CoOp(...) + VPT(...).")
        prompts = [method.prompt(backbone, start) for method in self.methods if method.learns]
        joined = reduce(lambda one, other: one.join(other), prompts)
        templates = [prompt.template for prompt in prompts if prompt.template.text != start.template.text]
        words = dict.fromkeys(template.text for template in templates)
        if len(words) > 1:
            raise UserError(f"two methods bring words of their own, {' and '.join(map(repr, words))}. Leave one out.")
        joined.template = templates[0] if templates else start.template
        return joined

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Compute the loss terms of every method, the cross entropy once."""
        terms: dict[str, Tensor] = {}
        for method in sorted(self.methods, key=lambda method: not method.learns):
            own = named_losses(method, outputs)
            twice = sorted((own.keys() & terms.keys()) - {"cross_entropy"})
            if twice:
                raise UserError(f"two methods both bring the loss {twice[0]!r}. Leave one of them out.")
            terms |= own
        return terms

    def gradient_rule(self, n_epochs: int) -> GradientRule | None:
        """Give that of the one method which has one."""
        return self._only("gradient_rule", [method.gradient_rule(n_epochs) for method in self.methods])

    def check_whole(self, whole: Method) -> None:
        """Ask every method."""
        for method in self.methods:
            method.check_whole(whole)

    def teacher(self, backbone: Any, class_names: Sequence[str], template: str) -> Tensor | None:
        """Give the teacher of the methods that have one, which must be the same for all of them."""
        teachers = [method.teacher(backbone, class_names, template) for method in self.methods]
        given = [teacher for teacher in teachers if teacher is not None]
        return self._only("teacher", given[:1] if all(each.equal(given[0]) for each in given) else given)

    def begin(self, predictor: Any, data: FrozenFeatures) -> None:
        """Let every method look at the features."""
        for method in self.methods:
            method.begin(predictor, data)

    def finish(self, predictor: Any, data: FrozenFeatures) -> Sequence[str]:
        """Let every method look at the features once more."""
        return [sentence for method in self.methods for sentence in method.finish(predictor, data) or ()]

    def callbacks(self, n_epochs: int) -> Sequence[Callback]:
        """Give the listeners of all methods."""
        return [callback for method in self.methods for callback in method.callbacks(n_epochs)]

    def predictor(self, backbone: Any, prompt: Prompt, class_names: Sequence[str]) -> Any:
        """Give the classifier of the one method that has its own."""
        made = [method.predictor(backbone, prompt, class_names) for method in self.methods]
        return self._only("predictor", made)

    def _only(self, what: str, values: Sequence[Any]) -> Any:
        own = [value for value in values if value is not None]
        if len(own) > 1:
            raise UserError(
                f"{len(own)} of the methods bring a {what} of their own, but one can be used. Combine others."
            )
        return own[0] if own else None


def refuse_same_settings(kinds: Sequence[type[Any]]) -> None:
    """Refuse to combine a method with itself, or two that call a setting alike, of which a run could name one alone."""
    owners: dict[str, type[Any]] = {}
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise UserError(f"{kind.__name__} stands twice, but a combination has one of each. Combine others.")
        for name in (one.name for one in fields(kind) if one.name != "losses"):
            if name in owners:
                raise UserError(
                    f"{owners[name].__name__} and {kind.__name__} both have a setting named {name}, but a combination "
                    "has one of each. Combine others."
                )
            owners[name] = kind


def parts_of(method: Any) -> list[Any]:
    """List the methods of a combination, however they were joined; of any other the method itself."""
    return [part for one in method.methods for part in parts_of(one)] if isinstance(method, Combined) else [method]


def overrides(method: Any, hook: str) -> bool:
    """Whether a method, or one of a combination, has a hook of its own, such as `begin`."""
    return any(getattr(type(part), hook) is not getattr(Method, hook) for part in parts_of(method))


@dataclass(frozen=True)
class Measured:
    """What was measured to suit a method in one place better: settings that the user leaves None, and of the recipe."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)


_CAPTIONS = Recipe(optimizer="adamw", lr=0.1, batch_size=16, weight_decay=0.0, warmup_epochs=0, augment="none")
_PHOTO_PROMPT = Recipe(optimizer="adamw", lr=0.01, batch_size=256, epochs=100, augment="none")
_PHOTO_SMALL = {
    **dict.fromkeys(("CoOp", "KgCoOp", "ProGrad"), _PHOTO_PROMPT),
    "ZeroShotProbe": Recipe(lr=30.0, augment="none"),
    "CLAP": Recipe(lr=3.0, augment="none"),
    "TipAdapterF": Recipe(lr=0.1, augment="none"),
    "CLIPAdapter": Recipe(lr=1.0, augment="none"),
    "TaskRes": Recipe(lr=0.006, augment="none"),
}
# Class features of `photo` are far shorter before they are scaled to unit norm, and a step of them turns them further.
_PHOTO = _PHOTO_SMALL | dict.fromkeys(("ZeroShotProbe", "CLAP"), Recipe(lr=0.001, augment="none"))
MEASURED: dict[tuple[str, str], Measured] = {
    ("tiny", "CoOp"): Measured({"n_ctx": 4}, Recipe(lr=0.006)),
    ("tiny", "KgCoOp"): Measured({"n_ctx": 4}, Recipe(lr=0.2)),
    ("tiny", "ProGrad"): Measured(),  # not CoOp's: it has 8 vectors, or as many as its words have tokens
    ("tiny", "DeepText"): Measured(recipe=Recipe(lr=0.0075)),
    ("tiny", "PromptSRC"): Measured(recipe=Recipe(lr=0.025)),
    ("tiny", "ZeroShotProbe"): Measured(recipe=Recipe(lr=3.0)),
    ("tiny", "TipAdapterF"): Measured(recipe=Recipe(lr=0.03)),
    ("tiny", "CLIPAdapter"): Measured(recipe=Recipe(lr=3.0)),
    **{
        (backbone, method): Measured(recipe=recipe)
        for backbone, recipes in (("photo", _PHOTO), ("photo-small", _PHOTO_SMALL))
        for method, recipe in recipes.items()
    },
    ("captioning", "PromptTuning"): Measured({"n_soft": 8}, _CAPTIONS),
    ("captioning", "PrefixTuning"): Measured({"n_prefix": 4, "reparametrise": False}, _CAPTIONS),
    ("captioning", "LoRA"): Measured(
        {"targets": ("all", "head", "embeddings"), "dropout": 0.2, "ratio": 1.0},
        Recipe(**_CAPTIONS.given | {"lr": 0.02, "n_steps": 400}),
    ),
    ("language", "LoRA"): Measured({"targets": ("all",), "dropout": 0.0, "ratio": 1.0}),
    ("language", "PromptTuning"): Measured({"n_soft": 20}),
    ("language", "PrefixTuning"): Measured({"n_prefix": 10, "reparametrise": True}),
}
"""By backbone or kind of task, and method. Each was chosen on validation data: docs/embedded_default.md,
docs/photographs.md, docs/methods.md and docs/captions.md say how."""


@dataclass(frozen=True)
class Default:
    """The name of a backbone's method where the user names none, and where that was found, in a few words."""

    method: str
    reason: str


DEFAULTS: dict[str, Default] = {
    name: Default("text-probe", "chosen on Caltech101's validation images") for name in ("photo", "photo-small")
}
"""By backbone; each held up on test images that chose nothing: docs/photographs.md."""
ANY_BACKBONE = Default("coop", "for want of a method measured to be better here; --method auto chooses a head")


def default_method(backbone: str) -> Default:
    """Give the method for a backbone where none is named, and why."""
    return DEFAULTS.get(backbone, ANY_BACKBONE)


def measured_for(method: Method | type[Method], *places: str) -> Measured:
    """Look up what was measured for a method in the first of some places that has something.

    A method that inherits from a measured one takes over its settings, but not its recipe, which was measured for the
    other.

    Args:
        method: a method or its class; of a combination the first one counts.
        places: names of backbones and kinds of tasks, the narrowest first.
    """
    kind = method if isinstance(method, type) else type(leading(method))
    for ancestor in kind.__mro__:
        for place in places:
            if (place, ancestor.__name__) in MEASURED and ancestor.__module__.startswith("mmprompt."):
                found = MEASURED[place, ancestor.__name__]
                return found if ancestor is kind else Measured(found.settings)
    return Measured()


def leading(method: Any) -> Any:
    """The method whose recipe a combination is trained by, its first that learns; else the method itself."""
    parts = parts_of(method)
    return next((part for part in parts if part.learns), parts[0])


def settled(method: Method, *places: str) -> Method:
    """Fill in the settings that a method leaves None with what was measured in some places; see `measured_for`."""
    if isinstance(method, Combined):
        return replace(method, methods=tuple(settled(part, *places) for part in method.methods))
    joined = getattr(method, "losses", ())
    if joined:
        return settled(sum(joined, replace(method, losses=())), *places)  # type: ignore[type-var, call-overload]
    chosen = {
        name: value
        for name, value in measured_for(method, *places).settings.items()
        if getattr(method, name) is None and not getattr(method, "ctx_init", None)
    }
    return replace(method, **chosen) if chosen else method  # type: ignore[type-var]


def refuse_idle_recipe(given: Mapping[str, Any], methods: Mapping[str, Any]) -> None:
    """Refuse settings of a recipe where no method, of one or more by name, is trained by steps."""
    if any(method.is_trained for method in methods.values()):
        return
    for name, value in given.items():
        said = f"{' and '.join(methods)} {'is' if len(methods) == 1 else 'are'} not trained by steps"
        raise bad_value(name, value, said, f"Leave `{name}` out.")


def resolved_recipe(
    method: Method | type[Method], places: Sequence[str], data: Mapping[str, Any], user: Recipe | None
) -> Recipe:
    """Put a recipe together, in the one order there is: the paper's, what was measured, the data set's, the user's.

    A data set speaks where the paper is silent, and of all but the length where no measurement does: its 50 epochs in
    place of CoOp's 200 are none of CoCoOp's 10.

    Args:
        method: a method or its class; its `recipe` is the paper's.
        places: as for `measured_for`.
        data: what the data set says of the recipe.
        user: those settings of it count that it was given.
    Raises:
        UserError: the data set names a setting that no recipe has.
    """
    check_names(data, "Correct the recipe of the data set.")
    paper, measured = leading(method).recipe.given, measured_for(method, *places).recipe.given
    lengths = set(LENGTHS)
    fixed = paper.keys() | (measured.keys() - lengths) | (lengths if lengths & paper.keys() else set())
    data = {name: value for name, value in data.items() if name not in fixed}
    settings: dict[str, Any] = {}
    for given in (paper, measured, data, {} if user is None else user.given):
        if lengths & given.keys():
            settings = {name: value for name, value in settings.items() if name not in lengths}
        settings |= given
    return Recipe(**settings)

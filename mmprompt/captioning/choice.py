"""Which method a focus is learned by: the one whose prompt gives the tokens of held-out captions the most probability.

It is then learned from the held-out captions too, and what its prompt said of them stands for what it will say. It is
the mean of probabilities, not of their logarithms: by those a prompt that is sure of itself, and mostly right,
loses for the few tokens that it gets wrong.

Which methods can work depends on how far the focus is from what the captioner says anyway: vectors bring out what a
decoder knows, sentences it never saw take terms beside its layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from mmprompt.captioning.data import CaptionData, CaptionItem
from mmprompt.captioning.predictor import Captioner, CaptionFeatures
from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.captioning.task import CaptionProblem, FocusTask, Trial, encode_captions, tokenize_captions
from mmprompt.core.fit import fit, method_of
from mmprompt.core.soft import DecoderMethod, LoRA, PrefixTuning, PromptTuning
from mmprompt.errors import UserError
from mmprompt.models.sites import Insert, Site
from mmprompt.progress import doing
from mmprompt.training.recipe import Recipe

CANDIDATES: Mapping[str, DecoderMethod] = {
    "prompt-tuning": PromptTuning(),
    "prefix-tuning": PrefixTuning(),
    "prompt-tuning+prefix-tuning": PromptTuning() + PrefixTuning(),
    "lora": LoRA(),
}
FEWEST, SHARE = 12, 5
"""Images that choose: the validation part, and every so-manieth of the training part where those are fewer."""


@dataclass(frozen=True)
class Choice:
    """How methods compare on held-out captions: by name the mean probability of a token, 0..1, the highest first.

    `refused` are methods that the captioner cannot take, with the reason. `task` is to be learned by the best: from all
    images but those of the test part, and judged by the prompt that did not see the held-out ones.
    """

    probabilities: Mapping[str, float]
    n_images: int
    refused: Mapping[str, str]
    task: FocusTask

    @property
    def method(self) -> DecoderMethod:
        """The best of them."""
        return CANDIDATES[next(iter(self.probabilities))]

    def __str__(self) -> str:
        found = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.probabilities.items())
        return f"Mean probability of a token of the captions of {self.n_images} held-out images: {found}."


class _Part(FocusTask):
    """The task of a prompt that is thrown away after the comparison: nothing is said of it."""

    def notices(self, problem: CaptionProblem, predictor: Captioner) -> list[str]:
        return []


@doing("choosing the method")
def choose_method(
    captioner: FrozenCaptioner, task: FocusTask, recipe: Recipe | None = None, seed: int = 1, progress: bool = True
) -> Choice:
    """Learn a focus by every method on a part of the training images, and compare them on others.

    The test part is not looked at; what `recipe` gives holds for every method. Two images or more are needed.
    """
    features = task.shared(captioner)
    learned_from, held_out = _divided(task.data, task.focus)
    part = _Part(replace(task.data, items=learned_from), task.focus, features)
    score = partial(_probability, features, held_out, task.focus)
    bare, found, refused = score({}), {}, {}
    learned: dict[str, Captioner] = {}
    for name, method in CANDIDATES.items():
        try:
            method_of(method, part)
            result = fit(method, captioner, part, recipe=recipe, seed=seed, progress=progress)
        except UserError as error:
            refused[name] = str(error)
            continue
        learned[name] = result.predictor
        found[name] = score(result.predictor.prompt.inserts())
    if not found:
        raise UserError(f"no method fits {captioner.name}: {next(iter(refused.values()))}")
    ranked = dict(sorted(found.items(), key=lambda pair: -pair[1]))
    unseen, data = {item.image_id for item in held_out}, with_val_in_train(task.data)
    trial = Trial(learned[next(iter(ranked))], tuple(item for item in data.items if item.image_id in unseen))
    whole = FocusTask(data, task.focus, features, trial)
    return Choice(ranked | {"no prompt": bare}, len(held_out), refused, whole)


def with_val_in_train(data: CaptionData) -> CaptionData:
    """Return the data as a chosen method learns from it: the validation part belongs to the training part."""
    items = tuple(replace(item, split="train") if item.split == "val" else item for item in data.items)
    return replace(data, items=items)


def _divided(data: CaptionData, focus: str) -> tuple[tuple[CaptionItem, ...], tuple[CaptionItem, ...]]:
    """Divide images into those to learn from and those to choose by, neither of the test part."""
    train, val = ([item for item in part if item.of(focus)] for part in (data.train, data.val))
    if len(val) >= FEWEST:
        return tuple(train), tuple(val)
    if len(train) < 2:
        of_focus = f" of {focus}" if focus else ""
        raise UserError(
            f"{data.name} has {len(train)} image with captions{of_focus} to learn from, but two are needed to choose "
            "a method. Give more, or name a --method."
        )
    taken = train[::SHARE]
    return tuple(item for item in train if item not in taken), (*val, *taken)


def _probability(
    features: CaptionFeatures, items: Sequence[CaptionItem], focus: str, inserts: Mapping[Site, Insert]
) -> float:
    captioner = features.captioner
    words = tokenize_captions(captioner, [item.of(focus) for item in items])
    captions = encode_captions(captioner, words, captioner.decoder.budget // 2)  # the same, whatever a prompt takes
    return features.log_probs([item.image for item in items], captions.token_ids, inserts).exp().mean().item()

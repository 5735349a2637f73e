"""Captioning focus: a frozen captioner and captions of one focus give a prompt of a few kilobytes.

Image features are computed once per image. Where the decoder reads the image before the prompt, what it read is kept
too, so a training step runs the prompt and the words alone.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mmprompt.captioning.data import CaptionData, CaptionItem, shown_name
from mmprompt.captioning.decoding import Decoding
from mmprompt.captioning.focus_sets import own_words, token_beginnings
from mmprompt.captioning.methods import METHODS
from mmprompt.captioning.metrics.tokens import tokenize
from mmprompt.captioning.predictor import (
    Captioner,
    CaptionFeatures,
    CaptionTemplate,
    Guidance,
    embed_words,
    features_for,
    hard_prompt,
)
from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.captioning.readers.load import SHIPPED, load_captioner
from mmprompt.captioning.search import TokenIds, prompt_slots
from mmprompt.core.fit import Task
from mmprompt.core.learned import rms
from mmprompt.core.method import Method, Start, resolved_recipe
from mmprompt.core.words import commonest
from mmprompt.errors import UserError, bad_value
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.decoder.reader import CausalReader
from mmprompt.models.sites import Insert, Site, low_rank_of
from mmprompt.settings import check, check_settings
from mmprompt.training.problem import StepResult
from mmprompt.training.recipe import Recipe, refuse_views
from mmprompt.training.seeds import batches, derive_seed

N_STEPS = 160
"""Steps that a prompt is trained for at least where the recipe names no epochs, however few images there are."""
MAX_MEMORY_BYTES = 2**30
LOOKED_AT = 64
HELD_AGAINST = 32
"""Images of the validation part that captions of a new prompt are looked at on."""
N_STRANGERS = 8
"""Captions of other images that those of each image are held against."""
COLLAPSED = 0.1


@dataclass(frozen=True)
class Encoded:
    """Captions as a training takes them: token ids of each image's captions, the end last unless it was cut.

    `n_cut` counts those that were longer than there is room for.
    """

    token_ids: tuple[tuple[tuple[int, ...], ...], ...]
    n_cut: int


def tokenize_captions(captioner: FrozenCaptioner, captions: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Return the token ids of each image's captions, without ends.

    A letter is refused that the tokenizer loses or, where the vocabulary was learned from English captions alone, that
    is in none of its words.
    """
    examples: dict[str, str] = {}  # a caption for each letter: these alone are read back
    for text in chain.from_iterable(captions):
        examples |= {letter: text for letter in set(fold(text)) - set(examples) if letter.isalnum()}
    read_back = {
        text: fold(captioner.tokenizer.decode(captioner.tokenizer.encode(text))) for text in set(examples.values())
    }
    lost = {
        letter: text
        for letter, text in examples.items()
        if letter not in read_back[text] or (captioner.name in SHIPPED and not letter.isascii())
    }
    if lost:
        letters, example = "".join(sorted(lost))[:12], lost[min(lost)]
        raise UserError(
            f"{captioner.name} cannot write {letters!r}, as in the caption {example!r}. "
            "Give captions in a language that it writes, or take another captioner."
        )
    return [[captioner.tokenizer.encode(text) for text in texts] for texts in captions]


def fold(text: str) -> str:
    """Return a text without case and accents, which tokenizers may drop."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def encode_captions(captioner: FrozenCaptioner, words: Sequence[Sequence[Sequence[int]]], room: int) -> Encoded:
    """Put an end behind each of `tokenize_captions`; longer ones than `room` are cut and counted."""
    whole = [[(*ids, captioner.decoder.end_id) for ids in some] for some in words]
    n_cut = sum(len(ids) > room for some in whole for ids in some)
    return Encoded(tuple(tuple(ids[:room] for ids in some) for some in whole), n_cut)


class CaptionProblem:
    """What the loop trains: a prompt that makes the captions of given images, of features [N, T, D'], probable.

    An item is an image with all its captions, so that image, start and prompt are read once for all of them. `inserts`
    gives those of the module as they are now, by site. `is_image_frozen` says whether what the decoder reads of the
    images stays as it is (not so for a mapper).
    """

    def __init__(
        self,
        captioner: FrozenCaptioner,
        module: nn.Module,
        inserts: Callable[[], Mapping[Site, Insert]],
        features: Tensor,
        captions: Encoded,
        is_image_frozen: bool = True,
        validate: Callable[[], float] | None = None,
    ) -> None:
        self.captioner, self.features, self.captions = captioner, features, captions
        self.module, self._inserts = module, inserts
        self.n_items = len(captions.token_ids)
        self._kv_cache = self._read_images() if is_image_frozen else None
        self._validate = validate

    def step(self, indices: list[int], epoch: int) -> StepResult:
        """Return the mean cross entropy of the tokens of all captions of some images, their ends included."""
        n_tokens = sum(len(caption) for index in indices for caption in self.captions.token_ids[index])
        return StepResult({"caption": self.loss(indices, self._inserts())}, n_counted=n_tokens)

    def validate(self) -> float | None:
        """Return what the training watches, such as the CIDEr-D of a mapper's captions; None for a prompt."""
        return None if self._validate is None else self._validate()

    def loss(self, indices: Sequence[int], inserts: Mapping[Site, Insert]) -> Tensor:
        """Return the cross entropy in nats a token, over the captions of some images."""
        rows = torch.tensor(list(indices), device=self.captioner.device)
        kept = self._kv_cache
        kv_cache = self.captioner.open(self.features[rows]) if kept is None else kept.select(rows)
        captions = [self.captions.token_ids[index] for index in indices]
        return -self.captioner.log_probs(kv_cache, inserts, captions).mean()

    @torch.no_grad()
    def _read_images(self) -> KVCache | None:
        """Return what the decoder read of every image, None where that is more than memory should hold."""
        first = self.captioner.open(self.features[:1])
        if first.n_bytes * len(self.features) > MAX_MEMORY_BYTES:
            return None
        return KVCache.join([self.captioner.open(part) for part in self.features.split(64)])


@dataclass(frozen=True)
class Trial:
    """A captioner that learned from some of the images, and those that it did not see."""

    predictor: Captioner
    items: tuple[CaptionItem, ...]


@dataclass
class FocusTask(Task[Captioner]):
    """Captions of one focus to learn from; see `core.fit.Task`.

    Args:
        data: images with captions.
        focus: one that the data has captions of, such as "emotions".
        features: of the same captioner, to share them.
        trial: whose captions show whether the focus is learned; by default the trained prompt's, of the validation part
            or, where there is none, of images that it learned from.
    """

    data: CaptionData
    focus: str
    features: CaptionFeatures | None = None
    trial: Trial | None = None
    _kept: CaptionFeatures | None = field(default=None, init=False, repr=False)

    kind = "captioning"
    methods = METHODS

    def __post_init__(self) -> None:
        check_settings(self)
        self.items = self.data.with_captions("train", self.focus)
        self.recipe: dict[str, Any] = {}

    def load_model(self, model: FrozenCaptioner | str) -> FrozenCaptioner:
        """Return a captioner's model, or load the one of that name."""
        check("model", model, FrozenCaptioner | str, "Use load_captioner.")
        return load_captioner(model) if isinstance(model, str) else model

    def predictor(self, method: Method, model: FrozenCaptioner, seed: int) -> Captioner:
        """Make the captioner with an untrained prompt."""
        self.image_features = self.shared(model).of([item.image for item in self.items])
        self.words = tokenize_captions(model, [item.of(self.focus) for item in self.items])
        tokens = [ids for captions in self.words for ids in captions]

        template = CaptionTemplate(self.focus, getattr(method, "words", ""), self.own_words(model))

        def vectors(n: int) -> tuple[Tensor, Tensor]:
            values = model.decoder.embed(start_tokens(tokens, n, model.device)).detach().float()
            return values, rms(values)

        def keys_values(n: int) -> list[tuple[Tensor, Tensor]]:
            each = keys_values_of(model, start_tokens(tokens, n, model.device), self.image_features[:LOOKED_AT])
            return [(values, rms(values)) for values in each]

        start = Start(
            torch.Generator().manual_seed(seed),
            template,
            vectors=vectors,
            keys_values=None if model.decoder.kv_shape is None else keys_values,
            embed=partial(embed_words, model),
            lr=resolved_recipe(method, (model.name, self.kind), {}, None).lr,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "sources"))
            prompt = method.prompt(model, start)
        model.check_inserts(prompt.inserts())
        return Captioner(model, Guidance(((prompt, 1.0),)))

    def own_words(self, model: FrozenCaptioner) -> dict[str, tuple[TokenIds, ...]]:
        """Find the words of the focus that other captions have not, of the data or, where it has none, of the model."""
        captions = [text for item in self.items for text in item.of(self.focus)]
        others = [text for item in self.data.train for text in item.of(None) if text not in item.of(self.focus)]
        others = others or [said.text for said in Captioner(model).caption_features(self.image_features[:LOOKED_AT])]
        return token_beginnings(model.tokenizer, own_words(captions, others), (*captions, *others))

    def complete(self, recipe: Recipe) -> Recipe:
        """Refuse views, and early stopping: what is said of the validation part is not measured as a prompt learns."""
        refuse_views(recipe, "images with captions")
        if recipe.patience is not None:
            expected = "captions have no validation accuracy to wait for"
            raise bad_value("patience", recipe.patience, expected, "Leave `patience` out.")
        return recipe

    def n_epochs(self, recipe: Recipe) -> int:
        """Return the recipe's epochs; see `epochs_of`."""
        return epochs_of(recipe, len(self.items))

    def problem(self, method: Method, predictor: Captioner, recipe: Recipe, seed: int) -> CaptionProblem:
        """Make what the loop trains."""
        model, prompt = predictor.backbone, predictor.prompt
        captions = encode_captions(model, self.words, model.decoder.budget - prompt_slots(prompt.inserts()))
        return CaptionProblem(model, prompt, prompt.inserts, self.image_features, captions)

    def describe(self, predictor: Captioner) -> dict[str, Any]:
        """Return its part of `run.json`."""
        data = self.data
        return {
            "data": {
                "name": data.name,
                "fingerprint": data.fingerprint,
                "focus": self.focus,
                "sizes": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
                "notes": list(data.notes),
            }
        }

    def notices(self, problem: CaptionProblem, predictor: Captioner) -> list[str]:
        """Say what a careful reader should know of a trained prompt."""
        captions, features, notices = problem.captions, self.image_features[:LOOKED_AT], []
        if captions.n_cut:
            n_captions = sum(map(len, captions.token_ids))
            notices.append(
                f"{captions.n_cut} of {n_captions} captions were longer than the decoder has room for and were "
                "cut: shorten them, or use fewer vectors."
            )
        said = {caption.text for caption in predictor.caption_features(features)}
        texts = {ids for some in captions.token_ids[: len(features)] for ids in some}
        if len(said) < COLLAPSED * min(len(texts), len(features)):
            notices.append(
                f"The captioner says {len(said)} different captions of {len(features)} images, whose own captions are "
                f"{len(texts)}: it has collapsed. Train for fewer epochs, with a lower lr or with fewer vectors."
            )
        longest = 1 + max(len(ids) for some in self.words for ids in some)
        if longest > Decoding().max_tokens:
            notices.append(
                f"Captions of {shown_name(self.focus)} have up to {longest} tokens: "
                f"write them with --max-tokens {longest}."
            )
        return [*notices, *self._notices_on_others(predictor, longest)]

    def _notices_on_others(self, predictor: Captioner, longest: int) -> list[str]:
        """Say it where captions of other images show that the focus was not learned.

        What is said of them with the prompt is held against what the best wording makes of the captioner without one,
        and against captions that people wrote of wholly other images.
        """
        from mmprompt.captioning.measure import wordings_for

        val = tuple(item for item in self.data.val if item.of(self.focus))
        trial = self.trial or Trial(predictor, val or self.items)
        items, is_other = trial.items[:HELD_AGAINST], trial.items is not self.items
        seen = self.shared(predictor.backbone).of([item.image for item in items])
        decoding = Decoding(max_tokens=max(Decoding().max_tokens, longest))

        def likeness(captions: Sequence[str]) -> Tensor:
            pairs = zip(captions, items, strict=True)
            return torch.tensor([max(alike(said, text) for text in item.of(self.focus)) for said, item in pairs])

        def say(guidance: Guidance) -> Tensor:
            said = Captioner(predictor.backbone, guidance, decoding).caption_features(seen)
            return likeness([caption.text for caption in said])

        words = [hard_prompt(predictor.backbone, self.focus, words) for words in wordings_for(self.focus)]
        wordings = max((say(Guidance(((prompt, 1.0),) if prompt else ())) for prompt in (None, *words)), key=torch.mean)
        strangers = [item for item in self.items if item not in items] or self.items[1:] or self.items
        texts = [strangers[place % len(strangers)].of(self.focus)[0] for place in range(len(items) + N_STRANGERS)]
        shifted = [likeness(texts[shift : shift + len(items)]) for shift in range(N_STRANGERS)]
        elsewhere = torch.stack(shifted).mean(0)
        own = say(trial.predictor.guidance)
        if all(is_no_less(own, other) for other in (wordings, elsewhere)):
            return []
        what = self.focus or "what the captions speak of"
        is_left = isinstance(predictor.backbone.decoder, CausalReader) and not low_rank_of(predictor.prompt.inserts())
        such = ", such as lora" if is_left else ""
        return [
            f"{what} was not learned: of {len(items)} {'other ' if is_other else ''}images, captions with "
            f"this prompt are {100 * own.mean():.0f} % like those that were written, captions of other images in the "
            f"data {100 * elsewhere.mean():.0f} %, and the best wording without a prompt reaches "
            f"{100 * wordings.mean():.0f} %. Try another --method{such}, give more pairs, or take another "
            "captioner."
        ]

    @property
    def test(self) -> Sequence[CaptionItem]:
        """What `Result.evaluate` measures on."""
        return self.data.test

    def evaluate(self, predictor: Captioner, items: Sequence[Any]) -> Any:
        """Measure how well captions keep to the focus; see `captioning.measure`."""
        from mmprompt.captioning.measure import evaluate

        asked = tuple(replace(item, split="test") for item in items)
        shared = self.shared(predictor.backbone)
        return evaluate(predictor, replace(self.data, items=(*self.data.train, *asked)), features=shared)

    def shared(self, captioner: FrozenCaptioner) -> CaptionFeatures:
        """Give the image features that were given, else some that are kept while the captioner is the same."""
        if self.features is not None:
            return features_for(captioner, self.features)
        if self._kept is None or self._kept.captioner is not captioner:
            self._kept = CaptionFeatures(captioner)
        return self._kept


def is_no_less(some: Tensor, others: Tensor) -> bool:
    """Return whether numbers [N] are not below others by more than a standard error of the mean difference."""
    difference = some - others
    error = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else torch.tensor(0.0)
    return bool(difference.mean() + error >= 0)


def alike(caption: str, other: str) -> float:
    """Return how much of two captions is the same words in the same order, 0..1 (difflib's ratio)."""
    return SequenceMatcher(None, tokenize(caption), tokenize(other), autojunk=False).ratio()


def start_tokens(captions: Iterable[Sequence[int]], n: int, device: torch.device) -> Tensor:
    """Return the n commonest tokens [n] of some captions, repeated where there are fewer; ties go to the smaller id."""
    ranked = commonest(captions)
    return torch.tensor([ranked[place % len(ranked)] for place in range(n)], device=device)


@torch.no_grad()
def keys_values_of(captioner: FrozenCaptioner, tokens: Tensor, features: Tensor) -> list[Tensor]:
    """Compute the keys and values [M, 2 H D/H] of tokens [M] in every block, averaged over images [B, T, D']."""
    embedded = captioner.decoder.embed(tokens.expand(len(features), -1))
    _, kv_cache = captioner.decoder.run(captioner.open(features), embedded)
    n_tokens = len(tokens)
    return [
        torch.cat([part[:, :, -n_tokens:].mean(0).transpose(0, 1).flatten(1) for part in pair], dim=1).float()
        for pair in kv_cache.own
    ]


def epochs_of(recipe: Recipe, n_images: int) -> int:
    """Return the recipe's epochs, or as many as `N_STEPS` take, but 8 at least."""
    n_steps = len(batches(list(range(n_images)), recipe.batch_size))
    return recipe.epochs or max(8, -(-N_STEPS // n_steps))

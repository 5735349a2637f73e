"""Captioning focus: a frozen captioner and captions of one focus give a prompt of a few kilobytes.

Image features are computed once per picture. Where the decoder reads the image before the prompt, what it read is kept
too, so a training step runs the prompt and the words alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmprompt.captioning.data import NEUTRAL, CaptionData, load_captions
from mmprompt.captioning.methods import MAPPER_RECIPE, METHODS
from mmprompt.captioning.predictor import Captioner, CaptionFeatures, CaptionTemplate, Steering, embed_words
from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.captioning.readers.load import load_captioner, save_mapped
from mmprompt.captioning.search import prompt_slots
from mmprompt.core.fit import refuse_changed
from mmprompt.core.learned import Prompt, rms
from mmprompt.core.method import Method, Start
from mmprompt.errors import UserError
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.sites import Site, Vectors, vectors_of
from mmprompt.settings import check
from mmprompt.training.callbacks import Callback
from mmprompt.training.loop import train
from mmprompt.training.problem import StepResult
from mmprompt.training.recipe import Recipe
from mmprompt.training.run_files import run_id_of, run_lock
from mmprompt.training.seeds import batches, derive_seed

N_STEPS = 160
"""Steps that a prompt is trained for at least where the recipe names no epochs, however few pictures there are."""
MAX_MEMORY_BYTES = 2**30
LOOKED_AT = 64
COLLAPSED = 0.1


@dataclass(frozen=True)
class Encoded:
    """Captions as a training takes them.

    Args:
        token_ids: of each picture's captions, the end token last unless it was cut.
        n_cut: how many were longer than there is room for.
    """

    token_ids: tuple[tuple[tuple[int, ...], ...], ...]
    n_cut: int

    @property
    def n_captions(self) -> int:
        """Of all pictures together."""
        return sum(map(len, self.token_ids))


def encode_captions(captioner: FrozenCaptioner, captions: Sequence[Sequence[str]], room: int) -> Encoded:
    """Tokens of the captions of some pictures.

    Args:
        captioner: the frozen model.
        captions: of each picture, one or more.
        room: most tokens of one, its end included; longer ones are cut and counted.
    """
    return with_ends(captioner, tokenize_captions(captioner, captions), room)


def tokenize_captions(captioner: FrozenCaptioner, captions: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """The token ids of some pictures' captions, without ends."""
    return [[captioner.tokenizer.encode(text) for text in texts] for texts in captions]


def with_ends(captioner: FrozenCaptioner, words: Sequence[Sequence[Sequence[int]]], room: int) -> Encoded:
    """The same with an end behind each, cut to the room there is; the arguments are those of `encode_captions`."""
    whole = [[(*ids, captioner.decoder.end_id) for ids in some] for some in words]
    n_cut = sum(len(ids) > room for some in whole for ids in some)
    return Encoded(tuple(tuple(ids[:room] for ids in some) for some in whole), n_cut)


class CaptionProblem:
    """What the loop trains: vectors that make the captions of given pictures probable.

    An item is a picture with all its captions, so that image, start and prompt are read once for all of them.

    Args:
        captioner: the frozen model.
        module: what learns.
        vectors: its vectors as they are now, by site.
        features: [N, T, D'] of the pictures.
        captions: of these pictures.
        is_image_frozen: whether what the decoder reads of the images stays as it is (not so for a mapper).
    """

    def __init__(
        self,
        captioner: FrozenCaptioner,
        module: nn.Module,
        vectors: Callable[[], Mapping[Site, Vectors]],
        features: Tensor,
        captions: Encoded,
        is_image_frozen: bool = True,
    ) -> None:
        self.captioner, self.features, self.captions = captioner, features, captions
        self._module, self._vectors = module, vectors
        self._memory = self._read_images() if is_image_frozen else None

    @property
    def module(self) -> nn.Module:
        """What learns; nothing of the captioner is in it but a mapper in training."""
        return self._module

    @property
    def n_items(self) -> int:
        """The number of pictures."""
        return len(self.captions.token_ids)

    def step(self, indices: list[int], epoch: int) -> StepResult:
        """The mean cross entropy of the tokens of all captions of some pictures, their ends included."""
        return StepResult({"caption": self.loss(indices, self._vectors())})

    def validate(self) -> float | None:
        """Captions have no accuracy."""
        return None

    def loss(self, indices: Sequence[int], vectors: Mapping[Site, Vectors]) -> Tensor:
        """Cross entropy in nats a token, over the captions of some pictures."""
        memory = self._images(torch.tensor(list(indices), device=self.captioner.device))
        captions = [self.captions.token_ids[index] for index in indices]
        return -self.captioner.log_probs(memory, vectors, captions).mean()

    @torch.no_grad()
    def mean_loss(self, vectors: Mapping[Site, Vectors], n_pictures: int = 32) -> float:
        """The loss over the first pictures, with other vectors or none: what a prompt is held against."""
        return self.loss(range(min(n_pictures, self.n_items)), vectors).item()

    def _images(self, rows: Tensor) -> KVCache:
        if self._memory is not None:
            return self._memory.select(rows)
        return self.captioner.open(self.features[rows])

    @torch.no_grad()
    def _read_images(self) -> KVCache | None:
        """What the decoder read of every picture, None where that is more than memory should hold."""
        first = self.captioner.open(self.features[:1])
        if first.n_bytes * len(self.features) > MAX_MEMORY_BYTES:
            return None
        return KVCache.join([self.captioner.open(part) for part in self.features.split(64)])


@dataclass
class FocusTask:
    """Captions of one focus to learn from; see `core.fit.Task`.

    Args:
        data: images with captions.
        focus: one that the data has captions of, such as "emotions".
        features: of the same captioner, to share them.
    """

    data: CaptionData
    focus: str
    features: CaptionFeatures | None = None

    kind = "captioning"
    methods = METHODS

    def __post_init__(self) -> None:
        self.items = self.data.with_captions("train", self.focus)
        self.recipe: dict[str, Any] = {}

    def task(self) -> FocusTask:
        """Return the task itself."""
        return self

    def load_model(self, model: FrozenCaptioner | str) -> FrozenCaptioner:
        """Return a captioner's model, or load the one of that name."""
        check("model", model, FrozenCaptioner | str, "Use load_captioner.")
        return load_captioner(model) if isinstance(model, str) else model

    def predictor(self, method: Method, model: FrozenCaptioner, seed: int) -> Captioner:
        """Make the captioner with an untrained prompt.

        Raises:
            UserError: the method's prompt does not fit this captioner.
        """
        self.features = self.features or CaptionFeatures(model)
        self.image_features = self.features.of([item.image for item in self.items])
        self.words = tokenize_captions(model, [item.of(self.focus) for item in self.items])
        tokens = [ids for captions in self.words for ids in captions]

        def vectors(n: int) -> tuple[Tensor, Tensor]:
            values = model.decoder.embed(start_tokens(tokens, n, model.device)).detach().float()
            return values, rms(values)

        def keys_values(n: int) -> list[tuple[Tensor, Tensor]]:
            each = keys_values_of(model, start_tokens(tokens, n, model.device), self.image_features[:LOOKED_AT])
            return [(values, rms(values)) for values in each]

        start = Start(
            torch.Generator().manual_seed(seed),
            CaptionTemplate(self.focus, getattr(method, "words", "")),
            vectors=vectors,
            keys_values=None if model.decoder.kv_shape is None else keys_values,
            embed=partial(embed_words, model),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "sources"))
            prompt = method.prompt(model, start)
        model.check_vectors(vectors_of(prompt.inserts()))
        return Captioner(model, Steering(((prompt, 1.0),)))

    def complete(self, recipe: Recipe) -> Recipe:
        """Leave the recipe as it is."""
        return recipe

    def n_epochs(self, recipe: Recipe) -> int:
        """Give the recipe's epochs, or as many as `N_STEPS` take, but 8 at least."""
        return epochs_of(recipe, len(self.items))

    def problem(self, method: Method, predictor: Captioner, recipe: Recipe, seed: int) -> CaptionProblem:
        """Make what the loop trains."""
        model, prompt = predictor.backbone, predictor.prompt
        vectors = lambda: vectors_of(prompt.inserts())  # noqa: E731
        captions = with_ends(model, self.words, model.decoder.budget - prompt_slots(vectors()))
        return CaptionProblem(model, prompt, vectors, self.image_features, captions)

    def callbacks(self, predictor: Any) -> list[Callback]:
        """Listen to nothing."""
        return []

    def describe(self, predictor: Captioner) -> dict[str, Any]:
        """Give its part of `run.json`."""
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
        return notices_of(problem, predictor.prompt, self.image_features[:LOOKED_AT])

    def evaluate(self, predictor: Captioner, items: Sequence[Any]) -> Any:
        """Measure how well captions keep to the focus; see `captioning.measure`."""
        from mmprompt.captioning.measure import evaluate

        asked = tuple(replace(item, split="test") for item in items)
        return evaluate(predictor, replace(self.data, items=asked), "test", self.features)


def start_tokens(captions: Iterable[Sequence[int]], n: int, device: torch.device) -> Tensor:
    """Give the n commonest tokens [n] of some captions, repeated where there are fewer; ties go to the smaller id."""
    counts = Counter(token for caption in captions for token in caption)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return torch.tensor([ranked[place % len(ranked)] for place in range(n)], device=device)


@torch.no_grad()
def keys_values_of(captioner: FrozenCaptioner, tokens: Tensor, features: Tensor) -> list[Tensor]:
    """Compute the keys and values [M, 2 H D/H] of tokens [M] in every block, averaged over images [B, T, D']."""
    embedded = captioner.decoder.embed(tokens.expand(len(features), -1))
    _, memory = captioner.decoder.run(captioner.open(features), embedded)
    n_tokens = len(tokens)
    return [
        torch.cat([part[:, :, -n_tokens:].mean(0).transpose(0, 1).flatten(1) for part in pair], dim=1).float()
        for pair in memory.own
    ]


def fit_mapper(
    captioner: FrozenCaptioner,
    data: CaptionData | str,
    out: Path | str,
    recipe: Recipe | None = None,
    seed: int = 1,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Learn the mapper between a frozen image encoder and a frozen language model (Mokady et al. 2021, "ClipCap").

    It is learned once, from captions of no focus where the data has some; prompts are then learned on top of it.

    Args:
        captioner: of `load_captioner("ENCODER + hf:LM")`; its mapper is trained in place.
        data: captions, or the name of an embedded set or a file.
        out: a new folder, which `load_captioner` takes afterwards; the log and checkpoints go to `OUT-training`.
        recipe: `MAPPER_RECIPE` by default.
        seed: of the order of the pictures.
        callbacks: called as training goes.
        resume: go on from the newest checkpoint in `OUT-training`.
    Returns:
        One dict per epoch.
    Raises:
        UserError: this captioner has no mapper to train, or the folder is there already.
        RunFailed: the loss stopped being finite, or weights of encoder or language model changed.
    """
    data = load_captions(data) if isinstance(data, str) else data
    recipe = MAPPER_RECIPE if recipe is None else recipe
    mapper = getattr(captioner.decoder, "mapper", None)
    if mapper is None or "+" not in captioner.name:
        raise UserError(
            f"{captioner.name} has no mapper to train: method mapper is for an image encoder and a language model. "
            "Use `backbone='ENCODER + hf:LM'`, or `method='prompt-tuning'`."
        )
    folder = Path(out)
    if folder.exists():
        raise UserError(f"{folder} is there already, and a mapper is never written over. Give another `out`.")
    is_neutral = any(item.of(NEUTRAL) for item in data.train)
    items = data.with_captions("train", NEUTRAL if is_neutral else None)
    training = folder.with_name(f"{folder.name}-training")
    with run_lock(training):
        features = CaptionFeatures(captioner).of([item.image for item in items])
        texts = [item.of(NEUTRAL if is_neutral else None) for item in items]
        captions = encode_captions(captioner, texts, captioner.decoder.budget)
        problem = CaptionProblem(captioner, mapper.requires_grad_(True), dict, features, captions, False)
        config = {"data": data.fingerprint, "recipe": asdict(recipe), "seed": seed, "backbone": captioner.fingerprint}
        n_epochs = epochs_of(recipe, problem.n_items)
        history = train(problem, recipe, seed, n_epochs, training, run_id_of(config), callbacks, resume)
        mapper.requires_grad_(False)
        refuse_changed(captioner)
        save_mapped(captioner, folder)
    return history


def epochs_of(recipe: Recipe, n_pictures: int) -> int:
    """The recipe's epochs, or as many as `N_STEPS` take, but 8 at least."""
    n_steps = len(batches(list(range(n_pictures)), recipe.batch_size))
    return recipe.epochs or max(8, -(-N_STEPS // n_steps))


def notices_of(problem: CaptionProblem, prompt: Prompt, features: Tensor) -> list[str]:
    """What a careful reader should know of a trained prompt.

    Args:
        problem: what it was trained on.
        prompt: the prompt.
        features: [B, T, D'] of some pictures to look at.
    """
    captioner, captions = problem.captioner, problem.captions
    notices = []
    if captions.n_cut:
        notices.append(
            f"{captions.n_cut} of {captions.n_captions} captions were longer than the decoder has room for and were "
            "cut: shorten them, or use fewer vectors."
        )
    bare, learned = problem.mean_loss({}), problem.mean_loss(vectors_of(prompt.inserts()))
    if learned > 0.98 * bare:
        kind = "soft" if any(site.tower == "lm" for site in prompt.sites) else "kv"
        other = (
            "Try prefix-tuning." if kind == "soft" and captioner.decoder.kv_shape else "Try more vectors or a lower lr."
        )
        notices.append(
            f"{captioner.name} can hardly be steered by this prompt: the loss is {learned:.3f} a token with it and "
            f"{bare:.3f} without. {other}"
        )
    said = {caption.text for caption in Captioner(captioner, Steering(((prompt, 1.0),))).caption_features(features)}
    texts = {ids for some in captions.token_ids[: len(features)] for ids in some}
    if len(said) < COLLAPSED * min(len(texts), len(features)):
        notices.append(
            f"The captioner says {len(said)} different captions of {len(features)} pictures, whose own captions are "
            f"{len(texts)}: it has collapsed. Train for fewer epochs, with a lower lr or with fewer vectors."
        )
    return notices

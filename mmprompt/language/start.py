"""Where learning starts: words, class labels, sampled vocabulary, random numbers, or a prompt that was learned before.

All of them have the size of the model's own token embeddings: vectors of another size are a bad start (Lester et al.
2021, section 3.2, and Vu et al. 2022, "SPoT", for prompts of other tasks).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmprompt.errors import UserError, bad_value
from mmprompt.settings import check_settings

if TYPE_CHECKING:
    from torch import Tensor

    from mmprompt.language.data import TextRow
    from mmprompt.language.templates.template import BoundTemplate
    from mmprompt.models.decoder.model import FrozenLanguageModel


Objective = Literal["auto", "answer", "choices"]
StartKind = Literal["auto", "words", "labels", "texts", "vocabulary", "random", "prompt"]
MOST_USED = 5000
"""Tokens that vocabulary is drawn from: the first ones after single bytes are the commonest in BPE vocabularies."""


@dataclass(frozen=True)
class PromptInit:
    """Where the vectors start."""

    start: StartKind = "auto"
    """words (those given), labels (the words of the classes, then of the texts), texts (the commonest tokens of the
    texts), vocabulary (drawn among the commonest 5,000 tokens), random (normal, of the embeddings' size), prompt (the
    vectors of a saved one), or auto: words or a prompt if they are given, else labels, else texts."""
    words: str = ""
    """Words whose token embeddings the vectors start from, repeated if there are fewer."""
    from_prompt: Path | None = None
    """A run folder whose vectors are taken over, for the same model."""

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.start == "words" or self.words) and not self.words.strip():
            advice = 'Use `words="Classify the text"`.'
            raise bad_value("words", repr(self.words), "a start from words needs some", advice)
        if self.start == "prompt" and self.from_prompt is None:
            raise bad_value("from_prompt", None, "a start from a prompt needs one", "Use `from_prompt=RUN`.")
        if self.words and self.from_prompt is not None:
            raise bad_value("words", repr(self.words), f"the start is from {self.from_prompt} too", "Leave one out.")
        if self.words and self.start not in ("auto", "words"):
            raise bad_value("words", repr(self.words), f"the start is {self.start}", "Use `start='words'`.")
        if self.from_prompt is not None and self.start not in ("auto", "prompt"):
            raise bad_value("from_prompt", self.from_prompt, f"the start is {self.start}", "Use `start='prompt'`.")


def start_vectors(
    model: FrozenLanguageModel,
    init: PromptInit,
    bound: BoundTemplate,
    n_more: int,
    labels: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    seed: int,
) -> Tensor:
    """Return the embeddings [P or `n_more`, D] that learning starts from, in the model's own size.

    The words of the template's own slots go before what `init` asks for; `n_more` is for templates without soft slots.
    """
    import torch

    from mmprompt.training.seeds import generator

    n_vectors = bound.n_soft or n_more
    if n_vectors == 0:
        return torch.zeros(0, model.width, device=model.device)
    auto: StartKind = "prompt" if init.from_prompt else "words" if init.words else "labels" if labels else "texts"
    kind = auto if init.start == "auto" else init.start
    if kind == "random":
        drawn = torch.randn(n_vectors, model.width, generator=generator(seed, "start"))
        values = (drawn * model.embedding_rms).to(model.device)
    else:
        if kind == "prompt":
            values = prompt_vectors(init.from_prompt, model)
        else:
            tokens = start_tokens(model, kind, init.words, n_vectors, labels, texts, seed)
            values = model.embed(torch.tensor(tokens[:n_vectors], device=model.device)).float()
        values = values[torch.arange(n_vectors, device=values.device) % len(values)].clone()  # repeated, or left out
    for place, token in enumerate(bound.soft_starts):
        if token is not None:
            values[place] = model.embed(torch.tensor(token, device=model.device)).float()
    return values


def start_tokens(
    model: FrozenLanguageModel,
    kind: StartKind,
    words: str,
    n_vectors: int,
    labels: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    seed: int,
) -> Sequence[int]:
    """List the tokens that vectors start from, best first; perhaps fewer or more than `n_vectors`."""
    import torch

    from mmprompt.training.seeds import generator

    if kind == "words":
        tokens: list[int] = model.tokenizer(words, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise bad_value("words", repr(words), "they must have at least one token", "Use other words.")
        return tokens
    if kind == "vocabulary":
        specials = set(model.tokenizer.all_special_ids)
        known = [token for token in range(min(MOST_USED, model.vocabulary_size)) if token not in specials]
        drawn = torch.randperm(len(known), generator=generator(seed, "start"))[:n_vectors]
        return [known[place] for place in drawn.tolist()]
    if kind == "labels" and not labels:
        raise bad_value("start", kind, "the data has no classes", "Use `start='texts'`.")
    own = [token for label in labels for token in label] if kind == "labels" else []
    return list(dict.fromkeys([*own, *commonest(texts)]))


def field_tokens(model: FrozenLanguageModel, rows: Iterable[TextRow]) -> list[list[int]]:
    """Tokenise every field of some rows."""
    texts = (text for row in rows for text in row.fields.values())
    return [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def commonest(texts: Sequence[Sequence[int]]) -> list[int]:
    """List the tokens of some texts, commonest first; ties go to the smaller id."""
    counts = Counter(token for text in texts for token in text)
    return sorted(counts, key=lambda token: (-counts[token], token))


def prompt_vectors(folder: Path | None, model: FrozenLanguageModel) -> Tensor:
    """Read the vectors among the tokens of a saved prompt of the same model."""
    from mmprompt.language.predictor import load_prompted
    from mmprompt.models.decoder.vectors import LM_INPUT

    assert folder is not None, "`PromptInit` has seen to it"
    vectors = load_prompted(folder, model).vectors()
    if LM_INPUT not in vectors:
        raise UserError(
            f"{folder} holds no vectors among the tokens, but such are started from. "
            "Use a prompt of prompt-tuning or p-tuning."
        )
    return vectors[LM_INPUT].values.detach().float()

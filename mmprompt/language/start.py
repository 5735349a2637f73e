"""Where what is learned of a language model starts: words, labels, the commonest tokens of texts, a saved prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mmprompt.core.learned import rms
from mmprompt.core.words import commonest
from mmprompt.errors import UserError, bad_value
from mmprompt.language.data import TextRow
from mmprompt.language.methods import PromptInit, StartKind
from mmprompt.language.predictor import load_prompted
from mmprompt.language.templates.bound import BoundTemplate
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import LM_INPUT
from mmprompt.training.seeds import generator

MOST_USED = 5000
"""Tokens that vocabulary is drawn from: the first ones after single bytes are the commonest in BPE vocabularies."""


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
            assert init.from_prompt is not None, "`PromptInit` has seen to it"
            saved = load_prompted(init.from_prompt, model).vectors()
            if LM_INPUT not in saved:
                raise UserError(
                    f"{init.from_prompt} holds no vectors among the tokens, but such are started from. "
                    "Use a prompt of prompt-tuning or p-tuning."
                )
            values = saved[LM_INPUT].values.detach().float()
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
    return [model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]


def label_rows(
    model: FrozenLanguageModel, bound: BoundTemplate, verbalizer: Verbalizer | None
) -> tuple[Tensor, Tensor]:
    """Return for each label the mean of the output rows of its first word's tokens, and their size without biases."""
    if verbalizer is None:
        raise UserError("a soft verbalizer tells labels apart, but these rows have answers. Use another method.")
    first_words = bound.answers(words[0] for words in verbalizer.words.values())
    tokens = ([token for token in ids if token not in bound.masks] for ids in first_words)
    rows = torch.stack([model.output_rows(ids).mean(0) for ids in tokens])
    return rows, rms(rows[:, : model.lm.get_output_embeddings().weight.shape[1]].float())


def with_unit(pair: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Put keys and values [1, H, M, D/H] of a block side by side, [M, 2 H D/H], and give the size of their numbers."""
    parts = [part[0].transpose(0, 1).flatten(1).float() for part in pair]
    return torch.cat(parts, dim=1), torch.cat([rms(part).expand(part.shape[1]) for part in parts])

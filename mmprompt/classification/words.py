"""The words whose embeddings lie nearest to learned context vectors.

A reading aid and no more: learned vectors need not lie near any word (Zhou et al. 2022,
"Interpreting the Learned Prompts", find few that make sense). It knows classifiers and token tables, and
nothing of methods or runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mmprompt.classification.predictor import Classifier
from mmprompt.classification.template import ClassTemplate
from mmprompt.core.learned import Learned, Prompt
from mmprompt.core.method import cross_entropy
from mmprompt.core.words import some_words
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.sites import Site, vectors_of
from mmprompt.settings import Count, checked

CHUNK = 4096
MAX_CLASSES = 5


@checked
def nearest_words(backbone: DualEncoder, vectors: Tensor, k: Count = 5) -> list[list[tuple[str, float]]]:
    """Return the k words nearest to each vector, by Euclidean distance (Zhou et al. 2022).

    Args:
        backbone: the frozen model whose token table is searched.
        vectors: [M, D] context vectors of the site `text.input`.
        k: words per vector, at least 1; fewer come back where the table has fewer words.
    Returns:
        M lists of (word, distance), nearest first; tokens that show as nothing are left out.
    Raises:
        UserError: `vectors` is not [M, D] with the width of the text tower, or k < 1.
    """
    if vectors.dim() != 2 or vectors.shape[1] != backbone.text_width:
        shape = list(vectors.shape)
        raise UserError(
            f"the vectors have the shape {shape}, but [M, {backbone.text_width}] was expected, the width of the text "
            f"tower of {backbone.name}. Give the vectors of the site text.input."
        )
    query = vectors.detach().to(backbone.device, torch.float32)
    distances = _over_tokens(
        backbone, lambda table: torch.cdist(query, table, compute_mode="donot_use_mm_for_euclid_dist")
    )
    return [_first_words(backbone, row, k) for row in distances]


def words_by_gradient(
    classifier: Classifier, words: Sequence[str], place: int, features: Tensor, labels: Tensor, k: int
) -> list[str]:
    """Return the words that would lower the loss most in a place, to first order (Ebrahimi et al. 2018, "HotFlip").

    The classifier's context [M, D] is shared by all classes. There is one word for each of the M places, `""` for an
    empty one, which is looked at with its learned vector; the loss is that of image features [N, E] with labels [N].
    """
    backbone = classifier.backbone
    learned = vectors_of(classifier.prompt.inserts("text"))[Site("text")].values.detach()
    filled = [at for at, word in enumerate(words) if word or at == place]
    ids = {at: backbone.tokenize(words[at]) for at in filled if words[at]}
    values = [
        backbone.token_vectors(torch.tensor(ids[at])).mean(0).to(learned) if ids.get(at) else learned[at]
        for at in filled
    ]
    source = Learned(Site("text"), torch.stack(values))
    text = spelled(classifier.prompt.template.text, ["{soft*1}" if at in filled else "" for at in range(len(words))])
    tried = Classifier(backbone, Prompt(ClassTemplate(text), source), classifier.class_names)
    cross_entropy(tried.outputs(features, labels)).backward()
    gradient = next(source.parameters()).grad
    assert gradient is not None, "the loss depends on every vector of the context"
    slope = gradient[filled.index(place)].float()
    falls = _over_tokens(backbone, lambda table: table @ slope)
    return [word for word, _ in _first_words(backbone, falls, k, is_whole=True)]


def spelled(template: str, words: Sequence[str]) -> str:
    """Write words in the places of a template's vectors; empty ones leave no blank."""
    left = iter(words)
    text = re.sub(r"\{soft\*(\d+)\}", lambda match: " ".join(filter(None, islice(left, int(match[1])))), template)
    return re.sub(r" +", " ", text).strip()


def word_gaps(backbone: DualEncoder) -> list[float]:
    """Return how far real words, evenly taken from all tokens, lie from their nearest other word."""
    ids = some_words(backbone.vocabulary_size, lambda token: backbone.decode([token]))
    vectors = backbone.token_vectors(torch.tensor(ids))
    return [row[-1][1] for row in nearest_words(backbone, vectors, 2)]


def context_words(classifier: Classifier, k: int = 5) -> list[dict[str, Any]]:
    """Return a mapping per context vector of a classifier: `vector` its name, `words` a list of (word, distance).

    Of a class-specific context the first five classes are looked at.
    """
    if classifier.prompt.needs_image:
        return []
    vectors = vectors_of(classifier.prompt.inserts("text")).get(Site("text"))
    if vectors is None:
        return []
    contexts = {"": vectors.values}
    if vectors.scope == "class":
        contexts = {f"{name}, ": vectors.values[i] for i, name in enumerate(classifier.class_names[:MAX_CLASSES])}
    return [
        {"vector": f"{prefix}vector {m + 1}", "words": words}
        for prefix, values in contexts.items()
        for m, words in enumerate(nearest_words(classifier.backbone, values, k))
    ]


@torch.no_grad()
def _over_tokens(backbone: DualEncoder, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute a function of the vectors of all tokens, [V', D] at a time, and put its values [..., V] together."""
    pieces = torch.arange(backbone.vocabulary_size, device=backbone.device).split(CHUNK)
    return torch.cat([function(backbone.token_vectors(ids).float()) for ids in pieces], dim=-1).cpu()


def _first_words(backbone: DualEncoder, values: Tensor, k: int, is_whole: bool = False) -> list[tuple[str, float]]:
    """Return the words of the tokens with the least values [V]; `is_whole` for those that are read as that token."""
    words: dict[str, float] = {}
    for token_id in values.argsort(stable=True).tolist():
        word = backbone.decode([token_id]).strip()
        is_shown = word and word.isprintable() and "\N{REPLACEMENT CHARACTER}" not in word and word not in words
        if is_shown and (not is_whole or _is_read_as(backbone, word, token_id)):
            words[word] = float(values[token_id])
        if len(words) == k:
            break
    return list(words.items())


def _is_read_as(backbone: DualEncoder, word: str, token_id: int) -> bool:
    try:
        return list(backbone.tokenize(word)) == [token_id]
    except UserError:  # a token of the tokenizer's own
        return False

"""The words whose embeddings lie nearest to learned context vectors.

A reading aid and no more: learned vectors need not lie near any word (Zhou et al. 2022,
"Interpreting the Learned Prompts", find few that make sense). It knows classifiers and token tables, and
nothing of methods or runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmprompt.classification.predictor import Classifier
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
    pieces = []
    for ids in torch.arange(backbone.vocabulary_size, device=backbone.device).split(CHUNK):
        table = backbone.token_vectors(ids).float()  # [V', D]
        pieces.append(torch.cdist(query, table, compute_mode="donot_use_mm_for_euclid_dist"))
    distances = torch.cat(pieces, dim=1).cpu()  # [M, V]
    order = distances.argsort(dim=1, stable=True)  # [M, V]
    return [_first_words(backbone, row, ids.tolist(), k) for row, ids in zip(distances, order, strict=True)]


def word_gaps(backbone: DualEncoder, n_words: int = 200) -> list[float]:
    """Return how far real words, evenly taken from all tokens, lie from their nearest other word."""
    ids = some_words(backbone.vocabulary_size, lambda token: backbone.decode([token]), n_words)
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


def _first_words(backbone: DualEncoder, distances: Tensor, order: list[int], k: int) -> list[tuple[str, float]]:
    words: dict[str, float] = {}
    for token_id in order:
        word = backbone.decode([token_id]).strip()
        if word and word.isprintable() and "\N{REPLACEMENT CHARACTER}" not in word and word not in words:
            words[word] = float(distances[token_id])
        if len(words) == k:
            break
    return list(words.items())

from __future__ import annotations

import pytest
import torch

from mmprompt.classification import words as module
from mmprompt.classification.methods import VPT, CoOp
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.template import ClassTemplate
from mmprompt.classification.words import context_words, nearest_words, words_by_gradient
from mmprompt.core.learned import Learned, Prompt
from mmprompt.core.method import cross_entropy
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.sites import Site

WORDS = ("red", "cat", "photo")


def embeddings(backbone: DualEncoder, words: tuple[str, ...] = WORDS) -> torch.Tensor:
    ids = [backbone.tokenize(word)[0] for word in words]
    return backbone.token_vectors(torch.tensor(ids))


def test_the_embedding_of_a_word_is_nearest_to_that_word(tiny_clip_backbone: DualEncoder) -> None:
    found = nearest_words(tiny_clip_backbone, embeddings(tiny_clip_backbone), k=1)
    assert [row[0][0] for row in found] == list(WORDS)
    assert all(row[0][1] == pytest.approx(0, abs=1e-6) for row in found)


def test_the_distance_is_euclidean(tiny_clip_backbone: DualEncoder) -> None:
    shift = torch.zeros(tiny_clip_backbone.text_width)
    shift[:2] = torch.tensor([0.003, 0.004])
    word, distance = nearest_words(tiny_clip_backbone, embeddings(tiny_clip_backbone)[:1] + shift, k=1)[0][0]
    assert word == "red"
    assert distance == pytest.approx(0.005, rel=1e-4)


def test_distances_rise_and_words_differ(tiny_clip_backbone: DualEncoder) -> None:
    for row in nearest_words(tiny_clip_backbone, embeddings(tiny_clip_backbone), k=8):
        assert len(row) == 8
        assert [distance for _, distance in row] == sorted(distance for _, distance in row)
        assert len({word for word, _ in row}) == 8
        assert all(word.strip() == word and word for word, _ in row)


def test_a_word_that_two_tokens_spell_keeps_the_nearer_distance(tiny_clip_backbone: DualEncoder) -> None:
    row = dict(nearest_words(tiny_clip_backbone, embeddings(tiny_clip_backbone, ("a",)), k=1000)[0])
    assert row["a"] == pytest.approx(0, abs=1e-6)


def test_reading_the_table_in_pieces_changes_nothing(
    tiny_clip_backbone: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = nearest_words(tiny_clip_backbone, embeddings(tiny_clip_backbone))
    monkeypatch.setattr(module, "CHUNK", 7)
    assert nearest_words(tiny_clip_backbone, embeddings(tiny_clip_backbone)) == whole


def test_a_wrong_width_is_refused(tiny_clip_backbone: DualEncoder) -> None:
    with pytest.raises(UserError, match=r"have the shape \[2, 5\], but \[M, 32\] was expected"):
        nearest_words(tiny_clip_backbone, torch.zeros(2, 5))


def test_less_than_one_word_is_refused(tiny_clip_backbone: DualEncoder) -> None:
    with pytest.raises(UserError, match="k is 0"):
        nearest_words(tiny_clip_backbone, embeddings(tiny_clip_backbone), k=0)


def test_each_context_vector_gets_a_row(tiny_clip_backbone: DualEncoder) -> None:
    rows = context_words(CoOp(ctx_init="a photo of").build(tiny_clip_backbone, ["cat", "dog"]), k=1)
    assert [row["vector"] for row in rows] == ["vector 1", "vector 2", "vector 3"]
    assert [row["words"][0][0] for row in rows] == ["a", "photo", "of"]


def test_class_specific_rows_name_their_class_and_stop_at_five(tiny_clip_backbone: DualEncoder) -> None:
    names = ["cat", "dog", "bird", "fish", "car", "tree"]
    rows = context_words(CoOp(n_ctx=2, class_specific=True).build(tiny_clip_backbone, names))
    assert len(rows) == 10
    assert rows[2]["vector"] == "dog, vector 1"


def test_visual_prompts_have_no_words(tiny_clip_backbone: DualEncoder) -> None:
    assert context_words(VPT(n_visual=2).build(tiny_clip_backbone, ["cat", "dog"])) == []


@pytest.mark.parametrize(("words", "place"), [(("red", "a"), 1), (("", "cat"), 0)])
def test_suggested_words_are_those_along_which_the_loss_falls_fastest(
    tiny_clip_backbone: DualEncoder, words: tuple[str, ...], place: int
) -> None:
    backbone, rng, step = tiny_clip_backbone, torch.Generator().manual_seed(0), 0.05
    learned = torch.randn(2, backbone.text_width, generator=rng)

    def made(values: torch.Tensor) -> Classifier:
        return Classifier(backbone, Prompt(ClassTemplate.of_context(2), Learned(Site("text"), values)), ["cat", "dog"])

    features = torch.nn.functional.normalize(torch.randn(6, backbone.embed_dim, generator=rng), dim=1)
    labels = torch.tensor([0, 1, 1, 0, 0, 1])
    here = [backbone.token_vectors(torch.tensor(backbone.tokenize(word)[:1]))[0] if word else learned[n]
            for n, word in enumerate(words)]  # fmt: skip

    @torch.no_grad()
    def loss(move: torch.Tensor) -> float:
        values = torch.stack([vector + move * (n == place) for n, vector in enumerate(here)])
        return float(cross_entropy(made(values).outputs(features, labels)))

    def slope(word: str) -> float:
        ahead = backbone.token_vectors(torch.tensor(backbone.tokenize(word)[:1]))[0] * step
        return (loss(ahead) - loss(-ahead)) / (2 * step)

    found = words_by_gradient(made(learned), words, place, features, labels, 4)
    slopes = [slope(word) for word in found]
    assert len(found) == 4
    assert slopes[0] < 0
    assert all(slope(word) >= slopes[-1] - 1e-3 for word in WORDS)
    assert slopes == pytest.approx(sorted(slopes), abs=1e-3)

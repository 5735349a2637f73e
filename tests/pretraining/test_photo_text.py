"""The training of the text tower of `photo-small`: WordNet as written, targets against a slow reference, resuming."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openart.state import State, load_state
from openart.tokenizer import Encoder, read_encoder, write_tokenizer
from photo_text.sources import Nouns, WordVectors, read_nouns
from photo_text.teacher import Teacher, Weights, class_targets
from photo_text.texts import TEMPLATES, Entry, gather, learn_vocabulary, spoken
from photo_text.training import (
    START_NORM,
    Lessons,
    Schedule,
    fresh_state,
    loss_of,
    start_from_word_vectors,
    train,
)

DATA = """  1 A licence stands here, indented.
00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | that which is
00000002 03 n 01 physical_entity 0 001 @ 00000001 n 0000 | an entity with physical existence
00000003 05 n 02 animal 0 beast 0 001 @ 00000002 n 0000 | a living thing that moves; "the animal ran"
00000004 05 n 02 crane 0 wading_crane 1 001 @ 00000003 n 0000 | a large bird with a long neck
00000005 06 n 01 crane 0 001 @ 00000002 n 0000 | a machine that lifts heavy loads
00000006 05 n 01 stork 0 002 @ 00000003 n 0000 %p 00000001 n 0000 | a white bird with a long bill
00000007 04 n 01 lifting 0 001 @ 00000001 n 0000 | the act of raising something
"""
INDEX = """  1 A licence stands here, indented.
animal n 1 2 @ ~ 1 1 00000003
beast n 1 2 @ ~ 1 0 00000003
crane n 2 1 @ 2 1 00000004 00000005
wading_crane n 1 1 @ 1 0 00000004
stork n 1 1 @ 1 1 00000006
lifting n 1 1 @ 1 1 00000007
entity n 1 1 ~ 1 1 00000001
"""
WORDS = ("the", "bird", "a", "crane", "stork", "animal", "long", "machine", "white", "neck", "loads", "wading")
BIRD, MACHINE, STORK = 4, 5, 6


@pytest.fixture
def nouns(tmp_path: Path) -> Nouns:
    (tmp_path / "data.noun").write_text(DATA)
    (tmp_path / "index.noun").write_text(INDEX)
    return read_nouns(tmp_path)


@pytest.fixture
def vectors() -> WordVectors:
    return WordVectors(list(WORDS), torch.randn(len(WORDS), 8, generator=torch.Generator().manual_seed(0)))


def test_a_synset_has_its_words_its_definition_and_what_is_above(nouns: Nouns) -> None:
    crane = nouns.synsets[BIRD]
    assert crane.lemmas == ("crane", "wading crane")
    assert crane.definition == "a large bird with a long neck"
    assert crane.hypernyms == (3,)
    assert nouns.synsets[3].definition == "a living thing that moves"
    assert nouns.synsets[STORK].hypernyms == (3,)
    assert nouns.ancestors(BIRD) == {1, 2, 3, 4}
    assert nouns.senses["crane"] == (BIRD, MACHINE)


def test_information_falls_from_leaf_to_root(nouns: Nouns) -> None:
    assert nouns.information[1] == 0
    assert nouns.information[BIRD] == 1
    assert nouns.information[3] == pytest.approx(1 - math.log(3) / math.log(7))


def test_the_classifier_is_projected_without_turning_what_it_separates() -> None:
    classifier = torch.randn(40, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    projection, targets = class_targets(classifier, 16)
    assert torch.allclose(projection @ projection.T, torch.eye(16, dtype=torch.float64))
    whole = F.normalize(classifier - classifier.mean(0), dim=-1)
    assert torch.allclose(targets @ targets.T, whole @ whole.T)


def slow_target(nouns: Nouns, vectors: WordVectors, leaves: list[int], targets: Tensor, name: str, of: int) -> Tensor:
    """The target with weights 2, 3 and 5, in plain loops."""

    def unit(words: list[str], weights: list[float]) -> Tensor:
        total = sum(w * vectors.vectors[vectors.rows[x]] for x, w in zip(words, weights, strict=True) if x in WORDS)
        return total / total.norm() if isinstance(total, Tensor) and total.norm() else torch.zeros(8)

    def gloss(offset: int) -> Tensor:
        words = nouns.synsets[offset].definition.split()
        return unit(words, [min(1.0, WORDS.index(w) / 2000) if w in WORDS else 0 for w in words])

    def called(text: str) -> Tensor:
        return unit(text.split(), [1.0] * len(text.split()))

    scores = []
    for leaf in leaves:
        common = max(nouns.information[a] for a in nouns.ancestors(of) & nouns.ancestors(leaf))
        lin = 2 * common / (nouns.information[of] + nouns.information[leaf])
        lemmas = [called(lemma) for lemma in nouns.synsets[leaf].lemmas]
        mean = sum(lemmas[1:], lemmas[0])
        alike = (mean / mean.norm() if mean.norm() else mean) @ called(name)
        scores.append(2 * lin + 3 * alike.item() + 5 * (gloss(leaf) @ gloss(of)).item())
    total = sum(math.exp(s) for s in scores)
    mixed = sum(math.exp(s) / total * t for s, t in zip(scores, targets, strict=True))
    return mixed / mixed.norm()


@pytest.mark.parametrize(("name", "offset"), [("stork", STORK), ("crane", MACHINE), ("animal", 3)])
def test_a_target_equals_the_slow_reference(nouns: Nouns, vectors: WordVectors, name: str, offset: int) -> None:
    leaves = [BIRD, MACHINE, STORK]
    targets = F.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(2)), dim=-1)
    teacher = Teacher(nouns, vectors, leaves, targets, Weights(taxonomy=2, name=3, definition=5))
    expected = slow_target(nouns, vectors, leaves, targets, name, offset)
    assert torch.allclose(teacher.target(name, offset), expected, atol=1e-5)


def some_groups(nouns: Nouns, vectors: WordVectors, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Entry]]:
    monkeypatch.setattr("photo_text.texts.imagenet_names", lambda: ["White Stork"])
    return gather(nouns, vectors, [STORK], n_common=len(WORDS))


def test_only_what_is_physical_is_gathered(nouns: Nouns, vectors: WordVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = some_groups(nouns, vectors, monkeypatch)
    assert groups["classes"] == [Entry("white stork", STORK, True, 0)]
    assert [(e.name, e.offset, e.is_first) for e in groups["common"]] == [
        ("animal", 3, True),
        ("crane", BIRD, True),
        ("crane", MACHINE, False),
        ("wading crane", BIRD, True),
        ("stork", STORK, True),
    ]
    assert [e.name for e in groups["rare"]] == ["beast"]


def test_a_name_alone_is_said_of_its_first_meaning_only(nouns: Nouns) -> None:
    rng = random.Random(0)
    first = {spoken(Entry("crane", BIRD), nouns, rng) for _ in range(300)}
    other = {spoken(Entry("crane", MACHINE, is_first=False), nouns, rng) for _ in range(300)}
    alone = {"crane", *(template.format("crane") for template in TEMPLATES)}
    assert "crane" in first
    assert not other & alone
    assert "a machine that lifts heavy loads" in other
    assert "physical entity: crane" in other
    assert "crane, a kind of animal" in first


def test_the_vocabulary_has_the_size_that_was_asked_for_and_spells_everything(
    nouns: Nouns, vectors: WordVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = learn_vocabulary(some_groups(nouns, vectors, monkeypatch), nouns, 600)
    encoder = Encoder(merges, 48)
    assert len(encoder.ids) == 600
    assert len(encoder.encode("the a")) == 4  # start, two whole words, end
    assert len(encoder.encode("xylophone")) > 3


@pytest.fixture
def lessons(nouns: Nouns, vectors: WordVectors, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lessons:
    groups = some_groups(nouns, vectors, monkeypatch)
    write_tokenizer(learn_vocabulary(groups, nouns, 900), tmp_path / "tokenizer", 48)
    monkeypatch.setattr("photo_text.training.SHARES", {"classes": 2, "common": 5, "rare": 1})
    drawn = torch.Generator().manual_seed(3)
    targets = F.normalize(torch.randn(sum(map(len, groups.values())), 256, generator=drawn), dim=-1)
    classes = F.normalize(torch.randn(5, 256, generator=drawn), dim=-1)
    return Lessons(groups, targets, classes, nouns, read_encoder(tmp_path / "tokenizer", 48))


def test_a_batch_depends_on_seed_and_step_alone(lessons: Lessons) -> None:
    ids, targets = lessons.batch(1, 7)
    again, same = lessons.batch(1, 7)
    assert ids == again
    assert torch.equal(targets, same)
    assert lessons.batch(1, 8)[0] != ids
    assert lessons.batch(2, 7)[0] != ids


def test_words_start_as_far_apart_as_their_vectors(lessons: Lessons, vectors: WordVectors) -> None:
    state = fresh_state(lessons.encoder, seed=0)
    start_from_word_vectors(state.model, lessons.encoder, vectors)
    rows = [lessons.encoder.ids[f"{word}</w>"] for word in ("crane", "stork")]
    table = state.model.token_embedding.weight[rows]
    known = vectors.vectors[[vectors.rows[word] for word in ("crane", "stork")]]
    assert torch.allclose(table @ table.T, START_NORM**2 * known @ known.T, atol=1e-5)


def test_the_loss_is_the_distance_plus_the_divergence_over_classes() -> None:
    found, wanted = F.normalize(torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]]), dim=-1).unsqueeze(1)
    classes = torch.eye(3)
    p, q = (20 * wanted[0]).softmax(-1), (20 * found[0]).softmax(-1)
    expected = 1 - found[0] @ wanted[0] + (p * (p / q).log()).sum()
    assert loss_of(found, wanted, classes).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss_of(wanted, wanted, classes).item() == pytest.approx(0, abs=1e-6)


def trained(lessons: Lessons, folder: Path) -> State:
    folder.mkdir(exist_ok=True)
    state = fresh_state(lessons.encoder, seed=0)
    if (folder / "state.safetensors").is_file():
        load_state(state, folder / "state.safetensors")
    train(state, lessons, Schedule(steps=14, learning_rate=1e-3, warmup=2), 4, folder, every=1)
    return state


def test_training_that_was_cut_off_ends_in_the_same_bytes(
    lessons: Lessons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(lessons, tmp_path / "whole")
    draw = Lessons.batch

    def power_cut(self: Lessons, seed: int, step: int) -> tuple[list[list[int]], Tensor]:
        if step == 12:
            raise KeyboardInterrupt
        return draw(self, seed, step)

    monkeypatch.setattr(Lessons, "batch", power_cut)
    with pytest.raises(KeyboardInterrupt):
        trained(lessons, tmp_path / "cut")
    monkeypatch.setattr(Lessons, "batch", draw)
    resumed = trained(lessons, tmp_path / "cut")
    assert resumed.step == whole.step == 14
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name])


def test_training_lowers_the_loss(lessons: Lessons, tmp_path: Path) -> None:
    state = fresh_state(lessons.encoder, seed=0)
    train(state, lessons, Schedule(steps=30, learning_rate=2e-3, warmup=2), 4, tmp_path, every=5)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
    assert losses[-1] < 0.7 * losses[0]

"""How the captioner of `photo` is trained: plain captions, likenesses against slow references, features, resuming."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import train_photo_captioner as script
from openart.tokenizer import learn_merges, write_tokenizer
from photo_captions import likeness
from photo_captions.likeness import taxonomy, word_likeness
from photo_captions.scenes import by_manner, example_of, plain, read_scenes
from photo_captions.simulate import Simulator, Spread
from photo_text.sources import Nouns, Synset
from photo_text.teacher import class_targets

CAPTIONS = (
    ("A dog runs on the beach.", "Two  brown dogs, playing\non a sandy beach!", "dog"),
    ("A man's bike near a red wall", "a small red bicycle near the wall"),
    ("The cat sleeps on a bed", "a white cat sleeping"),
)
NOUNS = ("dog", "beach", "cat")


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    rows = [{"image_id": 9 - i, "caption": text} for i, some in enumerate(CAPTIONS) for text in some]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": rows}))
    return path


@pytest.fixture
def work(tmp_path: Path, captions: Path) -> Path:
    """A work folder as `prepare` leaves it, with four classes in a joint space of six directions."""
    scenes, generator = read_scenes(captions), torch.Generator().manual_seed(0)
    texts = [caption.text for scene in scenes for caption in scene.captions]
    write_tokenizer(learn_merges(texts, 30), tmp_path / "tokenizer", script.CONTEXT_LENGTH)
    rows = [[[c.text, c.nouns, c.manner] for c in scene.captions] for scene in scenes]
    (tmp_path / "scenes.json").write_text(json.dumps(rows))
    (tmp_path / "nouns.json").write_text(json.dumps(NOUNS))
    projection, classes = class_targets(torch.randn(4, script.IMAGE_WIDTH, generator=generator), 3)
    parts = {name: torch.rand(len(NOUNS), 4, generator=generator) for name in ("words", "gains", "taxonomy")}
    parts |= {"scenes": torch.rand(len(scenes), 4, generator=generator), "projection": projection, "classes": classes}
    save_file({name: value.contiguous() for name, value in parts.items()}, tmp_path / "likeness.safetensors")
    return tmp_path


def test_a_caption_is_made_plain_and_what_it_names_is_counted(captions: Path) -> None:
    assert plain("Two  brown dogs ,, playing\non a sandy\tbeach!") == "two brown dogs, playing on a sandy beach"
    assert plain("  A man's `well-lit' (old) desk. ") == "a man's 'well-lit' old desk"
    scenes = read_scenes(captions)
    assert [len(scene.captions) for scene in scenes] == [2, 2, 2]  # "dog" is too short; by number, the last first
    dogs = scenes[-1]
    assert dogs.votes["dog"] == dogs.votes["beach"] == 2
    assert dogs.captions[1].manner == (2, 1, 3, 1)  # two nouns, one verb, "two brown sandy", eight words


def test_an_example_is_in_the_manner_of_the_caption(captions: Path) -> None:
    scenes = read_scenes(captions)
    examples, rng = by_manner(scenes), random.Random(0)
    manners = {caption.text: caption.manner for scene in scenes for caption in scene.captions}
    for scene in scenes:
        for caption in scene.captions:
            assert manners[example_of(caption, examples, rng)] == caption.manner


def test_taxonomy_is_the_similarity_of_lin_for_the_better_of_two_meanings(monkeypatch: pytest.MonkeyPatch) -> None:
    synsets = [(1, ()), (2, (1,)), (3, (1,)), (4, (2,)), (5, (2,)), (6, (3,))]
    nouns = Nouns({o: Synset(o, (str(o),), "", above) for o, above in synsets}, {"crane": (6, 5), "crate": (6,)})
    monkeypatch.setattr(likeness, "imagenet_offsets", lambda: [4, 6])
    found = taxonomy(nouns, ["crane", "crate", "nothing"])
    ic = nouns.information
    lin = lambda a, b, shared: 2 * ic[shared] / (ic[a] + ic[b])  # noqa: E731
    assert found[0].tolist() == pytest.approx([lin(5, 4, 2), 1.0])
    assert found[1].tolist() == pytest.approx([lin(6, 4, 1), 1.0])
    assert found[2].tolist() == [0, 0]


def test_a_noun_is_like_the_class_that_its_name_and_its_captions_are_near() -> None:
    axes = torch.eye(4)
    captions = F.normalize(torch.tensor([[1.0, 0.1, 0, 0], [0.9, 0, 0.1, 0], [0, 0, 1, 0.2], [0, 1, 0, 0.1]]), dim=-1)
    found = word_likeness(axes, axes, axes[[0, 2]], [[0, 1], [2]], captions)
    assert found.shape == (2, 4)
    assert found.argmax(1).tolist() == [0, 2]


def simulator(spread: Spread | None = None) -> Simulator:
    """Nouns 0..2 are the classes 0..2; scene 1 is class 3."""
    sure = torch.eye(4) * 4
    classes = F.normalize(torch.randn(4, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    zeros = torch.zeros(3, 4)
    return Simulator(sure[:3], zeros, zeros, sure[[0, 3]], classes, spread=spread)


def test_features_lie_where_the_classes_of_what_is_named_lie() -> None:
    drawn = simulator(Spread(seen=1.0, scene=0.0, stray=0.0))
    features = drawn.draw([0] * 64, [[(2, 1.0)]] * 64, torch.Generator().manual_seed(0))
    likeness_to = F.normalize(features, dim=-1) @ drawn.classes.T
    assert likeness_to.mean(0).argmax() == 2
    assert likeness_to.mean(0)[2] > 0.35
    low, high = drawn.spread.size
    assert low < features.norm(dim=-1).mean() < high  # noise is at a right angle to the classes only in the mean


def test_features_of_a_scene_that_names_nothing_known_show_the_scene_and_are_a_function_of_the_seed() -> None:
    drawn = simulator(Spread(stray=0.0))
    one, again, other = (drawn.draw([1] * 64, [[]] * 64, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert (one @ drawn.classes.T).mean(0).argmax() == 3


def test_the_mapper_that_ships_reads_the_image_towers_own_features(work: Path) -> None:
    training = script.Training(script.Settings(work))
    features = F.normalize(torch.randn(5, 1, script.IMAGE_WIDTH), dim=-1)
    projected = features[:, 0] @ training.model.projection.T
    found, expected = training.model.projector(features), training.model.prefix(projected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_training_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(work: Path) -> None:
    script.HELD_OUT, before = 1, script.HELD_OUT
    try:
        whole = script.Settings(work, run="whole", steps=3, batch_size=4)
        script.train(whole)
        script.train(script.Settings(work, run="parts", steps=2, batch_size=4))
        script.train(script.Settings(work, run="parts", steps=3, batch_size=4))  # in the warm-up, where rates are equal
    finally:
        script.HELD_OUT = before
    states = [load_file(work / "runs" / run / "state.safetensors") for run in ("whole", "parts")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

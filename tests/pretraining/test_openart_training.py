"""How `tiny` is pretrained: places, losses and truth tables against slow references, and resuming to the same bytes."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer

from openart.batches import RELATIONS, Batch, Captions, Difficulty, Group, Sizes
from openart.concepts import Concept
from openart.export import export_model
from openart.model import Heads, build, configuration, plane_waves, text_features
from openart.scenes import Scenes, join, pair_scenes, row_scenes, single_scenes
from openart.state import State, load_state, new_state
from openart.tokenizer import Encoder, read_encoder, write_tokenizer
from openart.training import Schedule, Worker, losses, several_true, train

SIZES = Sizes(singles=6, pairs=5, people=4, objects=4, tags=3)
NAMES = ("apple", "boat", "clock", "drum")


def test_plane_waves_tell_every_place_from_every_other() -> None:
    waves = plane_waves(6, 192)
    assert waves.shape == (36, 192)
    assert waves.abs().max() <= 1
    assert torch.pdist(waves).min() > 1


def test_plane_waves_are_sines_and_cosines_of_column_then_row() -> None:
    waves = plane_waves(3, 16)
    slowest, fastest = math.pi / 6, math.pi
    assert waves[5, 0] == pytest.approx(math.sin(2 * slowest))  # column 2
    assert waves[5, 7] == pytest.approx(math.cos(2 * fastest), abs=1e-6)
    assert waves[5, 8] == pytest.approx(math.sin(1 * slowest))  # row 1


def test_several_true_holds_each_true_caption_against_the_false_ones() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0], [0.0, 3.0, 1.0, 2.0]], dtype=torch.float64)
    truth = torch.tensor([[True, False, True, False], [False, False, False, True]])
    expected = 0.0
    for row, true in zip(logits.tolist(), truth.tolist(), strict=True):
        wrong = sum(math.exp(x) for x, t in zip(row, true, strict=True) if not t)
        each = [-math.log(math.exp(x) / (math.exp(x) + wrong)) for x, t in zip(row, true, strict=True) if t]
        expected += sum(each) / len(each) / 2
    assert several_true(logits, truth).item() == pytest.approx(expected, rel=1e-12)


def test_the_pair_loss_compares_the_true_caption_with_its_swap() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    truth = torch.tensor([[True, False, False], [False, False, True]])
    group = Group("left", torch.arange(2), torch.arange(3), truth, swapped=torch.tensor([1, 0]))
    batch = Batch(torch.zeros(2, 3, 4, 4), [], [group], torch.zeros(2, 3), {}, torch.zeros(2, 3))
    parts, seen = losses(batch, images, texts, torch.tensor(2.0))
    gaps = (2 * (0.0 - 1.0), 2 * (0.0 - 0.8))
    assert parts["pair"].item() == pytest.approx(sum(math.log1p(math.exp(g)) for g in gaps) / 2, rel=1e-6)
    assert seen["pair_left"] == 100.0
    assert seen["acc_left"] == 50.0


def scenes() -> Scenes:
    """Six singles, five pairs, four people with a face, as the composer joins them."""
    rng = np.random.default_rng(0)
    pairs = np.array([rng.choice(4, 2, replace=False) for _ in range(SIZES.pairs)])
    three = np.full((SIZES.people, 3), -1)
    three[:, 0], three[:, 1] = 4, 5
    return join(
        [
            single_scenes(rng, rng.integers(4, size=SIZES.singles), (0.28, 0.95)),
            pair_scenes(rng, pairs[:, 0], pairs[:, 1]),
            row_scenes(rng, three),
        ]
    )


def captions(drawn: Scenes, is_even: bool) -> tuple[Batch, list[Concept]]:
    concepts = [Concept(name, name, name, kind="thing", tags=[f"{name} tag"]) for name in NAMES]
    concepts += [Concept("face", "face", "face", emotion="happy"), Concept("man", "man", "man", action="running")]
    composer = SimpleNamespace(
        concepts=concepts,
        kinds=["thing"],
        by_emotion={"happy": [4]},
        by_action={"running": [5]},
        tags=[set(c.tags) for c in concepts],
    )
    colour = np.array([0, 1, *[-1] * (len(drawn.concept) - 2)])
    made = Captions(composer, np.random.default_rng(1), drawn, np.arange(4), SIZES, colour)  # type: ignore[arg-type]
    return made.batch(torch.zeros(len(drawn.concept), 3, 8, 8), is_even), concepts


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_is_true_of_the_piece_that_the_geometry_says(relation: str) -> None:
    drawn = scenes()
    batch, concepts = captions(drawn, True)
    group = next(g for g in batch.groups if g.name == relation)
    for row, image in enumerate(group.images.tolist()):
        value = {"left": -drawn.x, "right": drawn.x, "large": drawn.size, "small": -drawn.size}[relation][image, :2]
        piece, other = drawn.concept[image, value.argmax()], drawn.concept[image, value.argmin()]
        true = [batch.captions[i] for i, t in zip(group.captions, group.truth[row], strict=True) if t]
        assert len(true) == 1
        assert concepts[piece].name in true[0]
        assert concepts[other].name in batch.captions[group.captions[group.swapped[row]]]
        assert batch.related[relation][image] == piece


def test_a_single_piece_is_on_a_side_only_where_it_clearly_stands_there() -> None:
    drawn = scenes()
    batch, _ = captions(drawn, True)
    side = next(g for g in batch.groups if g.name == "side")
    asked = [i for i in side.images.tolist() if i < SIZES.singles // 2]
    assert asked == [i for i in range(SIZES.singles // 2) if not 0.44 <= drawn.x[i, 0] <= 0.56]
    for row, image in enumerate(asked):
        is_right = side.truth[row].nonzero().item() >= len(NAMES)
        assert is_right == (drawn.x[image, 0] > 0.56)


def test_names_are_true_of_every_picture_that_shows_them() -> None:
    drawn = scenes()
    batch, concepts = captions(drawn, True)
    label = next(g for g in batch.groups if g.name == "label")
    for row, image in enumerate(label.images.tolist()):
        shown = {concepts[i].name for i in drawn.concept[image] if i >= 0}
        for column, caption in enumerate(label.captions.tolist()):
            named = next(n for n in NAMES if n in batch.captions[caption])
            assert bool(label.truth[row, column]) == (named in shown)


def test_attributes_are_asked_in_turn_and_of_those_who_have_them() -> None:
    drawn = scenes()
    even, odd = captions(drawn, True)[0], captions(drawn, False)[0]
    assert {g.name for g in even.groups} - {g.name for g in odd.groups} == {"kind", "tag"}
    assert {g.name for g in odd.groups} - {g.name for g in even.groups} == {"emotion", "action", "background"}
    emotion = next(g for g in odd.groups if g.name == "emotion")
    assert emotion.images.tolist() == [i for i, row in enumerate(drawn.concept) if 4 in row]


def test_the_curriculum_starts_easy_and_only_gets_harder() -> None:
    schedule = Schedule(sprite_steps=10, few_steps=5, growth_steps=20)
    scenes_only = [schedule.difficulty(step) for step in range(10, 60)]
    assert scenes_only[0] == scenes_only[4] == Difficulty(48, 0.4, 0.3)
    counts = [d.n_concepts for d in scenes_only]
    assert counts == sorted(counts)
    assert counts[-1] == 320


def test_the_rate_warms_up_stays_and_ends_at_zero() -> None:
    schedule = Schedule(learning_rate=2.0, warmup=4, decay_from=10, decay_steps=10)
    assert [schedule.rate(step) for step in (0, 1, 3, 9)] == [0.5, 1.0, 2.0, 2.0]
    assert schedule.rate(19) == 0
    assert 0 < schedule.rate(15) < schedule.rate(11) < 2


def test_our_encoder_gives_the_ids_of_clip_s_tokenizer(tmp_path: Path) -> None:
    write_tokenizer([("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")], tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    ours = read_encoder(tmp_path)
    for text in ("a cat", "Dog and CAT, 12 cats!", "it's a dog"):
        assert ours.encode(text) == theirs(text)["input_ids"]


def test_text_features_in_chunks_equal_those_one_by_one() -> None:
    model = build(small_configuration(), seed=0)
    ids = [[1, 5, 2], [1, 2], [1, 7, 8, 9, 2], [1, 4, 4, 2]]
    with torch.no_grad():
        together = text_features(model, ids, chunks=2)
        apart = torch.cat([text_features(model, [row], chunks=1) for row in ids])
    assert torch.allclose(together, apart, atol=1e-6)


def small_configuration() -> dict:
    config = configuration(vocab_size=600, image_size=16, patch_size=8, width=64)
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 1
    return config


def test_an_export_replaces_its_own_files_and_leaves_the_models_beside_them(tmp_path: Path) -> None:
    write_tokenizer([], tmp_path / "tokenizer")
    tiny = tmp_path / "assets" / "tiny"
    beside = [tiny / "drawn_scenes.safetensors", tiny / "captioner" / "model.safetensors"]
    for path in (*beside, tiny / "open_clip_model.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"before")
    export_model(build(small_configuration(), 1), small_configuration(), tmp_path / "tokenizer", tiny)
    assert all(path.read_bytes() == b"before" for path in beside)
    assert "text_projection" in load_file(tiny / "open_clip_model.safetensors")
    assert {path.name for path in tiny.iterdir() if path.is_dir()} == {"captioner"}


class Drawn:
    """A composer of random pictures; it stops the run at one step, as a power cut would."""

    def __init__(self, stops_at: int | None = None) -> None:
        self.stops_at = stops_at

    def batch(self, seed: int, step: int, rank: int, sizes: Sizes, difficulty: Difficulty) -> Batch:
        if step == self.stops_at:
            raise KeyboardInterrupt
        drawing = torch.Generator().manual_seed(1000 * seed + step)
        names = [f"{word} here" for word in NAMES]
        truth = torch.eye(4, dtype=torch.bool)
        group = Group("label", torch.arange(4), torch.arange(4), truth)
        parts = torch.full((4, 3), -1)
        parts[:, 0] = torch.arange(4)
        place = torch.rand(4, 3, generator=drawing) + 0.1
        related = {r: torch.full((4,), -1) for r in RELATIONS}
        return Batch(torch.rand(4, 3, 16, 16, generator=drawing), names, [group], parts, related, place)


def pretrained(folder: Path, stops_at: int | None = None) -> State:
    """Train for 12 steps, going on from the folder's checkpoint if there is one."""
    folder.mkdir(exist_ok=True)
    model = build(small_configuration(), seed=3)
    state = new_state(model, Heads(64, 4, ("label", *RELATIONS, "place")), weight_decay=0.1)
    if (folder / "state.safetensors").is_file():
        load_state(state, folder / "state.safetensors")
    schedule = Schedule(warmup=2, sprite_steps=4, decay_from=6, decay_steps=6)
    train(state, Drawn(stops_at), Encoder([]), schedule, folder, 5, lambda _: {}, (2, 100, 5), Worker())  # type: ignore[arg-type]
    return state


def tensors_of(state: State) -> list[Tensor]:
    return [*(p.detach() for p in state.parameters().values()), *state.average.values()]


@pytest.mark.parametrize("stops_at", [3, 5, 7, 11])
def test_pretraining_that_was_cut_off_ends_in_the_same_bytes(tmp_path: Path, stops_at: int) -> None:
    whole = pretrained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrained(tmp_path / "cut", stops_at)
    resumed = pretrained(tmp_path / "cut")
    assert resumed.step == whole.step == 12
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(whole), tensors_of(resumed), strict=True))

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mmprompt.data.card import DatasetCard, Reference
from mmprompt.data.catalog import list_datasets, read_card, read_splits
from mmprompt.data.splits import SPLITS
from mmprompt.data.templates import expand_templates, fill
from mmprompt.errors import UserError

FIFTEEN = (
    "caltech101 dtd eurosat fgvc_aircraft food101 imagenet imagenet_a imagenet_r imagenet_sketch imagenetv2 "
    "oxford_flowers oxford_pets stanford_cars sun397 ucf101"
).split()
OTHERS = [name for name in FIFTEEN if not name.startswith("imagenet")]


@pytest.fixture(scope="module")
def cards() -> dict[str, DatasetCard]:
    return {card.name: card for card in list_datasets()}


@pytest.mark.parametrize("name", FIFTEEN)
def test_a_benchmark_set_says_what_it_holds_and_how_to_get_it(cards: dict[str, DatasetCard], name: str) -> None:
    card = cards[name]
    assert card.n_classes
    assert card.sizes["test"] > 0
    assert card.images in card.get or card.layout == "aircraft"
    assert not card.split or card.split in card.get
    assert card.templates
    assert card.licence


@pytest.mark.parametrize("name", FIFTEEN)
def test_every_way_to_get_a_part_is_a_link_or_a_command(cards: dict[str, DatasetCard], name: str) -> None:
    for get in cards[name].get.values():
        if not get.startswith("https://"):
            assert get.startswith(("curl -LO ", "gdown "))
            assert subprocess.run(["bash", "-n", "-c", get], check=False).returncode == 0, get


def test_the_cards_of_the_packages_own_pictures_count_them_right(cards: dict[str, DatasetCard]) -> None:
    own = [card for card in cards.values() if card.archive]
    assert len(own) == 11
    for card in own:
        splits = read_splits(card, None)
        assert (card.n_classes, card.sizes) == (
            len(splits.class_names),
            {split: len(splits.items(split)) for split in SPLITS},
        ), card.name


# The published totals: a check on the parts, which are CoOp's.
TOTALS = {
    "dtd": 5640,
    "eurosat": 27000,
    "fgvc_aircraft": 10000,
    "food101": 101000,
    "oxford_flowers": 8189,
    "oxford_pets": 7349,
    "stanford_cars": 16185,
    "ucf101": 13320,
}


@pytest.mark.parametrize("name", TOTALS)
def test_the_parts_of_a_set_add_up_to_its_published_size(cards: dict[str, DatasetCard], name: str) -> None:
    assert sum(cards[name].sizes.values()) == TOTALS[name]


def test_the_mean_of_the_eleven_sets_is_the_published_mean(cards: dict[str, DatasetCard]) -> None:
    def mean(
        method: str, shots: int | None, protocol: str, value: str = "accuracy", backbone: str = "ViT-B/16"
    ) -> float:
        found = [
            reference.values[value]
            for name in (*OTHERS, "imagenet")
            for reference in cards[name].reference
            if (reference.method, reference.shots, reference.protocol, reference.backbone)
            == (method, shots, protocol, backbone)
        ]
        assert len(found) == 11
        return round(sum(found) / 11, 2)

    # means printed by the papers themselves: a mistyped digit in one of the cards would show here
    assert [mean("CoOp", k, "few-shot") for k in (1, 2, 4, 8, 16)] == [67.56, 70.65, 74.02, 76.98, 79.89]
    assert [mean("PromptSRC", k, "few-shot") for k in (1, 2, 4, 8, 16)] == [72.32, 75.29, 78.35, 80.69, 82.87]
    assert mean("MaPLe", 16, "few-shot") == 81.79
    assert (mean("CLIP", None, "base-to-new", "base"), mean("CLIP", None, "base-to-new", "new")) == (69.34, 74.22)
    assert mean("CLIP", None, "zero-shot", backbone="RN50") == 58.77


def test_ten_targets_have_the_published_cross_dataset_mean(cards: dict[str, DatasetCard]) -> None:
    found = [
        reference.values["accuracy"]
        for name in OTHERS
        for reference in cards[name].reference
        if reference.protocol == "cross-dataset"
    ]
    assert len(found) == 10
    assert sum(found) / 10 == pytest.approx(66.30, abs=0.006)


def test_four_variants_have_the_published_domain_mean(cards: dict[str, DatasetCard]) -> None:
    for method, mean in {"CLIP": 57.2, "CoOp": 59.28, "CoCoOp": 59.90, "MaPLe": 60.27, "TPT": 60.81}.items():
        found = [
            reference.values["accuracy"]
            for name in ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
            for reference in cards[name].reference
            if reference.method == method
        ]
        assert len(found) == 4
        assert sum(found) / 4 == pytest.approx(mean, abs=0.02)


def test_imagenets_ensemble_is_the_eighty_of_open_clip() -> None:
    sentences = expand_templates(read_card("imagenet").templates)
    assert len(set(sentences)) == 80
    assert "a photo of the hard to see cat." in {fill(sentence, "cat") for sentence in sentences}


def test_an_unknown_kind_of_value_is_refused() -> None:
    with pytest.raises(UserError, match=r"there is no reference value named 'acuracy'\. Did you mean 'accuracy'"):
        Reference("x", "y", "few-shot", 1, {"acuracy": 3.0}, "z")


def test_a_value_that_is_no_percentage_is_refused() -> None:
    with pytest.raises(UserError, match="accuracy is 926, but a percentage was expected"):
        Reference("x", "y", "few-shot", 1, {"accuracy": 926}, "z")


@pytest.mark.parametrize("key", ["folder", "images", "split", "train_images"])
def test_a_path_of_a_card_cannot_climb(cards: dict[str, DatasetCard], key: str) -> None:
    with pytest.raises(UserError, match="a path below the root was expected"):
        replace(cards["caltech101"], **{key: "a/../../b"})


@pytest.mark.parametrize("name", FIFTEEN)
def test_the_page_on_data_sets_has_the_sizes_of_the_card(cards: dict[str, DatasetCard], name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    card = cards[name]
    sizes = [f"{card.sizes[split]:,}" if card.sizes[split] else "\N{EN DASH}" for split in SPLITS]
    shown = " / ".join(sizes) if card.sizes["train"] else f"test {card.sizes['test']:,}"
    assert row.endswith(f"| {card.n_classes:,} | {shown} |")
    assert card.folder in row

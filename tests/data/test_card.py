from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mmprompt.data.card import DatasetCard, Reference
from mmprompt.data.catalog import list_datasets, read_card, read_splits
from mmprompt.data.class_names import expand_templates
from mmprompt.data.splits import SPLITS
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


def mean_of(cards: dict[str, DatasetCard], names: Sequence[str], value: str, **sought: object) -> float:
    """The mean of one value over sets that all have it once."""
    found = [
        reference.values[value]
        for name in names
        for reference in cards[name].reference
        if all(getattr(reference, key) == wanted for key, wanted in sought.items())
    ]
    assert len(found) == len(names)
    return sum(found) / len(found)


# means printed by the papers themselves: a mistyped digit in one of the cards would show here
FEW_SHOT_MEANS = {
    "CoOp": {1: 67.56, 2: 70.65, 4: 74.02, 8: 76.98, 16: 79.89},
    "PromptSRC": {1: 72.32, 2: 75.29, 4: 78.35, 8: 80.69, 16: 82.87},
    "MaPLe": {16: 81.79},
}
BASE_TO_NEW_MEANS = {"CLIP": (69.34, 74.22), "CoOp": (82.69, 63.22), "TCP": (84.13, 75.36), "CoPrompt": (84.00, 77.23)}
CROSS_DATASET_MEANS = {
    "CoOp": 63.88,
    "CoCoOp": 65.74,
    "MaPLe": 66.30,
    "PromptSRC": 65.81,
    "MMA": 66.61,
    "CoPrompt": 67.00,
}
DOMAIN_MEANS = {
    "CLIP": 57.17,
    "CoOp": 59.28,
    "CoCoOp": 59.90,
    "KgCoOp": 60.11,
    "MaPLe": 60.26,
    "PromptSRC": 60.65,
    "MMA": 60.48,
    "CoPrompt": 60.42,
    "RMAdapter": 60.71,
    "TPT": 60.81,
    "MMRL": 60.6,
    "VaMP": 61.2,
}
VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")


@pytest.mark.parametrize(("method", "means"), FEW_SHOT_MEANS.items())
def test_eleven_sets_have_the_published_few_shot_means(
    cards: dict[str, DatasetCard], method: str, means: dict[int, float]
) -> None:
    for shots, mean in means.items():
        sought = {"method": method, "shots": shots, "protocol": "few-shot", "backbone": "ViT-B/16"}
        assert mean_of(cards, (*OTHERS, "imagenet"), "accuracy", **sought) == pytest.approx(mean, abs=0.006)


def test_eleven_sets_have_the_published_zero_shot_mean(cards: dict[str, DatasetCard]) -> None:
    sought = {"method": "CLIP", "protocol": "zero-shot", "backbone": "RN50"}
    assert mean_of(cards, (*OTHERS, "imagenet"), "accuracy", **sought) == pytest.approx(58.77, abs=0.006)


@pytest.mark.parametrize(("method", "means"), BASE_TO_NEW_MEANS.items())
def test_eleven_sets_have_the_published_base_to_new_means(
    cards: dict[str, DatasetCard], method: str, means: tuple[float, float]
) -> None:
    for value, mean in zip(("base", "new"), means, strict=True):
        found = mean_of(cards, (*OTHERS, "imagenet"), value, method=method, protocol="base-to-new")
        assert found == pytest.approx(mean, abs=0.006)


@pytest.mark.parametrize(("method", "mean"), CROSS_DATASET_MEANS.items())
def test_ten_targets_have_the_published_cross_dataset_mean(
    cards: dict[str, DatasetCard], method: str, mean: float
) -> None:
    found = mean_of(cards, OTHERS, "accuracy", method=method, protocol="cross-dataset")
    assert found == pytest.approx(mean, abs=0.011)


@pytest.mark.parametrize(("method", "mean"), DOMAIN_MEANS.items())
def test_four_variants_have_the_published_domain_mean(cards: dict[str, DatasetCard], method: str, mean: float) -> None:
    found = mean_of(cards, VARIANTS, "accuracy", method=method, protocol="domain-generalisation")
    assert found == pytest.approx(mean, abs=0.05 if method in {"MMRL", "VaMP"} else 0.016)  # those print one decimal


@pytest.mark.parametrize("protocol", ["base-to-new", "cross-dataset", "domain-generalisation"])
def test_a_row_of_a_table_over_sets_comes_from_one_document(cards: dict[str, DatasetCard], protocol: str) -> None:
    sources: dict[str, set[str]] = {}
    for card in cards.values():
        for reference in card.reference:
            if reference.protocol == protocol:
                sources.setdefault(reference.method, set()).add(reference.source)
    assert sources
    assert {method: len(found) for method, found in sources.items()} == dict.fromkeys(sources, 1)
    assert all("table" in source.lower() for found in sources.values() for source in found)


def test_a_licence_is_what_is_known_and_no_pointer(cards: dict[str, DatasetCard]) -> None:
    for card in cards.values():
        assert card.licence
        assert "see the source" not in card.licence


def test_imagenets_ensemble_is_the_eighty_of_open_clip() -> None:
    sentences = expand_templates(read_card("imagenet").templates)
    assert len(set(sentences)) == 80
    assert "a photo of the hard to see cat." in {sentence.replace("{}", "cat") for sentence in sentences}


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

"""The tasks under `examples/data/` are what the measurements on language models take them for."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from make_language_data import EMBEDDED, SEED, dates, somebody
from mmprompt.data.strict_yaml import read_yaml
from mmprompt.language.data import load_texts

FOLDER = Path(__file__).parents[1] / "examples" / "data"
PATHS = sorted(FOLDER.glob("*.jsonl"))
LABELS = {"sentiment": 2, "intent": 8, "questions": 6, "emoji_kinds": 6, "languages": 6, "seasons": 4}
NEAR = 0.75  # shared words of all words of two sentences


def named(path):
    return path.stem


def test_every_task_has_a_card_and_every_card_a_task():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {path.stem for path in PATHS}
    assert len(PATHS) == 8


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_a_task_is_whole(path):
    data = load_texts(path)
    card = read_yaml(path.with_suffix(".yaml"))
    assert data.notes == ()
    assert len(data.test) >= 200
    assert len(data.instructions) == len(set(data.instructions)) == 3
    assert "{soft}" in data.template
    assert not any("{soft" in text for text in data.instructions)
    assert all(text.endswith("{answer}") for text in (data.template, *data.instructions))
    assert card["licence"]
    assert card["source"]
    assert card["note"]
    assert path.stat().st_size < 150_000


@pytest.mark.parametrize(("name", "n_labels"), LABELS.items())
def test_sixteen_examples_a_class_can_be_drawn_and_test_is_balanced(name, n_labels):
    data = load_texts(FOLDER / f"{name}.jsonl")
    assert len(data.labels) == n_labels
    assert min(Counter(row.label for row in data.train).values()) >= 16
    assert len(set(Counter(row.label for row in data.test).values())) == 1
    assert set(data.verbalizer) == set(data.labels)


@pytest.mark.parametrize("name", ["sentiment", "intent", "questions"])
def test_no_test_sentence_is_nearly_one_of_training(name):
    data = load_texts(FOLDER / f"{name}.jsonl")
    known = [words(row) for row in (*data.train, *data.val)]
    for row in data.test:
        assert max(len(words(row) & other) / len(words(row) | other) for other in known) < NEAR, row.fields


@pytest.mark.parametrize("name", ["emoji_kinds", "emoji_languages", "dates"])
def test_no_name_is_in_two_parts(name):
    data = load_texts(FOLDER / f"{name}.jsonl")
    parts = [{row.fields["text"] for row in data.rows(split)} for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_every_emoji_has_its_name_in_every_language():
    data = load_texts(FOLDER / "emoji_languages.jsonl")
    languages = {row.task for row in data.train}
    assert len(languages) == 6
    for split in ("train", "val", "test"):
        pairs = [(row.fields["text"], row.task) for row in data.rows(split)]
        assert len(set(pairs)) == len(pairs) == len(languages) * len({name for name, _ in pairs})


def test_the_embedded_task_is_what_the_script_writes_and_balanced():
    lines = [json.loads(line) for line in (EMBEDDED / "somebody.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == somebody(random.Random(SEED))
    data = load_texts("somebody")
    assert data.notes == ()
    assert Counter(row.label for row in data.test) == {"somebody": 100, "nobody": 100}
    assert len(data.instructions) == 3
    assert set(data.verbalizer) == set(data.labels)


def test_the_file_of_dates_is_what_the_script_writes():
    lines = [json.loads(line) for line in (FOLDER / "dates.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == dates(random.Random(SEED))


def words(row):
    return frozenset(row.fields["text"].lower().split())

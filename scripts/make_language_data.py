"""Write the generated tasks of `examples/data/`, kinds and languages of emoji names, and dates, and the embedded one.

    python scripts/make_language_data.py --work DIR          # fetches emojibase-data once with npm
    python scripts/make_language_data.py --work DIR --check  # compares with what is there

The embedded task, `somebody`, is made of captions in the package. The cards beside the files (`NAME.yaml`) and the
other tasks are written by hand.
"""

import datetime
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, product
from pathlib import Path
from typing import TypeVar

import tyro

from openart.artwork import NAMES_PACKAGE, fetch, read_json

ROOT = Path(__file__).resolve().parents[1]
OUT, EMBEDDED = ROOT / "examples" / "data", ROOT / "mmprompt" / "assets" / "language"
SCENES = ROOT / "mmprompt" / "assets" / "scenes" / "openart-scenes.jsonl"
SEED = 7
Record = dict[str, str]
T = TypeVar("T")

# Unicode's subgroups of each kind, by prefix
KINDS = {
    "animal": ("animal-",),
    "food": ("food-", "drink"),
    "travel": ("transport-ground", "transport-water", "transport-air", "place-", "hotel"),
    "activity": ("event", "award-medal", "sport", "game", "arts-crafts"),
    "object": (
        "book-paper", "clothing", "computer", "household", "light-video", "lock", "mail", "medical", "money",
        "musical-instrument", "office", "phone", "science", "tool", "writing",
    ),
    "person": ("person",),
}  # fmt: skip
N_KINDS = {"test": 50, "val": 10, "train": 40}  # names a kind; fewer for training where there are fewer

LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "nl": "Dutch", "pt": "Portuguese"}
N_EMOJI = {"test": 60, "val": 15, "train": 125}
MOST_WORDS = 2

N_LANGUAGES = {"test": 40, "val": 6, "train": 24}  # names a language

N_DATES = {"test": 200, "val": 40, "train": 240}
SEASONS = {"winter": (12, 1, 2), "spring": (3, 4, 5), "summer": (6, 7, 8), "autumn": (9, 10, 11)}
N_SEASONS = {"test": 60, "val": 6, "train": 24}  # dates a season
N_SENTENCES = {"test": 100, "val": 20, "train": 120}  # a label


def emoji_entries(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Hexcode, English name and subgroup, in Unicode's order."""
    names = {group["order"]: group["key"] for group in read_json(folder / "en" / "messages.json")["subgroups"]}
    for entry in read_json(folder / "en" / "data.json"):
        if "subgroup" in entry:
            yield entry["hexcode"], entry["label"], names[entry["subgroup"]]


def kind_of(subgroup: str) -> str | None:
    return next((kind for kind, prefixes in KINDS.items() if subgroup.startswith(prefixes)), None)


def is_variant(name: str) -> bool:
    """Whether another name differs from this one by a person's gender, hair or direction alone."""
    return name.startswith(("man ", "woman ", "men ", "women ", "pregnant ", "deaf ")) or ":" in name


def emoji_kinds(folder: Path, rng: random.Random) -> list[Record]:
    members: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for _, name, subgroup in emoji_entries(folder):
        kind = kind_of(subgroup)
        if kind is not None and not is_variant(name):
            members[kind].append(name)
    records = []
    for kind, names in members.items():
        rng.shuffle(names)
        parts = divided(names, N_KINDS)
        records += [{"text": name, "label": kind, "split": split} for split, some in parts for name in some]
    return mixed(records, rng)


def names_by_language(folder: Path) -> dict[str, dict[str, str]]:
    """Names by hexcode."""
    return {c: {e["hexcode"]: e["label"] for e in read_json(folder / c / "data.json")} for c in LANGUAGES}


def emoji_languages(folder: Path, rng: random.Random) -> list[Record]:
    names = names_by_language(folder)
    kinds = ("animal", "food", "travel", "object")
    chosen = [
        (hexcode, name)
        for hexcode, name, subgroup in emoji_entries(folder)
        if kind_of(subgroup) in kinds and is_short([name, *(names[code][hexcode] for code in LANGUAGES)])
    ]
    rng.shuffle(chosen)
    records = []
    for split, some in divided(chosen, N_EMOJI):
        for (hexcode, name), (code, language) in product(some, LANGUAGES.items()):
            answer = names[code][hexcode]
            records.append({"text": name, "language": language, "answer": answer, "task": code, "split": split})
    return mixed(records, rng)


def languages(names: Sequence[Record], rng: random.Random) -> list[Record]:
    """In which language a name is; of the rows of `emoji_languages`, names of one language alone."""
    spoken = Counter(text for text, _ in {(row["answer"].lower(), row["task"]) for row in names})
    records = []
    for code, language in LANGUAGES.items():
        rows = [row for row in names if row["task"] == code and spoken[row["answer"].lower()] == 1]
        held = rng.sample([row["answer"] for row in rows if row["split"] != "train"], N_LANGUAGES["test"])
        n_more = N_LANGUAGES["train"] + N_LANGUAGES["val"]
        others = rng.sample([row["answer"] for row in rows if row["split"] == "train"], n_more)
        parts = divided(held + others, N_LANGUAGES)
        records += [{"text": text, "label": language, "split": split} for split, some in parts for text in some]
    return mixed(records, rng)


def is_short(names: Sequence[str], most_words: int = MOST_WORDS) -> bool:
    return all(len(name.split()) <= most_words and ":" not in name for name in names)


def draw_days(rng: random.Random, n: int) -> list[datetime.date]:
    """Days of two centuries."""
    first, last = datetime.date(1850, 1, 1).toordinal(), datetime.date(2049, 12, 31).toordinal()
    return [datetime.date.fromordinal(day) for day in rng.sample(range(first, last + 1), n)]


def dates(rng: random.Random) -> list[Record]:
    parts = divided(draw_days(rng, sum(N_DATES.values())), N_DATES)
    records = [
        {"text": rng.choice(spellings(day)), "answer": day.isoformat(), "split": split}
        for split, some in parts
        for day in some
    ]
    return mixed(records, rng)


def seasons(rng: random.Random) -> list[Record]:
    """The season of a date, by its month, north of the equator."""
    days = draw_days(rng, 4000)
    records = []
    for season, months in SEASONS.items():
        parts = divided([day for day in days if day.month in months], N_SEASONS)
        records += [
            {"text": rng.choice(spellings(day)), "label": season, "split": split}
            for split, some in parts
            for day in some
        ]
    return mixed(records, rng)


def spellings(day: datetime.date) -> list[str]:
    ending = "th" if 10 < day.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    return [
        f"{day.day} {day:%B} {day.year}",
        f"{day:%B} {day.day}, {day.year}",
        f"{day.day}{ending} of {day:%B} {day.year}",
        f"{day:%b} {day.day} {day.year}",
        f"{day:%A}, {day.day} {day:%B} {day.year}",
        f"{day:%a} {day:%b} {day.day}, {day.year}",
    ]


def somebody(rng: random.Random) -> list[Record]:
    """Sentences about scenes, and whether there is a person in them; no sentence is in two parts."""
    with SCENES.open(encoding="utf-8") as file:
        scenes = [scene for scene in map(json.loads, file) if scene["focus"] == ""]
    records, taken = [], set()
    for split, count in N_SENTENCES.items():
        texts: dict[str, list[str]] = {"somebody": [], "nobody": []}
        for scene in (scene for scene in scenes if scene["split"] == split):
            for text in scene["captions"]:
                if text not in taken:
                    taken.add(text)
                    texts["somebody" if "somebody" in text or "person" in text else "nobody"].append(text)
        for label, some in texts.items():
            records += [{"text": text, "label": label, "split": split} for text in rng.sample(some, count)]
    return mixed(records, rng)


def divided(items: Sequence[T], counts: Mapping[str, int]) -> list[tuple[str, Sequence[T]]]:
    """The items of each part, from the first item on."""
    ends = list(accumulate(counts.values()))
    return [(split, items[end - count : end]) for (split, count), end in zip(counts.items(), ends, strict=True)]


def mixed(records: list[Record], rng: random.Random) -> list[Record]:
    """Train, val and test one after the other, each shuffled."""
    rng.shuffle(records)
    return sorted(records, key=lambda record: ("train", "val", "test").index(record["split"]))


def main(work: Path, check: bool = False) -> int:
    """Write the files.

    Args:
        work: folder for the fetched package.
        check: write nothing, fail where a file differs.
    """
    folder = fetch(*NAMES_PACKAGE, work) / "package"
    names = emoji_languages(folder, random.Random(SEED))
    tasks = {
        OUT / "emoji_kinds.jsonl": emoji_kinds(folder, random.Random(SEED)),
        OUT / "emoji_languages.jsonl": names,
        OUT / "languages.jsonl": languages(names, random.Random(SEED)),
        OUT / "dates.jsonl": dates(random.Random(SEED)),
        OUT / "seasons.jsonl": seasons(random.Random(SEED)),
        EMBEDDED / "somebody.jsonl": somebody(random.Random(SEED)),
    }
    differing = []
    for path, records in tasks.items():
        name = path.stem
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        if not check:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            differing.append(name)
        print(f"{name}: {len(records)} rows, {len(text.encode())} bytes{', differs' if name in differing else ''}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))

"""Write the generated tasks of `examples/data/`: kinds and languages of emoji names, and dates.

    python scripts/make_language_data.py --work DIR          # fetches emojibase-data once with npm
    python scripts/make_language_data.py --work DIR --check  # compares with what is there

The cards beside the files (`NAME.yaml`), `sentiment`, `intent` and `questions` are written by hand.
"""

import argparse
import datetime
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from openart.artwork import NAMES_PACKAGE, fetch, read_json

OUT = Path(__file__).resolve().parents[1] / "examples" / "data"
SEED = 7
Record = dict[str, str]

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
N_TEST, N_VAL, MOST_TRAIN = 50, 10, 40  # names a kind

LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "nl": "Dutch", "pt": "Portuguese"}
N_EMOJI = {"test": 60, "val": 15, "train": 125}
MOST_WORDS = 2

N_DATES = {"test": 200, "val": 40, "train": 240}


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
        for index, name in enumerate(names[: N_TEST + N_VAL + MOST_TRAIN]):
            split = "test" if index < N_TEST else "val" if index < N_TEST + N_VAL else "train"
            records.append({"text": name, "label": kind, "split": split})
    return mixed(records, rng)


def emoji_languages(folder: Path, rng: random.Random) -> list[Record]:
    names = {
        code: {entry["hexcode"]: entry["label"] for entry in read_json(folder / code / "data.json")}
        for code in LANGUAGES
    }
    kinds = ("animal", "food", "travel", "object")
    chosen = [
        (hexcode, name)
        for hexcode, name, subgroup in emoji_entries(folder)
        if kind_of(subgroup) in kinds and is_short([name, *(names[code][hexcode] for code in LANGUAGES)])
    ]
    rng.shuffle(chosen)
    records, start = [], 0
    for split, count in N_EMOJI.items():
        for hexcode, name in chosen[start : start + count]:
            for code, language in LANGUAGES.items():
                answer = names[code][hexcode]
                records.append({"text": name, "language": language, "answer": answer, "task": code, "split": split})
        start += count
    return mixed(records, rng)


def is_short(names: Sequence[str]) -> bool:
    return all(len(name.split()) <= MOST_WORDS and ":" not in name for name in names)


def dates(rng: random.Random) -> list[Record]:
    first = datetime.date(1850, 1, 1).toordinal()
    last = datetime.date(2049, 12, 31).toordinal()
    days = [datetime.date.fromordinal(day) for day in rng.sample(range(first, last + 1), sum(N_DATES.values()))]
    records, start = [], 0
    for split, count in N_DATES.items():
        for day in days[start : start + count]:
            records.append({"text": rng.choice(spellings(day)), "answer": day.isoformat(), "split": split})
        start += count
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


def mixed(records: list[Record], rng: random.Random) -> list[Record]:
    """Train, val and test one after the other, each shuffled."""
    rng.shuffle(records)
    return sorted(records, key=lambda record: ("train", "val", "test").index(record["split"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the fetched package")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a file differs")
    args = parser.parse_args()
    folder = fetch(*NAMES_PACKAGE, args.work) / "package"
    tasks = {
        "emoji_kinds": emoji_kinds(folder, random.Random(SEED)),
        "emoji_languages": emoji_languages(folder, random.Random(SEED)),
        "dates": dates(random.Random(SEED)),
    }
    differing = []
    for name, records in tasks.items():
        path = OUT / f"{name}.jsonl"
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        if not args.check:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            differing.append(name)
        print(f"{name}: {len(records)} rows, {len(text.encode())} bytes{', differs' if name in differing else ''}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())

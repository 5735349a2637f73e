"""The concepts: every emoji the study uses, with its name, tags, kind, emotion, action and whether it is novel.

A novel concept is never shown or named in pretraining, in any style. Which ones are novel follows from a seeded rule
over groups, so that the man, woman and direction variants of one drawing stay together.
"""

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from openart import words
from openart.artwork import NAMES_PACKAGE, emoji_key, fetch, read_json

SPLIT_SEED = 20261124
NOVEL_SHARE = 0.25
N_RELATIONAL = 20


@dataclass
class Concept:
    """One emoji. Empty strings mean: belongs to none."""

    key: str
    label: str
    name: str
    tags: list[str] = field(default_factory=list)
    kind: str = ""
    emotion: str = ""
    action: str = ""
    stem: str = ""
    relational: str = ""  # "seen", "novel" or ""
    is_object: bool = False
    novel: bool = False


def stem_of(label: str) -> str:
    """The label without gender, hair and direction words: variants of one drawing share it."""
    text = label.lower().split(": facing")[0]
    text = re.sub(r"\b(man|woman|person|men|women|people|merman|mermaid|merperson)\b", "person", text)
    text = re.sub(r"\b(face|cat face)$", "", text) if text.endswith(" face") and len(text.split()) == 2 else text
    return re.sub(r"[^a-z0-9]+", " ", text).replace("person", "").strip() or "person"


def action_of(label: str) -> str:
    """The action a label shows, or an empty string."""
    shown = {name: action for action, labels in words.EXTRA_ACTION_LABELS.items() for name in labels}
    if label in shown:
        return shown[label]
    match = re.match(r"(person|man|woman|people|men|women) (.*?)(: facing right)?$", label)
    stems = {stem: action for action, stem in {**words.ACTIONS, **words.MORE_ACTIONS}.items()}
    return stems.get(match[2], "") if match else ""


def emotion_of(label: str) -> str:
    """The emotion a face shows, or an empty string."""
    emotions = {**words.EMOTIONS, **words.MORE_EMOTIONS}
    return next((emotion for emotion, labels in emotions.items() if label in labels), "")


def plain(label: str) -> str:
    """The name used in captions: the label in plain words and letters."""
    name = words.PLAIN_NAMES.get(label, label)
    name = name.lower().replace("’", "").replace("'", "").replace(": ", " ").replace("ñ", "n").replace("&", "and")
    return re.sub(r"[^a-z0-9 -]+", " ", name).strip()


def read_concepts(work: Path, n_styles: dict[str, int]) -> list[Concept]:
    """All concepts that at least four training styles draw, by `n_styles`, in emojibase order, novel ones marked."""
    folder = fetch(*NAMES_PACKAGE, work) / "package"
    subgroups = {s["order"]: s["key"] for s in read_json(folder / "en" / "messages.json")["subgroups"]}
    concepts = []
    for entry in read_json(folder / "en" / "data.json"):
        key, label = emoji_key(entry["hexcode"]), entry["label"]
        subgroup = subgroups.get(entry.get("subgroup", -1), "")
        known = bool(words.KINDS.get(subgroup)) or subgroup in words.OTHER_SUBGROUPS
        if not known or n_styles.get(key, 0) < 4:
            continue
        tags = [t.lower() for t in entry.get("tags", []) if re.fullmatch("[a-z ]{3,14}", t.lower())]
        kind = words.KINDS.get(subgroup, "")
        concept = Concept(key, label, plain(label), tags, kind, emotion_of(label), action_of(label), stem_of(label))
        concept.is_object = kind in words.OBJECT_KINDS and len(concept.name.split()) <= 3
        concepts.append(concept)
    mark_novel(concepts)
    return concepts


def mark_novel(concepts: list[Concept]) -> None:
    """Mark the novel concepts by the seeded rule, task by task; later rules leave earlier choices alone."""
    chance = random.Random(SPLIT_SEED)
    by_label = {c.label: c for c in concepts}
    pool = [label for label in words.RELATIONAL_POOL if label in by_label]
    chance.shuffle(pool)
    fixed: set[str] = set()
    for i, label in enumerate(pool):
        fixed.add(by_label[label].stem)
        if i < 2 * N_RELATIONAL:
            by_label[label].relational = "seen" if i < N_RELATIONAL else "novel"
            by_label[label].novel = i >= N_RELATIONAL
    # one face of every emotion; of every action drawn by several people, one of them
    for emotion in words.EMOTIONS:
        faces = [c for c in concepts if c.emotion == emotion]
        chance.choice(faces).novel = True
    for action in [*words.ACTIONS, *words.EXTRA_ACTION_LABELS]:
        people = [c for c in concepts if c.action == action and "facing" not in c.label]
        if len(people) >= 3:
            chance.choice(people).novel = True
    # of every kind, a quarter of its stems (objects of the relational pool, faces and actions keep their lot)
    for kind in sorted({c.kind for c in concepts if c.kind}):
        members = [c for c in concepts if c.kind == kind]
        taken = fixed | {c.stem for c in members if c.emotion or c.action}
        stems = sorted({c.stem for c in members} - taken)
        chance.shuffle(stems)
        wanted = round(NOVEL_SHARE * len(stems))
        for c in concepts:
            c.novel = c.novel or (c.stem in stems[:wanted])


def forbidden_names(concepts: list[Concept]) -> set[str]:
    """Names of novel objects that no caption of pretraining may hold as a tag."""
    seen = {c.name for c in concepts if not c.novel} | {c.kind for c in concepts}
    return {c.name for c in concepts if c.novel} - seen

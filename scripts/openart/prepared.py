"""The prepared work folder: concepts and drawn sprites, written once by `prepare` and read by everything else."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from openart import words
from openart.artwork import NAMES_PACKAGE, STYLES, draw, fetch, name_table, new_folder, read_json, style_icons
from openart.concepts import Concept, read_concepts
from openart.tokenizer import learn_merges, write_tokenizer

N_MERGES = 2048


@dataclass(frozen=True)
class Prepared:
    """Concepts and sprites of one work folder.

    `rows[style][i]` is the sprite row of concept `i` in that style, or -1; `sprites` is [N, 4, side, side] uint8,
    premultiplied, memory-mapped.
    """

    concepts: list[Concept]
    sprites: np.ndarray
    rows: dict[str, list[int]]

    def pretraining_rows(self) -> list[list[int]]:
        """Per concept, its sprite rows in the training styles; empty for novel concepts."""
        styles = [s.name for s in STYLES if s.role == "train"]
        drawn = [[self.rows[s][i] for s in styles if self.rows[s][i] >= 0] for i in range(len(self.concepts))]
        return [[] if c.novel else r for c, r in zip(self.concepts, drawn, strict=True)]


def prepare(work: Path) -> Path:
    """Fetch, match and draw everything into `work/prepared`; a finished folder is kept, a half one never is."""
    target = work / "prepared"
    if target.is_dir():
        return target
    work.mkdir(parents=True, exist_ok=True)
    table = name_table(work)
    icons = {s.name: style_icons(s, table, work) for s in STYLES}
    counts = Counter(key for s in STYLES if s.role == "train" for key in icons[s.name])
    concepts = read_concepts(work, counts)
    documents: list[str] = []
    rows: dict[str, list[int]] = {}
    for style in STYLES:
        rows[style.name] = []
        for concept in concepts:
            document = icons[style.name].get(concept.key)
            rows[style.name].append(-1 if document is None else len(documents))
            documents.extend([] if document is None else [document])
    sprites = draw(documents, work)
    empty = sprites[:, 3].max((1, 2)) == 0
    rows = {style: [-1 if row >= 0 and empty[row] else row for row in found] for style, found in rows.items()}
    described = {"concepts": [asdict(c) for c in concepts], "rows": rows, "sources": sources(work)}
    with new_folder(target) as part:
        np.save(part / "sprites.npy", sprites)
        write_tokenizer(learn_merges(corpus(concepts), N_MERGES), part / "tokenizer")
        (part / "concepts.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    return target


def corpus(concepts: list[Concept]) -> list[str]:
    """One text per name, keyword, attribute and template; novel names too, so that they are spelt in whole pieces."""
    texts = []
    for concept in concepts:
        texts += [concept.name] * 4 + [concept.kind] * 2 + concept.tags + [concept.emotion, concept.action]
    for templates in words.TEMPLATES.values():
        texts += [t.format("") for t in templates] * 50
    return texts + list(words.BACKGROUNDS) * 10


def sources(work: Path) -> list[dict[str, str]]:
    """Licence and attribution of every source, as its own package states them."""
    styles = {style.name: (style.role, style.package, style.version) for style in STYLES}
    said = []
    for name, (role, package, version) in {**styles, "names, keywords and groups": ("text", *NAMES_PACKAGE)}.items():
        folder = fetch(package, version, work)
        if role == "text":
            info = read_json(folder / "package" / "package.json")
            licence = {"licence": info["license"], "licence_url": ""}
            author = {"author": str(info.get("author", "")), "author_url": str(info.get("homepage", ""))}
        else:
            info = read_json(folder / "package" / "info.json")
            licence = {"licence": info["license"]["spdx"], "licence_url": info["license"]["url"]}
            author = {"author": info["author"]["name"], "author_url": info["author"]["url"]}
        digest = (folder / "sha256").read_text().strip()
        said.append(
            {"style": name, "role": role, "package": f"{package}@{version}", "sha256": digest, **licence, **author}
        )
    return said


def load_prepared(work: Path) -> Prepared:
    """Read what `prepare` wrote."""
    folder = work / "prepared"
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there. Run `prepare --work {work}` first.")
    described = read_json(folder / "concepts.json")
    sprites = np.load(folder / "sprites.npy", mmap_mode="r")
    return Prepared([Concept(**c) for c in described["concepts"]], sprites, described["rows"])

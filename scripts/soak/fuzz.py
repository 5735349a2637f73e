"""Coverage-guided fuzzing, by atheris, of what reads a stranger's files: prompts, split files, templates, captions.

    pip install atheris
    python scripts/soak/fuzz.py prompt FOLDER --seconds 3600

Whatever ends in anything but a value or a refusal of one line, or does not end in ten seconds, is kept in FOLDER/found,
once for each place in the code, and shown; libFuzzer itself ends it at an input that takes two gigabytes. What was
reached is kept in FOLDER/corpus, from which the next call goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["mmprompt"]):
    import mmprompt.captioning.caption_files
    import mmprompt.classification.predictor
    import mmprompt.language.predictor
    import mmprompt.language.templates.promptsource  # noqa: F401
    from mmprompt.captioning.data import load_captions
    from mmprompt.classification.template import ClassTemplate
    from mmprompt.core.file import load
    from mmprompt.core.header import HEADER, TENSORS, header_hash
    from mmprompt.data.split_file import read_coop_split
    from mmprompt.errors import UserError
    from mmprompt.files import parse_json, sha256_bytes
    from mmprompt.language.templates.promptsource import read_promptsource
    from mmprompt.language.templates.template import Template

from tests.attacks.guard import MOST_SECONDS, TookTooLongError, limited
from tests.attacks.mutators import mutate_bytes, mutate_json
from tests.attacks.seeds import CAPTIONS, PROMPTSOURCE, SPLIT, SYNTAX, write_images
from tests.fixtures.served_prompts import frozen, save_captioner, save_classifier, save_language

Reader = Callable[[Path, list[bytes]], object]
MARK = b"\n=\n"
"""Between the parts of an input, such as the two files of a prompt."""


def read_prompt(folder: Path, parts: list[bytes]) -> object:
    """Both files, with hashes made to fit where there is something to fit them to."""
    header, tensors = (*parts, b"")[:2]
    try:
        facts = parse_json(header.decode())
        facts["tensors_sha256"] = sha256_bytes(tensors)
        facts.pop("header_sha256", None)
        facts["header_sha256"] = header_hash(facts)
        header = json.dumps(facts).encode()
    except (ValueError, TypeError, AttributeError):
        facts = None
    (folder / HEADER).write_bytes(header)
    (folder / TENSORS).write_bytes(tensors)
    kind = facts.get("kind") if isinstance(facts, dict) else None
    model = frozen(kind) if kind in ("classification", "captioning", "language") else None
    return load(folder, model or frozen("classification"))


def read_split(folder: Path, parts: list[bytes]) -> object:
    (folder / "a.json").write_bytes(parts[0])
    return read_coop_split(folder / "a.json", folder)


def read_template(folder: Path, parts: list[bytes]) -> object:
    """One of ours, of either kind, or a file of PromptSource's."""
    if b"templates:" in parts[0]:
        (folder / "a.yaml").write_bytes(parts[0])
        return read_promptsource(folder / "a.yaml")
    text = parts[0].decode(errors="replace")
    with contextlib.suppress(UserError):
        ClassTemplate(text)
    return Template.parse(text)


def read_captions(folder: Path, parts: list[bytes]) -> object:
    """The file's name is one of those that there are, by the first part."""
    name, content = (*parts, b"")[:2]
    known = dict.fromkeys(seed[0] for seed in CAPTIONS.values())
    path = folder / next((one for one in known if one.encode() == name), "a.json")
    path.write_bytes(content)
    return load_captions(path)


def seeds_of_prompts(folder: Path) -> list[bytes]:
    """One of every kind, with a head, with labels and without."""
    save_classifier(folder / "a", 1, ["car", "dog", "house"], n_visual=2)
    save_captioner(folder / "b", 2, "feelings")
    save_language(folder / "c", 3, {"animal": ["dog", "cat"], "thing": ["car"]})
    return [MARK.join((one / name).read_bytes() for name in (HEADER, TENSORS)) for one in sorted(folder.iterdir())]


TARGETS: dict[str, tuple[Reader, Callable[[Path], list[bytes]]]] = {
    "prompt": (read_prompt, seeds_of_prompts),
    "split": (read_split, lambda folder: [json.dumps(SPLIT).encode()]),
    "template": (read_template, lambda folder: [text.encode() for text in (*SYNTAX, PROMPTSOURCE)]),
    "captions": (
        read_captions,
        lambda folder: [name.encode() + MARK + text.encode() for name, text in CAPTIONS.values()],
    ),
}


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Change one part of an input: as libFuzzer does, as bytes, or where it is JSON, as that."""
    rng, parts = random.Random(seed), data.split(MARK)
    place = rng.randrange(len(parts)) if rng.random() < 0.5 else 0
    way = rng.random()
    if way < 0.4:
        return bytes(atheris.Mutate(data, max_size))
    try:
        content = parse_json(parts[place].decode())
        parts[place] = json.dumps(mutate_json(content, rng)).encode()
    except ValueError:
        parts[place] = mutate_bytes(parts[place], rng)
    return MARK.join(parts)[:max_size]


class Findings:
    """Inputs that end as none may, one for each place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: set[str] = set()

    def add(self, error: BaseException, data: bytes) -> None:
        """Keep an input, and say where it ends."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__}-{Path(last.filename).stem}-{last.lineno}"
        if place not in self.places:
            self.places.add(place)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / place).write_bytes(data)
            print(f"FOUND {place}: {str(error)[:200]!r}", file=sys.stderr, flush=True)


def fuzz(name: str, folder: Path, seconds: int, seed: int) -> None:
    """Fuzz one target for some time; libFuzzer ends the process."""
    reader, seeds = TARGETS[name]
    corpus, place, findings = folder / "corpus", folder / "place", Findings(folder / "found")
    for one in (corpus, place, folder / "seeds"):
        one.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(folder / "seeds")):
        (corpus / f"seed-{number}").write_bytes(data)
    shutil.rmtree(folder / "seeds")
    write_images(place)

    def attempt(data: bytes) -> None:
        try:
            with limited(MOST_SECONDS):
                reader(place, data.split(MARK))
        except UserError as error:
            if not str(error) or set(str(error)) & set("\n\x1b\0"):
                findings.add(error, data)
        except (Exception, TookTooLongError) as error:
            findings.add(error, data)

    limits = ["-timeout=0", "-rss_limit_mb=2048", "-max_len=65536", f"-max_total_time={seconds}", f"-seed={seed}"]
    options = [*limits, f"-artifact_prefix={folder}/", "-print_final_stats=1", str(corpus)]
    arguments: Any = [sys.argv[0], *options]
    atheris.Setup(arguments, attempt, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    fuzz(given.target, given.folder, given.seconds, given.seed)

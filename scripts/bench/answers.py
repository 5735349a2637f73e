"""How long the command line takes to answer what needs no model: help, lists, mistakes, missing paths.

    python scripts/bench/answers.py

Prints processor seconds of every call, the slowest last, and ends with one line of JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile

from mmprompt.cli.main import VERBS

CALLS = [
    ["--version"],
    ["--help"],
    *([*name.split(), "--help"] for name in VERBS),
    *([*name.split(), "--no-such-option"] for name in VERBS),
    ["methods", "list"],
    ["backbones", "list"],
    ["data", "list"],
    ["data", "cache"],
    ["data", "check", "no/such"],
    ["train", "--data", "no/such"],
    ["train", "--config", "no-such.yaml"],
    ["compare", "--data", "no/such"],
    ["tune", "--data", "no/such"],
    ["predict", "no-such-run", "a.png"],
    ["caption", "write", "no-such.png"],
    ["caption", "train", "--data", "no-such.jsonl"],
    ["caption", "eval", "--prompts", "no-such-run"],
    ["llm", "train", "--data", "no-such.jsonl"],
    ["llm", "eval", "--prompt", "no-such-run"],
    ["llm", "generate", "--prompt", "no-such-run"],
]


def seconds_of(words: list[str], folder: str) -> float:
    """Processor seconds of one command, its children's too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "mmprompt", *words], cwd=folder, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {" ".join(words): seconds_of(words, folder) for words in CALLS}
    for line, seconds in sorted(found.items(), key=lambda pair: pair[1]):
        print(f"{seconds:5.2f} s  {line}")
    print(json.dumps({"slowest": max(found, key=lambda line: found[line]), "seconds": round(max(found.values()), 2)}))


if __name__ == "__main__":
    main()

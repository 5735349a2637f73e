"""The commands in README and docs are known with their options, and run: page by page, from top to bottom, where a
reader stands.

Those of seconds run in every suite, in this process, with models of the package and trainings cut to a step or two;
what takes longer, or needs what was fetched, runs as it is typed with MMPROMPT_DOCS=minutes or MMPROMPT_DOCS=hours.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmprompt as mp
from mmprompt.cli.main import VERBS, main
from mmprompt.data.catalog import list_datasets
from tests import small_language_models, small_models
from tests.fixtures.served_prompts import save_captioner, save_language
from tests.hub_stand_in import TOKEN, Hub
from tests.test_docs import PAGES, ROOT

COMMANDS = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECONDS, MINUTES, HOURS = "seconds", "minutes", "hours"
HOW_LONG = os.environ.get("MMPROMPT_DOCS", SECONDS)

NOT_HERE = {
    r"^(PYTHON=\S+ )?(bash scripts/|pip install|npm install)": "installs, or is this suite",
    r"--engine submitit": "asks for a cluster of Slurm's",
    r"^mmprompt completion bash": "writes into the reader's own home",
    r"^torchrun --nnodes 2": "asks for two machines",
    r"^python scripts/(pretrain_|train_photo_)": "made what the package ships, from artwork and texts of the network",
    r"captions_val2017|measure_own_photos": "asks for COCO's captioned photographs",
    r"slurm\.yaml": "asks for Slurm",
}
"""Lines that no test runs, by what they begin with or hold, and why."""
REAL_DATA = os.environ.get("MMPROMPT_REAL_DATA")
if REAL_DATA is None:
    NOT_HERE[r"^mmprompt data check caltech101"] = (
        "refuses a set that is not whole; MMPROMPT_REAL_DATA names a whole one"
    )
LONGER = {
    r"^(MMPROMPT_\w+=\d+ )?python -m pytest": (HOURS, "tests of the suite, some of them many times over"),
    r"kill_verbs": (HOURS, "kills every verb at every change that it makes"),
    r"soak/kills": (HOURS, "kills every verb 200 times"),
    r"soak/fuzz": (HOURS, "an hour of inputs"),
    r"^mmprompt data encode": (MINUTES, "starts a cluster of Ray"),
    r"^python -m http.server": (MINUTES, "serves until it is stopped; tests/exports/test_browser.py opens the page"),
    r"^python scripts/soak/": (MINUTES, "ten minutes under load"),
    r"^python scripts/bench/(table|captioning|serving|memory)": (MINUTES, "measures"),
    r"^python scripts/bench/": (HOURS, "measures, beside published code"),
    r"^python scripts/.* --table": (MINUTES, "draws a table of a measurement that is kept"),
    r"^python scripts/draw_": (MINUTES, "draws prompts that are learned in full"),
    r"^python scripts/make_text_sets": (MINUTES, "makes text sets of packages that are fetched"),
    r"^python scripts/measure_own_focus": (HOURS, "learns every focus of one's own"),
    r"^python scripts/measure_export": (MINUTES, "makes a model of 150 million weights"),
    r"^python scripts/": (HOURS, "measures over tasks, shots and seeds"),
    r"backbones get": (MINUTES, "fetches once"),
    r"--chat|--input -": (MINUTES, "reads what is typed"),
    r"--engine ray": (MINUTES, "starts a cluster of this machine alone"),
    r"--method coop\+dp-sgd": (MINUTES, "needs the extra `private`"),
    r"--avoid runs/objects": (MINUTES, "avoids a focus that is learned in full"),
    r"--to onnx": (MINUTES, "exports what the Python on the page exports too"),
    r"--method coop\+(clip-lora|tpt)": (MINUTES, "trains what the suite trains elsewhere"),
    r"^(mmprompt serve|mmprompt studio|curl)": (MINUTES, "serves until it is stopped; the suite has tests of both"),
    r"^mmprompt caption (eval  --out|train --focus emotions)": (MINUTES, "learns the other focuses in full"),
    r"^(torchrun|accelerate)": (MINUTES, "starts processes that load all again"),
}
"""Lines that take longer than the suite has even when they are cut short, how long, and why; the first that fits. The
scripts among them run in tests/test_docs_scripts.py, for their first figures alone.
"""
LONGER_AS_TYPED = {
    r"^mmprompt compare --shots 1,4,16 --seed 1,2,3,4,5": HOURS,
    r"^mmprompt compare (--data openart-left|.*--backbone smollm2)": HOURS,
    r"^mmprompt (compare|protocol|tune|llm search)|backbone (photo|smollm2)|runs/tune|^mmprompt llm convert --prompt":
        MINUTES,
}  # fmt: skip
"""Lines that the suite runs cut short, and how long they take as they stand."""
CELLS = "--seed=1 --n-steps=2 --shots=1"
SHORTER = {
    "train": "--epochs=1",
    "caption train": "--n-steps=2",
    "llm train": "--n-steps=2",
    "llm search": "--n-steps=1 --shots=2",
    "compare": CELLS,
    **{verb: f"{CELLS} --data=caltech101,dtd" for verb in VERBS if verb.startswith("protocol ")},
    "tune": "--seed=1 --shots=1 --trials=2 --workers=1 --data=caltech101 --root=data",
}
"""What is added to a line in the suite alone."""
SMALLER = {
    r"^(mmprompt caption .*--backbone) photo\b": r"\1 tiny+hf:lm",
    r"--backbone photo(-small)?\b": "--backbone clip",
    r"--backbone smollm2\b": "--backbone hf:lm",
    r"^(mmprompt compare .*--data) openart-[\w,-]+": r"\1 my/pictures",
    r"--data runs/texts/\S+": "--data examples/data/emoji_kinds.jsonl",
    r"runs/photos-text-probe-16shots-seed1": "runs/first",
}
"""Models and data that take the place of larger ones in the suite alone."""
KINDS = ("animal", "food", "travel", "activity", "object", "person")
"""Labels of the example on the page of language models."""
SERVES = {"mmprompt serve": 8000, "mmprompt studio": 7860, "python -m http.server": 8000}
"""What serves until it is stopped, and where."""
STAND_INS = {
    "open_clip:ViT-B-16/openai": "clip",
    "open_clip:RN50/openai": "resnet",
    "timm:vit_base_patch16_224.augreg_in21k": "timm",
    "hf:FOLDER": "hf:lm",
    "PATH/stories260K-hf": "lm",
    "DATA": REAL_DATA or "data",
    "DIR": REAL_DATA or "data",
    "FILE": "file.json",
    "USER/NAME": "ada/first",
    "RUN": "runs/first",
    "...": "--data my/pictures --out runs/own",
}
"""What a reader puts in the place of a word."""


def lines_of(page: Path) -> list[str]:
    """The lines of all blocks of a page, each once, continued ones joined, without comments; what one names by
    `NAME="..."` is put in.
    """
    blocks, lines, named = COMMANDS.findall(page.read_text()), dict[str, None](), dict[str, str]()
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        line = re.sub(r"\s+# .*|^# .*", "", line).strip()
        if name := re.fullmatch(r'(\w+)="(.*)"', line):
            named[name[1]] = name[2]
        elif line:
            lines[re.sub(r"\$([A-Z]+)\b", lambda found: named.get(found[1], found[0]), line)] = None
    return list(lines)


def words_of(line: str) -> list[str]:
    """The words of a line, without what starts several processes."""
    words = shlex.split(line, comments=True)
    if words[:2] in (["torchrun", "--standalone"], ["accelerate", "launch"]):
        words = words[words.index("-m") + 1 :]
    return [word for word in words if word != "..."]


def verb_of(words: list[str]) -> str:
    """The verb of a line of mmprompt, empty for any other."""
    if words[:1] != ["mmprompt"]:
        return ""
    return next((name for name in (" ".join(words[1:3]), *words[1:2]) if name in VERBS), "")


def options_of(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}


@cache
def help_of(verb: str, method: str) -> set[str]:
    """The options that `mmprompt VERB --help` shows, with those of a method."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*verb.split(), *(["--method", method] if method else []), "--help"])
    return set(re.findall(r"--[a-z][a-z-]*", text.getvalue()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_the_page_are_known_with_their_options(page: Path) -> None:
    for words in map(words_of, lines_of(page)):
        if words[:1] == ["python"] and words[1:2] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words
            source = (ROOT / words[1]).read_text() + (ROOT / "scripts/bench/measure.py").read_text()
            unknown = {
                one for one in options_of(words) if one[2:].replace("-", "_") not in source and one not in source
            }
            assert unknown == set(), " ".join(words)
        if words[:1] == ["mmprompt"] and words[1:2] and not words[1].startswith("-"):
            verb = verb_of(words)
            assert verb, " ".join(words)
            method = words[words.index("--method") + 1] if "--method" in words and "," not in " ".join(words) else ""
            assert options_of(words) - help_of(verb, method) == set(), " ".join(words)


def write_image(path: Path, shade: int, draw: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = draw.integers(0, 128, (48, 48, 3)) + np.array([shade, 127 - shade, 40])
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_benchmark(root: Path, card: mp.DatasetCard, draw: np.random.Generator) -> None:
    """A few images in the layout of a published set, of four classes, as its authors and CoOp's page give it."""
    folder, names = root / card.folder, ["ant", "bee", "cat", "dog"]
    if card.layout == "imagenet":
        (folder / card.images).mkdir(parents=True)
        (folder / card.split).write_text("".join(f"n0{label} {name}\n" for label, name in enumerate(names)))
        for part, n_images in ((card.train_images, 16), (card.test_images, 3)):
            for label in range(len(names) if part or n_images == 3 else 0):
                for number in range(n_images):
                    write_image(folder / card.images / part / f"n0{label}" / f"{number}.jpg", 40 * label, draw)
        return
    parts = {"train": range(16), "val": range(16, 18), "test": range(18, 21)}
    listed = {part: [[f"{name}/{number}.jpg", label, name] for label, name in enumerate(names) for number in numbers]
              for part, numbers in parts.items()}  # fmt: skip
    for rows in listed.values():
        for path, label, _ in rows:
            write_image(folder / card.images / path, 40 * label, draw)
    if card.layout == "coop":
        (folder / card.split).write_text(json.dumps(listed))
    else:
        (folder / "variants.txt").write_text("".join(f"{name}\n" for name in names))
        for part, rows in listed.items():
            lines = "".join(f"{path.removesuffix('.jpg')} {name}\n" for path, _, name in rows)
            (folder / f"images_variant_{part}.txt").write_text(lines)


def write_checkpoints(folder: Path) -> None:
    """Checkpoints of CoOp's and of Tip-Adapter's code, for the small models, and the names of two classes."""
    (folder / "prompt_learner").mkdir()
    ctx = torch.randn(4, mp.load_backbone(str(folder / "clip")).text_width)
    torch.save({"state_dict": {"ctx": ctx}, "epoch": 50}, folder / "prompt_learner/model.pth.tar-50")
    keys = torch.nn.functional.normalize(torch.randn(mp.load_backbone(str(folder / "resnet")).embed_dim, 32), dim=0)
    torch.save(keys, folder / "keys_16shots.pt")
    torch.save(torch.eye(2).repeat_interleave(16, 0), folder / "values_16shots.pt")
    (folder / "names.txt").write_text("cat\ndog\n")


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands: images and texts of their own, published sets (small ones), and a few runs."""
    folder, draw = tmp_path_factory.mktemp("reader"), np.random.default_rng(0)
    for place in ("my/pictures", "my/photos"):
        for label, name in enumerate(("lobster", "tree")):
            for number in range(12):
                write_image(folder / place / name / f"{number}.png", 60 * label, draw)
    for name in ("new.jpg", "cat.jpg", "new/1.jpg", "new/2.jpg", "images/1.png", "images/2.png"):
        write_image(folder / name, 0, draw)
    rows = [
        {"image": f"photos/{kind}/{number}.png", "captions": [f"a {kind} by the sea", f"one {kind} in the sun"],
         "focus": "brand voice", "split": "train" if number < 8 else ("val", "test")[number % 2]}
        for kind in ("lobster", "tree") for number in range(12)
    ]  # fmt: skip
    (folder / "my/captions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "mine.yaml").write_text("data: my/photos\nbackbone: tiny\nmethod: coop\nn_ctx: 8\nepochs: 1\n")
    (folder / "labels.yaml").write_text("csv: labels.csv\nthreshold: 0.9\n")
    (folder / "names.csv").write_text("text\nmetro\nsandwich\n")
    (folder / "rows.csv").write_text("text,prompt\nmetro,a\nsandwich,b\nnight,c\n")
    (folder / "manual_template.txt").write_text('{"placeholder":"text_a"} It was {"mask"}\n')
    room = {"context_length": 40}
    small_models.save_open_clip(folder / "clip", text=room)
    small_models.save_open_clip(
        folder / "resnet", {"layers": [1] * 4, "width": 8, "head_width": 64, "patch_size": None}, room
    )
    small_models.save_timm(folder / "timm", depth=12)
    config = small_language_models.save_language_model("llama", folder / "lm") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 512}))
    write_checkpoints(folder)
    for card in list_datasets():
        if not card.archive:
            write_benchmark(folder / "data", card, draw)
    for name in ("examples", "docs/results"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("scripts", "tests", "mmprompt", "datasets_cfg"):
        (folder / name).symlink_to(ROOT / name)
    with contextlib.chdir(folder):
        assert main("train --data my/pictures --shots 2 --epochs 1 --out runs/first".split()) == 0
    for number, focus in enumerate(("emotions", "objects", "actions")):
        save_captioner(folder / "drawn" / focus, number, focus)
    for number, name in enumerate(("kinds", "a", "b", "c")):
        save_language(folder / "drawn" / name, number, {kind: [kind] for kind in KINDS})
    return folder


@pytest.fixture
def here(reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it for one page."""
    folder = tmp_path / "here"
    shutil.copytree(reader, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def as_reader(line: str) -> str:
    """A line with words of a reader's own in the place of those that stand for some."""
    for word, own in STAND_INS.items():
        line = re.sub(rf"(?<![\w/.$]){re.escape(word)}(?![\w.])", own, line)
    return line


def length_of(line: str) -> tuple[str, str]:
    """How long a line takes, cut short where it can be, and why so long; no time for one that is not run here."""
    for pattern, reason in NOT_HERE.items():
        if re.search(pattern, line):
            return "", reason
    return next((found for pattern, found in LONGER.items() if re.search(pattern, line)), (SECONDS, ""))


def length_as_typed(line: str) -> tuple[str, str]:
    """How long a line takes as it stands."""
    length, reason = length_of(line)
    if length == SECONDS:
        length = next((found for pattern, found in LONGER_AS_TYPED.items() if re.search(pattern, line)), length)
    return length, reason or length


def cut_short(line: str) -> list[str]:
    """The words of a line with small models and data in the place of larger ones, and with a step or two."""
    for pattern, small in SMALLER.items():
        line = re.sub(pattern, small, line)
    words = words_of(as_reader(line))
    verb = verb_of(words)
    own = ["--data=my/pictures"] if verb in ("train", "compare") and not {"--data", "--config"} & set(words) else []
    return [*words[1:], *own, *SHORTER.get(verb, "").split()]


def lay_out(words: list[str]) -> None:
    """Put prompts that are drawn and not learned where a line names one that no line before it has made."""
    for before, word in pairwise(["", *words]):
        drawn = Path("drawn") / word.removeprefix("runs/")
        if before != "--out" and word.startswith("runs/") and drawn.is_dir() and not Path(word).exists():
            shutil.copytree(drawn, word)


def with_commands(pages: list[Path]) -> list[Path]:
    return [page for page in pages if lines_of(page)]


@pytest.mark.skipif(HOW_LONG != SECONDS, reason="the lines are run as they are typed")
@pytest.mark.usefixtures("kept_features", "blank_figures")
@pytest.mark.parametrize("page", with_commands(PAGES), ids=lambda page: page.name)
def test_the_commands_of_seconds_run(page: Path, here: Path, hub: Hub) -> None:
    for line in lines_of(page):
        if length_of(line)[0] != SECONDS:
            continue
        words = cut_short(line)
        lay_out(words)
        began = time.process_time()
        assert main(words) == 0, line
        sys.stdout.write(f"{time.process_time() - began:.1f} s: {line}\n")


def run_as_typed(line: str, url: str, until: contextlib.ExitStack) -> int:
    """Run a line with bash; one that serves does so until the page ends, and is well when it listens."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    del environment["MMPROMPT_CACHE_LIMIT"]
    if line.startswith("mmprompt prompt pu"):
        environment |= {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    command = ["bash", "-c", f"set -eo pipefail; {line}"]
    port = next((port for start, port in SERVES.items() if line.startswith(start)), 0)
    if not port:
        return subprocess.run(command, input="hello\n", text=True, env=environment, check=False).returncode
    served = until.enter_context(subprocess.Popen([*command[:2], f"exec {line}"], env=environment))
    until.callback(served.terminate)
    for _ in range(120):
        time.sleep(1)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return served.poll() or 0
    return 1


@pytest.mark.skipif(HOW_LONG == SECONDS, reason="MMPROMPT_DOCS=minutes or hours runs them")
@pytest.mark.parametrize("page", with_commands(PAGES), ids=lambda page: page.name)
def test_the_commands_run_as_they_are_typed(page: Path, here: Path, hub: Hub) -> None:
    failed = []
    with contextlib.ExitStack() as until:
        for line in lines_of(page):
            length, reason = length_as_typed(line)
            if length in ("", HOURS if HOW_LONG == MINUTES else ""):
                sys.stdout.write(f"not run ({reason}): {line}\n")
                continue
            lay_out(words_of(as_reader(line)))
            started = time.monotonic()
            code = run_as_typed(as_reader(line), hub.url, until)
            sys.stdout.write(f"exit {code} after {time.monotonic() - started:.0f} s: {line}\n")
            sys.stdout.flush()
            if code:
                failed.append(line)
    assert failed == []


def test_every_reason_is_that_of_a_line() -> None:
    lines = [line for page in PAGES for line in lines_of(page)]
    unused = [
        pattern
        for pattern in NOT_HERE | LONGER | LONGER_AS_TYPED | SMALLER
        if not any(re.search(pattern, line) for line in lines)
    ]
    assert unused == []

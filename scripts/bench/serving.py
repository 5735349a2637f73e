"""Many prompts on one frozen model against many calls and against a process a prompt: memory, throughput, latency.

    python scripts/bench/serving.py --prompts 100

Prompts are drawn, not trained: what is measured does not depend on their values. Every answer is compared with the one
that the same prompt gives without a server. Each setting is asked by as many clients; memory is the proportional
set size, in which pages that processes share are divided among them.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import mmprompt as mp
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.template import ClassTemplate
from mmprompt.core.learned import Learned, Prompt
from mmprompt.models.sites import Site

TOLERANCE = 1e-5
NAMES = ("car", "dog", "house", "tree", "ship", "cat", "happy face", "sun", "banana", "rocket")


def write_prompts(folder: Path, n_prompts: int) -> None:
    """Prompts of 4 context vectors over 10 classes, each drawn anew."""
    backbone = mp.load_backbone("tiny", device="cpu")
    for number in range(n_prompts):
        generator = torch.Generator().manual_seed(number)
        vectors = torch.randn(4, backbone.text_width, generator=generator) * 0.02
        prompt = Prompt(ClassTemplate("{soft*4} {name}."), Learned(Site("text"), vectors))
        mp.save(Classifier(backbone, prompt, NAMES).eval(), folder / f"prompt{number:05d}")


def draw_images(n: int) -> list[bytes]:
    rng, files = np.random.default_rng(0), []
    for _ in range(n):
        pixels = rng.integers(0, 80, (96, 96, 3)) + rng.integers(0, 170, 3)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return files


@contextmanager
def server(folder: Path) -> Iterator[tuple[int, str]]:
    """A server as a process: its number and address."""
    command = [sys.executable, "-m", "mmprompt", "serve", str(folder), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                found = re.search(r"http://[\d.:]+", line)
                if found:
                    yield process.pid, found[0]
                    break
        finally:
            process.terminate()
            process.wait(60)


def memory_mb(pids: Sequence[int], what: str = "Pss") -> float:
    """Proportional set size of some processes, or another line of the kernel's, such as what is no file's."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(re.search(rf"^{what}:\s+(\d+)", text, re.MULTILINE)[1]) for text in texts) / 1024  # type: ignore[index]


def ask(address: str, prompts: Sequence[str], image: str) -> list[dict[str, Any]]:
    body = json.dumps({"prompts": prompts, "images": [image], "top_k": len(NAMES)}).encode()
    request = urllib.request.Request(f"{address}/images", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        found: list[dict[str, Any]] = json.load(response)["answers"]
    return found


Expected = dict[tuple[str, int], np.ndarray]


def check(answers: Sequence[dict[str, Any]], expected: Expected, image: int) -> None:
    for answer in answers:
        given = np.array([answer["probabilities"][name] for name in NAMES])
        assert np.abs(given - expected[answer["prompt"], image]).max() < TOLERANCE, answer


def load_test(
    addresses: Sequence[str], prompts: Sequence[Sequence[str]], images: Sequence[str], expected: Expected, args: Any
) -> dict[str, float]:
    """Ask for some seconds with several clients; each request is a set of prompts of one address."""
    seconds: list[float] = []
    failures: list[BaseException] = []
    end = time.perf_counter() + args.seconds

    def client(number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            while time.perf_counter() < end:
                place, image = int(rng.integers(len(prompts))), int(rng.integers(len(images)))
                started = time.perf_counter()
                answers = ask(addresses[place % len(addresses)], prompts[place], images[image])
                seconds.append(time.perf_counter() - started)
                check(answers, expected, image)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(args.clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    wall = time.perf_counter() - started
    p50, p99 = np.percentile(seconds, [50, 99])
    n_answers = len(seconds) * len(prompts[0])
    return {"answers_per_s": n_answers / wall, "requests": len(seconds), "p50_ms": 1000 * p50, "p99_ms": 1000 * p99}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--processes", type=int, default=4, help="of the setting with a process a prompt")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        result = measure(Path(place), args)
    print(f"\n{args.prompts} prompts, {args.clients} clients, {os.cpu_count()} cores, tiny, images of 96 pixels")
    print("| | memory, MB | answers/s | p50, ms | p99, ms | answers/s a GB |\n|---|---|---|---|---|---|")
    for what, row in result["rows"].items():
        row["answers_per_s_gb"] = row["answers_per_s"] / row["memory_mb"] * 1024
        numbers = [row[key] for key in ("memory_mb", "answers_per_s", "p50_ms", "p99_ms", "answers_per_s_gb")]
        print(f"| {what} | {' | '.join(f'{number:,.4g}' for number in numbers)} |")
    print(f"a prompt more: {result['kb_a_prompt']:.0f} KB of memory, {result['kb_on_disk']:.0f} KB on disk")
    print(json.dumps(result | {"settings": vars(args)}))


def measure(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Start servers with one prompt, with all, and one for each of some, and ask."""
    files = draw_images(16)
    images = [base64.b64encode(data).decode() for data in files]
    rows: dict[str, dict[str, float]] = {}
    write_prompts(root / "all", args.prompts)
    names = sorted(path.name for path in (root / "all").iterdir())
    backbone = mp.load_backbone("tiny", device="cpu")
    expected = {}
    for name in names:
        table = mp.load(root / "all" / name, backbone).predict_proba(files)
        expected |= {(name, image): row for image, row in enumerate(table)}
    for name in names[: args.processes]:
        (root / f"only-{name}").mkdir()
        (root / f"only-{name}" / name).symlink_to(root / "all" / name)
    with server(root / f"only-{names[0]}") as (pid, address):
        ask(address, names[:1], images[0])
        alone_mb = memory_mb([pid], "Anonymous")
    with server(root / "all") as (pid, address):
        ask(address, names, images[0])
        quiet_mb = memory_mb([pid], "Anonymous")
        rows["one call of all prompts"] = load_test([address], [names], images, expected, args)
        rows["a call a prompt"] = load_test([address], [[name] for name in names], images, expected, args)
        rows["one call of all prompts"]["memory_mb"] = rows["a call a prompt"]["memory_mb"] = memory_mb([pid])
    each = [[name] for name in names[: args.processes]]
    with ExitStack() as stack:
        servers = [stack.enter_context(server(root / f"only-{name}")) for name in names[: args.processes]]
        rows["a process a prompt"] = load_test([address for _, address in servers], each, images, expected, args)
        pids = [pid for pid, _ in servers]
        rows["a process a prompt"]["memory_mb"] = memory_mb(pids) / args.processes * args.prompts
    size_kb = sum(path.stat().st_size for path in (root / "all" / names[0]).iterdir()) / 1024
    more_kb = (quiet_mb - alone_mb) * 1024 / max(1, args.prompts - 1)
    return {"rows": rows, "kb_a_prompt": more_kb, "kb_on_disk": size_kb}


if __name__ == "__main__":
    main()

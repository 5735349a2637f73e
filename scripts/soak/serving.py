"""A server under many clients for minutes: every kind of prompt mixed, garbage, slow clients, prompts that change, a
full disk. Every answer is compared with the one that the same prompt gives without a server.

    python scripts/soak/serving.py --minutes 10 --clients 64 --crowd 256

Needs Linux. The prompts lie on a tmpfs of a few megabytes that is filled up again and again, where one can be mounted;
else files are cut off as a full disk would.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import mmprompt as mp
from mmprompt.errors import UserError
from scripts.bench.serving import draw_images, memory_mb
from tests.fixtures.served_prompts import TEXTS, as_base64, frozen, save_captioner, save_classifier, save_language

TOLERANCE = 1e-5
FIXED = ("objects", "moods", "visual", "feelings", "places", "animals", "times", "answers")
CHANGING = "changing"
MAX_TOKENS = 8
N_SLOW, CROWD_SECONDS, SAMPLE_SECONDS = 2, 59, 2
MOST_GROWTH = 1.05
"""Of the server's memory, from the second quarter to the last."""
Answer = dict[str, Any]


def write_prompts(folder: Path) -> None:
    """Prompts of every kind, and two versions of one that changes, beside the folder."""
    save_classifier(folder / "objects", 1, ["car", "dog", "house"])
    save_classifier(folder / "moods", 2, ["happy face", "sad face"])
    save_classifier(folder / "visual", 3, ["car", "dog", "tree"], n_visual=2)
    save_captioner(folder / "feelings", 5, "feelings")
    save_captioner(folder / "places", 6, "places")
    save_language(folder / "animals", 7, {"animal": ["dog", "cat"], "thing": ["car"]})
    save_language(folder / "times", 8, {"day": ["sun"], "night": ["moon", "night"]})
    save_language(folder / "answers", 9)


def said(one: Any) -> Answer:
    return {"label": one.label, **one.probabilities} if hasattr(one, "label") else {"text": one.text}


def offline(folder: Path, images: list[Path]) -> list[Answer]:
    """What a prompt says of each input without a server."""
    from mmprompt.core.header import read_header
    from mmprompt.language.generation import generate_texts
    from mmprompt.models.decoder.generation_config import Generation

    kind = read_header(folder)["kind"]
    predictor: Any = mp.load(folder, frozen(kind))
    if kind != "language":
        return [said(one) for one in predictor.predict(images)]
    if predictor.label_words is not None:
        return [said(one) for one in predictor.predict(TEXTS)]
    rows = [predictor.row_of(text) for text in TEXTS]
    return [said(one) for one in generate_texts(predictor, rows, Generation(max_tokens=MAX_TOKENS))]


def is_same(given: Answer, expected: Answer) -> bool:
    found = given.get("probabilities", {}) | {name: given[name] for name in ("label", "text") if name in given}
    numbers = {name: value for name, value in expected.items() if isinstance(value, float)}
    return found.keys() == expected.keys() and all(
        abs(found[name] - value) < TOLERANCE if name in numbers else found[name] == value
        for name, value in expected.items()
    )


class Soak:
    """What is asked, what is expected, and what came of it."""

    def __init__(self, port: int, images: list[str], expected: dict[str, list[list[Answer]]]) -> None:
        self.port, self.images, self.expected = port, images, expected
        self.seconds: list[float] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.is_over = False

    def run(self, n_clients: int, seconds: float) -> None:
        """Ask with so many clients, `N_SLOW` of them slow, for so long."""
        self.is_over = False
        works: list[Callable[[random.Random], None]] = [self.ask] * (n_clients - N_SLOW) + [self.drip] * N_SLOW
        threads = [threading.Thread(target=self.client, args=(work, n)) for n, work in enumerate(works)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.is_over = True
        for thread in threads:
            thread.join()

    def client(self, work: Callable[[random.Random], None], number: int) -> None:
        rng = random.Random(number)
        while not self.is_over:
            try:
                work(rng)
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                time.sleep(0.2)

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def request(self, rng: random.Random) -> tuple[str, str, int, bytes]:
        """A prompt, the path, the number of an input and the body."""
        name = rng.choice((*FIXED, CHANGING))
        if name in ("animals", "times", "answers"):
            number = rng.randrange(len(TEXTS))
            asked: Any = {"prompts": [name], "texts": [TEXTS[number]], "max_tokens": MAX_TOKENS}
            return name, "/texts", number, json.dumps(asked).encode()
        number = rng.randrange(len(self.images))
        return name, "/images", number, json.dumps({"prompts": [name], "images": [self.images[number]]}).encode()

    def ask(self, rng: random.Random) -> None:
        """One request in a hundred is garbage."""
        name, path, number, body = self.request(rng)
        if rng.random() < 0.01:
            status, content = self.post(path, spoilt(body, rng))
            self.counts["garbage"] += 1
            if status >= 500 or (status != 200 and "detail" not in content):
                self.wrong.append(f"garbage got {status}: {content}")
            return
        started = time.perf_counter()
        status, content = self.post(path, body)
        if status == 429:
            self.counts["turned away"] += 1
            time.sleep(0.5)
            return
        self.seconds.append(time.perf_counter() - started)
        self.counts["answered"] += 1
        if status != 200 or not any(is_same(content["answers"][0], version[number]) for version in self.expected[name]):
            self.wrong.append(f"{name} got {status}: {content}")

    def drip(self, rng: random.Random) -> None:
        """Send a request in drops, some of which never end."""
        _, path, _, body = self.request(rng)
        head = (
            f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        data, n_drops = head.encode() + body, 40
        size = len(data) // n_drops + 1
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            for place in range(0, len(data) - (size if rng.random() < 0.3 else 0), size):
                connection.sendall(data[place : place + size])
                time.sleep(0.05)
                if self.is_over:
                    return
            answer = connection.recv(65536)
        self.counts["dripped"] += 1
        if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 408", b"HTTP/1.1 429")):
            self.wrong.append(f"a slow client got {answer[:100]!r}")


def spoilt(body: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(5)
    if kind == 0:
        return rng.randbytes(rng.randrange(2000))
    if kind == 1:
        return body[: rng.randrange(len(body))]
    if kind == 2:
        return body.replace(b'"prompts": ["', b'"prompts": ["../')
    if kind == 3:
        return b"[" * 50_000
    place = rng.randrange(len(body))
    return body[:place] + rng.randbytes(8) + body[place + 8 :]


def change_prompts(
    folder: Path, versions: list[Path], is_small: bool, over: threading.Event, done: Counter[str]
) -> None:
    """Swap one prompt, add and remove others, and fill up the disk, again and again."""
    turn = 0
    while not over.wait(0.5):
        turn += 1
        target = folder / CHANGING
        filler = folder / ".filler"
        if turn % 5 == 0 and is_small:
            with contextlib.suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            for name in ("prompt.safetensors", "prompt.json"):  # the one before stays, whatever is left of these
                with contextlib.suppress(OSError):
                    shutil.copy(versions[0] / name, target / f".{name}")
                    (target / f".{name}").replace(target / name)
            with contextlib.suppress(OSError, UserError):
                shutil.copytree(versions[1], folder / "late", dirs_exist_ok=True)
            done["written to a full disk"] += 1
            over.wait(1.5)
            filler.unlink(missing_ok=True)
            shutil.rmtree(folder / "late", ignore_errors=True)
        elif turn % 5 == 1:
            data = (versions[0] / "prompt.safetensors").read_bytes()
            (target / "prompt.safetensors").write_bytes(data[: len(data) // 2])
            done["broken"] += 1
        else:
            for name in ("prompt.safetensors", "prompt.json"):
                with contextlib.suppress(OSError):
                    shutil.copy(versions[turn % 2] / name, target / name)
            done["changed"] += 1


@contextlib.contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[bool]:
    """A folder that holds so much, and whether there is one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder)]
    is_small = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield is_small
    finally:
        if is_small:
            subprocess.run(["umount", str(folder)], check=False)


def summary(soak: Soak, wall: float) -> dict[str, Any]:
    p50, p99 = np.percentile(soak.seconds, [50, 99]) * 1000
    return {
        "seconds": wall,
        **soak.counts,
        "requests_per_s": len(soak.seconds) / wall,
        "p50_ms": p50,
        "p99_ms": p99,
        "wrong": len(soak.wrong),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--crowd", type=int, default=256, help="clients of one minute more")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, small_disk(Path(place) / "prompts", 1024) as is_small:
        root, folder = Path(place), Path(place) / "prompts"
        write_prompts(folder)
        versions = [root / "first", root / "second"]
        for seed, version in enumerate(versions):
            save_classifier(version, 20 + seed, ["car", "dog", "ship"])
        shutil.copytree(versions[0], folder / CHANGING)
        images = []
        for number, data in enumerate(draw_images(8)):
            images.append(root / f"{number}.png")
            images[-1].write_bytes(data)
        expected = {name: [offline(folder / name, images)] for name in FIXED}
        expected[CHANGING] = [offline(version, images) for version in versions]
        command = [sys.executable, "-m", "mmprompt", "serve", str(folder), "--port", "0", "--device", "cpu"]
        log = (root / "log").open("w")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder) as server:
            assert server.stdout is not None
            try:
                port = next(int(m[1]) for line in server.stdout if (m := re.search(r"http://127.0.0.1:(\d+)", line)))
                soak = Soak(port, [as_base64(path) for path in images], expected)
                result = measure(args, server, soak, folder, versions)
            finally:
                server.kill()  # where an error comes before its end, nothing else would end it
        result |= {"cores": os.cpu_count(), "tmpfs": is_small}
        print((root / "log").read_text()[-2000:], file=sys.stderr)
        if "Traceback" in (root / "log").read_text():
            result |= {"wrong": "a traceback in the log", "is_fine": False}
    print(json.dumps(result, indent=1))
    sys.exit(0 if result["is_fine"] else 1)


def measure(
    args: argparse.Namespace, server: subprocess.Popen[str], soak: Soak, folder: Path, versions: list[Path]
) -> dict[str, Any]:
    """Run the clients beside what changes the folder, then the crowd, then end the server under load."""
    over, changes, samples = threading.Event(), Counter[str](), []
    is_small = folder.is_mount()
    changing = threading.Thread(target=change_prompts, args=(folder, versions, is_small, over, changes))
    changing.start()

    def sample() -> None:
        while not over.wait(SAMPLE_SECONDS):
            samples.append(memory_mb([server.pid]))

    sampling = threading.Thread(target=sample)
    sampling.start()
    started = time.perf_counter()
    soak.run(args.clients, 60 * args.minutes)
    over.set()
    sampling.join()
    changing.join()
    result: dict[str, Any] = {"soak": summary(soak, time.perf_counter() - started), "changes": dict(changes)}
    quarter = max(1, len(samples) // 4)
    early, late = (float(np.mean(part)) for part in (samples[quarter : 2 * quarter], samples[-quarter:]))
    result["memory_mb"] = {"second quarter": early, "last quarter": late, "most": max(samples)}
    crowd = Soak(soak.port, soak.images, soak.expected)
    started = time.perf_counter()
    crowd.run(args.crowd, CROWD_SECONDS)
    result["crowd"] = summary(crowd, time.perf_counter() - started)
    last = Soak(soak.port, soak.images, soak.expected)
    ending = threading.Timer(2, server.send_signal, [signal.SIGTERM])  # with requests under way
    ending.start()
    last.run(16, 6)
    result["exit code"] = server.wait(60)
    cut = [line for line in last.wrong if not line.startswith("ConnectionRefusedError")]
    result["end"] = {"answered": last.counts["answered"], "cut": cut[:5]}
    wrong = soak.wrong + crowd.wrong
    result["is_fine"] = not wrong and late < MOST_GROWTH * early and result["exit code"] == 0
    result["first wrong"] = wrong[:5]
    return result


if __name__ == "__main__":
    main()

"""`mmprompt serve` as a process: it starts, answers, takes signals and ends with what was asked answered."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mmprompt.cli.main import main
from tests.fixtures.served_prompts import as_base64, wait_until

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def process(served_folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server with a key, and its address."""
    command = [sys.executable, "-m", "mmprompt", "serve", str(served_folder), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(
        command, env=os.environ | {"MMPROMPT_API_KEY": "k"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        found = re.search(r"http://127.0.0.1:\d+", lines[2])
        assert found, lines
        assert lines[1].split()[1:5] == ["2", "of", "captioning", "on"]
        yield process, found[0]
        process.kill()


def test_requests_under_way_are_answered_before_it_ends(
    process: tuple[subprocess.Popen[str], str], served_pictures: list[Path]
) -> None:
    server, address = process
    headers = {"authorization": "Bearer k"}
    wait_until(lambda: is_healthy(address))
    statuses: list[int] = []
    asked = {"prompts": ["feelings", "places", "tuned"], "images": [as_base64(path) for path in served_pictures]}

    def ask() -> None:
        statuses.append(httpx.post(f"{address}/images", json=asked, headers=headers, timeout=60).status_code)

    def n_under_way() -> float:
        text = httpx.get(f"{address}/metrics", headers=headers).text
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith("mmprompt_requests_under_")))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: n_under_way() == 1 + 4)
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
    assert server.stdout is not None
    assert server.stderr is not None
    assert server.stdout.read().endswith("ended\n")
    assert "Traceback" not in server.stderr.read()
    for thread in threads:
        thread.join(10)
    assert statuses == [200] * 4


def is_healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: is no folder"),
        (["FOLDER", "--host", "0.0.0.0"], "no API key was set. Give --api-key, or set MMPROMPT_API_KEY."),
        (["FOLDER", "--host", "example.invalid"], "no API key was set"),
        (["FOLDER", "--port", "TAKEN"], "cannot be listened at"),
        (["FOLDER", "--port", "99999"], "(it is no port). Choose another --port, or 0 for a free one."),
        (["FOLDER", "--host", "192.0.2.1", "--api-key", "k"], "Give an address of this computer as --host."),
        (["FOLDER", "--host", "example.invalid", "--api-key", "k"], "Give an address of this computer as --host."),
        (["FOLDER", "--max-body-mb", "0"], "max_body_mb is 0.0"),
        (["FOLDER", "--timeout-s", "nan"], "timeout_s is nan"),
        (["FOLDER", "--max-batch", "0"], "max_batch is 0"),
        (["FOLDER", "--reload-s", "-1"], "reload_s is -1.0"),
        (["FOLDER", "--api-key", "ä"], "letters, digits and signs of ASCII"),
        (["FOLDER/objects"], "is itself a prompt"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    words: list[str], said: str, served_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.delenv("MMPROMPT_API_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = [word.replace("FOLDER", str(served_folder)).replace("TAKEN", port) for word in words]
        if "--port" not in line:
            line += ["--port", "0"]
        assert main(["serve", *line]) == 2
    err = capsys.readouterr().err.strip()
    assert err.count("\n") == 0
    assert said in err

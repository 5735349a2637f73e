"""What a server refuses, with which status, in one line; and that it lives on."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from mmprompt.serve.app import make_app
from mmprompt.serve.limits import Limits
from mmprompt.serve.prompts import PromptFolder
from mmprompt.serve.service import Service
from tests.fixtures.served_prompts import as_base64, running, wait_until

LIMITS = Limits(max_body_mb=0.25, max_megapixels=0.02, max_batch=4, timeout_s=2)
KEY = "a key"


@pytest.fixture(scope="module")
def strict(prompts: PromptFolder) -> Iterator[str]:
    """A server that takes little, with a key."""
    with running(make_app(prompts, LIMITS, KEY), LIMITS) as address:
        yield address


def post(address: str, path: str, content: Any, **more: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json", **more}
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return httpx.post(f"{address}{path}", content=body, headers=headers, timeout=20)


def png(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


SMALL = png(8, 8)
NOISE = base64.b64encode(b"no image at all").decode()
CASES: list[tuple[str, Any, int, str]] = [
    ("/images", {"prompts": ["nobody"], "images": [SMALL]}, 404, "there is no prompt named 'nobody'"),
    ("/images", {"prompts": ["../objects"], "images": [SMALL]}, 404, "there is no prompt named"),
    ("/images", {"prompts": ["/etc/passwd\0"], "images": [SMALL]}, 404, "there is no prompt named"),
    ("/images", {"prompts": ["objects"], "images": ["not base64!"]}, 422, "images[0] is no base64"),
    ("/images", {"prompts": ["objects"], "images": [SMALL, NOISE]}, 422, "images[1]: is not an image"),
    ("/images", {"prompts": ["objects"], "images": [png(200, 200)]}, 422, "has more than 0.02 megapixels"),
    ("/images", {"prompts": ["objects"], "images": [SMALL] * 5}, 413, "5 answers were asked for"),
    ("/images", {"prompts": ["objects"], "images": []}, 422, "images: "),
    ("/images", {"prompts": [], "images": [SMALL]}, 422, "prompts: "),
    ("/images", {"prompts": "objects", "images": [SMALL]}, 422, "prompts: "),
    ("/images", {"prompts": ["animals"], "images": [SMALL]}, 422, "Ask /texts"),
    ("/images", {"prompts": ["objects"], "images": [SMALL], "topk": 1}, 422, "topk: "),
    ("/images", {"prompts": ["objects"], "images": [SMALL], "top_k": 0}, 422, "top_k: "),
    ("/images", {"prompts": ["objects"], "images": [7]}, 422, "images.0: "),
    ("/texts", {"prompts": ["objects"], "texts": ["a"]}, 422, "Ask /images"),
    ("/texts", {"prompts": ["animals"], "texts": [{"word": "a"}]}, 422, "the field 'text' is missing"),
    ("/texts", {"prompts": ["animals"], "texts": ["a" * 20_001]}, 422, "texts.0"),
    ("/texts", {"prompts": ["animals"], "texts": ["\ud800"]}, 422, "texts.0"),
    ("/texts", {"prompts": ["animals"], "texts": ["dog " * 4000]}, 422, "tokens"),
    ("/texts", {"prompts": ["answers"], "texts": ["a"], "max_tokens": 10**9}, 422, "max_tokens: "),
    ("/texts", {"prompts": ["animals"], "texts": ["a"], "task": "x" * 300}, 422, "task: "),
    ("/texts", b'{"prompts": NaN}', 422, "prompts: "),
    ("/texts", b"{", 400, "no JSON"),
    ("/texts", b"[" * 100_000, 400, ""),
    ("/texts", b"\xff\xfe", 400, ""),
    ("/texts", b"", 422, ""),
    ("/texts", b"x" * 300_000, 413, "more than 0.25 MiB"),
    ("/texts", b"x" * 3_000_000, 413, "more than 0.25 MiB"),
    ("/prompts", {}, 405, ""),
    ("/nothing", {}, 404, ""),
]


@pytest.mark.parametrize(("path", "content", "status", "said"), CASES)
def test_what_is_wrong_is_said_in_one_line(strict: str, path: str, content: Any, status: int, said: str) -> None:
    response = post(strict, path, content)
    detail = response.json()["detail"]
    assert (response.status_code, said in detail) == (status, True), detail
    assert detail
    assert len(detail) < 400
    assert detail.isprintable()
    assert post(strict, "/images", {"prompts": ["objects"], "images": [SMALL]}).status_code == 200


def test_a_body_that_does_not_say_that_it_is_json_is_refused(strict: str) -> None:
    response = post(strict, "/texts", {"prompts": ["animals"], "texts": ["a"]}, **{"content-type": "text/plain"})
    assert response.status_code == 422
    assert "Content-Type: application/json" in response.json()["detail"]


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "%00", "objects%2f..%2fmoods", "x" * 3000])
def test_no_name_in_an_address_becomes_a_path(strict: str, name: str) -> None:
    response = httpx.get(f"{strict}/prompts/{name}", headers={"authorization": f"Bearer {KEY}"})
    assert response.status_code == 404


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer other"}, {"authorization": KEY}])
def test_without_the_key_only_health_is_told(strict: str, header: dict[str, str]) -> None:
    assert httpx.get(f"{strict}/health", headers=header).json() == {"status": "ok", "prompts": 12}
    for path in ("/prompts", "/metrics", "/openapi.json", "/nothing"):
        response = httpx.get(f"{strict}{path}", headers=header)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
    assert post(strict, "/texts", b"x" * 300_000, authorization="Bearer other").status_code == 401


def send(address: str, data: bytes, pause_s: float = 0.0, rest: bytes = b"") -> bytes:
    """Send bytes, and after a pause others, and read until the server closes the connection."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        if pause_s:
            time.sleep(pause_s)
            connection.sendall(rest)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


HEAD = f"POST /texts HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"


def test_a_body_that_comes_too_slowly_is_given_up(strict: str) -> None:
    started = time.monotonic()
    answer = send(strict, f"{HEAD}content-length: 1000\r\n\r\n{{".encode())
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"took more than 2 seconds" in answer
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("data", [b"", b"POST /texts HT", HEAD.encode()])
def test_a_connection_that_never_finishes_to_ask_is_closed(strict: str, data: bytes) -> None:
    started = time.monotonic()
    assert send(strict, data) == b""
    assert 1.5 < time.monotonic() - started < 10


def test_a_body_that_is_announced_as_endless_is_not_read(strict: str) -> None:
    assert send(strict, f"{HEAD}content-length: 99999999999\r\n\r\n".encode()).startswith(b"HTTP/1.1 413 ")


def test_what_is_no_http_is_answered_as_such(strict: str) -> None:
    assert send(strict, b"\x16\x03\x01 no http \r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_an_answer_that_fails_and_a_client_that_goes_away_are_counted_as_such(
    prompts: PromptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(service: Service, asked: object) -> None:
        raise RuntimeError

    def n_counted(status: int) -> float:
        text = httpx.get(f"{address}/metrics").text
        found = re.search(rf'requests_total{{method="POST",path="/texts",status="{status}"}} (\S+)', text)
        return float(found[1]) if found else 0

    monkeypatch.setattr(Service, "ask_of_texts", fail)
    with running(make_app(prompts)) as address:
        assert post(address, "/texts", {"prompts": ["animals"], "texts": ["a"]}).status_code == 500
        assert n_counted(500) == 1
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{HEAD}content-length: 1000\r\n\r\n{{".encode())
        wait_until(lambda: n_counted(499) == 1)
        assert n_counted(0) == 0


def test_too_much_that_waits_is_turned_away(prompts: PromptFolder, served_pictures: list[Path]) -> None:
    import asyncio

    limits = Limits(max_batch=1)
    asked = {"prompts": ["objects"], "images": [as_base64(served_pictures[0])]}

    async def ask_at_once(address: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            return await asyncio.gather(*(client.post("/images", json=asked) for _ in range(60)))

    with running(make_app(prompts, limits), limits) as address, prompts.in_use:
        task = asyncio.new_event_loop()
        try:
            pending = task.create_task(ask_at_once(address))
            task.run_until_complete(asyncio.wait({pending}, timeout=3))
            prompts.in_use.release()
            responses = task.run_until_complete(pending)
            prompts.in_use.acquire()
        finally:
            task.close()
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429}
    assert 16 <= statuses.count(200) <= 18
    assert next(r for r in responses if r.status_code == 429).headers["retry-after"] == "1"

"""What a server takes of a stranger: who may ask, how much, and how long. Beyond that, a refusal in one line. What was
asked is counted for Prometheus.

It stands in front of the application and reads bodies itself, so that none is longer or slower than it may be.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Gt, Le
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmprompt.serve.prompts import PromptFolder
from mmprompt.settings import Count, check_settings

OPEN = "/health"
"""What may be asked without a key."""
DRAINED = 4
"""Times the limit that is read of a long body before its sender is cut off: who is told early does not listen."""
HELD = 16
"""Times the limit that all bodies under way may take together."""
GONE = 499
"""What is counted where the client went away before it had asked; nginx calls it so."""
PATHS = frozenset({"/health", "/metrics", "/openapi.json", "/prompts", "/images", "/texts"})


@dataclass(frozen=True)
class Limits:
    """What a request may take."""

    max_body_mb: Annotated[float, Gt(0), Le(2048)] = 16.0
    """Longest body of a request, in MiB."""
    max_megapixels: Annotated[float, Gt(0), Le(100)] = 50.0
    """Largest image, in millions of pixels."""
    max_batch: Count = 256
    """Most answers of a request, inputs times prompts; also how many are computed together."""
    timeout_s: Annotated[float, Gt(0), Le(86400)] = 30.0
    """Longest a request may take, its body and its answer together, in seconds."""

    def __post_init__(self) -> None:
        check_settings(self)


class Metrics:
    """Counters and times of requests, and what the folder of prompts holds now."""

    def __init__(self, prompts: PromptFolder) -> None:
        self.registry = registry = CollectorRegistry()
        self.prompts = prompts
        ProcessCollector(registry=registry)
        registry.register(self)
        labels = ("method", "path")
        self.requests = Counter("mmprompt_requests", "Requests.", (*labels, "status"), registry=registry)
        self.seconds = Histogram("mmprompt_request_seconds", "From the first byte on.", labels, registry=registry)
        self.under_way = Gauge("mmprompt_requests_under_way", "Requests not answered yet.", registry=registry)
        sizes = tuple(2**power for power in range(11))
        self.batches = Histogram("mmprompt_batch_size", "Questions.", buckets=sizes, registry=registry)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """See `CollectorRegistry`."""
        yield GaugeMetricFamily("mmprompt_prompts", "Prompts in use.", len(self.prompts.prompts))
        yield GaugeMetricFamily("mmprompt_prompts_refused", "Prompts that are not.", len(self.prompts.refused))

    def measure(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request; what strangers make up gets no label of its own."""
        if path not in PATHS:
            path = "/prompts/{name}" if path.startswith("/prompts/") else "other"
        known = method if method in ("GET", "POST") else "other"
        self.requests.labels(known, path, status).inc()
        self.seconds.labels(known, path).observe(seconds)


class GoneError(Exception):
    """The client went away."""


class Gate:
    """ASGI middleware that holds requests to limits, and to an API key where there is one."""

    def __init__(self, app: ASGIApp, limits: Limits, api_key: str | None, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.expected = None if api_key is None else f"Bearer {api_key}".encode()
        self.n_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            with self.metrics.under_way.track_inprogress():
                async with asyncio.timeout(self.limits.timeout_s):
                    await self._pass_on(scope, receive, watched)
        except GoneError:
            status = GONE
        except (HTTPException, TimeoutError) as error:
            late = f"the request took more than {self.limits.timeout_s:g} seconds, which is the limit. Ask for less."
            refusal = error if isinstance(error, HTTPException) else HTTPException(408, late)
            if status == 0:
                headers = {"connection": "close", **(refusal.headers or {})}
                await JSONResponse({"detail": refusal.detail}, refusal.status_code, headers)(scope, receive, watched)
        except Exception:  # what stands in front of this answers it
            status = status or 500
            raise
        finally:
            self.metrics.measure(scope["method"], scope["path"], status, time.perf_counter() - started)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self.expected is not None and scope["path"] != OPEN:
            if not hmac.compare_digest(headers.get(b"authorization", b""), self.expected):
                say = "the API key is missing or wrong. Send the header Authorization: Bearer KEY."
                raise HTTPException(401, say, {"www-authenticate": "Bearer"})
        body = bytearray()
        try:
            await self._read(headers.get(b"content-length", b"0"), receive, body)
            sent = {"type": "http.request", "body": bytes(body), "more_body": False}

            async def replay() -> Message:
                nonlocal sent
                message, sent = sent, {"type": "http.disconnect"}
                return message

            await self.app(scope, replay, send)
        finally:
            self.n_held -= len(body)

    async def _read(self, announced: bytes, receive: Receive, body: bytearray) -> None:
        limit, n_read, has_more = int(self.limits.max_body_mb * 2**20), 0, True
        too_long = HTTPException(
            413, f"the body has more than {self.limits.max_body_mb:g} MiB, which is the limit. Split it."
        )
        if announced.isdigit() and len(announced) < 20 and int(announced) > DRAINED * limit:
            raise too_long
        while has_more:
            message: dict[str, Any] = dict(await receive())
            if message["type"] == "http.disconnect":
                raise GoneError
            part, has_more = message.get("body", b""), message.get("more_body", False)
            n_read += len(part)
            if n_read <= limit:
                body += part
                self.n_held += len(part)
            if n_read > DRAINED * limit:
                break
            if self.n_held > HELD * limit:
                raise HTTPException(429, "too many long requests are under way. Ask again later.", {"retry-after": "1"})
        if n_read > limit:
            raise too_long

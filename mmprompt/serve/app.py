"""The server: what can be asked over HTTP, how a refusal is worded, and uvicorn with the one limit that it lacks, on a
connection that never finishes to ask.

Images and texts come in JSON, images as base64.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmprompt.errors import UserError, visible
from mmprompt.serve.batching import BusyError
from mmprompt.serve.limits import Gate, Limits
from mmprompt.serve.prompts import PromptFolder
from mmprompt.serve.schemas import (
    REFUSALS,
    UNKEYED,
    Answers,
    Health,
    ImagesAsked,
    PromptFacts,
    Prompts,
    Said,
    TextsAsked,
)
from mmprompt.serve.service import Service
from mmprompt.version import __version__

CONNECTIONS = 1000
"""At once; those beyond are turned away with status 503."""
KEEP_ALIVE_S = 5


def make_app(
    prompts: PromptFolder, limits: Limits | None = None, api_key: str | None = None, reload_s: float = 1.0
) -> FastAPI:
    """Make the ASGI application that answers with the prompts of a folder, looked at every `reload_s` seconds.

    With an `api_key`, `Authorization: Bearer` must say it everywhere but at `/health`.
    """
    service = Service(prompts, limits or Limits(), reload_s)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="mmprompt",
        version=__version__,
        description="Many prompts on one frozen model of each kind.",
        lifespan=life,
        docs_url=None,  # their pages are fetched from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Gate, limits=service.limits, api_key=api_key, metrics=service.metrics)
    _refuse_in_one_line(app)
    _add_routes(app, service, is_keyed=api_key is not None)
    return app


def _add_routes(app: FastAPI, service: Service, is_keyed: bool) -> None:
    secured = [Security(HTTPBearer(auto_error=False))] if is_keyed else []  # for the document; the gate holds the key

    @app.get("/health")
    async def health() -> Health:
        """Say that the server answers."""
        return Health(status="ok", prompts=len(service.prompts.prompts))

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=secured, responses=UNKEYED)
    async def metrics() -> PlainTextResponse:
        """Give what Prometheus reads."""
        return PlainTextResponse(generate_latest(service.metrics.registry))

    @app.get("/prompts", response_model_exclude_none=True, dependencies=secured, responses=UNKEYED)
    async def prompts() -> Prompts:
        """List the prompts."""
        in_use = [PromptFacts(**served.facts) for _, served in sorted(service.prompts.prompts.items())]
        return Prompts(prompts=in_use, refused=service.prompts.refused)

    missing = UNKEYED | {404: REFUSALS[404]}

    @app.get("/prompts/{name}", response_model_exclude_none=True, dependencies=secured, responses=missing)
    async def prompt(name: str) -> PromptFacts:
        """Say what one prompt is."""
        return PromptFacts(**service.find([name])[0].facts)

    @app.post("/images", response_model_exclude_none=True, dependencies=secured, responses=REFUSALS)
    async def images(asked: ImagesAsked) -> Answers:
        """Label or caption images, each with each prompt."""
        return Answers(answers=[Said(**one) for one in await service.ask_of_images(asked)])

    @app.post("/texts", response_model_exclude_none=True, dependencies=secured, responses=REFUSALS)
    async def texts(asked: TextsAsked) -> Answers:
        """Label texts or answer them, each with each prompt."""
        return Answers(answers=[Said(**one) for one in await service.ask_of_texts(asked)])


def _refuse_in_one_line(app: FastAPI) -> None:
    """Answer what goes wrong with a status and one line, which repeats little of what was sent."""

    def say(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"detail": visible(" ".join(detail.split()))}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def bad_body(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if "json" not in request.headers.get("content-type", ""):
            return say(422, "the body is not said to be JSON. Send the header Content-Type: application/json.")
        if first["type"] == "json_invalid":
            return say(400, "the body is no JSON. Send an object as /openapi.json describes it.")
        place = ".".join(str(part)[:60] for part in first["loc"][1:]) or "the body"
        return say(422, f"{place}: {first['msg']}. /openapi.json says what is expected.")

    @app.exception_handler(UserError)
    async def refused(_: Request, error: UserError) -> JSONResponse:
        return say(422, str(error))

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        return say(429, "too many requests are waiting. Ask again later.", {"retry-after": "1"})

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return say(500, f"the answer failed ({type(error).__name__}). The server's log says where.")


def make_server(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """Make a server that ends with what is under way answered."""

    class Protocol(H11Protocol):
        """Closes a connection that has no request under way for as long as a request may take."""

        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.unwatch()

        def watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self.unwatch()
            elif self.deadline is None:
                self.deadline = self.loop.call_later(limits.timeout_s, self.transport.close)

        def unwatch(self) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(limits.timeout_s) + 1,
    )
    return uvicorn.Server(config)

"""The HTTP server, uvicorn, with the one limit that it lacks: on a connection that never finishes to ask."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmprompt.serve.limits import Limits

CONNECTIONS = 1000
"""At once; those beyond are turned away with status 503."""
KEEP_ALIVE_S = 5


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

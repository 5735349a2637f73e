"""`mmprompt serve`: a server over a folder of prompts, until it is told to stop."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.errors import UserError, bad_value
from mmprompt.terminal.output import Device, Output
from mmprompt.terminal.parser import parse

KEY = "MMPROMPT_API_KEY"
NO_ADDRESS = {errno.EADDRNOTAVAIL, socket.EAI_NONAME, socket.EAI_AGAIN}
"""What the system says of a host that is none of this computer's."""
INSTALL = 'pip install "mmprompt[serve]"'
SERVE = "Answer over HTTP with every prompt of a folder, on one frozen model of each kind."


@dataclass(frozen=True)
class ServeSettings:
    """What is served, where, and to whom."""

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER")]]
    """Holds a run folder, or any saved prompt, for each name; what changes in it is taken in while the server runs."""
    host: str = "127.0.0.1"
    """Address to listen at; one that others can reach needs an API key."""
    port: Annotated[int, tyro.conf.arg(metavar="INT")] = 8000
    """0 takes a free one."""
    api_key: Annotated[str | None, tyro.conf.arg(metavar="KEY")] = None
    """What `Authorization: Bearer KEY` must say; by default that of the environment variable MMPROMPT_API_KEY."""
    max_body_mb: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 16.0
    """Longest body of a request, in MiB."""
    max_megapixels: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 50.0
    """Largest image, in millions of pixels."""
    max_batch: Annotated[int, tyro.conf.arg(metavar="INT")] = 256
    """Most answers of a request, inputs times prompts; also how many are computed together."""
    timeout_s: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 30.0
    """Longest a request may take, in seconds."""
    reload_s: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 1.0
    """Seconds between two looks at the folder."""
    device: Device = "auto"


def run(arguments: Sequence[str], prog: str) -> None:
    """Serve until a signal comes; what was asked before is answered first."""
    settings = parse(ServeSettings, arguments, prog, SERVE)
    api_key = settings.api_key or os.environ.get(KEY) or None
    if not settings.reload_s > 0:
        raise bad_value("reload_s", settings.reload_s, "it must be above 0", "Use --reload-s 1.")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise bad_value("api_key", "another text", "letters, digits and signs of ASCII were expected", "Choose such.")
    if api_key is None and not _is_loopback(settings.host):
        advice = f"Give --api-key, or set {KEY}."
        raise bad_value("host", settings.host, "others reach it there and no API key was set", advice)
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the server needs {name}, which is not installed. Install it: {INSTALL}.")
    listening = _listen(settings.host, settings.port)
    with listening:
        _serve(settings, api_key, listening)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before any work."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no port"
        advice = "Choose another --port, or 0 for a free one."
        if getattr(error, "errno", None) in NO_ADDRESS:
            advice = "Give an address of this computer as --host."
        raise UserError(f"{host}:{port} cannot be listened at ({reason}). {advice}") from None


def _serve(settings: ServeSettings, api_key: str | None, listening: socket.socket) -> None:
    output = Output(as_json=False)
    output.say(f"loading   {settings.folder}")
    from mmprompt.serve.app import make_app, make_server
    from mmprompt.serve.limits import Limits
    from mmprompt.serve.prompts import PromptFolder

    limits = Limits(settings.max_body_mb, settings.max_megapixels, settings.max_batch, settings.timeout_s)
    prompts = PromptFolder(settings.folder, settings.device)
    prompts.refresh()
    logging.getLogger("mmprompt.serve").setLevel(logging.INFO)  # from now on, what changes is said
    kinds = Counter(served.kind for served in prompts.prompts.values())
    listed = ", ".join(f"{n} of {kind} on {prompts.models[kind].name}" for kind, n in sorted(kinds.items()))
    host, port = listening.getsockname()[:2]
    output.say(f"prompts   {listed or 'none yet'}")
    output.say(f"listening http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl+C ends it)")
    server = make_server(make_app(prompts, limits, api_key, settings.reload_s), limits)
    for number in (signal.SIGINT, signal.SIGTERM):  # which uvicorn raises again once it has ended
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listening])
    output.say("ended")

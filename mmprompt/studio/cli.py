"""`mmprompt studio`: a web page on this computer to train, try, edit and take along prompts."""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.errors import UserError, bad_value
from mmprompt.reports.pages import require_extra
from mmprompt.reports.tables import counted
from mmprompt.terminal.output import Device, Output, check_place
from mmprompt.terminal.parser import parse

DESCRIPTION = "Open a page in the browser to train, try and edit prompts. Everything stays on this computer."
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """Where it runs, and with which models."""

    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/studio")
    """The work folder: images, runs and prompts of every session."""
    port: Annotated[int, tyro.conf.arg(metavar="INT")] = 7860
    """Of the page's address."""
    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = LOOPBACK[0]
    """Which of this computer's addresses it answers on; any but 127.0.0.1 can be reached from others, and there is no
    password."""
    backbone: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = ()
    """More frozen models for images to choose from, such as open_clip:ViT-B-16/openai."""
    captioner: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = ()
    """More frozen captioners to choose from, such as hf:Salesforce/blip-image-captioning-base or a folder."""
    language_model: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = ()
    """More frozen language models to choose from, such as hf:NAME or a folder."""
    device: Device = "auto"


def run(arguments: Sequence[str], prog: str) -> None:
    """Serve the page until it is interrupted."""
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    if not 1 <= settings.port <= 65535:
        raise bad_value("port", settings.port, "1 to 65535 was expected", "Use --port 7860.")
    if not _is_own(settings.host):
        advice = f"Use --host {LOOPBACK[0]}."
        raise bad_value("host", settings.host, "an address of this computer was expected", advice)
    if importlib.util.find_spec("gradio") is None:
        raise UserError('the studio needs gradio, which is not installed. Run `pip install "mmprompt[studio]"`.')
    require_extra()
    check_place(settings.out)
    output = Output(as_json=False)
    output.say("Opening the studio ...")
    prepare(settings.out)

    from mmprompt.studio.pages.page import serve
    from mmprompt.studio.prompts import Models
    from mmprompt.studio.session import KEPT_DAYS, Studio

    models = Models(settings.backbone, settings.captioner, settings.language_model, settings.device)
    studio = Studio(settings.out, models)
    page, address = serve(studio, settings.host, settings.port)
    output.say(f"The studio is at {address}. Ctrl-C ends it.")
    forgotten = f" {counted(studio.n_forgotten, 'session')} was just deleted." if studio.n_forgotten else ""
    output.say(
        f"Each browser's work is a folder in {studio.sessions}; one that nobody opened for {KEPT_DAYS} days is deleted "
        f"when a studio starts.{forgotten}",
        "dim",
    )
    if settings.host not in LOOPBACK:
        output.say("Note: whoever reaches this address can use it; there is no password.", "dim")
    try:
        threading.Event().wait()
    finally:
        page.close()


def _is_own(host: str) -> bool:
    """Return whether a server can listen at an address, whatever the port."""
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        return False
    return True


def prepare(folder: Path) -> None:
    """Keep Gradio from asking the network anything, and its uploads in the work folder; before it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder.resolve() / "uploads")

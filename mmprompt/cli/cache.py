"""`mmprompt data cache`: which image features are kept on disk, how much room they take, and dropping them."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from mmprompt.models.feature_store import LIMIT_VARIABLE, Contents, FeatureStore, features_folder, limit_bytes
from mmprompt.terminal.output import JSON_HELP, Output, shorten
from mmprompt.terminal.parser import parse

DESCRIPTION = "The image features kept on disk, so that no picture is encoded twice."


@dataclass(frozen=True)
class Settings:
    """What is done with the stored features."""

    clear: bool = False
    """Drop all of them. Nothing is asked and nothing is lost but time: they are computed again when needed."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run(arguments: Sequence[str], prog: str) -> None:
    """List what is kept, or drop it and say what was dropped.

    Raises:
        UserError: the store cannot be used, or the limit is not a size.
    """
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    output = Output(settings.json)
    folder, limit = features_folder(), limit_bytes()
    store = FeatureStore(folder, limit)
    held = store.clear() if settings.clear else store.contents()
    if held:
        headers = ["backbone", "transform", "rows", "MB", "last used"]
        output.table(headers, [cells_of(contents) for contents in held], numbers=(2, 3))
        output.say()
    size = sum(contents.size_bytes for contents in held)
    if settings.clear:
        output.say(f"Dropped {megabytes(size)} MB from {folder}." if held else f"Nothing to drop in {folder}.")
    else:
        output.say(f"{megabytes(size)} MB of at most {megabytes(limit)} MB ({LIMIT_VARIABLE}) in {folder}.")
    counted = {"folder": str(folder), "size_bytes": size, "limit_bytes": limit, "is_cleared": settings.clear}
    output.document({**counted, "features": [asdict(contents) for contents in held]})


def cells_of(contents: Contents) -> list[str]:
    """Return one line of the table."""
    name = f"{contents.backbone} ({contents.fingerprint[:8]})" if contents.fingerprint else contents.backbone
    used = datetime.datetime.fromtimestamp(contents.last_used).strftime("%Y-%m-%d %H:%M")
    return [name, shorten(contents.transform, 48), f"{contents.rows:,}", megabytes(contents.size_bytes), used]


def megabytes(size_bytes: int) -> str:
    """Return a size in units of 2**20 bytes, with one digit after the point below 100."""
    size = size_bytes / 2**20
    return f"{size:,.1f}" if size < 100 else f"{size:,.0f}"

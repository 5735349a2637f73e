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
    """What is done with them."""

    clear: bool = False
    """Drop all of them. Nothing is asked and nothing is lost but time: they are computed again when needed."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run(arguments: Sequence[str], prog: str) -> None:
    """List what is kept, or drop it and say what went.

    Raises:
        UserError: another version wrote the store, it is in use, or the limit is no size.
    """
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    output = Output(settings.json)
    folder, limit = features_folder(), limit_bytes()
    store = FeatureStore(folder, limit)
    found = store.clear() if settings.clear else store.contents()
    if found:
        headers = ["backbone", "transform", "rows", "MB", "last used"]
        output.table(headers, [row_of(one) for one in found], numbers=(2, 3))
        output.say()
    size = sum(one.size_bytes for one in found)
    if settings.clear:
        output.say(f"Dropped {megabytes(size)} MB from {folder}." if found else f"Nothing to drop in {folder}.")
    else:
        output.say(f"{megabytes(size)} MB of at most {megabytes(limit)} MB ({LIMIT_VARIABLE}) in {folder}.")
    listed = [asdict(one) for one in found]
    counted = {"folder": str(folder), "size_bytes": size, "limit_bytes": limit}
    output.document({**counted, "is_cleared": settings.clear, "features": listed})


def row_of(one: Contents) -> list[str]:
    """One line of the table."""
    name = f"{one.backbone} ({one.fingerprint[:8]})" if one.fingerprint else one.backbone
    used = datetime.datetime.fromtimestamp(one.last_used).strftime("%Y-%m-%d %H:%M")
    return [name, shorten(one.transform, 48), f"{one.rows:,}", megabytes(one.size_bytes), used]


def megabytes(size_bytes: int) -> str:
    """A size in units of 2**20 bytes, with one digit behind the point below 100."""
    size = size_bytes / 2**20
    return f"{size:,.1f}" if size < 100 else f"{size:,.0f}"

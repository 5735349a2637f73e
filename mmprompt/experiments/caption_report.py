"""The report of caption prompts: tables, the curve over strength, and pictures with what each prompt says of them."""

from __future__ import annotations

from pathlib import Path

from mmprompt.data.captions import CaptionData
from mmprompt.files import make_folder, write_json
from mmprompt.tasks.caption_measure import CaptionMeasure


def write_caption_report(measure: CaptionMeasure, data: CaptionData, folder: Path, command: str) -> Path:
    """Write `metrics.json`."""
    make_folder(folder)
    path = folder / "metrics.json"
    write_json(path, measure.to_dict())
    return path

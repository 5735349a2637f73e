"""The report of a run of a captioner or a language model, from its folder alone: what was learned from what, how the
training went, and what is to be known of it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mmprompt.core.header import read_header
from mmprompt.files import read_json
from mmprompt.reports.figures import draw_learning_curve
from mmprompt.reports.pages import Draw, require_extra, write_page
from mmprompt.training.run_files import read_log

VERBS = {"captioning": "caption eval --prompts", "language": "llm eval --prompt"}
"""What measures a run, by its kind."""


def write_report(folder: Path) -> Path:
    """Write `report.html` and `learning_curve.png` of a finished run into its folder.

    Args:
        folder: a run folder.
    Returns:
        The path of the HTML file.
    Raises:
        UserError: the folder holds no finished run, or the report extra is not installed.
    """
    require_extra()
    header = read_header(folder)
    run = read_json(folder / "run.json") if (folder / "run.json").is_file() else header["training"]
    log = read_log(folder / "log.jsonl") if (folder / "log.jsonl").is_file() else []
    items = "training images" if header["kind"] == "captioning" else "training rows"
    charts: dict[str, Draw] = {"learning_curve": partial(draw_learning_curve, log, learned_from=items)} if log else {}
    verb = f"{VERBS.get(header['kind'], 'eval')} {folder.name}"
    return write_page(folder, "run", charts, {}, header=header, run=run, log=log, run_name=folder.name, verb=verb)

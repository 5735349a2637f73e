"""Draw the README's strip: images, and what the captioner says of them without a prompt and with each learned one.

python scripts/draw_captions.py RUN RUN RUN --out docs/images/captions_strip.png
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.captioning.data import load_captions
from mmprompt.captioning.measure import measure_captions
from mmprompt.captioning.predictor import load_captioner_of, load_focus
from mmprompt.captioning.report import draw_strip
from mmprompt.files import make_folder, write_bytes
from mmprompt.reports.figures import LIGHT


@dataclass(frozen=True)
class Settings:
    """What is drawn, and where it goes."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]]
    """Run folders of prompts, one a focus."""
    out: Path
    """The PNG file."""
    data: str = "openart-scenes"
    """Images with captions."""
    n_images: int = 5
    """How many are shown."""


def main(settings: Settings) -> None:
    """Measure the prompts on the test part, and draw what they say."""
    captioner = load_captioner_of(settings.runs, None, "cpu")
    data = load_captions(settings.data)
    prompts = [load_focus(run, captioner) for run in settings.runs]
    measure = measure_captions(captioner, data, prompts, strengths=())
    make_folder(settings.out.parent)
    write_bytes(settings.out, draw_strip(measure, data, settings.n_images, LIGHT))


if __name__ == "__main__":
    main(tyro.cli(Settings))

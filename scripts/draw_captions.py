"""Draw the README's strip: images, and what the captioner says of them without a prompt and with each learned one.

python scripts/draw_captions.py RUN RUN RUN --out docs/images/captions_strip.png
"""

from pathlib import Path
from typing import Annotated

import tyro

import mmprompt as mp
from measuring import run_main
from mmprompt.captioning.measure import measure_captions
from mmprompt.captioning.predictor import load_captioner_of, load_focus
from mmprompt.captioning.report import draw_strip
from mmprompt.files import make_folder, write_bytes
from mmprompt.reports.figures import LIGHT


def main(
    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]],
    out: Path,
    data: str = "openart-scenes",
    n_images: int = 5,
) -> None:
    """Measure the prompts on the test part, and draw what they say.

    Args:
        runs: run folders of prompts, one a focus.
        out: the PNG file.
        data: images with captions.
        n_images: how many are shown.
    """
    captioner = load_captioner_of(runs, None, "cpu")
    scenes = mp.load_captions(data)
    prompts = [load_focus(run, captioner) for run in runs]
    measure = measure_captions(captioner, scenes, prompts, strengths=())
    make_folder(out.parent)
    write_bytes(out, draw_strip(measure, scenes, n_images, LIGHT))


if __name__ == "__main__":
    run_main(main, __doc__)

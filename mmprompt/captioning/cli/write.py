"""`mmprompt caption write`: captions of images, steered by learned prompts, words or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mmprompt.captioning.cli.train import DATA, Device
from mmprompt.captioning.data import load_captions
from mmprompt.captioning.decoding import Decoding
from mmprompt.core.header import read_header
from mmprompt.data.images import IMAGE_SUFFIXES
from mmprompt.errors import bad_value
from mmprompt.progress import ProgressDisplay
from mmprompt.terminal.output import JSON_HELP, Output
from mmprompt.terminal.parser import parse

if TYPE_CHECKING:
    from mmprompt.captioning.predictor import Guidance
    from mmprompt.captioning.readers.captioner import FrozenCaptioner
    from mmprompt.core.learned import Prompt


SHOWN = 8
DESCRIPTION = (
    f"Write captions of images, with a learned prompt, several, or none. Without images: of {SHOWN} drawn scenes."
)


@dataclass(frozen=True)
class Settings:
    """What is captioned, and how captions are steered."""

    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGES...")]] = ()
    """Image files and folders of images."""
    prompt: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")] = ()
    """Run folders of prompts; several are mixed. None is the captioner as it is."""
    weights: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER...")] = ()
    """Weights of several prompts, by default the same for all."""
    strength: Annotated[float, tyro.conf.arg(metavar="NUMBER")] = 1.0
    """0 is the captioner without a prompt, 1 the plain prompt, more pushes harder."""
    avoid: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """The run folder of a prompt to push away from."""
    avoid_strength: Annotated[float, tyro.conf.arg(metavar="NUMBER")] = 0.5
    """How hard to push away."""
    words: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """A focus in words instead of a learned prompt."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The captioner, if it is not the one that the prompt names."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A JSONL file with a row an image; run again, it goes on where it stopped."""
    rerank: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """A dual encoder that orders the n best captions of an image by likeness too; needs --n-best."""
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False
    decoding: Decoding = field(default_factory=Decoding)


def run(arguments: Sequence[str], prog: str) -> None:
    """Write captions to a file or to the screen.

    Raises:
        UserError: a prompt, a number or a place cannot be used.
    """
    settings = parse(Settings, arguments, prog, DESCRIPTION)

    from mmprompt.captioning.predictor import Captioner, load_captioner_of
    from mmprompt.captioning.writing import caption_rows, describe_images, find_images
    from mmprompt.models.dual_encoder.load import load_backbone

    output = Output(settings.json)
    refuse_idle(settings)
    if settings.images:
        images = find_images(settings.images)
    else:
        images = [(item.image_id, item.image) for item in load_captions(DATA).test[:SHOWN]]
    folders = [*settings.prompt, *([] if settings.avoid is None else [settings.avoid])]
    hashes = {folder: read_header(folder, "captioning")["tensors_sha256"] for folder in folders}
    captioner = load_captioner_of(folders, settings.backbone, settings.device)
    guidance = read_guidance(settings, captioner)
    if not settings.images:
        output.say(f"No images were given: these are the first {len(images)} test scenes of {DATA}.\n")
    ranker = None if settings.rerank is None else load_backbone(settings.rerank, settings.device)
    describe = describe_images(Captioner(captioner, guidance, settings.decoding), ranker)
    kept = {key: value for key, value in asdict(settings).items() if key not in ("images", "out", "json", "device")}
    prompt = [hashes[folder] for folder in settings.prompt]  # two halves of one file are by the same prompts
    avoid = None if settings.avoid is None else hashes[settings.avoid]
    facts = kept | {"prompt": prompt, "avoid": avoid, "backbone": captioner.fingerprint}
    with ProgressDisplay() as progress:
        rows = caption_rows(describe, images, settings.out, facts, progress.count("writing captions"))
    shown = rows if settings.out is None else rows[:SHOWN]
    output.table(["image", "caption"], [[row["image"], row.get("caption", f"({row.get('error')})")] for row in shown])
    if settings.out is not None:
        n_broken = sum("error" in row for row in rows)
        broken = f", {n_broken} of them for broken images" if n_broken else ""
        output.say(f"\n{len(rows)} rows in {settings.out}{broken}.")
    output.document({"settings": facts, "captions": rows})


def refuse_idle(settings: Settings) -> None:
    """Refuse images among the prompts, options without effect, and weights that are not as many as the prompts.

    Raises:
        UserError: there are some.
    """
    for path in settings.prompt:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise bad_value("prompt", path, "the run folder of a prompt was expected", "Name images before --prompt.")
    n_prompts = len(settings.prompt) + (settings.words is not None)
    if settings.weights and len(settings.weights) != n_prompts:
        given = " ".join(f"{weight:g}" for weight in settings.weights)
        expected = f"one number for each prompt was expected, {n_prompts} in all"
        raise bad_value("weights", given, expected, "Give as many as prompts, or none.")
    if settings.strength != Settings.strength and not n_prompts:
        advice = "Add --prompt RUN or --words TEXT."
        raise bad_value("strength", settings.strength, "there is no prompt to weigh", advice)
    if settings.avoid_strength != Settings.avoid_strength and settings.avoid is None:
        raise bad_value("avoid_strength", settings.avoid_strength, "there is nothing to avoid", "Add --avoid RUN.")
    if settings.rerank is not None and settings.decoding.n_best < 2:
        raise bad_value("rerank", settings.rerank, "there is one caption an image", "Add --n-beams 4 --n-best 4.")


def read_guidance(settings: Settings, captioner: FrozenCaptioner) -> Guidance:
    """Make the guidance that the options describe.

    Raises:
        UserError: a number is out of range, or a prompt is of another captioner.
    """
    from mmprompt.captioning.predictor import Guidance, hard_prompt, load_focus

    prompts: list[Prompt] = [load_focus(folder, captioner) for folder in settings.prompt]
    if settings.words is not None:
        prompts.append(hard_prompt(captioner, "words", settings.words))
    weights = settings.weights or (1.0,) * len(prompts)
    avoid = None if settings.avoid is None else load_focus(settings.avoid, captioner)
    pairs = tuple(zip(prompts, weights, strict=True))
    return Guidance(pairs, settings.strength, avoid, settings.avoid_strength)

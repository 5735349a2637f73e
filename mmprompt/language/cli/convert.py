"""`mmprompt llm convert`: a prompt as PEFT reads it, or one that PEFT wrote as a run folder of ours."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.language.cli.options import TEMPLATE_HELP, Loading, read_verbalizer
from mmprompt.terminal.output import Json, Output, check_folder, check_place
from mmprompt.terminal.parser import parse

DESCRIPTION = "Write a prompt as PEFT reads it, or read one that PEFT wrote; nothing is learned."


@dataclass(frozen=True)
class Settings:
    """From where, and where to."""

    prompt: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """The run folder of a prompt, to be written as PEFT's."""
    to_peft: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """The new folder for PEFT."""
    kind: Literal["prefix", "lora"] | None = None
    """prefix writes vectors as the keys and values that the model makes of them and of all that stands before them;
    lora writes low-rank terms without the vectors that were learned with them."""
    from_peft: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A folder that PEFT wrote: prompt tuning, P-tuning, prefix tuning, multitask prompt tuning or LoRA."""
    from_openprompt: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A file of OpenPrompt's templates, one a line: shown as they are for --template."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The new run folder."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The frozen model; needed with --from-peft."""
    template: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help=TEMPLATE_HELP)] = None
    verbalizer: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LABEL=WORD,WORD...")] = ()
    """The words of each label, for a prompt of PEFT's that tells labels apart."""
    task: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which task of a prompt of several; by default all."""
    json: Json = False
    loading: Loading = field(default_factory=Loading)


def run(arguments: Sequence[str], prog: str) -> None:
    """Write the one form or the other."""
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    output = Output(settings.json)
    if settings.from_openprompt is not None:
        alone = Settings(from_openprompt=settings.from_openprompt, json=settings.json, loading=settings.loading)
        if settings != alone:
            raise bad_value("from_openprompt", settings.from_openprompt, "it stands alone", "Leave all else out.")
        show_templates(output, settings.from_openprompt)
        return
    if settings.prompt is not None and settings.to_peft is not None and settings.from_peft is None:
        written = settings.to_peft
        write_for_peft(settings, settings.prompt, written)
        output.say(f"PEFT reads {written}: PeftModel.from_pretrained(model, {str(written)!r})")
    elif settings.from_peft is not None and settings.out is not None and not (settings.prompt or settings.to_peft):
        written = settings.out
        read_from_peft(settings, settings.from_peft, written)
        output.say(f"The prompt is in {written}.")
        output.say(f"Next: mmprompt llm generate --prompt {shlex.quote(str(written))} --input TEXT")
    else:
        ways = f"{prog} --prompt RUN --to-peft FOLDER, {prog} --from-peft FOLDER --backbone NAME --out RUN, "
        ways += f"or {prog} --from-openprompt FILE"
        raise UserError(f"it is not clear what is to be converted: one of three ways was expected. Write {ways}.")
    output.document({"written": str(written)})


def show_templates(output: Output, path: Path) -> None:
    """Print each line of a file of OpenPrompt's as a template of ours, or why it is none."""
    from mmprompt.language.templates.openprompt import read_openprompt

    found = read_openprompt(path)
    for one in found:
        if one.template is None:
            output.say(f"Line {one.line}: {one.problem}", "dim")
            continue
        output.say(one.template)
        for note in one.notes:
            output.say(f"Line {one.line}: {note}", "dim")
    n_read = sum(one.template is not None for one in found)
    if not n_read:
        raise bad_file(path, f"none of its {len(found)} lines can be converted", found[0].problem or "")
    output.say(f"{n_read} of {len(found)} lines are converted.", "dim")
    output.document({"templates": [asdict(one) for one in found]})


def write_for_peft(settings: Settings, folder: Path, target: Path) -> None:
    """Write a run's prompt into a folder for PEFT."""
    from mmprompt.language.peft import CONFIG
    from mmprompt.language.peft_save import save_peft

    for name, given in (("template", settings.template), ("verbalizer", settings.verbalizer), ("out", settings.out)):
        if given:
            raise bad_value(name, repr(given), "the prompt has its own", f"Leave --{name} out.")
    if (target / CONFIG).exists():
        raise bad_file(target, "holds a prompt of PEFT already", "Give another --to-peft.")
    check_place(target)
    _, (prompted,) = settings.loading.model_and_prompts([folder], settings.backbone)
    save_peft(prompted, target, settings.kind, settings.task)


def read_from_peft(settings: Settings, folder: Path, target: Path) -> None:
    """Write a prompt of PEFT's as a run folder."""
    from mmprompt.core.file import save
    from mmprompt.language.peft import load_peft

    if settings.backbone is None:
        raise bad_value("backbone", "empty", "PEFT's folders do not say which one", "Give --backbone NAME.")
    if settings.kind is not None:
        raise bad_value("kind", settings.kind, "it is for --to-peft", "Leave --kind out.")
    check_folder(target)
    verbalizer = read_verbalizer(settings.verbalizer, [item.partition("=")[0] for item in settings.verbalizer])
    model = settings.loading.model(settings.backbone)
    prompted = load_peft(folder, model, settings.template, verbalizer, settings.task)
    save(prompted, target, {"method": {"name": "PEFT", "settings": {}}})

"""The entry: it picks the verb, and turns what goes wrong into one line and an exit code.

It knows the verbs by name and imports a verb's file only when that verb is asked for, so that
`mmprompt --help` answers at once and never imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmprompt.errors import UserError, bad_file, is_first_process, unknown_name, visible
from mmprompt.terminal.parser import in_options, remember
from mmprompt.training.problem import RunFailed
from mmprompt.version import __version__

ENDLESS = {"serve", "studio"}
"""Verbs that wait for others, and may be silent."""
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""What torch says in a RuntimeError, where Python has its MemoryError."""
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Verb:
    """A command: the function that runs it, its arguments in a usage line, and what it does in one sentence."""

    module: str
    function: str
    usage: str
    summary: str


VERBS = {
    "train": Verb("classification.cli.train", "run", "", "learn a prompt from a few images of each class"),
    "eval": Verb("cli.run", "run_eval", "RUN", "measure a run of any kind beside the frozen model alone"),
    "predict": Verb("cli.predict", "run", "RUN INPUTS...", "label or caption images, or answer texts, with a run"),
    "inspect": Verb("cli.run", "run_inspect", "RUN", "what a prompt holds, and the words nearest to it"),
    "explain": Verb("cli.explain", "run", "RUN", "what it learned: words, vectors, classes, where it looks, what next"),
    "report": Verb("cli.run", "run_report", "RUN", "write the report of a finished run anew"),
    "export": Verb("cli.run", "run_export", "RUN", "a finished run as ONNX, class weights, or what PEFT reads"),
    "compare": Verb("cli.compare", "run", "", "compare methods and baselines over data sets, shots and seeds"),
    "tune": Verb("cli.tune", "run", "", "search for the settings that do best on validation"),
    "protocol few-shot": Verb("cli.compare", "run_protocol", "", "the papers' accuracy by shots"),
    "protocol base-to-new": Verb("cli.compare", "run_protocol", "", "learn some classes, test on new ones"),
    "protocol cross-dataset": Verb("cli.compare", "run_protocol", "", "learn one data set, test on others"),
    "protocol domain-generalisation": Verb("cli.compare", "run_protocol", "", "the same under a shift"),
    "prompt convert": Verb("classification.cli.convert", "run", "FILE", "a published checkpoint as a prompt of ours"),
    "prompt inspect": Verb(
        "cli.prompt", "run_inspect", "FILE", "all that a prompt file contains; --strip the needless"
    ),
    "prompt diff": Verb("cli.prompt", "run_diff", "RUN RUN", "in what two prompts differ"),
    "prompt average": Verb("cli.prompt", "run_average", "RUN RUN...", "the average of several prompts as one"),
    "prompt interpolate": Verb("cli.prompt", "run_interpolate", "RUN RUN", "a prompt between two"),
    "prompt push": Verb("cli.prompt", "run_push", "RUN USER/NAME", "upload a prompt to the Hugging Face Hub"),
    "prompt pull": Verb("cli.prompt", "run_pull", "USER/NAME", "download one from there"),
    "caption train": Verb("captioning.cli.train", "run", "", "learn what a frozen captioner speaks of"),
    "caption write": Verb("captioning.cli.write", "run", "[IMAGES...]", "write captions with a learned prompt"),
    "caption eval": Verb("captioning.cli.eval", "run", "", "measure learned prompts beside none and beside words"),
    "llm train": Verb("language.cli.train", "run", "", "learn a prompt for a frozen language model"),
    "llm eval": Verb("language.cli.eval", "run", "", "measure it beside none and beside written instructions"),
    "llm generate": Verb("language.cli.generate", "run", "", "write what a language model says with a prompt"),
    "llm search": Verb("language.cli.train", "run_search", "", "search a prompt in words, not vectors"),
    "llm convert": Verb("language.cli.convert", "run", "", "a prompt as PEFT's, or one of PEFT's as ours"),
    "serve": Verb("serve.cli", "run", "FOLDER", "answer over HTTP with every prompt of a folder"),
    "studio": Verb("studio.cli", "run", "", "a web page to train, try, edit and take along prompts"),
    "data list": Verb("cli.data", "run_list", "", "the data sets there are"),
    "data check": Verb("cli.data", "run_check", "NAME", "look a data set over before using it"),
    "data shots": Verb("cli.data", "run_shots", "NAME", "show which images a k-shot draw takes"),
    "data split": Verb("cli.data", "run_split", "FOLDER", "divide your own images once into train, val and test"),
    "data encode": Verb("cli.data", "run_encode", "IMAGES...", "encode many images now, by workers, for later"),
    "data cache": Verb("cli.data", "run_cache", "", "the image features on disk, their size, and dropping them"),
    "backbones list": Verb("cli.backbones", "run_list", "", "the frozen models a prompt can be learned for"),
    "backbones get": Verb("cli.backbones", "run_get", "NAME", "fetch photo, for photographs, or smollm2, for text"),
    "methods list": Verb("cli.methods", "run_list", "", "the ways to learn a prompt"),
    "methods show": Verb("cli.methods", "run_show", "NAME", "the settings of one method"),
    "doctor": Verb("cli.doctor", "run", "", "versions, devices, caches, and what can be fetched"),
    "completion": Verb("cli.completion", "run", "SHELL", "a script with which bash, zsh or tcsh completes this"),
}


GROUPS = {
    "Learn": ["train", "caption train", "llm train", "llm search", "tune"],
    "Use": ["predict", "caption write", "llm generate", "serve", "studio"],
    "Measure": ["eval", "caption eval", "llm eval", "compare", "protocol", "report"],
    "Understand and share": ["inspect", "explain", "prompt", "llm convert", "export"],
    "What there is": ["data", "backbones", "methods"],
}
"""Verbs, or the first words of several, under the heads of the help; all others come last."""


def help_text(group: str = "") -> str:
    """Return what `mmprompt --help` prints: every verb in one line, made from the tables above; or those of a group."""
    verbs = {name: verb for name, verb in VERBS.items() if not group or name.startswith(f"{group} ")}
    shown = {name: f"{name} {verb.usage}".rstrip() for name, verb in verbs.items()}
    width = max(len(text) for text in shown.values())
    heads = {name: head for head, names in GROUPS.items() for name in names}
    order = {name: place for place, name in enumerate(heads)}
    grouped: dict[str, list[tuple[int, str]]] = {head: [] for head in (*GROUPS, "This tool")}
    for name, verb in verbs.items():
        key = name if name in heads else name.split()[0]
        line = f"  {shown[name]:<{width}}   {verb.summary}"
        grouped[heads.get(key, "This tool")].append((order.get(key, 0), line))
    lines = "\n\n".join(
        "\n".join([f"{head}:", *(line for _, line in sorted(some, key=lambda pair: pair[0]))])
        for head, some in grouped.items()
        if some
    )
    if group:
        more = f"`mmprompt {group} VERB --help` lists a verb's settings."
        return f"usage: mmprompt {group} VERB [options]\n\n{lines}\n\n{more}"
    return f"""mmprompt: learn a few vectors that steer a frozen model.

usage: mmprompt VERB [options]

{lines}

Start with `mmprompt train`: it needs no download and no settings.
`mmprompt VERB --help` lists a verb's settings; `--json` makes its answer one JSON document;
`--config FILE` reads settings from YAML; `mmprompt --version` is the version.
Exit codes: 0 ok, 1 the run failed, 2 bad input, 130 interrupted."""


def find_verb(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split a command line into its verb of one or two words and the rest."""
    groups = {name.split()[0] for name in VERBS if " " in name}
    first, rest = words[0], list(words[1:])
    if first in VERBS:
        return first, rest
    if first not in groups:
        raise unknown_name("verb", first, {name.split()[0] for name in VERBS}, "See `mmprompt --help`.")
    members = [name.split()[1] for name in VERBS if name.startswith(f"{first} ")]
    if not rest or rest[0].startswith("-"):
        raise UserError(f"`mmprompt {first}` is not complete. It is followed by {' or '.join(members)}.")
    if rest[0] not in members:
        raise unknown_name(f"verb of `{first}`", rest[0], members, "See `mmprompt --help`.")
    return f"{first} {rest[0]}", rest[1:]


def dispatch(words: Sequence[str]) -> None:
    """Run the verb that a command line names."""
    name, rest = find_verb(words)
    verb = VERBS[name]
    remember(None)
    run = getattr(importlib.import_module(f"mmprompt.{verb.module}"), verb.function)
    from mmprompt.progress import never_silent  # rich: `--help` does without

    with contextlib.nullcontext() if name in ENDLESS else never_silent():
        run(rest, f"mmprompt {name}")


def is_group_help(words: Sequence[str]) -> bool:
    """Return whether help is asked for the whole tool or for a group of verbs such as `data`."""
    if not words or words[0] in {"-h", "--help", "help"}:
        return True
    is_group = words[0] not in VERBS and any(name.startswith(f"{words[0]} ") for name in VERBS)
    return is_group and len(words) > 1 and words[1] in {"-h", "--help"}


class _Note(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"mmprompt: note: {visible(in_options(super().format(record)))}"


@contextlib.contextmanager
def notes_on_stderr() -> Iterator[None]:
    """Show what the library logs as lines of ours, whatever other libraries have done to logging."""
    logger = logging.getLogger("mmprompt")
    handler = logging.StreamHandler()
    handler.setFormatter(_Note())
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def run_guarded(words: Sequence[str]) -> int:
    """Run a command line and give the exit code that belongs to how it ended.

    What goes wrong is one line on stderr, in the form of every error of ours and in the words of the command line.
    """
    try:
        with notes_on_stderr():
            dispatch(words)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        message, code = explain(error)
        if is_first_process() or code == FAILED:  # what is wrong with the input the first one says for all
            stream = sys.stderr if is_first_process() else sys.__stderr__
            print(f"mmprompt: error: {' '.join(in_options(message).split())}", file=stream)
        return code
    return OK


def explain(error: BaseException) -> tuple[str, int]:
    """Say what went wrong, and the exit code; of a fault of ours also where it is."""
    if isinstance(error, UserError):
        return str(error), BAD_INPUT
    if isinstance(error, RunFailed):
        return str(error), FAILED
    if isinstance(error, UnicodeEncodeError) or (isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG):
        name = error.object if isinstance(error, UnicodeEncodeError) else str(error.filename)
        return str(bad_file(name[:60], "is no path that the file system takes", "Give another.")), BAD_INPUT
    if isinstance(error, OSError) and error.filename is not None:
        return str(bad_file(error.filename, f"cannot be used ({error.strerror})", "Check it and the disk.")), FAILED
    if isinstance(error, KeyboardInterrupt):
        return (
            "interrupted. The same command goes on where it stopped; a training needs --resume for that.",
            INTERRUPTED,
        )
    if isinstance(error, MemoryError) or NO_MEMORY in str(error):
        advice = "Use a smaller --batch-size, fewer classes, or less of what is learned, such as a smaller --rank."
        return f"memory ran out. {advice}", FAILED
    if type(error).__name__ == "OutOfMemoryError":
        return "the accelerator's memory ran out. Use a smaller --batch-size, or --device cpu.", FAILED
    traceback.print_exception(error)
    return f"the run failed ({type(error).__name__}). The lines above say where; please report them.", FAILED


def prepare_streams() -> None:
    """Let no stream end the work: a closed one is written to nobody, and what an encoding lacks is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not is_first_process():
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the words after `mmprompt`, by default those of the process; return the exit code, as `help_text` says."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    prepare_streams()
    if is_group_help(words):
        print(help_text(words[0] if words and words[0] not in {"-h", "--help", "help"} else ""))
        return OK
    if words[0] == "--version":
        print(f"mmprompt {__version__}")
        return OK
    try:
        return run_guarded(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else OK if end.code is None else FAILED

"""`mmprompt llm generate --chat`: text after text with one prompt, each answered with what was said before."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmprompt.core.learned import Prompt
from mmprompt.core.template import MARK
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.language.data import TextRow
from mmprompt.language.generation import stream_text
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.template import Template
from mmprompt.progress import waiting
from mmprompt.terminal.output import Output

if TYPE_CHECKING:
    from mmprompt.language.cli.generate import Settings

ASK = "> "
_log = logging.getLogger(__name__)
Turn = tuple[str, str]
"""What was asked and what was answered."""


def chat(output: Output, prompted: LanguagePredictor, settings: Settings) -> None:
    """Ask for a text and answer it, until the input ends; labels, and templates of several fields, are refused."""
    if prompted.label_words is not None and not settings.as_text:
        raise bad_value("chat", True, "this prompt tells labels apart", "Add --as-text, or leave --chat out.")
    if len(prompted.template.fields) != 1:
        names = ", ".join(prompted.template.fields) or "none"
        raise UserError(f"a chat has one text a turn, but the template has the fields {names}. Use another template.")
    is_typed = sys.stdin.isatty()
    if is_typed:
        output.say("Ctrl-C ends an answer, Ctrl-D the chat.", "dim")
    turns: list[Turn] = []
    while True:
        try:
            with waiting():
                text = input(ASK if is_typed else "")
        except KeyboardInterrupt:
            output.say()
            continue
        except EOFError:
            return
        except UnicodeDecodeError:
            raise bad_file("standard input", "is not UTF-8 text", "Save it as UTF-8.") from None
        if not text.strip():
            continue
        pieces: list[str] = []
        turns, one, row = fitting(prompted, turns, text, settings)
        try:
            for piece in stream_text(one, row, settings.generation):
                pieces.append(piece if any(pieces) else piece.lstrip())
                output.piece(pieces[-1])
        except KeyboardInterrupt:  # what was said until then counts
            pass
        except UserError as error:
            _log.warning("%s", error)
            continue
        output.say()
        turns.append((text, "".join(pieces).strip()))


def fitting(
    prompted: LanguagePredictor, turns: Sequence[Turn], text: str, settings: Settings
) -> tuple[list[Turn], LanguagePredictor, TextRow]:
    """Lay out a text behind as many of the last turns as there is room for, and say how many are left out."""
    n_answer = settings.generation.max_tokens
    for n_left_out in range(len(turns) + 1):
        kept = list(turns[n_left_out:])
        one, row = with_history(prompted, kept, text, settings.task)
        if not kept or is_whole(one, row, n_answer):
            break
    if n_left_out:
        turns_are = "turn is" if n_left_out == 1 else "turns are"
        _log.warning("the oldest %d %s forgotten: there is no more room for prompt and answer.", n_left_out, turns_are)
    if not kept:
        one.say_cut([row], n_answer)
    return kept, one, row


def is_whole(prompted: LanguagePredictor, row: TextRow, n_answer: int) -> bool:
    """Whether a row and its answer fit without a cut."""
    try:
        prompted.question(row.fields, [(0,) * n_answer])
    except UserError:
        return False
    return not prompted.n_cut([row], n_answer)


def with_history(
    prompted: LanguagePredictor, turns: Sequence[Turn], text: str, task: str
) -> tuple[LanguagePredictor, TextRow]:
    """Put earlier turns before a text: as messages of a chat, which stand before that with the field, else as lines."""
    (name,) = prompted.template.fields
    if not (turns and prompted.template.is_chat):
        said = "".join(f"{asked}\n{answer}\n" for asked, answer in turns)
        return prompted, TextRow({name: said + text}, task=task)
    fields = {f"{role} {n}": said for n, turn in enumerate(turns) for role, said in zip("qa", turn, strict=True)}
    before = "".join(f"[[user]]{{q {n}}}\n[[assistant]]{{a {n}}}\n" for n in range(len(turns)))
    marks = {mark[1]: mark.start() for mark in MARK.finditer(prompted.template.text)}  # the last of each
    at = marks.get("user", marks["assistant"])
    whole = Template.parse(prompted.template.text[:at] + before + prompted.template.text[at:])
    one = LanguagePredictor(prompted.model, Prompt(whole, *prompted.prompt.sources), prompted.label_words)
    return one, TextRow({**fields, name: text}, task=task)

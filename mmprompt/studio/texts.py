"""One person's prompt of a language model: learned from rows of text, and held against an instruction in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from mmprompt.core.fit import fit
from mmprompt.core.learned import Prompt
from mmprompt.core.soft import PromptTuning
from mmprompt.errors import UserError, bad_value
from mmprompt.files import write_bytes
from mmprompt.language.data import TextRow, load_texts
from mmprompt.language.generation import stream_text
from mmprompt.language.measure import LanguageMeasure, compare_language
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.studio.jobs import Job
from mmprompt.studio.prompts import Models, new_run, take_up

BUNDLED = "somebody"
ARROW = "=>"
MOST_ROWS = 2000
MOST_TESTED = 120
MOST_TOKENS = 24
LEARNED = "learned prompt"
KIND, ROWS = "language", "rows.jsonl"


@dataclass(frozen=True)
class Side:
    """What one of two prompts says: the label, where it tells labels apart, and the text as far as it is written.

    `notice` says of a text that was cut.
    """

    label: str = ""
    probability: float = 0.0
    text: str = ""
    notice: str = ""


class TextWork:
    """One person's prompt for texts; what is found in the folder is taken up again."""

    def __init__(self, folder: Path, models: Models) -> None:
        self.folder, self.models = folder, models
        self.prompted: LanguagePredictor | None = None
        self.measure: LanguageMeasure | None = None
        self.run: Path | None = None
        take_up(folder, KIND, self.open_prompt)

    def train(self, model_name: str, lines: str, epochs: int) -> Callable[[Job], None]:
        """Look the rows over and return the work that learns from them.

        Lines are `text => label or answer`; without any it is the bundled set.
        """
        rows = rows_of(lines) if lines.strip() else None

        def work(job: Job) -> None:
            folder = new_run(self.folder)
            data = load_texts(BUNDLED if rows is None else write_rows(rows, folder / ROWS))
            job.say(f"loading {model_name}")
            model = self.models.get(KIND, model_name)
            result = fit(PromptTuning(8), model, data, folder, callbacks=[job], progress=False, epochs=epochs)
            few = replace(data, test=data.test[:MOST_TESTED])
            measure = compare_language(model, {LEARNED: result.predictor}, few, progress=job.count("testing"))
            self.prompted, self.measure, self.run = result.predictor, measure, folder

        return work

    def open_prompt(self, folder: Path) -> None:
        """Take up a prompt from a file."""
        prompted: LanguagePredictor = self.models.load(folder, KIND)
        if len(prompted.template.fields) != 1:
            fields = ", ".join(prompted.template.fields)
            raise UserError(
                f"this prompt reads the fields {fields}, but one text is given here. Give one of one field."
            )
        self.prompted, self.measure, self.run = prompted, None, folder

    def compare(self, text: str, instruction: str) -> Iterator[tuple[Side, Side]]:
        """Answer a text with an instruction and with the learned prompt, side by side, as the words come.

        The instruction is a template in words with the prompt's field and `{answer}`.
        """
        learned = self.prompted
        if learned is None:
            raise UserError("there is no prompt yet. Learn one, or load one from a file.")
        if not text.strip():
            raise UserError("there is no text to answer. Write one.")
        template = Template.parse(instruction)
        if template.groups:
            raise UserError("the instruction has {soft} in it, but it is words alone. Take {soft} out.")
        field = learned.template.fields[0]
        if template.fields != (field,):
            raise UserError(f"the instruction must hold {{{field}}} once and no other field. Write {{{field}}} in it.")
        written = LanguagePredictor(learned.model, Prompt(template), learned.label_words)
        row = TextRow({field: text.strip()})
        sides = [begun(one, row) for one in (written, learned)]
        generation = Generation(max_tokens=MOST_TOKENS)
        for pieces in zip_longest(*(stream_text(one, row, generation) for one in (written, learned)), fillvalue=""):
            sides = [replace(side, text=side.text + piece) for side, piece in zip(sides, pieces, strict=True)]
            yield sides[0], sides[1]


def begun(prompted: LanguagePredictor, row: TextRow) -> Side:
    """Return what is known of an answer before it is written."""
    notice = prompted.say_cut([row], max(MOST_TOKENS, prompted.longest_answer(Generation(max_tokens=MOST_TOKENS))))
    if prompted.label_words is None:
        return Side(notice=notice)
    (found,) = prompted.classify([row])
    return Side(str(found.label), found.probability, notice=notice)


def rows_of(lines: str) -> list[tuple[str, str]]:
    """Read texts and answers as somebody typed them."""
    rows = []
    for number, line in enumerate(lines.splitlines(), start=1):
        text, arrow, answer = (part.strip() for part in line.partition(ARROW))
        if not line.strip():
            continue
        if not (text and arrow and answer):
            raise bad_value(f"line {number}", repr(line[:60]), f"a text {ARROW} an answer was expected", "Mend it.")
        rows.append((text, answer))
    if not 4 <= len(rows) <= MOST_ROWS:
        raise bad_value("the number of rows", len(rows), f"4 to {MOST_ROWS:,} were expected", "Add or remove some.")
    return rows


def write_rows(rows: Sequence[tuple[str, str]], path: Path) -> Path:
    """Write rows as a file that `load_texts` reads, and return its path; answers that all come back are labels."""
    answers = [answer for _, answer in rows]
    key = "label" if all(answers.count(answer) > 1 for answer in answers) else "answer"
    write_bytes(path, "".join(json.dumps({"text": text, key: answer}) + "\n" for text, answer in rows).encode())
    return path

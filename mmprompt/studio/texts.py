"""One person's prompt of a language model: learned from rows of text, and held against an instruction in words."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from mmprompt.core.file import load
from mmprompt.core.fit import fit
from mmprompt.core.header import HEADER, read_header
from mmprompt.core.learned import Prompt
from mmprompt.core.soft import PromptTuning
from mmprompt.errors import UserError, bad_value
from mmprompt.files import make_folder, write_bytes
from mmprompt.language.data import TextData, TextRow, load_texts
from mmprompt.language.measure import LanguageMeasure, compare_language
from mmprompt.language.predictor import LanguagePredictor, stream_text
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.studio.jobs import Job, Stopped
from mmprompt.studio.models import Models

BUNDLED = "somebody"
ARROW = "=>"
MOST_ROWS = 2000
MOST_TESTED = 120
MOST_TOKENS = 24
LEARNED = "learned prompt"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """What one of two prompts says: the label, where it tells labels apart, and the text as far as it is written."""

    label: str = ""
    probability: float = 0.0
    text: str = ""


class TextWork:
    """One person's prompt for texts.

    Args:
        folder: of this person; what is found there is taken up again.
        models: the studio's.
    """

    def __init__(self, folder: Path, models: Models) -> None:
        self.folder, self.models = folder, models
        self.prompted: LanguagePredictor | None = None
        self.measure: LanguageMeasure | None = None
        self.run: Path | None = None
        for run in sorted((folder / "text-runs").glob("*"), key=lambda path: int(path.name), reverse=True):
            if (run / HEADER).is_file():
                try:
                    self.open_prompt(run)
                    break
                except UserError as error:
                    _log.warning("%s is passed over: %s", run, error)

    def train(self, model_name: str, lines: str, epochs: int) -> Callable[[Job], None]:
        """Look the rows over and return the work that learns from them.

        Args:
            model_name: of a frozen language model.
            lines: `text => label or answer`, a row a line; empty for the bundled set.
            epochs: at least 1.
        Raises:
            UserError: a line or the rows cannot be.
        """
        folder = self.folder / "text-runs" / str(len(list((self.folder / "text-runs").glob("*"))) + 1)
        data = self.data(lines, folder.name)

        def work(job: Job) -> None:
            job.doing = f"loading {model_name}"
            model = self.models.language_model(model_name)
            task = data.task()
            result = fit(PromptTuning(8), model, task, folder, None, 1, [job], progress=False, epochs=epochs)
            if job.is_asked_to_stop and not job.history:
                raise Stopped
            few = replace(data, test=data.test[:MOST_TESTED])
            counter = job.count("testing")
            measure = compare_language(model, {LEARNED: result.predictor}, few, progress=counter)
            self.prompted, self.measure, self.run = result.predictor, measure, folder

        return work

    def data(self, lines: str, name: str) -> TextData:
        """Read rows as somebody typed them, or the bundled set; answers that come back are labels."""
        if not lines.strip():
            return load_texts(BUNDLED)
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
        answers = [answer for _, answer in rows]
        key = "label" if all(answers.count(answer) > 1 for answer in answers) else "answer"
        path = make_folder(self.folder / "tables") / f"rows-{name}.jsonl"
        write_bytes(path, "".join(json.dumps({"text": t, key: a}) + "\n" for t, a in rows).encode())
        return load_texts(path)

    def open_prompt(self, folder: Path) -> None:
        """Take up a prompt from a file.

        Raises:
            UserError: it is edited, damaged, of another kind, or of a model that is not offered.
        """
        header = read_header(folder, "language")
        prompted: LanguagePredictor = load(folder, self.models.of_prompt(header))
        if len(prompted.template.fields) != 1:
            fields = ", ".join(prompted.template.fields)
            raise UserError(
                f"this prompt reads the fields {fields}, but one text is given here. Give one of one field."
            )
        self.prompted, self.measure, self.run = prompted, None, folder

    def compare(self, text: str, instruction: str) -> Iterator[tuple[Side, Side]]:
        """Answer a text with an instruction and with the learned prompt, side by side, as the words come.

        Args:
            text: what is answered.
            instruction: a template in words with the prompt's field and `{answer}`.
        Raises:
            UserError: there is no prompt, the text is empty, or the instruction is no template.
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
        sides = [self._label(one, row) for one in (written, learned)]
        generation = Generation(max_tokens=MOST_TOKENS)
        for pieces in zip_longest(*(stream_text(one, row, generation) for one in (written, learned)), fillvalue=""):
            sides = [replace(side, text=side.text + piece) for side, piece in zip(sides, pieces, strict=True)]
            yield sides[0], sides[1]

    @staticmethod
    def _label(prompted: LanguagePredictor, row: TextRow) -> Side:
        if prompted.label_words is None:
            return Side()
        (found,) = prompted.classify([row])
        label = max(found.probabilities, key=lambda name: found.probabilities[name])
        return Side(label, found.probabilities[label])

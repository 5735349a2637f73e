"""What the verbs of `mmprompt llm` share: the model's own options, words of labels, the rows of a data file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mmprompt.core.header import read_header
from mmprompt.errors import bad_value, unknown_name
from mmprompt.language.data import TextData, draw_shots, load_texts
from mmprompt.terminal.output import Output

if TYPE_CHECKING:
    from mmprompt.language.predictor import PromptedModel
    from mmprompt.language.templates.verbalizer import Verbalizer
    from mmprompt.models.decoder.model import FrozenLanguageModel


DATA = "somebody"
MOST_NOTES = 3
Device = Annotated[str, tyro.conf.arg(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]
MODEL_HELP = "The frozen model: `tiny`, `smollm2`, `hf:NAME`, or a model folder or GGUF file."
DATA_HELP = "Rows of text: a JSONL file, or `somebody`, which is in the package."
TEMPLATE_HELP = "What stands around a row: {soft}, {text}, {text:cut} and {answer}, last; see docs/language.md."


@dataclass(frozen=True)
class Loading:
    """How the model is loaded."""

    device: Device = "auto"
    trust_remote_code: bool = False
    """Run the code that a model brings along; read it first."""

    def model(self, name: str) -> FrozenLanguageModel:
        """The model of that name.

        Raises:
            UserError: it cannot be had.
        """
        from mmprompt.models.decoder.load import load_language_model

        return load_language_model(name, self.device, trust_remote_code=self.trust_remote_code)

    def model_and_prompts(
        self, folders: Sequence[Path], model: str | None
    ) -> tuple[FrozenLanguageModel, list[PromptedModel]]:
        """A model, and the prompts of some run folders on it.

        Args:
            folders: perhaps none.
            model: its name, if it is not the one that the first prompt names; `tiny` without any.
        Raises:
            UserError: one is no prompt of a language model, or of another model.
        """
        from mmprompt.language.predictor import load_prompted

        headers = [read_header(folder, "language") for folder in folders]
        names = [model, *(header["backbone"]["name"] for header in headers), "tiny"]
        loaded = self.model(next(name for name in names if name is not None))
        return loaded, [load_prompted(folder, loaded) for folder in folders]


def read_rows(output: Output, name: str, shots: int | None, seed: int) -> TextData:
    """The rows of a file, or a few of each class, and what there is to say of them.

    Raises:
        UserError: the file cannot be used.
    """
    data = load_texts(name)
    data = data if shots is None else draw_shots(data, shots, seed)
    for note in data.notes:
        output.say(f"Note: {note}", "dim")
    return data


def read_verbalizer(given: Sequence[str], labels: Sequence[str]) -> Verbalizer | None:
    """The words of labels, given as `LABEL=WORD,WORD`; None where none are given.

    Raises:
        UserError: one has no such form, or there are not words for exactly the labels.
    """
    from mmprompt.language.templates.verbalizer import Verbalizer

    words: dict[str, tuple[str, ...]] = {}
    for item in given:
        label, sign, rest = item.partition("=")
        if not sign:
            expected = "a label and its words were expected"
            raise bad_value("verbalizer", repr(item), expected, "Write --verbalizer LABEL=WORD,WORD.")
        if label not in labels:
            raise unknown_name("label", label, labels)
        words[label] = tuple(word.strip() for word in rest.split(","))
    missing = [label for label in labels if label not in words]
    if words and missing:
        advice = f"Add --verbalizer {missing[0]}=WORD."
        raise bad_value("verbalizer", repr(" ".join(given)), f"there is no word for {missing[0]!r}", advice)
    return Verbalizer({label: words[label] for label in labels}) if words else None


def say_of_words(output: Output, prompted: PromptedModel) -> None:
    """Say which words of the labels are several tokens, and what follows from that."""
    if prompted.label_words is None:
        return
    notes = prompted.verbalizer.describe(prompted.answers, prompted.model.tokenizer)
    for note in notes[:MOST_NOTES]:
        output.say(f"Note: {note}", "dim")
    if len(notes) > MOST_NOTES:
        output.say(f"Note: So it is with {len(notes) - MOST_NOTES} more.", "dim")

"""What the verbs of `mmprompt llm` share: the model's own options, words of labels, the rows of a data file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.core.header import read_header
from mmprompt.errors import bad_value, unknown_name
from mmprompt.language.data import TextData, load_texts, sample_shots
from mmprompt.language.methods import Objective
from mmprompt.terminal.output import Device, Output, between, percent

if TYPE_CHECKING:
    from mmprompt.language.measure import LanguageScore
    from mmprompt.language.predictor import LanguagePredictor
    from mmprompt.language.task import LanguageTask
    from mmprompt.language.templates.verbalizer import Verbalizer
    from mmprompt.models.decoder.model import FrozenLanguageModel

DATA = "somebody"
MOST_NOTES = 3
MODEL_HELP = "The frozen model: `tiny`, `smollm2`, `hf:NAME`, or a model folder or GGUF file."
DATA_HELP = (
    "Rows of text: a JSONL, CSV, TSV or Parquet file, a folder of some (train.csv, test.csv, or one that `datasets` "
    "wrote), or `somebody`, which is in the package; see docs/language.md."
)
TEMPLATE_HELP = "What stands around a row: {soft}, {text}, {text:cut} and {answer}; see docs/language.md."


@dataclass(frozen=True)
class Loading:
    """How the model is loaded."""

    device: Device = "auto"
    device_map: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """For a model larger than one device: auto, balanced or sequential, as accelerate spreads it."""
    dtype: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """What the model computes in: auto (that of the prompt, else float32), fast (bfloat16 where the device is faster in
    it, else float32), bfloat16, float16, float32 or float64."""
    trust_remote_code: bool = False
    """Run the code that a model brings along; read it first."""

    def model(self, name: str, dtype: str = "auto") -> FrozenLanguageModel:
        """Load the model of that name, in `dtype` where the user says no other."""
        from mmprompt.models.decoder.load import load_language_model

        chosen = dtype if self.dtype == "auto" else self.dtype
        return load_language_model(
            name, self.device, chosen, trust_remote_code=self.trust_remote_code, device_map=self.device_map
        )

    def model_and_prompts(
        self, folders: Sequence[Path], model: str | None
    ) -> tuple[FrozenLanguageModel, list[LanguagePredictor]]:
        """Load the prompts of some run folders on a model, by default that of the first; `tiny` for none."""
        from mmprompt.core.file import model_of
        from mmprompt.language.predictor import load_prompted

        headers = [read_header(folder, "language") for folder in folders]
        if not headers:
            return self.model(model or "tiny"), []
        load_named = partial(self.model, dtype=headers[0].get("dtype", "auto"))
        loaded = model_of(folders[0], headers[0], model, load_named)
        return loaded, [load_prompted(folder, loaded) for folder in folders]


@dataclass(frozen=True)
class Learning:
    """What is learned from, and how the model is asked."""

    data: Annotated[str, tyro.conf.arg(metavar="NAME|FILE", help=DATA_HELP)] = DATA
    shots: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = None
    """Training rows of each class, drawn; None for all there are."""
    template: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help=TEMPLATE_HELP)] = None
    verbalizer: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LABEL=WORD,WORD...")] = ()
    """The words of each label, if not those of the data's card; without either a label is its own word."""
    objective: Objective = "auto"
    """What is made probable: the label among the labels (choices), or the answer among all texts (answer)."""
    seed: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Seed of all that is drawn, and of the order of the rows."""

    def task(self, output: Output, **options: Any) -> LanguageTask:
        """Read the rows, and say what there is to say of them; `options` are those of `LanguageTask`."""
        data = read_rows(output, self.data, self.shots, self.seed)
        verbalizer = read_verbalizer(self.verbalizer, data.labels)
        return data.task(template=self.template, verbalizer=verbalizer, objective=self.objective, **options)


def read_rows(output: Output, name: str, shots: int | None, seed: int) -> TextData:
    """Read a file, or a few rows of each class, and say what there is to say of them."""
    data = load_texts(name)
    data = data if shots is None else sample_shots(data, shots, seed)
    for note in data.notes:
        output.say(f"Note: {note}", "dim")
    return data


def read_verbalizer(given: Sequence[str], labels: Sequence[str]) -> Verbalizer | None:
    """Read the words of labels, given as `LABEL=WORD,WORD`; None where none are given."""
    from mmprompt.language.templates.verbalizer import Verbalizer

    words: dict[str, tuple[str, ...]] = {}
    for item in given:
        label, sign, rest = item.partition("=")
        if not sign:
            expected = "a label and its words were expected"
            raise bad_value("verbalizer", repr(item), expected, "Write --verbalizer LABEL=WORD,WORD.")
        if label not in labels:
            raise unknown_name("label", label, labels)
        if label in words:
            expected = f"it gives {label!r} words twice"
            raise bad_value("verbalizer", repr(" ".join(given)), expected, "Write --verbalizer LABEL=WORD,WORD.")
        words[label] = tuple(word.strip() for word in rest.split(","))
    missing = [label for label in labels if label not in words]
    if words and missing:
        advice = f"Add --verbalizer {missing[0]}=WORD."
        raise bad_value("verbalizer", repr(" ".join(given)), f"there is no word for {missing[0]!r}", advice)
    return Verbalizer({label: words[label] for label in labels}) if words else None


def refuse_repeated(prompts: Sequence[Path]) -> None:
    """Refuse a prompt that is named twice."""
    if len(set(prompts)) < len(prompts):
        raise bad_value("prompt", " ".join(map(str, prompts)), "one is named twice", "Name each once.")


def say_of_words(output: Output, prompted: LanguagePredictor) -> None:
    """Say which words of the labels are several tokens, and what follows from that."""
    if prompted.label_words is None or prompted.label_rows is not None:
        return
    notes = prompted.verbalizer.describe(prompted.answers, prompted.model.tokenizer, not prompted.bound.behind)
    for note in notes[:MOST_NOTES]:
        output.say(f"Note: {note}", "dim")
    if len(notes) > MOST_NOTES:
        output.say(f"Note: So it is with {len(notes) - MOST_NOTES} more.", "dim")


def say_scores(output: Output, scores: Sequence[LanguageScore]) -> None:
    """Print a row for each: accuracy and macro F1 of labels, or exact match and likeness of answers."""
    headers, rows = ["", "accuracy", "95 % interval", "macro F1"], []
    for score in scores:
        if score.labels is not None:
            numbers = [percent(score.labels.macro_f1)]
            rows.append([score.name, percent(score.labels.accuracy), between(score.interval), *numbers])
        elif score.texts is not None:
            headers = ["", "exact match", "95 % interval", "BLEU", "chrF", "ROUGE-L"]
            numbers = [f"{number:.1f}" for number in (score.texts.bleu, score.texts.chrf, 100 * score.texts.rouge_l)]
            rows.append([score.name, percent(score.texts.exact_match), between(score.interval), *numbers])
    output.table(headers, rows, numbers=range(1, len(headers)))

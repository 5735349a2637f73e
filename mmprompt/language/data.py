"""Rows of text for a language model: a table, or a folder of some, and the card beside it.

A row has `label` (classification) or `answer` (generation), perhaps `split` and `task`; everything else is a field of
text. The card, `NAME.yaml` beside `NAME.jsonl` or the folder `NAME`, may give `template`, `verbalizer`, `instructions`,
`licence`, `source` and `note`, and say what the columns and values of a table are that was made by others. What a
template means is not known here, nor any tokenizer. One small set is in the package: `somebody`; of some published ones
the card is.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal

from mmprompt.data.class_names import shortened
from mmprompt.data.fewshot import MAX_VAL_SHOTS, draw_stream, sample_groups
from mmprompt.data.images import IMAGE_SUFFIXES
from mmprompt.data.splits import SPLITS, SplitName
from mmprompt.data.strict_yaml import read_yaml
from mmprompt.data.tables import SUFFIXES, Record, read_records
from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.settings import check_settings, checked, expanded, validate

if TYPE_CHECKING:
    from mmprompt.language.task import LanguageTask

TEST_SHARE, VAL_SHARE = 0.3, 0.1
FOLDER = Path(__file__).parents[1] / "assets" / "language"
EMBEDDED = ("somebody",)
"""The sets that are in the package."""

Metric = Literal["exact", "rouge_l"]

_TARGETS = ("label", "answer")
_KEYS = (*_TARGETS, "split", "task")
_TAKEN = "soft"


@dataclass(frozen=True)
class TextRow:
    """One example.

    Args:
        fields: text by name of field.
        label: its class, None where text is to be generated.
        answer: the text to generate, None where there is a class.
        task: which of several tasks it belongs to, `""` for the only one.
    """

    fields: Mapping[str, str]
    label: str | None = None
    answer: str | None = None
    task: str = ""


@dataclass(frozen=True)
class TextData:
    """What a prompt of a language model is trained and measured on.

    Args:
        name: of the file, without its suffix.
        train: rows to learn from, in the order of the file.
        val: rows to choose by; may be empty.
        test: rows to measure on.
        labels: sorted; empty where text is generated.
        template: the task's template with soft slots, None without a card.
        verbalizer: label -> the words that stand for it; None where the labels are the words.
        instructions: hand-written prompts, templates without soft slots.
        licence: of the texts.
        notes: what was decided on the user's behalf, one sentence each.
        metric: how right a generated text is, in a comparison.
    Raises:
        UserError: a row's label is none of the labels, or there are none and it has no answer.
    """

    name: str
    train: tuple[TextRow, ...]
    val: tuple[TextRow, ...]
    test: tuple[TextRow, ...]
    labels: tuple[str, ...] = ()
    template: str | None = None
    verbalizer: Mapping[str, Sequence[str]] | None = None
    instructions: tuple[str, ...] = ()
    licence: str = ""
    notes: tuple[str, ...] = ()
    metric: Metric = "exact"

    def __post_init__(self) -> None:
        check_settings(self)
        for row in (row for split in SPLITS for row in self.rows(split)):
            if (row.label if self.labels else row.answer) is None:
                begin, what = " ".join(map(str, row.fields.values()))[:40], "label" if self.labels else "answer"
                raise UserError(
                    f"the row that begins with {begin!r} has no {what}, but all rows have answers, or all have one of "
                    "`labels`. Write it, or leave the row out."
                )
            if row.label is not None and row.label not in self.labels:
                raise unknown_name("label", row.label, self.labels, "Name it in `labels`, or leave its rows out.")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(self.rows(split))}" for split in SPLITS)
        return f"<TextData {self.name!r}: {len(self.labels)} labels, {sizes}>"

    def task(self, **options: Any) -> LanguageTask:
        """Give what `fit` learns from these rows.

        Args:
            options: of `LanguageTask`: template, verbalizer, objective, init, is_recomputed.
        """
        task: LanguageTask = importlib.import_module("mmprompt.language.task").LanguageTask(self, **options)
        return task

    def rows(self, split: str) -> tuple[TextRow, ...]:
        """Return the rows of `"train"`, `"val"` or `"test"`."""
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        rows: tuple[TextRow, ...] = getattr(self, split)
        return rows

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the labels and every row, split by split; the card is not in it."""
        digest = hashlib.sha256(json.dumps(self.labels).encode())
        for split in SPLITS:
            for row in self.rows(split):
                digest.update(json.dumps([split, asdict(row)], sort_keys=True).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class TextCard:
    """What `NAME.yaml` says; see `TextData`. `source` and `note` are for people.

    Args:
        header: names of the columns, of CSV and TSV files that have no line of them.
        columns: what is taken of a table, our name (label, answer, split, task or a field) to its column; by default
            everything, by the names that it has.
        labels: a label as the table writes it, such as "1", to our name of it.
        parts: train, val and test to the part of the table that they are; by default as it names them.
        metric: how right a generated text is, in a comparison: exact, or rouge_l for texts of many right wordings.
    """

    template: str | None = None
    verbalizer: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    instructions: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    note: str = ""
    header: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[SplitName, SplitName] = field(default_factory=dict)
    metric: Metric = "exact"


def is_text(name: str) -> bool:
    """Return whether data is rows of text: an embedded set, or a table or a folder of tables that names no images."""
    path = expanded(name)
    if name in EMBEDDED or not path.exists() or not (path.is_dir() or path.suffix.lower() in SUFFIXES):
        return name in EMBEDDED
    if path.is_dir() and any(
        one.suffix.lower() in IMAGE_SUFFIXES for depth in ("*/*", "*/*/*") for one in path.glob(depth)
    ):
        return False
    try:
        first = next(read_records(path), None)
    except UserError:  # what reads images says what is wrong
        return False
    values = () if first is None else first.values.values()
    return not any(Path(str(value)).suffix.lower() in IMAGE_SUFFIXES for value in values)


@checked
def load_texts(path: str | Path) -> TextData:
    """Read a table of texts, or a folder of tables, and its card.

    A table is a `.jsonl`, `.csv`, `.tsv`, `.parquet` or `.arrow` file; a folder has one for each part, such as
    `train.csv` and `test.csv`, or is one that the `datasets` library wrote. The card is `NAME.yaml` beside it, or that
    of the package for a published set of this name, which the notes say. Columns of tables that hold numbers alone are
    left out, and the notes say so.

    Without `split` a file is divided 60/10/30 into train, val and test, class by class, by the hashes of the texts: the
    same rows for every seed, and equal texts in one part. Where a file gives the parts, a text that stands in two of
    them stays in test, or else in train, and is taken out of the other; the notes say so.

    Args:
        path: of the file or folder, or the name of an embedded set.
    Raises:
        UserError: a file cannot be read, a row or the card is bad (its line), or there is nothing to train or test on.
    """
    path = _place_of(str(path))
    card, card_path, notes = _card_of(path)
    rows = [_row_of(record, card, card_path) for record in _known_records(path, card, card_path, notes)]
    if not rows:
        raise bad_file(path, "holds no rows", "Write a row for each text.")
    has_parts = rows[0][1] is not None
    parts, said = _given_parts(rows) if has_parts else _drawn_parts([row for row, _ in rows])
    labels = tuple(sorted({row.label for row, _ in rows if row.label is not None}))
    for split in ("train", "test"):
        if not parts[split]:
            advice = "Add some, or leave split out of every row." if has_parts else "Write a second text of a label."
            raise bad_file(path, f"has no {split} rows", advice)
    if len(labels) == 1:
        raise bad_file(path, f"has one label only, {labels[0]!r}", "Add rows of another label.")
    untrained = sorted(set(labels) - {row.label for row in parts["train"] if row.label is not None})
    if untrained:
        raise bad_file(path, f"has no row to train on for {shortened(untrained)}", "Add one to the train part of each.")
    words = {label: (given,) if isinstance(given, str) else given for label, given in card.verbalizer.items()}
    _check_verbalizer(words, labels, card_path)
    about = (card.template, words or None, card.instructions, card.licence)
    said = (*notes, *said)
    return TextData(path.stem, parts["train"], parts["val"], parts["test"], labels, *about, said, card.metric)


def _place_of(name: str) -> Path:
    """Return where the table or folder of that name lies, with a name of its own, unlike `.`."""
    if name in EMBEDDED:
        return FOLDER / f"{name}.jsonl"
    path = expanded(name)
    if not path.suffix and not (name and path.exists()):
        raise unknown_name("set of texts or file", name, EMBEDDED, "Give the path of a table of texts.")
    return path.resolve() if path.name in ("", "..") else path


def _card_of(path: Path) -> tuple[TextCard, Path, list[str]]:
    """Read the card beside a file or folder, or that of the package, with its path; a note says so of the latter."""
    from mmprompt.data.catalog import cards_folder

    beside = path.parent / f"{path.name}.yaml" if path.is_dir() else path.with_suffix(".yaml")
    of_package = cards_folder() / "texts" / beside.name
    card_path = of_package if of_package.exists() and not beside.exists() else beside
    card = validate(TextCard, read_yaml(card_path), card_path) if card_path.exists() else TextCard()
    note = f"Template, words of labels and columns are those of the package's card {of_package.name}."
    return card, card_path, [note] if card_path == of_package else []


def _known_records(path: Path, card: TextCard, card_path: Path, notes: list[str]) -> list[Record]:
    """Read the records of a table by our names of columns, each like the first and of a part that is asked for."""
    records = list(read_records(path, card.header))
    if card.columns:
        records = [_renamed(record, card.columns, card_path) for record in records]
    numbers = [
        name
        for name in (records[0].values if records and records[0].file.suffix.lower() != ".jsonl" else ())
        if name not in _KEYS and all(_is_number(record.values.get(name)) for record in records)
    ]
    if numbers:
        notes.append(f"Left out, for they hold no text: {shortened(numbers)}.")
    part_of: dict[str, str] = {theirs: ours for ours, theirs in card.parts.items()}
    kept = []
    for record in records:
        values = {name: value for name, value in record.values.items() if name not in numbers}
        part = values.get("split", record.part)
        if part is None or isinstance(part, str):  # else it is refused below
            if part_of and part not in part_of:
                continue
            if part is not None:
                values["split"] = part_of.get(part, part)
        if isinstance(values.get("label"), int):
            values["label"] = str(values["label"])
        kept.append(record._replace(values=values))
    for record in kept:
        _check_record(record, kept[0].values, card_path, numbers)
    return kept


def _renamed(record: Record, columns: Mapping[str, str], card_path: Path) -> Record:
    """Take those columns of a record that a card names, by our names."""
    values = {}
    for name, theirs in columns.items():
        column = theirs if theirs in record.values else name
        if column not in record.values:
            problem = f"lacks the column {theirs!r}, which {card_path} names; it has {shortened(list(record.values))}"
            raise bad_file(record.file, problem, "Correct one of them.", record.line)
        values[name] = record.values[column]
    return record._replace(values=values)


def _is_number(value: Any) -> bool:
    """Whether something is a number, or the text of one, or nothing."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return not value
    return isinstance(value, int | float | str | NoneType)


def _row_of(record: Record, card: TextCard, card_path: Path) -> tuple[TextRow, str | None]:
    """Make a row of a record, with the part that the table gives it."""
    values = record.values
    label = values.get("label")
    if label is not None and card.labels and label not in card.labels and label not in card.labels.values():
        known = ", ".join(card.labels)
        problem = f"has the label {repr(label)[:60]}, but {card_path} knows {known}"
        raise bad_file(record.file, problem, "Correct one of them.", record.line)
    fields = {name: text for name, text in values.items() if name not in _KEYS}
    label = card.labels.get(label, label) if label is not None else None
    return TextRow(fields, label, values.get("answer"), values.get("task", "")), values.get("split")


@checked
def sample_shots(data: TextData, shots: int, seed: int) -> TextData:
    """Draw the few-shot train and val parts by the rule `coop` of `fewshot.draw_shots`; test stays whole.

    Of every class, of every task where text is generated, `shots` training rows are drawn without replacement, then
    min(shots, 4) validation rows from the same stream. A smaller class is taken whole, and the notes say so.

    Args:
        data: all rows.
        shots: training rows a class, at least 1.
        seed: of the stream, 0 or more.
    Raises:
        UserError: shots is below 1 or the seed is negative.
    """
    if shots < 1:
        raise bad_value("shots", shots, "at least 1 row a class is needed", "Use `shots=1` or more.")
    rng = draw_stream(seed)
    groups = _classes(data.train)
    train = sample_groups(groups.values(), shots, rng)
    val = sample_groups(_classes(data.val).values(), min(shots, MAX_VAL_SHOTS), rng)
    short = sorted({_name(key) for key, rows in groups.items() if len(rows) < shots})
    note = f"Classes with fewer than {shots} training rows, taken whole: {shortened(short)}."
    return replace(data, train=train, val=val, notes=(*data.notes, note) if short else data.notes)


def _check_record(record: Record, first: Mapping[str, Any], card_path: Path, left_out: Sequence[str]) -> None:
    """Refuse a row that is not like the first or is no text; columns that were left out are named where one lacks."""
    path, line, values, _ = record
    if len(values.keys() & set(_TARGETS)) != 1:
        problem = "has both 'label' and 'answer'" if "label" in values else "lacks 'label' or 'answer'"
        advice = "Write label to tell classes apart, or answer to generate text"
        if path.suffix.lower() != ".jsonl":
            problem += f", its columns are {shortened([*values, *left_out])}"
            advice += f", or name the column in {card_path.name}: columns: {{label: THEIRS, text: THEIRS}}"
        raise bad_file(path, problem, f"{advice}.", line)
    for name in first.keys() - values.keys():
        raise bad_file(path, f"lacks {name!r}, which the first row has", "Write it in every row.", line)
    for name in values.keys() - first.keys():
        raise bad_file(path, f"has {name!r}, which the first row lacks", "Write it in every row or in none.", line)
    if values.keys() <= set(_KEYS):
        problem, advice = "has no field of text", 'Write one, such as "text".'
        if left_out:
            problem += f", for numbers alone stand in {shortened(left_out)}"
            advice = "Write the rows as JSONL, where numbers in quotes are text."
        raise bad_file(path, problem, advice, line)
    if _TAKEN in values:
        raise bad_file(path, f"has a field named {_TAKEN!r}, the name of soft slots", "Name it otherwise.", line)
    for name, value in values.items():
        if not isinstance(value, str):
            raise bad_file(path, f"{name} is {repr(value)[:60]}, but text was expected", "Write it as text.", line)
        if not value.strip():
            raise bad_file(path, f"{name} is empty", "Write the text, or remove the row.", line)
    if values.get("split", "test") not in SPLITS:
        raise UserError(f"{path}, line {line}: {unknown_name('split', values['split'][:60], SPLITS)}")


Parts = dict[str, tuple[TextRow, ...]]


def _given_parts(placed: Sequence[tuple[TextRow, str | None]]) -> tuple[Parts, tuple[str, ...]]:
    """Return the parts as the file gives them, without texts that another part holds."""
    parts: Parts = {}
    notes: list[str] = []
    held: dict[str, str] = {}  # text -> the part that keeps it
    for split in ("test", "train", "val"):
        rows = [row for row, part in placed if part == split]
        parts[split] = tuple(row for row in rows if _text_of(row) not in held)
        for other in parts:
            n_leaked = sum(held.get(_text_of(row)) == other for row in rows)
            if n_leaked:
                notes.append(f"Taken out of {split}, for {other} holds the same text: {n_leaked} of {len(rows)} rows.")
        held |= {_text_of(row): split for row in parts[split]}
    return parts, tuple(notes)


def _drawn_parts(rows: Sequence[TextRow]) -> tuple[Parts, tuple[str, ...]]:
    """Divide every class 60/10/30, equal texts together, by the order of their hashes."""
    part_of: dict[str, str] = {}
    classes = _classes(rows)
    for members in classes.values():
        texts = sorted({_text_of(row) for row in members}, key=lambda text: hashlib.sha256(text.encode()).digest())
        n_test = max(1, round(TEST_SHARE * len(texts))) if len(texts) > 1 else 0
        n_val = round(VAL_SHARE * len(texts))
        for index, text in enumerate(texts):
            part_of[text] = "test" if index < n_test else "val" if index < n_test + n_val else "train"
    rows_of: dict[str, list[TextRow]] = {split: [] for split in SPLITS}
    for row in rows:
        rows_of[part_of[_text_of(row)]].append(row)
    sizes = ", ".join(f"{len(rows_of[split])} {split}" for split in SPLITS)
    notes = [f"No split was given: {sizes}, the same share of every class."]
    untested = sorted({_name(key) for key in classes.keys() - _classes(rows_of["test"]).keys()})
    if untested:
        notes.append(f"Trained on and not tested, for want of a second row: {shortened(untested)}.")
    return {split: tuple(kept) for split, kept in rows_of.items()}, tuple(notes)


def _check_verbalizer(words: Mapping[str, Sequence[str]], labels: Sequence[str], path: Path) -> None:
    if not words:
        return
    if not labels:
        raise bad_file(path, "gives a verbalizer, but the rows have answers and no labels", "Remove it.")
    for label in words:
        if label not in labels:
            raise UserError(f"{path}: verbalizer: {unknown_name('label', label, labels)}")
    owner: dict[str, str] = {}
    for label in labels:
        if not any(word.strip() for word in words.get(label, ())):
            raise bad_file(path, f"the verbalizer has no word for the label {label!r}", "Add one.")
        for word in words[label]:
            if owner.setdefault(word.strip(), label) != label:
                problem = f"the verbalizer has {word!r} for two labels, {owner[word.strip()]!r} and {label!r}"
                raise bad_file(path, problem, "Give each label words of its own.")


def _name(key: tuple[str, str | None]) -> str:
    return ": ".join(part for part in key if part) or "the only one"


def _text_of(row: TextRow) -> str:
    """Return what two rows of the same example share, of whatever task: the texts without case and extra spaces."""
    fields = {name: " ".join(text.casefold().split()) for name, text in row.fields.items()}
    return json.dumps(fields, sort_keys=True)


def _classes(rows: Iterable[TextRow]) -> dict[tuple[str, str | None], list[TextRow]]:
    """Group rows by task and label."""
    classes: dict[tuple[str, str | None], list[TextRow]] = {}
    for row in rows:
        classes.setdefault((row.task, row.label), []).append(row)
    return classes

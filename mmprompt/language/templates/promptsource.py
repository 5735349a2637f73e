"""Templates of PromptSource (Bach et al. 2022): YAML files of Jinja templates, read without trust.

A template gives the text that a model reads and the text that it should write, divided by `|||`. `to_texts` turns
rows into such pairs, the fields `input` and what is answered, which any template of ours then puts soft slots around.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmprompt.data.splits import SPLITS
from mmprompt.data.strict_yaml import StrictLoader, read_yaml, validate
from mmprompt.errors import UserError, bad_file, unknown_name
from mmprompt.language.data import TextData, TextRow

if TYPE_CHECKING:
    from mmprompt.language.templates.sandbox import Sandbox

TEMPLATE = "{soft} {input:cut} {answer}"
"""What stands around rows that `to_texts` has made."""
DIVIDER = "|||"
MAX_BYTES = 2**20

_MARK = (
    "\U000f0000|||\U000f0001"  # stands for the divider of the template itself, so that one in the data divides nothing
)


@dataclass(frozen=True)
class Prompted:
    """A row as a template puts it.

    Args:
        input: what a model reads.
        target: what it should write.
        choices: what it may write; () where that is not told.
    """

    input: str
    target: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class JinjaTemplate:
    """A template of PromptSource.

    Args:
        name: its name, unique in its file.
        jinja: input and target, divided by `|||`.
        answer_choices: the choices, divided by `|||`, themselves a template; None for free answers.
        reference: who wrote it.
        original_task: whether it asks what the data was made for; None where that is not told.
        choices_in_prompt: whether the input holds the choices.
        metrics: names of metrics.
        languages: of the template, by their code.
    """

    name: str
    jinja: str
    answer_choices: str | None = None
    reference: str = ""
    original_task: bool | None = None
    choices_in_prompt: bool | None = None
    metrics: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    def apply(self, row: Mapping[str, Any]) -> Prompted | None:
        """Put a row into the template.

        Args:
            row: values by name: texts, numbers, true, false, None, lists and mappings.
        Returns:
            input and target, without blanks around them; None where the template leaves one of them empty, as it does
            with rows that it is not for.
        Raises:
            UserError: jinja2 is not installed, the row holds something else, or the template is wrong, does what it
                may not or too much.
        """
        values = _plain(row)
        choices = self._choices(values)
        # each part has values of its own, for a template may change them
        parts = self._written(self.jinja, _plain(row) | {"answer_choices": None if choices is None else [*choices]})
        if len(parts) > 2:
            raise self._refusal(f"it gives {len(parts)} parts where input and target were expected")
        if len(parts) < 2 or not all(parts):
            return None
        return Prompted(parts[0], parts[1], choices or ())

    def to_texts(self, data: TextData, labels: Sequence[str] | None = None) -> TextData:
        """Put all rows into the template: the field `input`, and a label where all rows have the same choices.

        Args:
            data: rows of text; a template reads their fields, `label` as a number, and `answer`.
            labels: in the order in which the template counts them; by default the numbers that they are, or sorted.
        Returns:
            the rows that the template is for, with `TEMPLATE` around them; the notes say how many there are.
        Raises:
            UserError: as `apply`, labels do not fit, or the template is for no row of a part.
        """
        numbers = _numbers(data.labels, labels)
        found = {split: [self.apply(_values(row, numbers)) for row in data.rows(split)] for split in SPLITS}
        used = [item for items in found.values() for item in items if item is not None]
        choices = used[0].choices if used and len({item.choices for item in used}) == 1 else ()
        is_choice = len(choices) > 1 and {item.target for item in used} <= set(choices)
        parts = {split: _rows(data.rows(split), items, is_choice) for split, items in found.items()}
        for split in ("train", "test"):
            if not parts[split]:
                raise self._refusal(f"it is for none of the {len(found[split])} {split} rows of {data.name}")
        n_rows = sum(map(len, found.values()))
        note = f"Rows that the template {self.name!r} is for: {len(used)} of {n_rows}."
        return replace(
            data,
            train=parts["train"],
            val=parts["val"],
            test=parts["test"],
            labels=tuple(sorted(choices)) if is_choice else (),
            template=TEMPLATE,
            verbalizer=None,
            instructions=(),
            notes=(*data.notes, note) if len(used) < n_rows else data.notes,
        )

    @cached_property
    def _sandbox(self) -> Sandbox:
        try:
            from mmprompt.language.templates.sandbox import Sandbox
        except ImportError:
            raise UserError('templates of PromptSource need jinja2. Install it: pip install "mmprompt[llm]".') from None
        return Sandbox()

    def _choices(self, values: dict[str, Any]) -> tuple[str, ...] | None:
        if "answer_choices" in values:
            raise self._refusal("the row has a field answer_choices, which is the name of the template's own")
        return None if self.answer_choices is None else tuple(self._written(self.answer_choices, values))

    def _written(self, source: str, values: Mapping[str, Any]) -> list[str]:
        seed = int.from_bytes(hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()[:8])
        sandbox = self._sandbox  # here, for that jinja2 is missing is no fault of the template
        try:
            text = sandbox.write(source.replace(DIVIDER, _MARK), values, seed)
        except Exception as error:  # whatever its expressions raise
            reason = f"{type(error).__name__}: {error}" if not str(error).startswith("it ") else str(error)
            raise self._refusal(" ".join(reason.split())[:200].rstrip(".")) from None
        return [part.strip() for part in text.split(_MARK)]

    def _refusal(self, problem: str) -> UserError:
        return UserError(f"the template {self.name!r} cannot be used: {problem}. Correct it, or choose another.")


@dataclass(frozen=True)
class _Metadata:
    original_task: bool | None = None
    choices_in_prompt: bool | None = None
    metrics: tuple[str, ...] | None = None
    languages: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Entry:
    name: str
    jinja: str
    id: str = ""
    answer_choices: str | None = None
    reference: str | None = None
    task_template: bool | None = None
    metadata: _Metadata | None = field(default_factory=_Metadata)


class _Loader(StrictLoader):
    """Knows the two tags of PromptSource's files, and that templates may share their metadata."""

    tags = frozenset(["!Template", "!TemplateMetadata"])

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node; metadata may be an anchor's or an alias, as one of PromptSource's files has it."""
        is_metadata = isinstance(index, yaml.ScalarNode) and index.value == "metadata"
        if is_metadata and getattr(self.peek_event(), "anchor", None) is not None:
            return yaml.SafeLoader.compose_node(self, parent, index)
        return super().compose_node(parent, index)


def _mapping(loader: _Loader, node: Any) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


for _tag in _Loader.tags:
    _Loader.add_constructor(_tag, _mapping)


def read_promptsource(path: str | Path) -> dict[str, JinjaTemplate]:
    """Read a `templates.yaml` of PromptSource: its templates by name. Nothing in it is run.

    Raises:
        UserError: the file is no such file.
    """
    content = read_yaml(path, _Loader, MAX_BYTES)
    entries = content.get("templates")
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise bad_file(path, "holds no templates of PromptSource", "Give a templates.yaml, with a mapping `templates`.")
    found: dict[str, JinjaTemplate] = {}
    for entry in (validate(_Entry, some, path) for some in entries.values()):
        if entry.name in found:
            raise bad_file(path, f"has two templates named {entry.name!r}", "Rename one.")
        about = entry.metadata or _Metadata()
        found[entry.name] = JinjaTemplate(
            entry.name,
            entry.jinja,
            entry.answer_choices,
            entry.reference or "",
            about.original_task,
            about.choices_in_prompt,
            about.metrics or (),
            about.languages or (),
        )
    return found


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that a template may change."""
    try:
        return json.loads(json.dumps(dict(row)))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"a row holds what is no plain value: {error}. Give texts, numbers, lists and mappings."
        ) from None


def _numbers(known: Sequence[str], labels: Sequence[str] | None) -> dict[str, int]:
    """The number by which a template knows each label."""
    if labels is None:
        is_number = bool(known) and all(label.isascii() and label.isdigit() for label in known)
        return {label: int(label) if is_number else place for place, label in enumerate(known)}
    for label in known:
        if label not in labels:
            raise unknown_name("label", label, labels, "Name every label of the data.")
    return {label: place for place, label in enumerate(labels)}


def _values(row: TextRow, numbers: Mapping[str, int]) -> dict[str, Any]:
    target = {"answer": row.answer} if row.label is None else {"label": numbers[row.label]}
    return {**row.fields, **target}


def _rows(rows: Sequence[TextRow], items: Sequence[Prompted | None], is_choice: bool) -> tuple[TextRow, ...]:
    return tuple(
        TextRow(
            {"input": item.input},
            item.target if is_choice else None,
            None if is_choice else item.target,
            row.task,
        )
        for row, item in zip(rows, items, strict=True)
        if item is not None
    )

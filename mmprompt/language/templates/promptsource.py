"""Templates of PromptSource (Bach et al. 2022): YAML files of Jinja templates, read without trust.

A template gives the text that a model reads and the text that it should write, divided by `|||`. `to_texts` turns
rows into such pairs, the fields `input` and what is answered, which any template of ours then puts soft slots around.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from mmprompt.data.splits import SPLITS
from mmprompt.data.strict_yaml import StrictLoader, read_yaml
from mmprompt.errors import UserError, bad_file, unknown_name
from mmprompt.language.data import TextData, TextRow
from mmprompt.settings import checked, validate

TEMPLATE = "{soft} {input:cut} {answer}"
"""What stands around rows that `to_texts` has made."""
MAX_BYTES = 2**20
MAX_SOURCE = 20_000
"""Characters of a template; the longest of PromptSource's has 2,849."""
CUT = 2048
"""Characters of a value that PromptSource writes."""
WALL_S = 20.0
"""Seconds that a row may take, waiting included; the child process itself is given fewer of computing."""

_CLOSING = re.compile(r"\{%.*?%\}|(-?\}\})", re.DOTALL)


@dataclass(frozen=True)
class Prompted:
    """A row as a template puts it: what a model reads, what it should write, and what it may write, () where untold."""

    input: str
    target: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class JinjaTemplate:
    """A template of PromptSource: its unique name, input and target divided by `|||`, and what its file says of it.

    Args:
        answer_choices: the choices, divided by `|||`, themselves a template; None for free answers.
        original_task: whether it asks what the data was made for; None where that is not told.
        choices_in_prompt: whether the input holds the choices.
    """

    name: str
    jinja: str
    answer_choices: str | None = None
    reference: str = ""
    original_task: bool | None = None
    choices_in_prompt: bool | None = None
    metrics: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    def apply(self, row: Mapping[str, Any], truncate: bool = True, lenient: bool = True) -> Prompted | None:
        """Put a row into the template.

        Args:
            row: values by name: texts, numbers, true, false, None, lists and mappings.
            truncate: cut every value that the template writes to `CUT` characters, at a word, as PromptSource does, by
                a filter behind each expression, which counts for the last operand of one without brackets.
            lenient: read a value that the row lacks as empty, as PromptSource does; else it is refused by its name.
        Returns:
            input and target, without blanks around them; None where the template leaves one of them empty, as it does
            with rows that it is not for.
        Raises:
            UserError: jinja2 is not installed, the row holds something else, or the template is wrong, does what it
                may not or too much.
        """
        if "answer_choices" in row:
            raise self._refusal("the row has a field answer_choices, which is the name of the template's own")
        if find_spec("jinja2") is None:
            raise UserError('templates of PromptSource need jinja2. Install it: pip install "mmprompt[llm]".')
        jinja, cut = self.jinja, f" | string | truncate({CUT}) "
        if truncate:
            jinja = _CLOSING.sub(lambda match: cut + match[1] if match[1] else match[0], jinja)
        for source in (jinja, self.answer_choices or ""):
            if len(source) > MAX_SOURCE:
                raise self._refusal(f"it has {len(source)} characters, the limit is {MAX_SOURCE}")
        try:
            request = json.dumps({"jinja": jinja, "choices": self.answer_choices, "row": dict(row), "lenient": lenient})
        except (TypeError, ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise UserError(
                f"a row holds what is no plain value: {reason}. Give texts, numbers, lists and mappings."
            ) from None
        reply = _child(os.getpid()).ask(request)
        if "error" in reply:
            raise self._refusal(" ".join(reply["error"].split())[:200].rstrip("."))
        parts = reply["parts"]
        if len(parts) > 2:
            raise self._refusal(f"it gives {len(parts)} parts where input and target were expected")
        if len(parts) < 2 or not all(parts):
            return None
        return Prompted(parts[0], parts[1], tuple(reply["choices"] or ()))

    def to_texts(
        self, data: TextData, labels: Sequence[str] | None = None, truncate: bool = True, lenient: bool = True
    ) -> TextData:
        """Put all rows into the template: the field `input`, and a label where all rows have the same choices.

        Args:
            data: rows of text; a template reads their fields, `label` as a number, and `answer`.
            labels: in the order in which the template counts them; by default the numbers that they are, or sorted.
            truncate: as in `apply`.
            lenient: as in `apply`.
        Returns:
            the rows that the template is for, with `TEMPLATE` around them; the notes say how many there are.
        Raises:
            UserError: as `apply`, labels do not fit, or the template is for no row of a part.
        """
        order = data.labels if labels is None else tuple(labels)
        for label in data.labels:
            if label not in order:
                raise unknown_name("label", label, order, "Name every label of the data.")
        is_number = labels is None and all(label.isascii() and label.isdigit() for label in order)
        numbers = {label: int(label) if is_number else place for place, label in enumerate(order)}

        def values(row: TextRow) -> dict[str, Any]:
            target = {"answer": row.answer} if row.label is None else {"label": numbers[row.label]}
            return {**row.fields, **target}

        prompted: dict[str, list[Prompted | None]] = {}
        for split in SPLITS:
            prompted[split] = [self.apply(values(row), truncate, lenient) for row in data.rows(split)]
        used = [item for items in prompted.values() for item in items if item is not None]
        choices = used[0].choices if used and len({item.choices for item in used}) == 1 else ()
        is_choice = len(choices) > 1 and {item.target for item in used} <= set(choices)

        target = "label" if is_choice else "answer"
        parts: dict[str, Any] = {}
        for split in SPLITS:
            pairs = [(row, item) for row, item in zip(data.rows(split), prompted[split], strict=True) if item]
            parts[split] = tuple(
                TextRow({"input": item.input}, task=row.task, **{target: item.target}) for row, item in pairs
            )
            if not pairs and split != "val":
                raise self._refusal(f"it is for none of the {len(prompted[split])} {split} rows of {data.name}")
        n_rows = sum(map(len, prompted.values()))
        note = f"Rows that the template {self.name!r} is for: {len(used)} of {n_rows}."
        notes = (*data.notes, note) if len(used) < n_rows else data.notes
        texts = replace(data, **parts, labels=tuple(sorted(choices)) if is_choice else (), notes=notes)
        return replace(texts, template=TEMPLATE, verbalizer=None, instructions=())

    def _refusal(self, problem: str) -> UserError:
        return UserError(f"the template {self.name!r} cannot be used: {problem}. Correct it, or choose another.")


class _Child:
    """The process that renders templates (see `sandbox`): one for all rows, and another once it had to be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: str) -> dict[str, Any]:
        """Return the answer to one request; an error where the process gave none."""
        with self._lock:
            if self._process is None:
                command = [sys.executable, "-P", str(Path(__file__).with_name("sandbox.py"))]
                pipe = subprocess.PIPE
                self._process = subprocess.Popen(  # noqa: S603, our own file
                    command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="ascii"
                )
            process, line = self._process, ""
            assert process.stdin is not None, "it was opened"
            assert process.stdout is not None, "it was opened"
            timer = threading.Timer(WALL_S, process.kill)
            timer.start()
            try:
                process.stdin.write(request + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                pass
            finally:  # after an interruption too: what it would answer then belongs to no later request
                timer.cancel()
                if not line.endswith("\n"):
                    self._process = None
                    process.kill()
                    process.communicate()
        return json.loads(line) if line else {"error": "it takes too much time or memory"}


@functools.lru_cache(maxsize=1)
def _child(process: int) -> _Child:
    """Return the child of a process, named by its number: one that forks shares no pipes."""
    return _Child()


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
        """Return the next node; metadata may be an anchor's or an alias, as one of PromptSource's files has it."""
        is_metadata = isinstance(index, yaml.ScalarNode) and index.value == "metadata"
        if is_metadata and getattr(self.peek_event(), "anchor", None) is not None:
            return yaml.SafeLoader.compose_node(self, parent, index)
        return super().compose_node(parent, index)


for _tag in _Loader.tags:
    _Loader.add_constructor(_tag, functools.partial(_Loader.construct_mapping, deep=True))


@checked
def read_promptsource(path: str | Path) -> dict[str, JinjaTemplate]:
    """Read a `templates.yaml` of PromptSource: its templates by name. Nothing in it is run.

    Raises:
        UserError: the file is no such file.
    """
    content = read_yaml(path, _Loader, MAX_BYTES)
    entries = content.get("templates")
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise bad_file(path, "holds no templates of PromptSource", "Give a templates.yaml, with a mapping `templates`.")
    templates: dict[str, JinjaTemplate] = {}
    for entry in (validate(_Entry, content, path) for content in entries.values()):
        if entry.name in templates:
            raise bad_file(path, f"has two templates named {entry.name!r}", "Rename one.")
        about = entry.metadata or _Metadata()
        told = (about.original_task, about.choices_in_prompt, about.metrics or (), about.languages or ())
        templates[entry.name] = JinjaTemplate(
            entry.name, entry.jinja, entry.answer_choices, entry.reference or "", *told
        )
    return templates

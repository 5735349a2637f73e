"""The template language: from a text to its parts. Nothing in a template is ever evaluated.

`{name}` is a field, `{name:cut}` one that may be shortened to fit, `{name:cut=64}` one of at most 64 tokens. `{soft}`
stands for all vectors of the method, `{soft*4}` for four more, `{soft*4:tone}` for four with a name and `{soft:tone}`
for the same ones again, `{soft:"It was"}` for as many as these words have tokens. `{bos}` is where the text begins,
with the start tokens of the tokenizer; where it is not written they stand before everything else. `{answer}` comes
last. `{{` and `}}` are braces. A template that begins with `[[system]]`, `[[user]]` or `[[assistant]]` is a chat; each
such mark at the start of a line begins a message, and the last message is the assistant's, with `{answer}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mmprompt.errors import UserError, unknown_name

MAX_VECTORS = 1024
"""Most vectors of one `{soft*N}`."""
MAX_TOKENS = 10**6
"""Most tokens of one `:cut=N`."""
ROLES = ("system", "user", "assistant")

_MARK = re.compile(r"^[ \t]*\[\[(\w+)\]\]", re.MULTILINE)
_FIELD = re.compile(r"(\w[\w -]*)(:cut(?:=([0-9]+))?)?")
_SOFT = re.compile(r'soft(?:\*([0-9]+)|:"([^"]*)")?(?::(\w[\w-]*))?')
_BRACE_OR_QUOTE = re.compile(r'["{}]')


@dataclass(frozen=True)
class Field:
    """A field of the row.

    Args:
        name: its name.
        is_cut: whether it may be shortened.
        most: most tokens of it, None for no limit of its own.
    """

    name: str
    is_cut: bool = False
    most: int | None = None


@dataclass(frozen=True)
class Soft:
    """A place of soft vectors.

    Args:
        group: which of the template's groups of vectors stands there, in order of first appearance.
    """

    group: int


@dataclass(frozen=True)
class Group:
    """Soft vectors that stand together; all those of the method where neither a number nor words are given.

    Args:
        n_vectors: how many.
        words: whose tokens say how many, and what they start from.
        name: under which they may stand in several places.
    """

    n_vectors: int | None = None
    words: str | None = None
    name: str | None = None

    @property
    def is_bare(self) -> bool:
        """Whether they are all those of the method."""
        return self.n_vectors is None and self.words is None


@dataclass(frozen=True)
class Bos:
    """Where the text begins, with the start tokens of the tokenizer."""


Part = str | Field | Soft | Bos


@dataclass(frozen=True)
class Message:
    """What one side of a chat says, or the whole of a template that is none.

    Args:
        role: `"system"`, `"user"` or `"assistant"`; None where there is no chat.
        parts: literal text, fields and soft vectors; those before `{answer}` where it stands here.
    """

    role: str | None
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class _Tag:
    body: str
    at: int


def parse(text: str) -> tuple[tuple[Message, ...], tuple[Group, ...]]:
    """The messages of a template and its groups of soft vectors.

    Raises:
        UserError: bad syntax, with its place.
    """
    for at, letter in enumerate(text):
        if "\ud800" <= letter <= "\udfff":
            raise _bad(text, at, "half a character (a lone surrogate) stands there", "Write it whole.")
    scanned = [(role, list(_scan(text, start, end))) for role, start, end in _messages(text)]
    _check_answer(text, [parts for _, parts in scanned])
    _check_bos(text, scanned)
    groups = _Groups(text, [tag for _, parts in scanned for tag in parts if isinstance(tag, _Tag)])
    messages: list[Message] = []
    for role, found in scanned:
        parts: list[Part] = []
        for part in found:
            if isinstance(part, _Tag) and part.body == "answer":
                break
            parts.append(part if isinstance(part, str) else _part(text, part, groups))
        is_last = len(messages) == len(scanned) - 1
        messages.append(Message(role, _stripped(parts, is_last) if role else tuple(parts)))
    return tuple(messages), tuple(groups.found)


def bare_soft(text: str) -> int | None:
    """Find where the bare `{soft}` of a template begins, None if there is none."""
    tags = (tag for _, start, end in _messages(text) for tag in _scan(text, start, end) if isinstance(tag, _Tag))
    return next((tag.at for tag in tags if tag.body == "soft"), None)


def _place(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    return f"line {line}, column {column}" if "\n" in text.strip("\n") else f"column {column}"


def _bad(text: str, at: int, problem: str, advice: str) -> UserError:
    return UserError(f"template, {_place(text, at)}: {problem}. {advice}")


def _messages(text: str) -> Iterator[tuple[str | None, int, int]]:
    """The role, start and end of each message; one without a role where there is no chat."""
    marks = list(_MARK.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        yield None, 0, len(text)
        return
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        if mark[1] not in ROLES:
            place = _place(text, mark.start(1))
            raise UserError(f"template, {place}: {unknown_name('role', mark[1], ROLES)}")
        yield mark[1], mark.end(), len(text) if following is None else following.start()
    if marks[-1][1] != "assistant":
        advice = "End a chat with a line `[[assistant]] {answer}`."
        raise _bad(text, marks[-1].start(1), f"the last message is that of the {marks[-1][1]}", advice)


def _scan(text: str, start: int, end: int) -> Iterator[str | _Tag]:
    """Literal texts and tags, in order."""
    literal: list[str] = []
    at = start
    while at < end:
        if text[at : at + 2] in ("{{", "}}"):
            literal.append(text[at])
            at += 2
        elif text[at] == "}":
            raise _bad(text, at, "a } closes nothing", "Write }} for a brace.")
        elif text[at] == "{":
            close = _close(text, at, end)
            if literal:
                yield "".join(literal)
                literal = []
            yield _Tag(text[at + 1 : close], at)
            at = close + 1
        else:
            following = [place for place in (text.find("{", at, end), text.find("}", at, end)) if place >= 0]
            literal.append(text[at : min(following, default=end)])
            at = min(following, default=end)
    if literal:
        yield "".join(literal)


def _close(text: str, start: int, end: int) -> int:
    """Where the brace at `start` is closed; braces within quotes do not count."""
    at = start + 1
    while (found := _BRACE_OR_QUOTE.search(text, at, end)) is not None:
        if found[0] == "}":
            return found.start()
        closing = text.find('"', found.end(), end) if found[0] == '"' else -1
        if closing < 0:
            break
        at = closing + 1
    raise _bad(text, start, "a { is not closed", "Close it with }, or write {{ for a brace.")


def _check_answer(text: str, messages: list[list[str | _Tag]]) -> None:
    """Refuse a template without exactly one `{answer}`, at the end of its last message."""
    tags = [part for parts in messages for part in parts if isinstance(part, _Tag)]
    answers = [tag for tag in tags if tag.body == "answer"]
    if not answers:
        raise _bad(text, len(text.rstrip()), "there is no {answer}, but a template ends with it", "Add {answer}.")
    if len(answers) > 1:
        raise _bad(text, answers[1].at, "{answer} stands a second time", "Keep the last one only.")
    if answers[0] not in messages[-1]:
        raise _bad(text, answers[0].at, "{answer} stands in an earlier message", "Move it to the end of the last one.")
    for part in messages[-1][messages[-1].index(answers[0]) + 1 :]:
        if isinstance(part, _Tag) or part.strip():
            at = part.at if isinstance(part, _Tag) else answers[0].at + len("{answer}")
            raise _bad(text, at, "something follows {answer}, but it comes last", "Move it before {answer}.")


def _check_bos(text: str, messages: list[tuple[str | None, list[str | _Tag]]]) -> None:
    """Refuse a second `{bos}`, and one in a chat."""
    found = [
        (role, part) for role, parts in messages for part in parts if isinstance(part, _Tag) and part.body == "bos"
    ]
    if found and found[0][0] is not None:
        problem = "{bos} stands in a chat, which begins as the model's chat template says"
        raise _bad(text, found[0][1].at, problem, "Leave it out.")
    if len(found) > 1:
        raise _bad(text, found[1][1].at, "{bos} stands a second time, but a text begins once", "Keep the first only.")


def _part(text: str, tag: _Tag, groups: _Groups) -> Part:
    """A field, soft vectors or the beginning."""
    if tag.body == "bos":
        return Bos()
    if _is_soft(tag):
        return Soft(groups.number(tag))
    match = _FIELD.fullmatch(tag.body)
    if match is None or match[1] == "answer" or match[1] != match[1].strip():
        problem = f"{{{tag.body[:40]}}} is no field"
        raise _bad(text, tag.at, problem, "Write {name}, {name:cut} or {name:cut=64}, or {{ for a brace.")
    most = None if match[3] is None else _count(text, tag, match[3], "the number after cut=", MAX_TOKENS)
    return Field(match[1], match[2] is not None, most)


def _is_soft(tag: _Tag) -> bool:
    return re.match(r"soft(?![\w -])", tag.body) is not None


def _count(text: str, tag: _Tag, digits: str, what: str, most: int) -> int:
    count = int(digits[:9])  # longer ones are above every limit
    if not 1 <= count <= most:
        raise _bad(text, tag.at, f"{what} is {digits[:9]}, but 1 to {most} was expected", "Change it.")
    return count


class _Groups:
    """Which group of vectors each soft tag names."""

    def __init__(self, text: str, tags: list[_Tag]) -> None:
        self.found: list[Group] = []
        self._number: dict[int, int] = {}  # place of a tag -> its group
        named: dict[str, int] = {}
        for tag in filter(_is_soft, tags):
            group = self._read(text, tag)
            known = named.get(group.name) if group.name is not None else None
            if known is None:
                self._add(text, tag, group)
            else:
                self.found[known] = self._same(text, tag, self.found[known], group)
                self._number[tag.at] = known
            if group.name is not None:
                named.setdefault(group.name, self._number[tag.at])
        for at, number in self._number.items():
            group = self.found[number]
            if group.is_bare and group.name is not None:
                advice = f"Write {{soft*4:{group.name}}} in one place."
                raise _bad(text, at, f"the soft vectors {group.name!r} are given no number", advice)

    def number(self, tag: _Tag) -> int:
        """The group of a tag."""
        return self._number[tag.at]

    def _read(self, text: str, tag: _Tag) -> Group:
        match = _SOFT.fullmatch(tag.body)
        if match is None:
            expected = '{soft}, {soft*4}, {soft*4:name}, {soft:name}, {soft:"words"} or {soft:"words":name}'
            raise _bad(text, tag.at, f"{{{tag.body[:40]}}} is no soft slot", f"Write {expected}.")
        if match[2] is not None and not match[2].strip():
            raise _bad(text, tag.at, "there are no words between the quotes", 'Write {soft:"It was"} or {soft*4}.')
        n_vectors = None if match[1] is None else _count(text, tag, match[1], "the number of vectors", MAX_VECTORS)
        return Group(n_vectors, match[2], match[3])

    def _add(self, text: str, tag: _Tag, group: Group) -> None:
        if group == Group() and Group() in self.found:
            advice = "Write {soft*4:name} in both places for the same vectors, or {soft*4} for more."
            raise _bad(text, tag.at, "{soft} stands a second time, but it holds all vectors of the method", advice)
        self._number[tag.at] = len(self.found)
        self.found.append(group)

    def _same(self, text: str, tag: _Tag, known: Group, group: Group) -> Group:
        """The group that two tags of one name give together."""
        if group.is_bare or group == known:
            return known
        if known.is_bare:
            return group
        advice = f"Write it once, and {{soft:{group.name}}} where it stands again."
        raise _bad(text, tag.at, f"the soft vectors {group.name!r} were given another number or other words", advice)


def _stripped(parts: list[Part], is_last: bool) -> tuple[Part, ...]:
    """A message without blanks around it; those before the answer stay."""
    kept = list(parts)
    if kept and isinstance(kept[0], str):
        kept[0] = kept[0].lstrip()
    if kept and isinstance(kept[-1], str) and not is_last:
        kept[-1] = kept[-1].rstrip()
    return tuple(part for part in kept if part != "")

"""The one template language: from a text to its parts. Nothing in a template is ever evaluated.

`{name}` is a field, `{name:cut}` one that may be shortened to fit, `{name:cut=64}` one of at most 64 tokens;
`{name:CHANGE}` and `{name:cut:CHANGE}` read it changed by one of `CHANGES`, such as `{name:rstrip=".!"}`. `{soft}`
stands for all vectors of the method, `{soft*4}` for four more, `{soft*4:tone}` for four with a name and `{soft:tone}`
for the same ones again, `{soft:"It was"}` for as many as these words have tokens. `{bos}` is where the text begins,
with the start tokens of the tokenizer; where it is not written they stand before everything else. `{answer}` is where
the answer stands, once or in several places. `{{` and `}}` are braces. A template that begins with `[[system]]`,
`[[user]]` or `[[assistant]]` is a chat; each such mark at the start of a line begins a message, and the last message is
the assistant's, with `{answer}`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mmprompt.errors import UserError, unknown_name

MAX_VECTORS = 1024
"""Most vectors of one `{soft*N}`."""
MAX_TOKENS = 10**6
"""Most tokens of one `:cut=N`."""
ROLES = ("system", "user", "assistant")
CHANGES: dict[str, Callable[[str, str], str]] = {
    "strip": lambda text, letters: text.strip(letters or string.punctuation),
    "rstrip": lambda text, letters: text.rstrip(letters or string.punctuation),
    "but-last": lambda text, _: text[:-1],
    "first-lower": lambda text, _: text[:1].lower() + text[1:],
}
"""What may be done to a field's text, by name; of the first two the letters are those given, or ASCII punctuation."""

MARK = re.compile(r"^[ \t]*\[\[(\w+)\]\]", re.MULTILINE)
"""What a message of a chat begins with."""
_FIELD = re.compile(r'(\w[\w -]*)(:cut(?:=([0-9]+))?)?(?::([a-z]+(?:-[a-z]+)?)(?:="([^"]+)")?)?')
_SOFT = re.compile(r'soft(?:\*([0-9]+)|:"([^"]*)")?(?::(\w[\w-]*))?')
_BRACE_OR_QUOTE = re.compile(r'["{}]')


@dataclass(frozen=True)
class Field:
    """A field of the row: whether it may be shortened, and to `most` tokens where it has a limit of its own.

    `change` is one of `CHANGES`, "" for none, and takes `letters` away.
    """

    name: str
    is_cut: bool = False
    most: int | None = None
    change: str = ""
    letters: str = ""

    @property
    def text(self) -> str:
        """As it is written."""
        cut = "" if not self.is_cut else ":cut" if self.most is None else f":cut={self.most}"
        letters = f'="{self.letters}"' if self.letters else ""
        return f"{{{self.name}{cut}{':' if self.change else ''}{self.change}{letters}}}"

    def read(self, text: str) -> str:
        """Give what is read of a row's text."""
        return CHANGES[self.change](text, self.letters) if self.change else text


ANSWER = Field("answer")
"""Where the answer stands once more, behind its first place."""


@dataclass(frozen=True)
class Soft:
    """A place of soft vectors; `group` is which of the template's, in order of first appearance."""

    group: int


@dataclass(frozen=True)
class Group:
    """Soft vectors that stand together: a number of them, or as many as the tokens of the words that they start from.

    All those of the method where neither is given. Under one name they may stand in several places.
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
    """What one side of a chat says, or, without a role, the whole of a template that is none.

    `parts` are literal text, fields and soft vectors before `{answer}`, `behind` those behind it, `ANSWER` among them
    where it stands again.
    """

    role: str | None
    parts: tuple[Part, ...]
    behind: tuple[Part, ...] = ()


@dataclass(frozen=True)
class _Tag:
    body: str
    at: int


def parse(text: str) -> tuple[tuple[Message, ...], tuple[Group, ...]]:
    """Read the messages of a template and its groups of soft vectors; refuse bad syntax, with its place."""
    for at, letter in enumerate(text):
        if "\ud800" <= letter <= "\udfff":
            raise _bad(text, at, "half a character (a lone surrogate) stands there", "Write it whole.")
    scanned = [(role, list(_scan(text, start, end))) for role, start, end in _messages(text)]
    _check_answer(text, [parts for _, parts in scanned])
    _check_bos(text, scanned)
    group_at, groups = _groups(text, [tag for _, parts in scanned for tag in parts if isinstance(tag, _Tag)])
    messages: list[Message] = []
    for role, found in scanned:
        tags = [part.body if isinstance(part, _Tag) else None for part in found]
        n_before = tags.index("answer") if "answer" in tags else len(found)
        parts, behind = (
            [part if isinstance(part, str) else _part(text, part, group_at) for part in some]
            for some in (found[:n_before], found[n_before + 1 :])
        )
        if role and parts and isinstance(parts[0], str):  # a message has no blanks around it
            parts[0] = parts[0].lstrip()
        if role and parts and isinstance(parts[-1], str) and len(messages) < len(scanned) - 1:  # but before the answer
            parts[-1] = parts[-1].rstrip()
        if behind and isinstance(behind[-1], str):  # what ends a text is not read
            behind[-1] = behind[-1].rstrip()
        messages.append(Message(role, *(tuple(part for part in some if part != "") for some in (parts, behind))))
    return tuple(messages), tuple(groups)


def parse_line(text: str) -> tuple[list[Part], list[Group]]:
    """Read the parts and groups of a template of one line without an answer, such as that around a class name."""
    scanned = list(_scan(text, 0, len(text)))
    group_at, groups = _groups(text, [tag for tag in scanned if isinstance(tag, _Tag)])
    return [part if isinstance(part, str) else _part(text, part, group_at) for part in scanned], list(groups)


def escaped(text: str) -> str:
    """Write a text so that its braces are read as braces."""
    return text.replace("{", "{{").replace("}", "}}")


def bare_soft(text: str) -> int | None:
    """Find where the bare `{soft}` of a template begins, None if there is none."""
    tags = (tag for _, start, end in _messages(text) for tag in _scan(text, start, end) if isinstance(tag, _Tag))
    return next((tag.at for tag in tags if tag.body == "soft"), None)


def _bad(text: str, at: int, problem: str | UserError, advice: str = "") -> UserError:
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    place = f"line {line}, column {column}" if "\n" in text.strip("\n") else f"column {column}"
    return UserError(f"template, {place}: {problem}" + (f". {advice}" if advice else ""))


def _messages(text: str) -> Iterator[tuple[str | None, int, int]]:
    """The role, start and end of each message; one without a role where there is no chat."""
    marks = list(MARK.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        yield None, 0, len(text)
        return
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        if mark[1] not in ROLES:
            raise _bad(text, mark.start(1), unknown_name("role", mark[1], ROLES))
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
    """Refuse a template without an `{answer}`, and one whose answer stands in an earlier message than the last."""
    answers = [part for parts in messages for part in parts if isinstance(part, _Tag) and part.body == "answer"]
    if not answers:
        raise _bad(text, len(text.rstrip()), "there is no {answer}, but a template has one", "Add {answer}.")
    if answers[0] not in messages[-1]:
        raise _bad(text, answers[0].at, "{answer} stands in an earlier message", "Move it to the end of the last one.")


def _check_bos(text: str, messages: list[tuple[str | None, list[str | _Tag]]]) -> None:
    """Refuse a second `{bos}`, one in a chat and one behind the answer."""
    found = [
        (role, part) for role, parts in messages for part in parts if isinstance(part, _Tag) and part.body == "bos"
    ]
    if found and found[0][0] is not None:
        problem = "{bos} stands in a chat, which begins as the model's chat template says"
        raise _bad(text, found[0][1].at, problem, "Leave it out.")
    if len(found) > 1:
        raise _bad(text, found[1][1].at, "{bos} stands a second time, but a text begins once", "Keep the first only.")
    tags = [part for part in messages[-1][1] if isinstance(part, _Tag)]
    bodies = [tag.body for tag in tags]
    if found and found[0][1] in tags[bodies.index("answer") :]:
        raise _bad(text, found[0][1].at, "{bos} stands behind {answer}, but a text begins with it", "Move it there.")


def _part(text: str, tag: _Tag, group_at: Mapping[int, int]) -> Part:
    """A field, soft vectors, the beginning, or the answer once more."""
    if tag.body == "bos":
        return Bos()
    if tag.body == "answer":
        return ANSWER
    if tag.at in group_at:
        return Soft(group_at[tag.at])
    match = _FIELD.fullmatch(tag.body)
    if match is None or match[1] == "answer" or match[1] != match[1].strip():
        problem = f"{{{tag.body[:40]}}} is no field"
        raise _bad(text, tag.at, problem, "Write {name}, {name:cut} or {name:cut=64}, or {{ for a brace.")
    change, letters = match[4] or "", match[5] or ""
    if change and change not in CHANGES:
        raise _bad(text, tag.at, unknown_name("change of a field", change, ("cut", *CHANGES)))
    if letters and "strip" not in change:
        raise _bad(text, tag.at, f"{change} takes no letters", f"Write {{{match[1]}:{change}}}.")
    most = None if match[3] is None else _count(text, tag, match[3], "the number after cut=", MAX_TOKENS)
    return Field(match[1], match[2] is not None, most, change, letters)


def _count(text: str, tag: _Tag, digits: str, what: str, most: int) -> int:
    count = int(digits[:9])  # longer ones are above every limit
    if not 1 <= count <= most:
        raise _bad(text, tag.at, f"{what} is {digits[:9]}, but 1 to {most} was expected", "Change it.")
    return count


def _groups(text: str, tags: list[_Tag]) -> tuple[dict[int, int], list[Group]]:
    """The number of the group of vectors at the place of each soft tag, and the groups."""
    groups: list[Group] = []
    group_at: dict[int, int] = {}
    named: dict[str, int] = {}
    for tag in tags:
        if not re.match(r"soft(?![\w -])", tag.body):
            continue
        group = _group(text, tag)
        number = len(groups) if group.name is None else named.setdefault(group.name, len(groups))
        group_at[tag.at] = number
        if number == len(groups):
            if group == Group() and Group() in groups:
                advice = "Write {soft*4:name} in both places for the same vectors, or {soft*4} for more."
                raise _bad(text, tag.at, "{soft} stands a second time, but it holds all vectors of the method", advice)
            groups.append(group)
        elif groups[number].is_bare:
            groups[number] = group
        elif not group.is_bare and group != groups[number]:
            advice = f"Write it once, and {{soft:{group.name}}} where it stands again."
            raise _bad(
                text, tag.at, f"the soft vectors {group.name!r} were given another number or other words", advice
            )
    for at, number in group_at.items():
        name = groups[number].name
        if groups[number].is_bare and name is not None:
            advice = f"Write {{soft*4:{name}}} in one place."
            raise _bad(text, at, f"the soft vectors {name!r} are given no number", advice)
    return group_at, groups


def _group(text: str, tag: _Tag) -> Group:
    match = _SOFT.fullmatch(tag.body)
    if match is None:
        expected = '{soft}, {soft*4}, {soft*4:name}, {soft:name}, {soft:"words"} or {soft:"words":name}'
        raise _bad(text, tag.at, f"{{{tag.body[:40]}}} is no soft slot", f"Write {expected}.")
    if match[2] is not None and not match[2].strip():
        raise _bad(text, tag.at, "there are no words between the quotes", 'Write {soft:"It was"} or {soft*4}.')
    n_vectors = None if match[1] is None else _count(text, tag, match[1], "the number of vectors", MAX_VECTORS)
    return Group(n_vectors, match[2], match[3])

"""YAML without surprises.

Only text, whole and floating-point numbers, true, false and null, in lists and mappings: no tags, no
anchors, no repeated keys, `no` is text and `1e-3` a number (YAML 1.2's core schema). This file
does not know what the settings mean.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from yaml.composer import Composer

from mmprompt.errors import UserError, bad_file
from mmprompt.files import read_bytes

MAX_YAML_BYTES = 2**17


def read_yaml(
    path: str | Path, loader: type[StrictLoader] | None = None, max_bytes: int = MAX_YAML_BYTES
) -> dict[str, Any]:
    """Read a mapping from a YAML file, by a `loader` of one's own where it has tags."""
    path = Path(path)
    try:
        content = yaml.load(read_bytes(path, max_bytes).decode("utf-8-sig"), Loader=loader or StrictLoader)  # noqa: S506, a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark is not None else None
        raise bad_file(path, error.problem or "is not valid YAML", "Correct it.", line) from None
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError) as error:
        # the library lets these through on control characters, huge numbers and deep nesting
        raise bad_file(path, f"is not valid YAML ({str(error).splitlines()[0][:100]})", "Correct it.") from None
    if not isinstance(content, dict):
        raise bad_file(path, "is not a mapping of keys to values", "Write one `key: value` a line.")
    return content


if TYPE_CHECKING or not yaml.__with_libyaml__:
    from yaml import SafeLoader
else:

    class SafeLoader(Composer, yaml.CSafeLoader):
        """Reads with libyaml, ten times faster, and composes in Python, where nodes can be refused."""

        def __init__(self, stream: str) -> None:
            Composer.__init__(self)
            yaml.CSafeLoader.__init__(self, stream)


class StrictLoader(SafeLoader):
    """A SafeLoader that refuses anchors, aliases, repeated or non-text keys, and tags that no subclass knows."""

    tags: frozenset[str] = frozenset()
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  the library's own form, filled below

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node; refuse one with an anchor or an unknown tag."""
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:  # an alias event names its anchor too
            raise yaml.constructor.ConstructorError(None, None, "uses an anchor or alias", event.start_mark)
        if getattr(event, "tag", None) not in (None, *self.tags):
            raise yaml.constructor.ConstructorError(None, None, f"uses the tag {event.tag}", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node; refuse keys that are repeated or not text."""
        seen: set[str] = set()
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()  # the library refuses other kinds itself
        for key, _ in pairs:
            is_text = key.tag == "tag:yaml.org,2002:str"
            if not is_text or key.value in seen:
                problem = f"repeats the key {key.value!r}" if is_text else "has a key that is not text"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _number(loader: StrictLoader, node: Any) -> int | float:
    text = loader.construct_scalar(node)
    if node.tag.endswith(":int"):
        return int(text)
    if abs(float(text)) == float("inf"):
        raise yaml.constructor.ConstructorError(None, None, f"{text} is too large a number", node.start_mark)
    return float(text)


_DECIMAL = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"
for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    ("int", r"[-+]?[0-9]+\Z", list("-+0123456789")),
    ("float", _DECIMAL, list("-+.0123456789")),
):
    StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
for _tag in ("int", "float"):
    StrictLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _number)

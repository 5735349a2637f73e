"""The child process that renders templates of unknown origin: a program of its own, which imports nothing of mmprompt.

jinja's sandbox keeps a template from Python's insides. What a template may cost is limited from outside of it: the
system ends the process when a row takes too much time or memory, and lets it open and write no file. It reads a request
a line and answers with a line, both JSON.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, Undefined, pass_context
from jinja2.sandbox import SandboxedEnvironment, SecurityError, safe_range
from jinja2.utils import Namespace

try:
    import resource
except ImportError:  # on Windows, where the parent's limit of time is the only one
    resource = None  # type: ignore[assignment]

CPU_S, MEMORY = 1.0, 2**29
"""Seconds of computing that one row may take, and bytes that all of the process may."""
MAX_OUTPUT = 10**6
"""Characters that a template may write."""
DIVIDER = "\U000f0000|||\U000f0001"
"""Stands for the `|||` of the template itself, so that one in the data divides nothing."""


class Sandbox(SandboxedEnvironment):
    """jinja as PromptSource sets it up; a template may change the lists and mappings of its row, which are copies."""

    def __init__(self, undefined: type[Undefined]) -> None:
        super().__init__(undefined=undefined)
        self.globals = {"range": safe_range, "dict": dict, "namespace": Namespace, "zip": zip}
        self.filters |= {"choice": choice, "most_frequent": most_frequent, "highlight": str}

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Stand in for an attribute that is none of a template's business: any use of it is refused."""
        problem = f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe."
        return StrictUndefined(problem, name=attribute, obj=obj, exc=SecurityError)


@pass_context  # so that jinja does not draw once for all rows when it compiles
def choice(context: Any, values: Sequence[Any]) -> Any:
    """Draw one of some values."""
    return random.choice(values)


def most_frequent(values: Iterable[Any]) -> list[Any] | None:
    """Return the values that occur most often; None of no values."""
    counts = Counter(values).most_common()
    return [value for value, count in counts if count == counts[0][1]] if counts else None


SANDBOXES = {True: Sandbox(Undefined), False: Sandbox(StrictUndefined)}
"""By whether a value that a row lacks is empty, or refused."""


@lru_cache(maxsize=64)
def compiled(source: str, is_lenient: bool) -> Template:
    """Compile a template, once."""
    return SANDBOXES[is_lenient].from_string(source)


def parts_of(source: str, values: dict[str, Any], is_lenient: bool) -> list[str]:
    """Render a template with some values, and split the text at its dividers, without spaces around the parts.

    `choice` and `random` draw as the values say, so that a row always gives the same text.
    """
    random.seed(int.from_bytes(hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()[:8]))
    text = compiled(source.replace("|||", DIVIDER), is_lenient).render(values)
    return [part.strip() for part in text.split(DIVIDER)]


def answer(jinja: str, choices: str | None, row: dict[str, Any], lenient: bool) -> dict[str, Any]:
    """Render a row: its parts and the choices of its answers, or `{"error": ...}`."""
    try:
        # each template has values of its own, for it may change them
        listed = None if choices is None else parts_of(choices, copy.deepcopy(row), lenient)
        parts = parts_of(jinja, row | {"answer_choices": listed and [*listed]}, lenient)
    except MemoryError:
        return {"error": f"it takes more than {MEMORY // 2**20} MB"}
    except Exception as error:  # whatever its expressions raise
        return {"error": f"{type(error).__name__}: {error}"}
    if sum(map(len, [*parts, *(listed or ())])) > MAX_OUTPUT:
        return {"error": f"it writes more than {MAX_OUTPUT} characters"}
    return {"parts": parts, "choices": listed}


def main() -> None:
    """Answer requests until there are no more."""
    answer(
        "{{ 'a' | wordwrap | pprint }}{{ 1 / 0 }}", None, {}, True
    )  # so that all is imported before no file can be opened
    if resource is not None:
        for name, limit in (("RLIMIT_AS", MEMORY), ("RLIMIT_FSIZE", 0), ("RLIMIT_NOFILE", 3)):
            with contextlib.suppress(ValueError, OSError):  # a lower limit was set before
                resource.setrlimit(getattr(resource, name), (limit, limit))
    for line in sys.stdin:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, CPU_S)  # the signal ends the process
        sys.stdout.write(json.dumps(answer(**json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

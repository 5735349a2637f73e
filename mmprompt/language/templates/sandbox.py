"""Jinja for templates of unknown origin: no names of Python's within reach, and bounded work.

Jinja's own sandbox keeps a template from attributes that are not its business. Here the kinds of statements, filters
and calls are listed too, and every value that is read or made is weighed: a template whose values weigh more than
`WORK` in all is stopped, so that neither a loop nor a large text can take the machine. `range`, `zip`, `namespace`,
`choice` and `most_frequent` are there as PromptSource has them; `choice` and `random` draw as the row says, so that a
row always gives the same text. This module needs jinja2 and is imported by those who do.
"""

from __future__ import annotations

import builtins
import functools
import random
import re
from collections import Counter
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

from jinja2 import StrictUndefined, Undefined, nodes, pass_context, pass_eval_context
from jinja2.filters import FILTERS
from jinja2.sandbox import SandboxedEnvironment, SecurityError, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

WORK = 10**7
"""Characters and items that a template may read and make for one row."""
MAX_OUTPUT = 10**6
"""Characters that it may write."""
MAX_SOURCE = 20_000
"""Characters of a template; the longest of PromptSource's has 2,849."""
MAX_PLACES = 20
"""Decimal places that it may round to."""

_STATEMENTS = frozenset(
    "Template Output TemplateData Name NSRef Const Getitem Getattr Slice Filter Test Call Keyword Assign Compare "
    "Operand If For CondExpr List Tuple Dict Pair Add Sub Mul Div FloorDiv Mod Neg Pos And Or Not".split()
)
_FILTERS = (
    "abs capitalize count d default dictsort first float int items last length list lower map max min reject "
    "rejectattr reverse select selectattr sort string title trim unique upper"
).split()
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize casefold count endswith find index isalnum isalpha isdigit islower isspace isupper join lower "
        "lstrip replace rfind rsplit rstrip split splitlines startswith strip swapcase title upper".split()
    ),
    list: frozenset("append copy count extend index insert pop remove reverse sort".split()),
    dict: frozenset("copy get items keys pop setdefault update values".split()),
    tuple: frozenset("count index".split()),
}
_FORMAT = re.compile(r"(?:[^%]|%%|%[sdi]|%(?:\.[0-9])?f)*")
_CONTAINERS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)


class Sandbox(SandboxedEnvironment):
    """An environment for templates that nobody has read; one row at a time."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%"])

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, optimized=False, finalize=_as_it_is)
        self._left = 0
        self._draw = random.Random(0)
        self.globals = {"range": safe_range, "zip": _zip, "namespace": Namespace}
        own = {"choice": self._choice, "random": self._choice, "replace": self._replace, "join": self._join}
        own |= {"format": _format, "most_frequent": _most_frequent, "round": _round, "highlight": str}
        known: dict[str, Callable[..., Any]] = {name: FILTERS[name] for name in _FILTERS} | own
        self.filters = {name: self._weighing(function) for name, function in known.items()}
        self.filters |= {"_weighed": self._weigh, "_counted": self._counted}

    def write(self, source: str, values: Mapping[str, Any], seed: int) -> str:
        """What a template writes.

        Args:
            source: the template.
            values: by name; only texts, numbers, lists and mappings, which the template may change.
            seed: of `choice` and `random`.
        Raises:
            SecurityError: it does what it may not, or too much.
            jinja2.TemplateError: it is wrong. Other errors are those of its own expressions.
        """
        if len(source) > MAX_SOURCE:
            raise SecurityError(f"it has {len(source)} characters, the limit is {MAX_SOURCE}")
        self._left = WORK
        self._draw = random.Random(seed)
        written: list[str] = []
        n_written = 0
        for part in self.from_string(source).generate(values):
            n_written += len(part)
            if n_written > MAX_OUTPUT:
                raise SecurityError(f"it writes more than {MAX_OUTPUT} characters")
            written.append(part)
        return "".join(written)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _Checked().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def is_safe_callable(self, obj: Any) -> bool:
        """Whether a template may call something: a listed function, or a listed method of a plain value."""
        if obj in self.globals.values():
            return True
        return getattr(obj, "__name__", "") in _METHODS.get(type(getattr(obj, "__self__", None)), ())

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what may be called, with what goes in and comes out weighed."""
        self._weigh([args, kwargs])
        text = getattr(obj, "__self__", None)
        if isinstance(text, str) and obj.__name__ == "replace":
            return self._replace(text, *args, **kwargs)
        if isinstance(text, str) and obj.__name__ == "join":
            self._pay(len(text) * sum(map(len, args)))
        return self._weigh(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Calculate, with the result weighed."""
        if operator in "*%" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise SecurityError(f"it uses {operator} on something that is no number")
        return self._weigh(super().call_binop(context, operator, left, right))

    def _weighing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter with what goes in and comes out weighed, and nothing put off until later."""

        @functools.wraps(function)
        def weighed(*args: Any, **kwargs: Any) -> Any:
            self._weigh([args[1:] if hasattr(function, "jinja_pass_arg") else args, kwargs])
            result = function(*args, **kwargs)
            return self._weigh(list(result) if isinstance(result, Iterator) else result)

        return weighed

    def _replace(self, text: Any, old: str, new: str, count: int = -1) -> str:
        """`str.replace`, paid for before a long text is made."""
        self._pay(len(str(text)) + str(text).count(old) * len(new))
        return str(text).replace(old, new, count)

    @pass_eval_context
    def _join(self, context: Any, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        """jinja's filter `join`, paid for before a long text is made."""
        items = list(values)
        self._pay(len(d) * len(items))
        return FILTERS["join"](context, items, d, attribute)

    def _weigh(self, value: Any) -> Any:
        """Pay for a value, and give it back."""
        pending = [value]
        while pending:
            item = pending.pop()
            cost = 1
            if isinstance(item, Undefined):
                continue
            if isinstance(item, str | range):
                cost += len(item)
            elif isinstance(item, int):
                cost += item.bit_length() // 8
            elif isinstance(item, dict):
                pending += [*item.keys(), *item.values()]
            elif isinstance(item, _CONTAINERS):
                pending += item
            self._pay(cost)
        return value

    def _counted(self, values: Any) -> Any:
        """The items of a loop as they are when it begins, each paid for."""
        if isinstance(values, Undefined):
            return values
        return self._each(list(values))

    def _each(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._pay(1)
            yield value

    def _pay(self, cost: int) -> None:
        self._left -= cost
        if self._left < 0:
            raise SecurityError(f"it reads and makes more than {WORK} characters and items")

    def _choice(self, values: Sequence[Any]) -> Any:
        return self._draw.choice(list(values))


class _Checked(NodeTransformer):
    """Refuses statements that are not listed, and has every value that is named or made weighed, every loop counted."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        kind = type(node).__name__
        if kind not in _STATEMENTS:
            raise SecurityError(f"it holds a {kind} in line {node.lineno}, which is not read here")
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  jinja's names
        if node.recursive:
            raise SecurityError(f"it holds a recursive loop in line {node.lineno}, which is not read here")
        self.generic_visit(node)
        node.iter = _through("_counted", node.iter)
        return node

    def _weigh(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _through("_weighed", node)

    visit_Name = visit_Getattr = visit_Getitem = visit_List = visit_Tuple = visit_Dict = _weigh  # noqa: N815


def _through(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@pass_context
def _as_it_is(context: Any, value: Any) -> Any:
    """Writes a value unchanged; that it takes the context keeps jinja from calculating while it compiles."""
    return value


def _zip(*lists: Iterable[Any]) -> list[tuple[Any, ...]]:
    return list(builtins.zip(*lists, strict=False))


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > MAX_PLACES:
        raise SecurityError(f"it rounds to {precision} places, the limit is {MAX_PLACES}")
    return FILTERS["round"](value, precision, method)


def _format(text: str, *values: Any) -> str:
    if _FORMAT.fullmatch(text) is None:
        raise SecurityError(f"it formats with {text[:40]!r}; only %s, %d, %i, %f and %.2f are read here")
    return text % values


def _most_frequent(values: Iterable[Any]) -> list[Any] | None:
    counts = Counter(values).most_common()
    return [value for value, count in counts if count == counts[0][1]] if counts else None

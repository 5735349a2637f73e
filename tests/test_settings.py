"""Settings and arguments are held to their annotations."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Lt

from mmprompt.errors import UserError
from mmprompt.language import PromptInit
from mmprompt.settings import Count, check_settings, checked

if TYPE_CHECKING:
    from mmprompt.nowhere import Unknown


@dataclass(frozen=True)
class Settings:
    n: Count | None = None
    share: Annotated[float, Ge(0), Lt(1)] = 0.5
    rate: Annotated[float, Gt(0), Le(100)] = 1.0
    size: Annotated[int, Ge(1), Le(64)] = 8
    kind: Literal["one", "two"] = "one"
    is_on: bool = False
    place: Path | str | None = None
    rows: Sequence[int] = ()
    pairs: tuple[tuple[str, int], ...] = ()
    words: Mapping[str, str] | None = None
    unknown: Unknown | None = None

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"n": 0}, "n is 0, but it must be a whole number, 1 or more. Leave `n` out for the default."),
        ({"n": "4"}, "n is '4', but it must be a whole number, 1 or more."),
        ({"n": True}, "n is True, but it must be a whole number, 1 or more."),
        ({"n": 2.5}, "n is 2.5, but"),
        ({"n": [1]}, "n is of type list, but"),
        ({"share": 1.0}, "share is 1.0, but it must be a number, 0 or more and below 1."),
        ({"share": float("nan")}, "share is nan, but"),
        ({"rate": 0}, "rate is 0, but it must be a number, above 0 and at most 100."),
        ({"rate": 10**400}, "rate is 1000"),
        ({"rate": None}, "rate is None, but it must be a number, above 0"),
        ({"size": 65}, "size is 65, but it must be a whole number from 1 to 64."),
        ({"kind": "tow"}, "there is no kind named 'tow'. Did you mean 'two'?"),
        ({"kind": 2}, "kind is 2, but it must be one of one, two."),
        ({"is_on": 1}, "is_on is 1, but it must be True or False."),
        ({"place": 3}, "place is 3, but it must be a path or text."),
        ({"rows": 3}, "rows is 3, but it must be a list, each a whole number."),
        ({"rows": "123"}, "rows is '123', but it must be a list, each a whole number."),
        ({"rows": [1, "2"]}, "rows is of type list, but it must be a list, each a whole number."),
        ({"pairs": [("a", 1), ("b",)]}, "pairs is of type list, but it must be a list, each (text, a whole number)."),
        ({"words": "a"}, "words is 'a', but it must be a mapping."),
    ],
)
def test_a_setting_that_its_annotation_does_not_hold_is_refused(settings: dict[str, Any], refusal: str) -> None:
    with pytest.raises(UserError) as caught:
        Settings(**settings)
    assert str(caught.value).startswith(refusal)


def test_what_an_annotation_holds_is_kept_and_numbers_become_pythons_own() -> None:
    made = Settings(np.int64(3), np.float32(0.25), 7, rows=np.arange(3), place=Path("a"), unknown=object())
    assert [(type(value), value) for value in (made.n, made.share, made.rate)] == [(int, 3), (float, 0.25), (float, 7)]


@checked
def called(name: str, seed: int = 1, settings: Settings | None = None, **others: Any) -> str:
    return name


def test_an_argument_that_its_annotation_does_not_hold_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        called("a", settings={"n": 3})  # type: ignore[arg-type]
    assert str(caught.value) == "settings is of type dict, but it must be a Settings. See help(called)."
    assert called("a", 3, Settings(), more=3) == "a"


@checked
def given(n: Count = 1, rate: float | None = None, seeds: Sequence[int | None] = (), *, pair: Any = None) -> list[Any]:
    return [n, rate, seeds, pair]


def test_numbers_of_numpy_arrive_as_pythons_own() -> None:
    own = [3, 0.25, [1, 2], "x"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a float32 overflows beside the largest number of Python
        for seeds in (np.arange(1, 3), list(np.arange(1, 3))):
            found = given(np.int64(3), np.float32(0.25), seeds, pair="x")  # type: ignore[arg-type]
            assert (found, list(map(type, found))) == (own, list(map(type, own)))
            assert list(map(type, found[2])) == [int, int]
    with pytest.raises(UserError, match="seeds is of type ndarray, but it must be a list, each a whole number"):
        given(seeds=np.array([0.5, 1.7]))  # type: ignore[arg-type]
    assert given(seeds=(None, np.int8(4))) == [1, None, (None, 4), None]  # type: ignore[arg-type]


def test_which_arguments_there_are_python_says() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        called()  # type: ignore[call-arg]


@checked
def placed(place: Path | str, others: Sequence[Path | str] = (), name: str = "") -> list[Any]:
    return [place, *others, name]


def test_a_tilde_is_the_home_folder_where_a_path_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = placed("~/a", [Path("~/b"), "c/~"], "~/d")
    assert found == [str(tmp_path / "a"), tmp_path / "b", "c/~", "~/d"]
    assert Settings(place=Path("~/a")).place == tmp_path / "a"
    with pytest.raises(UserError, match=r"^~nobodyxyz/a: is below the home folder of nobody here"):
        placed("~nobodyxyz/a")


def test_text_is_a_path_where_one_is_meant() -> None:
    assert PromptInit(from_prompt="runs/start").from_prompt == Path("runs/start")

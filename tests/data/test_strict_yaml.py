from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprompt.data.strict_yaml import MAX_YAML_BYTES, StrictLoader, read_yaml
from mmprompt.errors import UserError, bad_value
from mmprompt.settings import validate


def read(folder: Path, text: str | bytes) -> dict[str, object]:
    path = folder / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path)


def refusal(folder: Path, text: str | bytes) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, text)
    message = str(caught.value)
    assert message.startswith(f"{folder}/a.yaml")
    return message.removeprefix(f"{folder}/a.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-2.5e+3", -2500.0),
        ("010", 10),
        ("-3", -3),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("a photo of a {}.", "a photo of a {}."),
        ('"1"', "1"),
        ("[1, a, 1e-3]", [1, "a", 0.001]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_values_mean_what_they_look_like(tmp_path: Path, text: str, value: object) -> None:
    found = read(tmp_path, f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", ", line 3: repeats the key 'a'"),
        ("a:\n  b: 1\n  b: 2\n", ", line 3: repeats the key 'b'"),
        ("a: &x 1\n", ", line 1: uses an anchor or alias"),
        ("a: 1\nb: *x\n", ", line 2: uses an anchor or alias"),
        ("a: !!python/name:os.system x\n", ", line 1: uses the tag"),
        ("a: !!set {x}\n", ", line 1: uses the tag"),
        ("a: 1\n1: b\n", ", line 2: has a key that is not text"),
        ("? [a]\n: b\n", ", line 1: has a key that is not text"),
        ("a: 1e999\n", ", line 1: 1e999 is too large a number"),
        ("a: [1\n", ", line 2: "),
        ("a: b: c\n", ", line 1: mapping values are not allowed"),
        ("a: 1\n---\nb: 2\n", ", line 2: "),
        ("- a\n", ": is not a mapping of keys to values"),
        ("", ": is not a mapping of keys to values"),
        (b"a: \xff\n", ": is not valid YAML ("),
        (b"a: \x00\n", ": is not valid YAML ("),
        ("a: " + "9" * 5000, ": is not valid YAML ("),
        ("a: " + "x" * MAX_YAML_BYTES, f": has more than {MAX_YAML_BYTES} bytes, which is the limit"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_line(tmp_path: Path, text: str | bytes, problem: str) -> None:
    assert refusal(tmp_path, text).startswith(problem)


def test_what_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    told = refusal(tmp_path, "a: " + "[" * 1500)
    # pyyaml before 6.0.4 leaves it to Python
    assert told.startswith((", line 1: exceeded maximum nesting depth", ": is not valid YAML (maximum recursion depth"))


@given(st.binary(max_size=80) | st.text("ab01:-[]{}&*!#|>%@`'\",?\n ~.eE", max_size=60).map(str.encode))
def test_any_bytes_give_a_mapping_or_a_refusal(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("yaml") / "a.yaml"
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        assert isinstance(read_yaml(path), dict)


def test_the_library_keeps_its_own_rules() -> None:
    import yaml

    assert yaml.safe_load("a: no") == {"a": False}
    assert StrictLoader.yaml_implicit_resolvers is not yaml.SafeLoader.yaml_implicit_resolvers


@dataclass(frozen=True)
class Settings:
    lr: float
    shots: int = 16
    names: tuple[str, ...] = ()
    augment: Literal["none", "coop"] = "none"

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise bad_value("shots", self.shots, "1 or more was expected", "Raise it.")


def test_a_mapping_becomes_the_dataclass() -> None:
    assert validate(Settings, {"lr": 1, "names": ["a"]}, "f") == Settings(lr=1.0, names=("a",))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"lr": 1.0, "shotz": 1}, "f: there is no key named 'shotz'. Did you mean 'shots'?"),
        ({"lr": 1.0, "xyzzy": 1}, "f: there is no key named 'xyzzy'. Known: augment, lr, names, shots."),
        ({}, "f: lacks the key 'lr'. Add it."),
        ({"lr": "1"}, "f: lr is '1', but input should be a valid number. Correct it."),
        ({"lr": True}, "f: lr is True, but input should be a valid number. Correct it."),
        ({"lr": 1.0, "shots": 1.5}, "f: shots is 1.5, but input should be a valid integer. Correct it."),
        ({"lr": 1.0, "names": ["a", 1]}, "f: names.1 is 1, but input should be a valid string. Correct it."),
        ({"lr": 1.0, "augment": "cop"}, "f: augment is 'cop', but input should be 'none' or 'coop'. Correct it."),
        ({"lr": 1.0, "shots": 0}, "f: shots is 0, but 1 or more was expected. Raise it."),
    ],
)
def test_a_bad_mapping_is_refused_in_one_line(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(Settings, mapping, "f")
    assert str(caught.value) == message

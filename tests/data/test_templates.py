from __future__ import annotations

import pytest

from mmprompt.data.templates import expand_templates, fill
from mmprompt.errors import UserError


def test_the_class_name_replaces_the_braces() -> None:
    assert fill("a photo of a {}, a type of pet.", "cat") == "a photo of a cat, a type of pet."


def test_the_bare_name_is_a_template() -> None:
    assert fill("{}", "cat") == "cat"


def test_braces_in_a_class_name_mean_nothing() -> None:
    assert fill("a {}.", "{0.__class__}") == "a {0.__class__}."


@pytest.mark.parametrize("template", ["", "a photo", "{} and {}", "{0}", "{name}", "{} {", "}{"])
def test_templates_without_exactly_one_place_are_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"but exactly one \{\} is needed, where the class name goes"):
        fill(template, "cat")


def test_a_named_ensemble_stands_for_its_sentences() -> None:
    sentences = expand_templates(["a {}.", "open_clip:SIMPLE_IMAGENET_TEMPLATES"])
    assert sentences[0] == "a {}."
    assert len(sentences) == 8
    assert "itap of a {}." in sentences


def test_an_ensemble_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"exactly one \{\} is needed"):
        expand_templates(["open_clip:SIMPLE"])

from __future__ import annotations

import pytest

from mmprompt.data.class_names import check_template, expand_templates, readable_name, readable_names, shortened
from mmprompt.errors import UserError


def test_underscores_and_runs_of_space_become_one_space() -> None:
    assert readable_name(" wild__cat \t x") == "wild cat x"


def test_renaming_comes_first_and_its_result_is_read_like_any_name() -> None:
    assert readable_name("SeaLake", {"SeaLake": "Sea_or Lake"}) == "Sea or Lake"


def test_names_come_in_the_order_of_their_labels() -> None:
    assert readable_names(["b_a", "a", "Z"], "here") == ("b a", "a", "Z")


def test_labels_that_give_one_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"here: 'wild_cat' and 'wild cat' are both the class 'wild cat'\. Rename one"):
        readable_names(["wild_cat", "dog", "wild cat"], "here")


@pytest.mark.parametrize("name", ["", "_", " \t"])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"is empty\. Give every class a name\."):
        readable_names(["dog", name], "here")


def test_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="here: holds only the class 'dog', but two or more are needed"):
        readable_names(["dog"], "here")


def test_long_lists_are_cut_with_their_number() -> None:
    assert shortened(list("abc"), 3) == "a, b, c"
    assert shortened(list("abcd"), 3) == "a, b, c and 1 more"


@pytest.mark.parametrize(
    ("rule", "raw", "name"),
    [
        ("lower-case", "Egyptian_Mau", "egyptian mau"),
        ("year-first", "Audi TT RS Coupe 2012", "2012 Audi TT RS Coupe"),
        ("year-first", "2012 Audi TT RS Coupe", "2012 Audi TT RS Coupe"),
        ("year-first", "Chevrolet Silverado 1500", "Chevrolet Silverado 1500"),
        ("camel-case", "ApplyEyeMakeup", "Apply Eye Makeup"),
        ("camel-case", "Apply_Eye_Makeup", "Apply Eye Makeup"),
        ("reversed-path", "/a/apse/indoor", "indoor apse"),
        ("reversed-path", "/a/airplane_cabin", "airplane cabin"),
        ("reversed-path", "indoor apse", "indoor apse"),
        ("none", "Egyptian_Mau", "Egyptian Mau"),
    ],
)
def test_names_are_rewritten_by_the_rule_of_their_set_and_stay_when_they_were(rule, raw: str, name: str) -> None:
    assert readable_name(raw, rewrite=rule) == name


def test_a_replaced_name_is_not_rewritten() -> None:
    assert readable_name("x", {"x": "Big Cat"}, "lower-case") == "Big Cat"


def test_names_that_collide_after_rewriting_are_refused() -> None:
    with pytest.raises(UserError, match="'Pug' and 'pug' are both the class 'pug'"):
        readable_names(["Pug", "pug"], "here", rewrite="lower-case")


def test_a_sentence_and_the_bare_name_are_templates() -> None:
    for template in ("a photo of a {}, a type of pet.", "{}"):
        assert check_template(template) == template


@pytest.mark.parametrize("template", ["", "a photo", "{} and {}", "{0}", "{name}", "{} {", "}{"])
def test_templates_without_exactly_one_place_are_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"but exactly one \{\} is needed, where the class name goes"):
        check_template(template)


def test_a_named_ensemble_stands_for_its_sentences() -> None:
    sentences = expand_templates(["a {}.", "open_clip:SIMPLE_IMAGENET_TEMPLATES"])
    assert sentences[0] == "a {}."
    assert len(sentences) == 8
    assert "itap of a {}." in sentences


def test_an_ensemble_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"exactly one \{\} is needed"):
        expand_templates(["open_clip:SIMPLE"])

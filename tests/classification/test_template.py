import pytest

from mmprompt.classification.methods import CoOp
from mmprompt.classification.template import ClassTemplate, check_class_names
from mmprompt.errors import UserError


def spelled(backbone, template, name):
    """The row of a class with its words written out and its vectors as <m>."""
    return [f"<{-1 - i}>" if i < 0 else backbone.decode([i]).strip() for i in template.row(backbone, name)]


def test_context_stands_before_the_name_at_the_end(tiny_clip_backbone):
    assert spelled(tiny_clip_backbone, ClassTemplate.of_context(2), "cat") == ["<0>", "<1>", "cat", "."]


def test_name_in_the_middle_has_half_of_the_context_on_each_side(tiny_clip_backbone):
    template = ClassTemplate.of_context(3, "middle")
    assert spelled(tiny_clip_backbone, template, "red car") == ["<0>", "red", "car", "<1>", "<2>", "."]


def test_name_at_the_front_keeps_the_full_stop_last(tiny_clip_backbone):
    template = ClassTemplate.of_context(2, "front")
    assert spelled(tiny_clip_backbone, template, "cat") == ["cat", "<0>", "<1>", "."]


def test_words_around_the_name_need_no_context(tiny_clip_backbone):
    assert spelled(tiny_clip_backbone, ClassTemplate("a photo of a {}."), "dog") == [
        "a",
        "photo",
        "of",
        "a",
        "dog",
        ".",
    ]


def test_slots_are_framed_by_start_and_end(tiny_clip_backbone):
    slots = ClassTemplate.of_context(2).slots(tiny_clip_backbone, ["cat", "red car"])
    assert slots.lengths.tolist() == [6, 7]
    assert slots.ctx_index[0].tolist()[:4] == [-1, 0, 1, -1]
    assert slots.token_ids[0, 0] == tiny_clip_backbone.text.frame.start_id
    assert slots.token_ids[0, 5] == tiny_clip_backbone.text.frame.end_id


def test_a_written_template_is_the_one_of_its_position():
    assert ClassTemplate.of_context(3, "middle") == ClassTemplate("{soft*1} {name} {soft*2}.")


def test_vectors_may_stand_between_words(tiny_clip_backbone):
    template = ClassTemplate("a {soft*2} photo of the {}, {soft*1}")
    assert template.n_ctx == 3
    assert spelled(tiny_clip_backbone, template, "cat") == ["a", "<0>", "<1>", "photo", "of", "the", "cat", ",", "<2>"]


@pytest.mark.parametrize(
    ("text", "written"), [("a {{}} {}.", "a {} cat."), ("a {{}} {name}.", "a {} cat."), ("{{}}{}", "{}cat")]
)
def test_doubled_braces_with_nothing_between_are_braces(text, written, tiny_clip_backbone):
    assert ClassTemplate(text).row(tiny_clip_backbone, "cat") == tiny_clip_backbone.tokenize(written)


def test_both_spellings_of_the_class_name_are_one(tiny_clip_backbone):
    written = ClassTemplate("a photo of a {}."), ClassTemplate("a photo of a {name}.")
    assert len({tuple(template.row(tiny_clip_backbone, "cat")) for template in written}) == 1


def test_lines_are_an_ensemble():
    template = ClassTemplate("a photo of a {}.\nthe {}")
    assert template.lines == (ClassTemplate("a photo of a {}."), ClassTemplate("the {}"))
    assert ClassTemplate("a {}").lines == (ClassTemplate("a {}"),)


@pytest.mark.parametrize("template", ["a photo.", "a {} and a {}.", "{soft*4}", "a {}\n", "{} and {name}"])
def test_template_without_exactly_one_place_is_refused(template):
    with pytest.raises(UserError, match="exactly once"):
        ClassTemplate(template)


@pytest.mark.parametrize(
    "template", ["{soft} {}", "{soft*x} {}", "{soft*-1} {}", "{label}", "{bos} a {}", "a { {}", "{{}}", "{soft*4 {}"]
)
def test_a_brace_that_means_nothing_is_refused(template):
    with pytest.raises(
        UserError,
        match=r"\{soft\*4\}, with their number|no other field|is no field|is not closed|closes nothing|is no soft slot",
    ):
        ClassTemplate(template)


def test_name_that_does_not_fit_is_refused_with_its_length_and_the_limit(tiny_clip_backbone):
    with pytest.raises(UserError, match=r"'cat dog bird' takes 18 slots .* has 16"):
        ClassTemplate.of_context(12).slots(tiny_clip_backbone, ["cat", "cat dog bird"])


@pytest.mark.parametrize("n_ctx", [17, 10**12])
def test_more_vectors_than_slots_are_refused_before_any_are_made(n_ctx, tiny_clip_backbone):
    with pytest.raises(
        UserError, match=rf"n_ctx is {n_ctx}, but the text tower of .* has 16 slots|but 1 to 1024 was expected"
    ):
        ClassTemplate.of_context(n_ctx).slots(tiny_clip_backbone, ["cat"])
    with pytest.raises(UserError, match=rf"n_ctx is {n_ctx}, but"):
        CoOp(n_ctx=n_ctx).build(tiny_clip_backbone, ["cat"])


def test_name_that_just_fits_is_taken(tiny_clip_backbone):
    assert ClassTemplate.of_context(12).slots(tiny_clip_backbone, ["cat"]).lengths.tolist() == [16]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no class names"),
        (["cat", " "], "is empty"),
        (["cat", "dog", "cat"], "'cat' stands twice"),
        (["cat ", "dog", " cat"], "' cat' stands twice"),
        (["red car", "red _car"], "'red _car' stands twice"),
        (["cat", 7], "class name 7 is of type int"),
        (["cat", None], "class name None is of type NoneType"),
        ("lynx", r"class_names is 'lynx', but a list of names was expected"),
        ({"cat"}, "but a list of names was expected"),
        (None, "class_names is None, but a list of names was expected"),
        (["cat", "\u200b\t"], "is empty"),
        (["cat", "caf\udce9"], r"class name 'caf\\udce9' holds bytes that are no text"),
        (["cat", "?! -"], r"'\?! -' is only punctuation"),
        (["cat", "“—”"], "is only punctuation"),
    ],
)
def test_names_that_say_nothing_or_cannot_be_told_apart_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        check_class_names(names)


def test_names_that_differ_in_case_alone_are_taken():
    check_class_names(["Turkey", "turkey"])


@pytest.mark.parametrize("name", ["C++", "7", "kött", "猫", "😀", "rock 'n' roll"])
def test_names_with_one_sign_of_meaning_are_taken(name):
    check_class_names([name])

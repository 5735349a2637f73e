import json

import pytest

from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow, is_text, load_texts, sample_shots

ROWS = [
    {"text": f"{label} {split} {i}", "label": label, "split": split}
    for label in ("good", "bad")
    for split, n in (("train", 6), ("val", 5), ("test", 4))
    for i in range(n)
]
UNDIVIDED = [{"text": f"{label} {i}", "label": label} for label in ("good", "bad") for i in range(20)]


@pytest.fixture
def write(tmp_path):
    def write(rows, card=None):
        path = tmp_path / "mood.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        if card is not None:
            path.with_suffix(".yaml").write_text(card)
        return path

    return write


def texts(rows):
    return [row.fields["text"] for row in rows]


def test_rows_keep_their_parts_and_the_order_of_the_file(write):
    data = load_texts(write(ROWS))
    assert data.name == "mood"
    assert data.labels == ("bad", "good")
    for split in ("train", "val", "test"):
        assert texts(data.rows(split)) == [row["text"] for row in ROWS if row["split"] == split]
    assert data.train[0] == TextRow({"text": "good train 0"}, label="good")
    assert data.notes == ()


def test_everything_but_label_answer_split_and_task_is_a_field(write):
    rows = [{"name": f"n{i}", "place": "p", "answer": f"a{i}", "task": "de", "split": s} for i, s in enumerate(SPLITS)]
    row = load_texts(write(rows)).train[0]
    assert row == TextRow({"name": "n0", "place": "p"}, answer="a0", task="de")


SPLITS = ("train", "test")


def test_blank_lines_are_passed_over_and_still_counted(write):
    with pytest.raises(UserError, match=r"mood\.jsonl, line 3: is not valid JSON"):
        load_texts(write([json.dumps(ROWS[0]), "", "{"]))


def test_the_card_gives_template_words_and_instructions(write):
    card = (
        'template: "{soft} {text}: {answer}"\nverbalizer: {good: [great, fine], bad: awful}\ninstructions: ["a", b]\n'
    )
    data = load_texts(write(ROWS, card + "licence: CC0\nsource: here\nnote: none\n"))
    assert data.template == "{soft} {text}: {answer}"
    assert data.verbalizer == {"good": ("great", "fine"), "bad": ("awful",)}
    assert data.instructions == ("a", "b")
    assert data.licence == "CC0"


def test_without_a_card_there_are_no_words(write):
    data = load_texts(write(ROWS))
    assert (data.template, data.verbalizer, data.instructions) == (None, None, ())


def test_an_undivided_file_is_divided_60_10_30_in_every_class(write):
    data = load_texts(write(UNDIVIDED))
    for part, count in ((data.train, 12), (data.val, 2), (data.test, 6)):
        assert [sum(row.label == label for row in part) for label in data.labels] == [count, count]
    assert data.notes == ("No split was given: 24 train, 4 val, 12 test, the same share of every class.",)


def test_the_division_does_not_depend_on_the_order_of_the_file(write):
    test = set(texts(load_texts(write(UNDIVIDED)).test))
    assert set(texts(load_texts(write(UNDIVIDED[::-1])).test)) == test


def test_equal_texts_of_two_tasks_fall_in_one_part(write):
    rows = [{"text": f"n{i}", "answer": f"{t}{i}", "task": t} for i in range(20) for t in ("de", "fr")]
    data = load_texts(write(rows))
    parts = [set(texts(data.rows(split))) for split in ("train", "val", "test")]
    assert sum(len(part) for part in parts) == 20
    assert len(data.test) == 12


def test_a_class_of_one_row_is_trained_on_and_said_not_to_be_tested(write):
    data = load_texts(write([*UNDIVIDED, {"text": "meh", "label": "rare"}]))
    assert "rare" in {row.label for row in data.train}
    assert data.notes[1] == "Trained on and not tested, for want of a second row: rare."


def test_a_text_of_test_is_taken_out_of_train_whatever_its_case_and_blanks(write):
    leaks = [
        {"text": "GOOD  test 0", "label": "good", "split": "train"},
        {"text": "good train 0", "label": "good", "split": "val"},
    ]
    data = load_texts(write([*ROWS, *leaks]))
    assert (len(data.train), len(data.val), len(data.test)) == (12, 10, 8)
    assert data.notes == (
        "Taken out of train, for test holds the same text: 1 of 13 rows.",
        "Taken out of val, for train holds the same text: 1 of 11 rows.",
    )


def test_the_fingerprint_follows_content_and_parts_and_not_the_card(write):
    first = load_texts(write(ROWS)).fingerprint
    assert load_texts(write(ROWS, "note: other\n")).fingerprint == first
    changed = [{**ROWS[0], "text": "other"}, *ROWS[1:]]
    assert load_texts(write(changed)).fingerprint != first


def test_the_fingerprint_tells_where_a_part_ends():
    rows = tuple(TextRow({"text": text}, answer="a") for text in "abc")
    assert TextData("a", rows[:2], (), rows[2:]).fingerprint != TextData("a", rows[:1], (), rows[1:]).fingerprint


def test_shots_are_drawn_of_every_class_and_test_stays_whole(write):
    data = load_texts(write(ROWS))
    drawn = sample_shots(data, 5, 1)
    for part, count in ((drawn.train, 5), (drawn.val, 4)):
        assert [sum(row.label == label for row in part) for label in data.labels] == [count, count]
        assert len(set(texts(part))) == len(part)
    assert set(texts(drawn.train)) <= set(texts(data.train))
    assert drawn.test == data.test
    assert drawn.notes == data.notes


def test_the_seed_decides_which_shots(write):
    data = load_texts(write(ROWS))
    assert sample_shots(data, 3, 1) == sample_shots(data, 3, 1)
    assert sample_shots(data, 3, 1).train != sample_shots(data, 3, 2).train


def test_a_class_with_fewer_rows_is_taken_whole_with_a_note(write):
    drawn = sample_shots(load_texts(write([row for row in ROWS if row["text"] != "bad train 0"])), 6, 1)
    assert [row.label for row in drawn.train].count("bad") == 5
    assert drawn.notes == ("Classes with fewer than 6 training rows, taken whole: bad.",)


def test_shots_of_generated_texts_are_counted_in_every_task():
    rows = tuple(TextRow({"text": f"{t}{i}"}, answer="a", task=t) for t in ("de", "fr") for i in range(9))
    drawn = sample_shots(TextData("names", rows, (), rows), 4, 1)
    assert [row.task for row in drawn.train] == ["de"] * 4 + ["fr"] * 4


@pytest.mark.parametrize(("shots", "seed", "message"), [(0, 1, "shots is 0, but"), (1, -1, "seed is -1, but")])
def test_a_draw_that_is_no_draw_is_refused(write, shots, seed, message):
    data = load_texts(write(ROWS))
    with pytest.raises(UserError, match=message):
        sample_shots(data, shots, seed)


ROW = {"text": "fine", "label": "good", "split": "train"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', "is not valid JSON"),
        ("[1]", "is not a JSON object"),
        ({"text": "a", "split": "train"}, "lacks 'label' or 'answer'"),
        ({**ROW, "split": {"a": 1}}, "split is {'a': 1}, but text was expected"),
        ({**ROW, "answer": "a"}, "has both 'label' and 'answer'"),
        ({"label": "good", "split": "train"}, "lacks 'text', which the first row has"),
        ({"text": "a", "label": "good"}, "lacks 'split', which the first row has"),
        ({"text": "a", "answer": "b", "split": "train"}, "lacks 'label', which the first row has"),
        ({**ROW, "more": "a"}, "has 'more', which the first row lacks"),
        ({**ROW, "text": "  "}, "text is empty"),
        ({**ROW, "text": 3}, "text is 3, but text was expected"),
        ({**ROW, "label": None}, "label is None, but text was expected"),
        ({**ROW, "text": "\ud800"}, "is not valid JSON"),
        ({**ROW, "split": "tset"}, "there is no split named 'tset'. Did you mean 'test'?"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(write, line, message):
    with pytest.raises(UserError) as caught:
        load_texts(write([*ROWS, line]))
    assert f"mood.jsonl, line {len(ROWS) + 1}: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "good"}, "line 1: has no field of text"),
        ({"soft": "a", "label": "good"}, "line 1: has a field named 'soft', the name of soft slots"),
    ],
)
def test_rows_without_a_field_to_use_are_refused(write, row, message):
    with pytest.raises(UserError, match=message):
        load_texts(write([row, row]))


def test_a_line_that_is_not_utf8_is_refused_with_its_number(write):
    path = write(ROWS)
    path.write_bytes(path.read_bytes() + b'{"text": "\xe9"}\n')
    with pytest.raises(UserError, match=f"line {len(ROWS) + 1}: is not UTF-8 text"):
        load_texts(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no rows"),
        ([row for row in ROWS if row["split"] != "train"], "has no train rows"),
        ([row for row in ROWS if row["split"] != "test"], "has no test rows"),
        ([row for row in ROWS if row["label"] == "good"], "has one label only, 'good'"),
        ([row for row in ROWS if "bad train" not in row["text"]], "has no row to train on for bad"),
        ([{"text": "a", "answer": "b"}], "has no test rows"),
    ],
)
def test_data_with_nothing_to_learn_or_test_is_refused(write, rows, message):
    with pytest.raises(UserError, match=rf"mood\.jsonl: {message}"):
        load_texts(write(rows))


def test_texts_without_a_second_one_of_a_label_are_not_told_to_leave_out_what_they_lack(write):
    with pytest.raises(UserError, match=r"has no test rows\. Write a second text of a label\.$"):
        load_texts(write([{"text": "a", "label": "good"}, {"text": "b", "label": "bad"}]))


def test_a_value_that_is_no_text_is_shown_in_short(write):
    with pytest.raises(UserError) as caught:
        load_texts(write([{**ROW, "text": list(range(3000))}]))
    assert len(str(caught.value)) < 300


def test_rows_and_labels_that_do_not_agree_are_refused():
    rows = (TextRow({"text": "a"}, "x"), TextRow({"text": "b"}, "y"))
    for more, labels, message in (
        (TextRow({"text": "c"}, "z"), ("x", "y"), "there is no label named 'z'"),
        (TextRow({"text": "c"}), ("x", "y"), "the row that begins with 'c' has no label"),
        (TextRow({"text": "c"}, answer="d"), ("x", "y"), "the row that begins with 'c' has no label"),
        (TextRow({"text": "c"}, "x"), (), "the row that begins with 'a' has no answer"),
    ):
        with pytest.raises(UserError, match=message):
            TextData("d", (*rows, more), (), (), labels)


def test_rows_that_are_none_are_refused():
    with pytest.raises(UserError, match="train is of type tuple"):
        TextData("d", ("a",), (), ())


def test_the_home_folder_may_be_written_short(write, tmp_path, monkeypatch):
    path = write(ROWS)
    monkeypatch.setenv("HOME", str(path.parent))
    assert load_texts(f"~/{path.name}") == load_texts(path)


def test_the_current_folder_is_data_by_its_own_name(tmp_path, monkeypatch):
    folder = tmp_path / "mood"
    folder.mkdir()
    for part in SPLITS:
        (folder / f"{part}.csv").write_text("text,label\n" + "".join(f"{part} {label},{label}\n" for label in "ab"))
    (tmp_path / "mood.yaml").write_text('template: "{text}: {answer}"\n')
    monkeypatch.chdir(folder)
    data = load_texts(".")
    assert (data.name, data.template) == ("mood", "{text}: {answer}")
    (folder / "inner").mkdir()
    monkeypatch.chdir(folder / "inner")
    assert load_texts("..") == data


def test_a_folder_of_class_folders_is_no_text_whatever_tables_lie_beside_them(tmp_path):
    (tmp_path / "classes.csv").write_text("text,label\na,b\n")
    assert is_text(str(tmp_path))
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "one.png").touch()
    assert not is_text(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no set of texts or file named ''"),
        ("/", "/: holds no table"),
        ("x" * 300, r"x{60}: cannot be read \(File name too long\)"),
    ],
)
def test_what_is_no_place_of_texts_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        load_texts(name)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        load_texts(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("templat: a\n", "there is no key named 'templat'. Did you mean 'template'?"),
        ("instructions: a\n", "instructions is 'a', but"),
        ("verbalizer: {good: great}\n", "the verbalizer has no word for the label 'bad'"),
        ("verbalizer: {good: great, bad: ' '}\n", "the verbalizer has no word for the label 'bad'"),
        ("verbalizer: {good: great, bad: []}\n", "the verbalizer has no word for the label 'bad'"),
        ("verbalizer: {good: a, bad: b, ugly: c}\n", "verbalizer: there is no label named 'ugly'"),
        ("verbalizer: {good: [a, b], bad: b}\n", "the verbalizer has 'b' for two labels, 'bad' and 'good'"),
        ("- a\n", "is not a mapping"),
    ],
)
def test_a_bad_card_is_refused_with_its_name(write, card, message):
    with pytest.raises(UserError) as caught:
        load_texts(write(ROWS, card))
    assert f"mood.yaml: {message}" in str(caught.value)


def test_words_for_texts_that_are_generated_are_refused(write):
    rows = [{"text": f"n{i}", "answer": "a", "split": s} for i, s in enumerate(SPLITS)]
    with pytest.raises(UserError, match="gives a verbalizer, but the rows have answers and no labels"):
        load_texts(write(rows, "verbalizer: {good: a}\n"))


def test_an_unknown_part_is_refused(write):
    with pytest.raises(UserError, match="there is no split named 'dev'"):
        load_texts(write(ROWS)).rows("dev")

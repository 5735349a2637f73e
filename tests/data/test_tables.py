"""Tables of every kind give the same records; texts are read from those of other makers by a card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprompt.data.tables import read_records
from mmprompt.errors import UserError
from mmprompt.language.data import load_texts

ROWS = [('he said "no"', "bad"), ("fine, and good", "good"), ("a  b", "good"), ("it's so", "bad")]


def write_csv(path: Path, header: str, rows: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n" if header else "\n".join(rows) + "\n")
    return path


def test_every_kind_of_table_gives_the_same_records(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts, labels = zip(*ROWS, strict=True)
    quoted = [f'"{text}"'.replace('"no"', '""no""') + f",{label}" for text, label in ROWS]
    write_csv(tmp_path / "a.csv", "text,label", quoted)
    write_csv(tmp_path / "a.tsv", "text\tlabel", ["\t".join(row) for row in ROWS])
    features = {
        "label": {"names": ["bad", "good"], "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    numbers = [["bad", "good"].index(label) for label in labels]
    table = pyarrow.table({"text": texts, "label": numbers}).replace_schema_metadata(metadata)
    parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for kind in ("csv", "tsv", "parquet", "arrow"):
        found = [record.values for record in read_records(tmp_path / f"a.{kind}")]
        assert [(one["text"], one["label"]) for one in found] == ROWS, kind


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_row_of_a_tsv_file_ends_at_the_end_of_its_line_alone(ending, tmp_path):
    texts = [f"first{mark}second" for mark in "\u2028\u2029\x85\x0b\x0c\x1c"]
    lines = ["text\tlabel", *(f"{text}\tgood" for text in texts)]
    (tmp_path / "a.tsv").write_bytes(ending.join(lines).encode())
    found = list(read_records(tmp_path / "a.tsv"))
    assert [record.values for record in found] == [{"text": text, "label": "good"} for text in texts]
    assert [record.line for record in found] == [2, 3, 4, 5, 6, 7]


def test_a_cell_too_many_is_refused_with_what_divides_cells(tmp_path):
    write_csv(tmp_path / "a.tsv", "text\tlabel", ["so\tit is\tgood"])
    with pytest.raises(UserError, match=r"line 2: has 3 cells, but the header has 2. Take tabulators out of its cells"):
        list(read_records(tmp_path / "a.tsv"))
    write_csv(tmp_path / "a.csv", "text,label", ["so, it is,good"])
    with pytest.raises(UserError, match=r"line 2: has 3 cells, but the header has 2. Quote cells that hold a comma"):
        list(read_records(tmp_path / "a.csv"))


def test_a_cell_that_is_too_long_is_refused_with_another_form(tmp_path):
    write_csv(tmp_path / "a.csv", "text,label", ["a" * 140_000 + ",good"])
    with pytest.raises(UserError, match=r"line 2: has a cell of more than 131,072 characters. .* as \.jsonl"):
        list(read_records(tmp_path / "a.csv"))


def test_a_folder_of_parts_is_read_with_what_each_is(tmp_path):
    folder = tmp_path / "reviews"
    rows = [f"{n} {text.replace(',', '')},{label},{n}" for n, (text, label) in enumerate(ROWS)]
    write_csv(folder / "data" / "train-00000-of-00001.csv", "text,label,id", rows)
    write_csv(folder / "data" / "validation-00000-of-00001.csv", "text,label,id", [f"v{row}" for row in rows])
    write_csv(folder / "data" / "test-00000-of-00001.csv", "text,label,id", [f"t{row}" for row in rows])
    data = load_texts(folder)
    assert (len(data.train), len(data.val), len(data.test), data.labels) == (4, 4, 4, ("bad", "good"))
    assert data.notes == ("Left out, for they hold no text: id.",)
    assert set(data.train[0].fields) == {"text"}


def test_the_name_of_a_folder_itself_says_no_part(tmp_path):
    folder = tmp_path / "test"
    for part in ("train", "test"):
        write_csv(folder / f"{part}.csv", "text,label", [f"{part} {label},{label}" for label in ("bad", "good")])
    data = load_texts(folder)
    assert (len(data.train), len(data.val), len(data.test)) == (2, 0, 2)


def test_a_card_says_what_columns_and_labels_of_others_are(tmp_path):
    write_csv(tmp_path / "stars.csv", "", [f"{n},{'12'[n % 2]},review {n}" for n in range(12)])
    (tmp_path / "stars.yaml").write_text(
        'header: [id, stars, review]\ncolumns: {label: stars, text: review}\nlabels: {"1": bad, "2": good}\n'
    )
    data = load_texts(tmp_path / "stars.csv")
    assert data.labels == ("bad", "good")
    assert data.train[0].fields["text"].startswith("review")
    (tmp_path / "stars.yaml").write_text("header: [id, stars, review]\ncolumns: {label: rating, text: review}\n")
    with pytest.raises(UserError, match=r"stars.csv, line 1: lacks the column 'rating', which .*stars.yaml names"):
        load_texts(tmp_path / "stars.csv")
    (tmp_path / "stars.yaml").write_text('header: [id, label, text]\nlabels: {"1": bad}\n')
    with pytest.raises(UserError, match=r"line 2: has the label '2', but .* knows 1"):
        load_texts(tmp_path / "stars.csv")


def test_a_table_without_labels_is_refused_with_its_columns_and_the_way_to_name_one(tmp_path):
    path = write_csv(tmp_path / "stars.csv", "stars,review", ["good,a", "bad,b"])
    with pytest.raises(
        UserError, match=r"lacks 'label' or 'answer', its columns are stars, review.*stars.yaml: columns"
    ):
        load_texts(path)


def test_of_a_table_without_labels_columns_of_numbers_are_named_too(tmp_path):
    path = write_csv(tmp_path / "stars.csv", "stars,review,n", ["1,a,2", "5,b,3"])
    with pytest.raises(UserError, match=r"lacks 'label' or 'answer', its columns are review, stars, n. Write label"):
        load_texts(path)


def test_published_sets_are_read_by_the_cards_of_the_package(tmp_path):
    news = tmp_path / "ag_news"
    rows = [f'"{1 + n % 4}","Title {n}","What it is, {n}."' for n in range(16)]
    write_csv(news / "train.csv", "", rows)
    write_csv(news / "test.csv", "", [row.replace("Title", "Other") for row in rows])
    data = load_texts(news)
    assert data.labels == ("Business", "Sci/Tech", "Sports", "World")
    assert data.verbalizer is not None
    assert len(data.instructions) == 3
    assert data.notes == ("Template, words of labels and columns are those of the package's card ag_news.yaml.",)
    reviews = tmp_path / "sst2"
    write_csv(reviews / "train.tsv", "sentence\tlabel", [f"sentence {n}\t{n % 2}" for n in range(8)])
    write_csv(reviews / "dev.tsv", "sentence\tlabel", [f"another {n}\t{n % 2}" for n in range(8)])
    write_csv(reviews / "test.tsv", "index\tsentence", ["0\tunknown"])
    data = load_texts(reviews)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 0, 8)
    assert data.labels == ("negative", "positive")


def test_pyarrow_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r'pip install "mmprompt\[tables\]"'):
        list(read_records(tmp_path / "a.parquet"))


def test_a_column_of_numbers_that_was_left_out_is_named_where_no_text_is_left(tmp_path):
    path = write_csv(tmp_path / "a.csv", "text,label", [f"{n},{'xy'[n % 2]}" for n in range(8)])
    with pytest.raises(UserError, match=r"has no field of text, for numbers alone stand in text\. Write the "):
        load_texts(path)

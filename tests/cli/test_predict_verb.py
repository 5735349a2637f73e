"""`mmprompt predict`: folders, CSV, and no answer where none is sure."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import mmprompt
from mmprompt.cli.main import main
from mmprompt.errors import UserError

Capture = pytest.CaptureFixture[str]


def test_a_folder_is_predicted_to_the_bottom_in_order_of_names(
    run_folder: Path, pictures: Path, capsys: Capture
) -> None:
    assert main(["predict", str(run_folder), str(pictures), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["predictions"]
    expected = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    assert [one["path"] for one in said] == expected
    one = mmprompt.load(run_folder).predict(pictures / expected[0])
    assert (said[0]["label"], said[0]["probability"]) == (one.label, pytest.approx(one.probability, abs=1e-6))


def test_a_csv_holds_a_row_for_each_image_and_is_never_replaced(
    run_folder: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.png").write_bytes((pictures / "red" / "0.png").read_bytes())
    (tmp_path / "in" / "a.png").write_text("no image")
    words = ["predict", str(run_folder), str(tmp_path / "in"), "--csv", str(tmp_path / "out.csv")]
    assert main(words) == 0
    assert "1 of 2 images could not be read" in capsys.readouterr().out
    with (tmp_path / "out.csv").open(newline="") as file:
        broken, whole = csv.DictReader(file)
    assert (broken["path"], broken["label"], whole["path"], whole["error"]) == ("a.png", "", "b.png", "")
    assert "a.png" in broken["error"]
    assert whole["label"] in {"red", "green", "blue"}
    assert 0 < float(whole["probability"]) <= 1
    before = (tmp_path / "out.csv").read_bytes()
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_bytes() == before


def test_a_csv_goes_into_a_new_folder(run_folder: Path, pictures: Path, tmp_path: Path) -> None:
    place = tmp_path / "new" / "folder" / "out.csv"
    assert main(["predict", str(run_folder), str(pictures / "red" / "0.png"), "--csv", str(place)]) == 0
    assert place.read_text().startswith("path,label,probability")


def test_below_the_threshold_nobody_knows(run_folder: Path, pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    classifier = mmprompt.load(run_folder)
    images = sorted(pictures.rglob("*.png"))
    sure = classifier.predict(images)
    limit = sorted(one.probability for one in sure)[len(sure) // 2]
    unsure = classifier.predict(images, threshold=limit)
    assert [one.label for one in unsure] == [one.label if one.probability >= limit else None for one in sure]
    assert None in [one.label for one in unsure]
    assert [one.probabilities for one in unsure] == [one.probabilities for one in sure]
    assert main(["predict", str(run_folder), str(images[0]), "--threshold", "1"]) == 0
    assert "I don't know" in capsys.readouterr().out
    assert main(["predict", str(run_folder), str(images[0]), "--threshold", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["label"] is None
    with pytest.raises(UserError, match="threshold"):
        classifier.predict(images, threshold=50)


def test_a_threshold_is_a_probability(run_folder: Path, pictures: Path, capsys: Capture) -> None:
    assert main(["predict", str(run_folder), str(pictures / "red"), "--threshold", "2"]) == 2
    assert "it is a probability, 0 to 1" in capsys.readouterr().err


def test_how_many_labels_are_shown_is_refused_where_none_are(
    run_folder: Path, pictures: Path, served_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    image, table = str(pictures / "red" / "0.png"), str(tmp_path / "out.csv")
    for name, given in (("feelings", image), ("answers", "a dog")):
        assert main(["predict", str(served_folder / name), given, "--top-k", "2"]) == 2
        assert "top_k is 2, but" in capsys.readouterr().err
    words = ["predict", str(run_folder), image, "--top-k", "2", "--csv", table]
    assert main(words) == 2
    assert "a CSV file has the first label alone" in capsys.readouterr().err
    assert not Path(table).exists()
    assert main([*words, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"][0]["top"]) == 2


def test_a_folder_without_images_is_refused(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["predict", str(run_folder), str(tmp_path)]) == 2
    assert "there is no image" in capsys.readouterr().err

from __future__ import annotations

import json
import pickle  # noqa: TID251  written here, and read by no one
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmprompt.captioning.caption_files import READERS, detect_format
from mmprompt.captioning.data import (
    MAX_CAPTION_CHARACTERS,
    CaptionData,
    load_captions,
    read_captions,
    read_lexicon,
)
from mmprompt.errors import UserError

Save = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, save_picture: Save) -> Path:
    """Holds images a.jpg to e.jpg; those of val2014 and of an art style lie in folders."""
    for shade, name in enumerate("abcde"):
        save_picture(tmp_path / f"{name}.jpg", 20 * shade)
    save_picture(tmp_path / "val2014" / "v.jpg")
    save_picture(tmp_path / "Baroque" / "old_man.jpg")
    return tmp_path


def written(folder: Path, content: str | bytes | dict[str, Any] | list[dict[str, Any]], name: str) -> Path:
    path = folder / name
    if isinstance(content, list):
        content = "".join(json.dumps(record) + "\n" for record in content)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(folder: Path, *records: dict[str, Any]) -> Path:
    return written(folder, list(records), "t.jsonl")


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_captions(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def by_id(data: CaptionData) -> dict[str, Any]:
    return {item.image_id: dict(item.captions) for item in data.items}


def parts(data: CaptionData) -> dict[str, str]:
    return {item.image_id: item.split for item in data.items}


# --- JSONL


def test_lines_of_one_image_become_one_item(folder: Path) -> None:
    path = jsonl(
        folder,
        {"image": "a.jpg", "captions": ["A  dog. "], "split": "train"},
        {"image": "b.jpg", "captions": ["x"], "split": "test", "image_id": 7},
        {"image": "a.jpg", "captions": ["It runs", "it jumps"], "split": "train", "focus": "actions"},
    )
    data = read_captions(path)
    assert by_id(data) == {"a.jpg": {"": ("A dog.",), "actions": ("It runs", "it jumps")}, "7": {"": ("x",)}}
    assert data.focuses == ("actions",)
    assert data.train[0].image == (folder / "a.jpg").resolve()
    assert (len(data.train), len(data.val), len(data.test)) == (1, 0, 1)
    assert data.notes == ()


def test_a_labelled_caption_is_filed_under_its_focus_and_its_label(folder: Path) -> None:
    path = jsonl(
        folder,
        {"image": "a.jpg", "captions": ["nice"], "focus": "emotions", "label": "very good", "split": "train"},
        {"image": "a.jpg", "captions": ["bad"], "focus": "emotions", "split": "train"},
    )
    (item,) = read_captions(path).items
    assert item.of("emotions") == ("nice", "bad")
    assert item.of("emotions-very-good") == ("nice",)
    assert item.of("objects") == ()
    assert item.of(None) == ("nice", "bad")


def test_pictures_without_split_are_divided_by_the_hash_of_their_ids(tmp_path: Path, save_picture: Save) -> None:
    records = []
    for index in range(40):
        save_picture(tmp_path / f"{index}.jpg")
        records += [{"image": f"{index}.jpg", "captions": [caption]} for caption in ("one", "two")]
    path = jsonl(tmp_path, *records)
    data, again, other = read_captions(path), read_captions(path), read_captions(path, seed=1)
    assert (len(data.train), len(data.val), len(data.test)) == (32, 4, 4)
    assert parts(data) == parts(again) != parts(other)
    assert "No split was given: 4 of 40 images" in data.notes[0]
    assert all(len(item.of("")) == 2 for item in data.items)


def test_of_two_pictures_one_is_tested_and_of_one_none(folder: Path) -> None:
    two = read_captions(jsonl(folder, *({"image": f"{name}.jpg", "captions": ["x"]} for name in "ab")))
    assert sorted(parts(two).values()) == ["test", "train"]
    assert list(parts(read_captions(jsonl(folder, {"image": "a.jpg", "captions": ["x"]}))).values()) == ["train"]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"image": "a.jpg", "captions": []}, "line 2: a.jpg has no caption"),
        ({"image": "a.jpg", "captions": ["ok", " \t"]}, "line 2: a caption of a.jpg is empty"),
        ({"image": "a.jpg", "captions": ["x" * (MAX_CAPTION_CHARACTERS + 1)]}, "line 2: a caption has 2001 characters"),
        ({"image": "a.jpg", "captions": [3]}, "line 2: a caption is 3, but text"),
        ({"image": "a.jpg", "captions": "dog"}, "line 2: captions is 'dog', but a list"),
        ({"image": "a.jpg", "captions": ["\ud800"]}, "line 2: is not valid JSON"),
        ({"image": "gone.jpg", "captions": ["x"]}, "line 2: gone.jpg is not in"),
        ({"image": "../x.jpg", "captions": ["x"]}, "line 2: '../x.jpg' leaves the data folder"),
        ({"image": "/x.jpg", "captions": ["x"]}, "line 2: '/x.jpg' leaves the data folder"),
        ({"image": "", "captions": ["x"]}, "line 2: the image is '', but its path"),
        ({"image": 3, "captions": ["x"]}, "line 2: image is 3, but text"),
        ({"captions": ["x"]}, "line 2: lacks 'image'"),
        ({"image": "a.jpg"}, "line 2: lacks 'captions'"),
        ({"image": "a.jpg", "captions": ["x"], "spilt": "train"}, "Did you mean 'split'?"),
        ({"image": "a.jpg", "captions": ["x"], "split": "dev"}, "line 2: split is 'dev', but train, val or test"),
        ({"image": "a.jpg", "captions": ["x"], "image_id": "b.jpg", "split": "train"}, "gives the id 'b.jpg' to a.jpg"),
        ({"image": "b.jpg", "captions": ["x"], "image_id": "c", "split": "train"}, "gives b.jpg the id 'c', but it is"),
        ({"image": "b.jpg", "captions": ["x"], "split": "test"}, "puts b.jpg into test, but it is in train before"),
        ({"image": "a.jpg", "captions": ["x"]}, "gives no split to a.jpg, but to other images it does"),
        ([1], "line 2: is not a JSON object"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(folder: Path, record: Any, said: str) -> None:
    assert said in refusal(jsonl(folder, {"image": "b.jpg", "captions": ["x"], "split": "train"}, record))


def test_keys_that_say_nothing_of_a_caption_are_passed_over_with_a_note(folder: Path) -> None:
    record = {"image": "a.jpg", "captions": ["x"], "split": "train"}
    path = jsonl(folder, record | {"coco_id": 790, "licence": "by"}, record | {"image": "b.jpg", "coco_id": 791})
    data = read_captions(path)
    assert len(data.items) == 2
    assert data.notes == ("Passed over the keys coco_id, licence, which say nothing of a caption.",)


def test_a_longest_caption_is_taken(folder: Path) -> None:
    assert read_captions(jsonl(folder, {"image": "a.jpg", "captions": ["x" * MAX_CAPTION_CHARACTERS]})).items


def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path) -> None:
    inside = folder / "inside"
    inside.mkdir()
    (inside / "l.jpg").symlink_to(folder / "a.jpg")
    assert "leaves the data folder" in refusal(jsonl(inside, {"image": "l.jpg", "captions": ["x"]}))


def test_bytes_that_are_not_utf_8_are_refused_with_their_line(folder: Path) -> None:
    path = written(
        folder, b'{"image": "a.jpg", "captions": ["x"]}\n{"image": "a.jpg", "captions": ["\xe9"]}\n', "t.jsonl"
    )
    assert refusal(path).startswith(", line 2: is not UTF-8 text")


def test_damaged_and_empty_files_are_refused(folder: Path) -> None:
    assert "line 2: is not valid JSON" in refusal(
        written(folder, '{"image": "a.jpg", "captions": ["x"]}\n{', "t.jsonl")
    )
    assert "holds no captions" in refusal(written(folder, "", "t.jsonl"))
    assert "is in no form of captions that is known" in refusal(written(folder, "hello there", "t.txt"))
    assert "holds no captions" in refusal(written(folder, "\n", "t.jsonl"), format="jsonl")
    assert "cannot be read" in refusal(folder / "gone.jsonl")


# --- published forms


COCO: dict[str, Any] = {
    "images": [{"id": 3, "file_name": "a.jpg"}, {"id": 4, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 3, "id": 1, "caption": "A dog\n"},
        {"image_id": 4, "id": 2, "caption": "a cat"},
        {"image_id": 3, "id": 3, "caption": "one dog"},
    ],
}
KARPATHY: dict[str, Any] = {
    "images": [
        {"filename": "v.jpg", "filepath": "val2014", "cocoid": 9, "imgid": 0, "split": "restval", "sentences": []},
        {"filename": "a.jpg", "imgid": 1, "split": "val", "sentences": [{"raw": "a cat"}, {"raw": "one cat"}]},
        {"filename": "b.jpg", "split": "test", "sentences": [{"raw": "x"}]},
    ],
    "dataset": "coco",
}
KARPATHY["images"][0]["sentences"] = [{"raw": "A dog.", "tokens": ["a", "dog"], "sentid": 1}]
SENTICAP: dict[str, Any] = {
    "images": [
        {
            "filename": "a.jpg",
            "imgid": 1,
            "split": "train",
            "sentences": [
                {"raw": "a lovely cat", "sentiment": 1, "word_sentiment": [0, 1, 1], "tokens": []},
                {"raw": "an awful cat", "sentiment": 0, "word_sentiment": [0, 1, 1], "tokens": []},
            ],
        },
        {"filename": "b.jpg", "imgid": 2, "split": "test", "sentences": [{"raw": "bad", "sentiment": 0}]},
    ]
}
FLICKR = "a.jpg#0\tA dog .\r\na.jpg#1\tone dog\r\nb.jpg#0\ta cat\r\nc.jpg.1#0\tlost\r\n"
ARTEMIS = (
    "art_style,painting,emotion,utterance,repetition\n"
    'Baroque,old_man,something else,"He looks, to me, tired",2\n'
    "Baroque,old_man,sadness,so sad,2\n"
)


def test_coco_captions_are_grouped_by_image_and_divided(folder: Path) -> None:
    data = read_captions(written(folder, COCO, "captions.json"))
    assert by_id(data) == {"3": {"": ("A dog", "one dog")}, "4": {"": ("a cat",)}}
    assert sorted(parts(data).values()) == ["test", "train"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["annotations"].append({"image_id": 8, "caption": "x"}), "annotation 3: is a caption of image 8"),
        (lambda c: c["images"].append({"id": 5, "file_name": "c.jpg"}), "image 5: c.jpg has no caption"),
        (lambda c: c["images"].append({"id": 3, "file_name": "c.jpg"}), "image 2: gives id 3 a second image"),
        (lambda c: c["images"].append({"id": 5}), "image 2: lacks 'file_name'"),
        (lambda c: c["annotations"].append({"image_id": 3}), "annotation 3: lacks 'caption'"),
        (lambda c: c["annotations"].append({"image_id": 3, "caption": " "}), "image 3: a caption of a.jpg is empty"),
        (lambda c: c.update(annotations=3), "annotations: is int, but a list"),
    ],
)
def test_bad_coco_captions_are_refused_with_the_entry(folder: Path, change: Any, said: str) -> None:
    content = json.loads(json.dumps(COCO))
    change(content)
    assert said in refusal(written(folder, content, "captions.json"))


def test_karpathys_restval_joins_train_and_folders_are_followed(folder: Path) -> None:
    data = read_captions(written(folder, KARPATHY, "dataset_coco.json"))
    assert by_id(data) == {"9": {"": ("A dog.",)}, "1": {"": ("a cat", "one cat")}, "b.jpg": {"": ("x",)}}
    assert parts(data) == {"9": "train", "1": "val", "b.jpg": "test"}
    assert data.train[0].image == (folder / "val2014" / "v.jpg").resolve()


def test_senticap_is_emotions_with_labels(folder: Path) -> None:
    data = read_captions(written(folder, SENTICAP, "senticap.json"))
    assert data.focuses == ("emotions", "emotions-negative", "emotions-positive")
    assert data.items[0].of("emotions") == ("a lovely cat", "an awful cat")
    assert data.items[0].of("emotions-positive") == ("a lovely cat",)
    assert parts(data) == {"a.jpg": "train", "b.jpg": "test"}


def test_a_sentiment_that_is_neither_is_refused(folder: Path) -> None:
    content = json.loads(json.dumps(SENTICAP).replace('"sentiment": 0', '"sentiment": 2'))
    assert "image 0: sentiment is 2, but 0 or 1" in refusal(written(folder, content, "senticap.json"))


def test_flickr_token_files_pass_over_what_is_no_pictures_name(folder: Path) -> None:
    data = read_captions(written(folder, FLICKR, "Flickr8k.token.txt"))
    assert by_id(data) == {"a.jpg": {"": ("A dog .", "one dog")}, "b.jpg": {"": ("a cat",)}}
    assert data.notes[0] == "Passed over, for it is no image's name: c.jpg.1 (1 captions)."


def test_a_flickr_token_file_works_with_half_of_its_pictures(folder: Path) -> None:
    lines = [f"{name}.jpg#{number}\tcaption {number} of {name}" for name in "axbycz" for number in range(2)]
    path = written(folder, "\n".join(lines), "tokens.txt")
    assert ", line 3: x.jpg is not in" in (message := refusal(path))
    assert message.endswith(
        "Put it there, or load the captions with the folder of the images as `images`, or with `skip_missing=True`."
    )
    data = load_captions(path, skip_missing=True)
    assert by_id(data) == {f"{name}.jpg": {"": (f"caption 0 of {name}", f"caption 1 of {name}")} for name in "abc"}
    assert data.notes[0] == (
        f"Passed over 6 captions of 3 images that are not in {folder.resolve()}: x.jpg, y.jpg, z.jpg."
    )


def test_images_without_captions_are_passed_over_and_counted(folder: Path) -> None:
    records = {"images": [{"id": n, "file_name": f"{name}.jpg"} for n, name in enumerate("abc")]}
    records["annotations"] = [{"image_id": 1, "caption": "a dog"}]
    path = written(folder, records, "coco.json")
    assert "a.jpg has no caption. Write one, or pass over it with `skip_missing=True`." in refusal(path)
    data = load_captions(path, skip_missing=True)
    assert by_id(data) == {"1": {"": ("a dog",)}}
    assert "Passed over 2 images without a caption." in data.notes
    bare = jsonl(folder, {"image": "a.jpg", "captions": []}, {"image": "x.jpg", "captions": ["a"]})
    said = f": holds no caption of the images that are in {folder.resolve()}. Give a file that does."
    assert refusal(bare, skip_missing=True) == said


def test_no_image_at_all_is_no_data_and_what_is_wrong_stays_wrong(folder: Path) -> None:
    path = jsonl(folder, {"image": "x.jpg", "captions": ["a"]}, {"image": "y.jpg", "captions": ["b"]})
    message = f": none of its 2 images is in {folder.resolve()}. Give their folder as `images`."
    assert refusal(path, skip_missing=True) == message
    path = jsonl(folder, {"image": "../a.jpg", "captions": ["a"]}, {"image": "a.jpg", "captions": ["b"]})
    assert "line 1: " in refusal(path, skip_missing=True)


@pytest.mark.parametrize("name", [["a.jpg"], {"a": "jpg"}], ids=str)
@pytest.mark.parametrize(
    ("content", "key"), [("COCO", "file_name"), ("KARPATHY", "filename"), ("SENTICAP", "filename")]
)
def test_an_image_that_is_no_text_is_refused_also_where_missing_ones_are_passed_over(
    folder: Path, content: str, key: str, name: Any
) -> None:
    record = json.loads(json.dumps(globals()[content]))
    record["images"][0] |= {key: name, "filepath": ""}
    path = written(folder, record, "captions.json")
    for skip_missing in (False, True):
        assert f"the image is {name!r}, but its path was expected" in refusal(path, skip_missing=skip_missing)


def test_a_lexicon_may_list_words(tmp_path: Path) -> None:
    path = written(tmp_path, {"brand voice": ["wow", "get your"], "objects": {"dogs": "dog"}}, "words.json")
    assert read_lexicon(path) == {"brand voice": {"wow": "wow", "get your": "get your"}, "objects": {"dogs": "dog"}}
    with pytest.raises(UserError, match="names 5, but texts that are not empty were expected"):
        read_lexicon(written(tmp_path, {"brand voice": [5]}, "words.json"))


def test_a_flickr_line_of_another_form_is_refused(folder: Path) -> None:
    assert "line 2: is not `name#i`" in refusal(written(folder, "a.jpg#0\tx\nb.jpg x\n", "t.txt"))


def test_artemis_paintings_lie_in_their_styles(folder: Path) -> None:
    (item,) = read_captions(written(folder, ARTEMIS, "artemis.csv")).items
    assert item.image == (folder / "Baroque" / "old_man.jpg").resolve()
    assert item.of("emotions") == ("He looks, to me, tired", "so sad")
    assert item.of("emotions-something-else") == ("He looks, to me, tired",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ARTEMIS + "Baroque,old_man,awe\n", "line 4: has more or fewer cells"),
        (ARTEMIS + "Baroque,old_man,awe,x,1,2\n", "line 4: has more or fewer cells"),
        (ARTEMIS + "Baroque,old_man,awe,,1\n", "line 4: a caption of Baroque/old_man.jpg is empty"),
        (ARTEMIS + 'Baroque,old_man,awe,"x" y,1\n', "line 4: is not valid CSV"),
        (ARTEMIS + "Baroque,gone,awe,x,1\n", "line 4: Baroque/gone.jpg is not in"),
    ],
)
def test_bad_artemis_rows_are_refused_with_their_line(folder: Path, text: str, said: str) -> None:
    assert said in refusal(written(folder, text, "artemis.csv"))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_flickrstyle_takes_its_pictures_from_the_published_list(folder: Path, protocol: int) -> None:
    style = folder / "style"
    style.mkdir()
    written(style, "a dog seeks gold .\r\na cat .\r\n", "funny_train.txt")
    written(style, "a dog in love .\r\na cat dreams .\r\n", "romantic_train.txt")
    written(style, pickle.dumps(["a.jpg", "b.jpg"], protocol), "train.p")
    data = read_captions(style, folder)
    assert data.focuses == ("emotions", "emotions-funny", "emotions-romantic")
    assert by_id(data)["a.jpg"]["emotions"] == ("a dog seeks gold .", "a dog in love .")
    assert sorted(parts(data).values()) == ["test", "train"]
    one = read_captions(style / "funny_train.txt", folder)
    assert by_id(one)["b.jpg"] == {"emotions": ("a cat .",), "emotions-funny": ("a cat .",)}


class Hostile:
    """Would make a file if it were unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


def test_the_published_list_is_read_and_never_run(folder: Path) -> None:
    written(folder, "x\n", "funny_train.txt")
    written(folder, pickle.dumps([Hostile(folder / "ran"), "a.jpg"]), "train.p")
    assert len(read_captions(folder / "funny_train.txt").items) == 1
    assert not (folder / "ran").exists()


def test_flickrstyle_without_a_list_or_with_another_is_refused(folder: Path) -> None:
    path = written(folder, "x\ny\n", "funny_train.txt")
    with pytest.raises(UserError, match="holds no list of the images"):
        read_captions(path)
    written(folder, "a.jpg\n", "images.txt")
    assert "has 2 captions, but 1 images are listed" in refusal(path)
    written(folder, "a.jpg\r\nb.jpg\r\n", "images.txt")
    assert len(read_captions(path).items) == 2
    written(folder, pickle.dumps(["a.jpg", "c.jpg"]), "train.p")
    with pytest.raises(UserError, match=r"train\.p: lists other images than images\.txt"):
        read_captions(path)
    written(folder, b"\x80garbage", "train.p")
    with pytest.raises(UserError, match="is no list of images"):
        read_captions(path)


@pytest.mark.parametrize(
    ("content", "name", "format"),
    [
        ({"image": "a.jpg", "captions": ["x"]}, "odd.json", "jsonl"),
        (COCO, "odd.txt", "coco"),
        (KARPATHY, "odd", "karpathy"),
        (SENTICAP, "odd.jsonl", "senticap"),
        (FLICKR, "odd.csv", "flickr"),
        (ARTEMIS, "odd.txt", "artemis"),
        ("a dog\n", "funny_train.txt", "flickrstyle"),
    ],
)
def test_the_form_follows_from_the_content(folder: Path, content: Any, name: str, format: str) -> None:
    assert detect_format(written(folder, content, name)) == format
    assert format in READERS


def test_an_unknown_form_is_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'coco'"):
        read_captions(written(folder, COCO, "c.json"), format="cocoo")


def test_a_given_form_is_not_guessed_again(folder: Path) -> None:
    assert "image 0: lacks 'filename'" in refusal(written(folder, COCO, "c.json"), format="karpathy")


# --- what becomes of it


def test_the_fingerprint_follows_captions_splits_and_pictures(folder: Path, save_picture: Save) -> None:
    record = {"image": "a.jpg", "captions": ["x"], "split": "train"}
    prints = [read_captions(jsonl(folder, record)).fingerprint for _ in range(2)]
    prints.append(read_captions(jsonl(folder, record | {"captions": ["y"]})).fingerprint)
    prints.append(read_captions(jsonl(folder, record | {"split": "test"})).fingerprint)
    prints.append(read_captions(jsonl(folder, record | {"image_id": "z"})).fingerprint)
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes() + b"\0")
    prints.append(read_captions(jsonl(folder, record)).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 5


def test_pictures_of_a_split_with_a_focus(folder: Path) -> None:
    data = read_captions(written(folder, SENTICAP, "s.json"))
    assert [item.image_id for item in data.with_captions("train", "emotions-positive")] == ["a.jpg"]
    with pytest.raises(UserError, match=r"no focus named 'emotion' in .* has captions of emotions, emotions-negative"):
        data.with_captions("train", "emotion")
    with pytest.raises(UserError, match="in the test part of s, which has captions of"):
        data.with_captions("test", "emotions-positive")
    with pytest.raises(UserError, match="no split named 'tests'"):
        data.with_captions("tests", None)
    with pytest.raises(UserError, match="the test part of s has no images with captions"):
        replace(data, items=data.train).with_captions("test", None)


def test_a_lexicon_beside_the_file_is_read_with_it(folder: Path) -> None:
    path = jsonl(folder, {"image": "a.jpg", "captions": ["x"]})
    assert read_captions(path).lexicon == {}
    written(folder, {"emotions": {"laughing face": "joy"}}, "t.lexicon.json")
    assert read_captions(path).lexicon == {"emotions": {"laughing face": "joy"}}


@pytest.mark.parametrize("content", ["[]", '{"emotions": []}', '{"emotions": {"x": ""}}', '{"emotions": {" ": "x"}}'])
def test_a_bad_lexicon_is_refused(folder: Path, content: str) -> None:
    path = written(folder, content, "l.json")
    with pytest.raises(UserError) as caught:
        read_lexicon(path)
    assert str(caught.value).startswith(str(path))


def test_a_path_or_a_name_is_loaded_and_nothing_else(folder: Path) -> None:
    path = jsonl(folder, {"image": "a.jpg", "captions": ["x"]})
    assert load_captions(str(path)) == read_captions(path)
    with pytest.raises(UserError, match="Did you mean 'openart-scenes'"):
        load_captions("openart-scene")

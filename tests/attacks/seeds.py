"""Sound files of strangers, each as small as shows its whole form: what the tests here and the fuzzer start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

LABELLED = [(f"{i}.png", i % 2, ("cat", "dog")[i % 2]) for i in range(8)]
SPLIT: dict[str, Any] = dict.fromkeys(("train", "val", "test"), LABELLED)
TABLES = {
    "a.csv": "path,label,split\n" + "".join(f"{path},{name},train\n" for path, _, name in LABELLED),
    "a.jsonl": "".join(json.dumps({"path": path, "label": name}) + "\n" for path, _, name in LABELLED),
    "a.json": json.dumps(SPLIT),
}
SETTINGS = "data: openart-large\nmethod: coop\nn_ctx: 4\nlr: 1.0e-3\nshots: 16\nseed: 1\ntemplate: 'a {}'\n"
CARD = "title: a\nlicence: CC0-1.0\nlayout: coop\ntemplate: 'a photo of a {}.'\nrecipe:\n  epochs: 50\n"

_SENTENCES = [{"raw": "a cat", "sentiment": 1}, {"raw": "a sad cat", "sentiment": 0}]
_ROW = {"image": "a.png", "captions": ["a cat", "a pet"], "focus": "pets", "split": "train"}
CAPTIONS: dict[str, tuple[str, str]] = {
    "jsonl": ("a.jsonl", f"{json.dumps(_ROW)}\n" * 2),
    "coco": (
        "a.json",
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png"}],
                "annotations": [{"id": i, "image_id": 1, "caption": "a cat"} for i in range(3)],
            }
        ),
    ),
    "karpathy": (
        "a.json",
        json.dumps(
            {"images": [{"filename": "a.png", "sentences": [{"raw": "a cat"}], "split": "train"}], "dataset": "x"}
        ),
    ),
    "senticap": ("a.json", json.dumps({"images": [{"filename": "a.png", "sentences": _SENTENCES, "split": "train"}]})),
    "flickr": ("a.token.txt", "a.png#0\ta cat\na.png#1\ta pet\n"),
    "flickrstyle": ("funny_train.txt", "a cat that laughs .\n"),
    "artemis": ("a.csv", "art_style,painting,emotion,utterance\n.,a,awe,a cat\n.,a,fear,a pet\n"),
}
"""By form: the name of a file, and what is in it."""


def write_images(folder: Path) -> None:
    """The image that all captions are of, as ArtEmis names it too, and FlickrStyle's list of images."""
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (4, 4)).save(folder / name)
    (folder / "images.txt").write_text("a.png\n")


SYNTAX = (
    "{soft*4} {name}.",
    "a photo of a {name}.",
    "{bos}{soft} {text:cut} is {soft:words} {answer}",
    "[[user]] {text} {soft*3}[[assistant]] {answer}",
)
PROMPTSOURCE = (
    "dataset: x\ntemplates:\n  one: !Template\n    answer_choices: yes ||| no\n    id: one\n"
    "    jinja: '{{ text }} ||| {{ answer_choices[label] }}'\n    metadata: !TemplateMetadata\n"
    "      choices_in_prompt: true\n    name: one\n    reference: ''\n"
)
JINJA = (
    "{{ text | truncate(20) }} is {% if label == 1 %}good{% else %}bad{% endif %} ||| {{ answer_choices[label] }}",
    "{% for word in text.split() %}{{ loop.index }} {{ word | upper }} {% endfor %} ||| {{ answer_choices | join }}",
    "{% set n = namespace(x=0) %}{% for i in range(9) %}{% set n.x = n.x + i %}{% endfor %}{{ n.x }} ||| {{ label }}",
    "{{ [text, text]|first }} {{ {'a': text}['a'] }} {{ text[::-1] }} {{ '%s' % text }} ||| {{ text is string }}",
)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprompt.captioning.metrics.tokens import tokenize

FIXTURES = Path(__file__).parent / "fixtures"
ODD = json.loads((FIXTURES / "captions.json").read_text())["odd"]
TOKENS = json.loads((FIXTURES / "expected.json").read_text())["tokens"]["odd"]
"""Of the Java tokenizer, by fixtures/score_captions.py."""


@pytest.mark.parametrize(("caption", "tokens"), list(zip(ODD, TOKENS, strict=True)), ids=map(ascii, ODD))
def test_an_odd_caption_has_the_tokens_of_the_java_tokenizer(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens.split()


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog's ball isn't RED.", ["a", "dog", "'s", "ball", "is", "n't", "red"]),
        (
            "You cannot see it; he's gonna go -- now!",
            ["you", "can", "not", "see", "it", "he", "'s", "gon", "na", "go", "now"],
        ),
        ("3.5 or 1,000 (maybe)", ["3.5", "or", "1,000", "-lrb-", "maybe", "-rrb-"]),
        ("a &amp; b", ["a", "&", "b"]),
        ("the child\u2019s", ["the", "child", "'s"]),
        ("", []),
        ("...", []),
    ],
)
def test_contractions_numbers_and_signs(caption: str, tokens: list[str]) -> None:
    assert tokenize(caption) == tokens

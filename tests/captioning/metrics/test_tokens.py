from __future__ import annotations

import pytest

from mmprompt.captioning.metrics.tokens import tokenize


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

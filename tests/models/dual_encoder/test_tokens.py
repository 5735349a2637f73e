"""Words without their frame, whatever the frame is, and never cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer
from transformers import AutoTokenizer

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import WordTokenizer
from mmprompt.models.dual_encoder.forward.views import Frame
from mmprompt.models.dual_encoder.interface import DualEncoder
from tests import small_models


def simple_tokenizer(tmp_path: Path) -> WordTokenizer:
    tokenizer = SimpleTokenizer(bpe_path=str(small_models.write_bpe(tmp_path / "bpe.txt.gz")))
    return WordTokenizer(
        lambda text, n_slots: tokenizer(text, context_length=n_slots)[0].tolist(),
        tokenizer.decode,
        tokenizer.vocab_size,
    )


def siglip_tokenizer(folder: Path, pad: str) -> WordTokenizer:
    small_models.save_siglip_tokenizer(folder, pad)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return WordTokenizer(
        lambda text, n: tokenizer(text, padding="max_length", max_length=n, truncation=True)["input_ids"],
        tokenizer.decode,
        len(tokenizer),
    )


def test_padding_with_zero_is_told_from_the_word_with_id_zero(tmp_path: Path) -> None:
    tokenizer = simple_tokenizer(tmp_path)
    frame = tokenizer.frame()
    assert frame == Frame(tokenizer.size - 2, tokenizer.size - 1, 0)
    assert tokenizer.words("\N{LATIN SMALL LETTER A WITH GRAVE}", frame)
    letters = small_models.byte_letters()
    assert letters[0] == "!"
    assert tokenizer.words("cat !!", frame)[-2:] == [0, 256]  # "!" inside a word is id 0, the padding id


@pytest.mark.parametrize(("pad", "pad_id"), [("</s>", 1), ("<pad>", 0)], ids=["SigLIP", "SigLIP 2"])
def test_a_frame_without_start_is_found(pad: str, pad_id: int, tmp_path: Path) -> None:
    tokenizer = siglip_tokenizer(tmp_path, pad)
    frame = tokenizer.frame()
    assert frame == Frame(None, 1, pad_id)
    assert tokenizer.text_of(tokenizer.words("a cat", frame)).strip() == "a cat"


def test_a_tokenizer_with_something_after_the_padding_is_refused() -> None:
    tokenizer = WordTokenizer(lambda text, n: [1, *map(ord, text), 2, *[0] * (n - 3 - len(text)), 9], str, 200)
    with pytest.raises(UserError, match="start, end and padding were expected"):
        tokenizer.frame()


def test_long_texts_are_not_cut(tiny_clip_backbone: DualEncoder) -> None:
    assert len(tiny_clip_backbone.tokenize("cat " * 500)) == 500


def test_words_and_decode_are_inverse(tiny_clip_backbone: DualEncoder) -> None:
    assert tiny_clip_backbone.decode(tiny_clip_backbone.tokenize("a photo of the cat")) == "a photo of the cat"


def test_an_empty_text_has_no_words(tiny_clip_backbone: DualEncoder) -> None:
    assert tiny_clip_backbone.tokenize("") == []


@pytest.mark.parametrize("token", [small_models.START, small_models.END])
def test_a_text_that_spells_out_a_frame_token_is_refused(token: str, tiny_clip_backbone: DualEncoder) -> None:
    with pytest.raises(UserError, match="holds the tokenizer's own start, end or unknown token"):
        tiny_clip_backbone.tokenize(f"cat {token} dog")

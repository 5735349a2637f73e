"""A byte-pair vocabulary of our own in CLIP's format, learnt from the captions, and its files."""

import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from open_clip.tokenizer import bytes_to_unicode
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

CONTEXT_LENGTH = 32
START, END, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
SPECIAL = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+"  # CLIP's own pattern, for plain text


def learn_merges(texts: Iterable[str], n_merges: int) -> list[tuple[str, str]]:
    """Learn byte-pair merges (Sennrich et al. 2016, algorithm 1) from word counts; ties go to the smaller pair."""
    counts = Counter(word for text in texts for word in re.findall(PIECES, text.lower()))
    words = {word: [*word[:-1], word[-1] + END_OF_WORD] for word in counts}
    merges: list[tuple[str, str]] = []
    while len(merges) < n_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = max(pairs, key=lambda p: (pairs[p], [-ord(c) for c in "".join(p)]))
        merges.append(best)
        for parts in words.values():
            if best[0] not in parts:
                continue
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def write_tokenizer(merges: list[tuple[str, str]], folder: Path, context_length: int = CONTEXT_LENGTH) -> None:
    """Write the files that transformers and open_clip read (`vocab.json`, `merges.txt`, ... and the plain merges)."""
    lines = "\n".join(["#version: 0.2", *(" ".join(m) for m in merges)])  # no last newline: it would be a merge
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary(merges), ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(lines + "\n", encoding="utf-8")
    (folder / "bpe.txt.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL, indent=1))
    write_tokenizer_config(folder, context_length)


def write_tokenizer_config(folder: Path, context_length: int) -> None:
    """Say which tokenizer a folder holds, and the longest text it is for."""
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """The id of every piece: bytes, bytes at the end of a word, merges, start and end."""
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(c + END_OF_WORD for c in letters), *("".join(m) for m in merges), START, END]
    return {piece: i for i, piece in enumerate(pieces)}


class Encoder:
    """Texts to ids: start, pieces, end, without padding. Equal to CLIP's own tokenizer on plain text."""

    def __init__(self, merges: list[tuple[str, str]], context_length: int = CONTEXT_LENGTH) -> None:
        self.context_length, self.ids = context_length, vocabulary(merges)
        self.pieces = Tokenizer(models.BPE(self.ids, merges, end_of_word_suffix=END_OF_WORD))
        self.pieces.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "removed", invert=True)

    def encode(self, text: str) -> list[int]:
        """The ids of one text, at most the context length."""
        body = self.pieces.encode(text.lower()).ids
        return [self.ids[START], *body[: self.context_length - 2], self.ids[END]]


def read_encoder(folder: Path, context_length: int = CONTEXT_LENGTH) -> Encoder:
    """The encoder of a tokenizer folder."""
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    return Encoder([(line.split()[0], line.split()[1]) for line in lines if line], context_length)

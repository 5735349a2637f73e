"""A byte-pair vocabulary of our own in CLIP's format, learnt from the captions, and its files."""

import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from open_clip.tokenizer import bytes_to_unicode

CONTEXT_LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+"  # CLIP's own pattern, for plain text


def learn_merges(texts: Iterable[str], n_merges: int) -> list[tuple[str, str]]:
    """Learn byte-pair merges (Sennrich et al. 2016, algorithm 1) from word counts; ties go to the smaller pair."""
    counts = Counter(word for text in texts for word in re.findall(PIECES, text.lower()))
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
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
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges), START, END]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    lines = "\n".join(["#version: 0.2", *(" ".join(m) for m in merges)])  # no last newline: it would be a merge
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(lines + "\n", encoding="utf-8")
    (folder / "bpe.txt.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL, indent=1))
    write_tokenizer_config(folder, context_length)


def write_tokenizer_config(folder: Path, context_length: int) -> None:
    """Say which tokenizer a folder holds, and the longest text it is for."""
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


class Encoder:
    """Texts to ids: start, pieces, end, without padding. Equal to CLIP's own tokenizer on plain text."""

    def __init__(self, merges: list[tuple[str, str]], context_length: int = CONTEXT_LENGTH) -> None:
        self.context_length = context_length
        letters = list(bytes_to_unicode().values())
        pieces = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges), START, END]
        self.ids = {piece: i for i, piece in enumerate(pieces)}
        self.ranks = {pair: i for i, pair in enumerate(merges)}
        self.words: dict[str, list[int]] = {}

    def word(self, word: str) -> list[int]:
        """The ids of one word, its merges applied in order of rank."""
        if word not in self.words:
            parts = [*word[:-1], word[-1] + "</w>"]
            while len(parts) > 1:
                ranked = [(self.ranks.get(p, 1 << 30), i) for i, p in enumerate(itertools.pairwise(parts))]
                rank, i = min(ranked)
                if rank == 1 << 30:
                    break
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            self.words[word] = [self.ids[p] for p in parts]
        return self.words[word]

    def encode(self, text: str) -> list[int]:
        """The ids of one text, at most the context length."""
        body = [i for w in re.findall(PIECES, text.lower()) for i in self.word(w)]
        return [self.ids[START], *body[: self.context_length - 2], self.ids[END]]


def read_encoder(folder: Path, context_length: int = CONTEXT_LENGTH) -> Encoder:
    """The encoder of a tokenizer folder."""
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    return Encoder([(line.split()[0], line.split()[1]) for line in lines if line], context_length)

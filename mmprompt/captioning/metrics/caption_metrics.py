"""How close captions are to what people wrote: BLEU, ROUGE-L and CIDEr-D, without Java.

The numbers are those of the COCO evaluation (Chen et al. 2015): the same tokens, the same formulas. METEOR and SPICE
are in `java_metrics`, CLIPScore in `clip_score`.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmprompt.data.class_names import shortened
from mmprompt.errors import UserError, bad_file, is_count
from mmprompt.files import read_bytes, write_bytes

MAX_N = 4
"""Longest n-grams that are counted."""
SMALL = 1000
"""Images below which a CIDEr-D is not comparable with those of published sets."""
MAX_FREQUENCY_BYTES = 2**30

NGram = tuple[str, ...]

_SIGMA = 6.0
_BETA = 1.2
_ASSIMILATED = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(gim|lem)(me)\b|'(t)(is|was)\b")
_TOKEN = re.compile(
    r"""
    (?:[a-z]\.)+[a-z]\.?                                      # abbreviations: u.s., a.m.
    | (?:mr|mrs|ms|dr|jr|sr|vs|etc|inc|co|no|st|ave)\.(?=\s+\w)  # and those that end in a dot
    | \d+(?:[.,:/]\d+)+                                       # numbers: 1,000  3.5  10:30
    | n't\b | '(?:s|m|d|re|ve|ll)\b                           # what contractions leave
    | [^\W_]+?(?=n't\b)                                       # do of don't
    | [^\W_]+(?:[-/&.][^\W_]+)*                               # words; t-shirt and and/or are one
    | [^\s\w]
    """,
    re.VERBOSE,
)
_WRITTEN = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PUNCTUATION = frozenset("' ` . ? ! , : - -- ... ; \" \u201c \u201d \u2018 \u2019 \u2013 \u2014 \u2026".split())


def tokenize(caption: str) -> list[str]:
    """The words of a caption as the COCO evaluation counts them: Penn Treebank tokens, lower case, no punctuation.

    Of 45,789 captions of COCO, Flickr30k, SentiCap and FlickrStyle all but 12 give the tokens of the Java tokenizer; as
    there, brackets count as words.

    Args:
        caption: one line of English.
    """
    plain = html.unescape(caption.lower()).replace("\u2019", "'")
    spaced = _ASSIMILATED.sub(lambda match: " ".join(filter(None, match.groups())), plain)
    return [_WRITTEN.get(token, token) for token in _TOKEN.findall(spaced) if token not in _PUNCTUATION]


@dataclass(frozen=True)
class DocumentFrequency:
    """In how many images' references each n-gram stands: what CIDEr-D weighs words by.

    Args:
        n_images: whose references were counted.
        counts: by n-gram, its words joined by a space; 1 to 4 words.
    """

    n_images: int
    counts: Mapping[str, int]

    def save(self, path: Path) -> None:
        """Write it as JSON, to give it when scoring another, perhaps smaller set.

        Raises:
            UserError: the place cannot be written.
        """
        content = {"n_images": self.n_images, "counts": dict(self.counts)}
        write_bytes(path, json.dumps(content, ensure_ascii=False).encode())

    @classmethod
    def load(cls, path: Path) -> DocumentFrequency:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or another.
        """
        try:
            content = json.loads(read_bytes(path, MAX_FREQUENCY_BYTES))
            n_images, counts = content["n_images"], content["counts"]
            is_sound = is_count(n_images) and all(is_count(count, n_images) for count in counts.values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            is_sound = False
        if not is_sound:
            raise bad_file(path, "is no file of document frequencies", "Save one with DocumentFrequency.save.")
        return cls(n_images, counts)


@dataclass(frozen=True)
class CaptionScores:
    """How close captions are to their references, over N images.

    Args:
        n_images: N.
        bleu: BLEU-1 to BLEU-4, 0..1 (Papineni et al. 2002), of the whole set.
        rouge_l: mean ROUGE-L, 0..1 (Lin 2004).
        cider_d: mean CIDEr-D, 0..10 (Vedantam et al. 2015); papers print a hundred times as much.
        rouge_l_by_image, cider_d_by_image: [N] what these are means of, in the order of the captions.
        mean_length: words a caption.
        distinct_ratio: different captions over captions, 0..1; a captioner that collapsed is near 0.
        notes: what a careful reader should know, one sentence each.
    """

    n_images: int
    bleu: tuple[float, ...]
    rouge_l: float
    cider_d: float
    rouge_l_by_image: tuple[float, ...]
    cider_d_by_image: tuple[float, ...]
    mean_length: float
    distinct_ratio: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All but the numbers of single images, ready for JSON."""
        content = asdict(self)
        return {name: value for name, value in content.items() if not name.endswith("_by_image")}


def score_captions(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    frequency: DocumentFrequency | None = None,
) -> CaptionScores:
    """BLEU, ROUGE-L and CIDEr-D, with length and variety.

    Args:
        captions: one of each image, by its id.
        references: one or more of each of these images; other images are not looked at.
        frequency: the weights of CIDEr-D's words, of another set; by default counted in these references.
    Raises:
        UserError: there is no caption, an image has no reference, or there are fewer than two images and no frequency.
    """
    if not captions:
        raise UserError("there is no caption to score. Write some first.")
    bare = [image_id for image_id in captions if not references.get(image_id)]
    if bare:
        raise UserError(f"no reference for the images {shortened(bare)}. Give references, or leave them out.")
    said = [tokenize(caption) for caption in captions.values()]
    wanted = [[tokenize(text) for text in references[image_id]] for image_id in captions]
    rouge, cider = rouge_l(said, wanted), cider_d(said, wanted, frequency)
    n_weighed = len(said) if frequency is None else frequency.n_images
    note = (
        f"CIDEr-D weighs words by the references of {n_weighed} images: below {SMALL:,}, "
        "compare it within this set alone."
    )
    return CaptionScores(
        len(said),
        bleu(said, wanted),
        float(rouge.mean()),
        float(cider.mean()),
        tuple(rouge.tolist()),
        tuple(cider.tolist()),
        mean_length(captions.values()),
        distinct_ratio(captions.values()),
        (note,) if n_weighed < SMALL else (),
    )


def mean_length(captions: Iterable[str]) -> float:
    """Words a caption, punctuation not counted; of at least one caption."""
    return float(np.mean([len(tokenize(caption)) for caption in captions]))


def distinct_ratio(captions: Iterable[str]) -> float:
    """Captions that differ in their words, over all captions, 0..1; of at least one."""
    words = [tuple(tokenize(caption)) for caption in captions]
    return len(set(words)) / len(words)


def bleu(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> tuple[float, ...]:
    """BLEU-1 to BLEU-4 of a whole set (Papineni et al. 2002), its references' lengths the closest, as COCO has it.

    Args:
        captions: [N] lists of tokens.
        references: [N], one or more lists of tokens each.
    Returns:
        Four numbers, 0..1; next to 0 and not 0 where no n-gram is right, as in COCO's code.
    """
    right, said = np.zeros(MAX_N), np.zeros(MAX_N)
    n_words, n_wanted = 0, 0
    for caption, texts in zip(captions, references, strict=True):
        most: Counter[NGram] = Counter()
        for text in texts:
            most |= _ngrams(text)
        for ngram, count in (_ngrams(caption) & most).items():
            right[len(ngram) - 1] += count
        said += [max(0, len(caption) - n) for n in range(MAX_N)]
        n_words += len(caption)
        n_wanted += min((abs(len(text) - len(caption)), len(text)) for text in texts)[1]
    ratio = (n_words + 1e-15) / (n_wanted + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    precisions = np.cumprod((right + 1e-15) / (said + 1e-9))
    return tuple(float(brevity * precision ** (1 / (n + 1))) for n, precision in enumerate(precisions))


def rouge_l(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """ROUGE-L of every image (Lin 2004), beta 1.2, the best precision and the best recall over references.

    Args:
        captions: [N] lists of tokens.
        references: [N], one or more lists of tokens each.
    Returns:
        [N] float64, 0..1.
    """
    scores = np.zeros(len(captions))
    for index, (caption, texts) in enumerate(zip(captions, references, strict=True)):
        common = [_longest_common(caption, text) for text in texts]
        precision = max(common) / max(len(caption), 1)
        recall = max(n / max(len(text), 1) for n, text in zip(common, texts, strict=True))
        if precision and recall:
            scores[index] = (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
    return scores


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for j, against in enumerate(other, start=1):
            before, row[j] = row[j], before + 1 if word == against else max(row[j], row[j - 1])
    return row[-1]


def document_frequency(references: Iterable[Sequence[Sequence[str]]]) -> DocumentFrequency:
    """Count in how many images' references each n-gram stands.

    Args:
        references: of each image, one or more lists of tokens.
    """
    counts: Counter[str] = Counter()
    n_images = 0
    for texts in references:
        counts.update({" ".join(ngram) for text in texts for ngram in _ngrams(text)})
        n_images += 1
    return DocumentFrequency(n_images, counts)


def cider_d(
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    frequency: DocumentFrequency | None = None,
) -> np.ndarray:
    """CIDEr-D of every image (Vedantam et al. 2015, section 6): clipped, sigma 6, over 1- to 4-grams.

    Args:
        captions: [N] lists of tokens.
        references: [N], one or more lists of tokens each.
        frequency: as in `score_captions`.
    Returns:
        [N] float64, 0..10.
    Raises:
        UserError: the frequencies are of fewer than two images, where every word weighs nothing.
    """
    frequency = document_frequency(references) if frequency is None else frequency
    if frequency.n_images < 2:
        raise UserError(
            f"CIDEr-D weighs words by how few images have them, and {frequency.n_images} image tells nothing. "
            "Score two images or more, or give a saved document frequency."
        )
    scores = np.zeros(len(captions))
    for index, (caption, texts) in enumerate(zip(captions, references, strict=True)):
        said = _weigh(caption, frequency)
        scores[index] = 10 * np.mean([_similarity(said, _weigh(text, frequency)) for text in texts])
    return scores


@dataclass(frozen=True)
class _Weighed:
    """The n-grams of one text with their weights, and the norms [4] of their vectors by n."""

    weights: dict[NGram, float]
    norms: np.ndarray
    length: int


def _weigh(tokens: Sequence[str], frequency: DocumentFrequency) -> _Weighed:
    log_n = math.log(frequency.n_images)
    weights = {
        ngram: count * (log_n - math.log(max(1, frequency.counts.get(" ".join(ngram), 0))))
        for ngram, count in _ngrams(tokens).items()
    }
    squares = np.zeros(MAX_N)
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight**2
    return _Weighed(weights, np.sqrt(squares), len(tokens))


def _similarity(said: _Weighed, wanted: _Weighed) -> float:
    products = np.zeros(MAX_N)
    for ngram in said.weights.keys() & wanted.weights.keys():
        weight = wanted.weights[ngram]
        products[len(ngram) - 1] += min(said.weights[ngram], weight) * weight
    norms = said.norms * wanted.norms
    cosines = np.divide(products, norms, out=products, where=norms > 0)
    return float(cosines.mean() * math.exp(-((said.length - wanted.length) ** 2) / (2 * _SIGMA**2)))


def _ngrams(tokens: Sequence[str]) -> Counter[NGram]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(tokens) - n + 1))

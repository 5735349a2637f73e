"""How close captions are to what people wrote: BLEU, ROUGE-L, CIDEr-D, METEOR and SPICE of the COCO evaluation.

The formulas are pycocoevalcap's (Chen et al. 2015), the tokens those of `tokens.tokenize`. METEOR and SPICE need Java,
the others do not. CLIPScore is in `clip_score`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mmprompt.captioning.metrics.tokens import tokenize
from mmprompt.data.class_names import shortened
from mmprompt.errors import UserError, bad_file, unknown_name
from mmprompt.files import read_bytes, write_bytes
from mmprompt.settings import Count, holds

SMALL = 1000
"""Images below which a CIDEr-D is not comparable with those of published sets."""
MAX_FREQUENCY_BYTES = 2**30
JAVA_METRICS = ("meteor", "spice")

Tokens = dict[str, list[str]]
"""By image, one or more texts whose tokens are joined by spaces."""


@dataclass(frozen=True)
class DocumentFrequency:
    """In how many images' references each n-gram stands: what CIDEr-D weighs words by.

    Args:
        n_images: whose references were counted.
        counts: by n-gram, its words joined by a space; 1 to 4 words.
    """

    n_images: int
    counts: Mapping[str, int]

    @classmethod
    def count(cls, references: Iterable[Sequence[str]]) -> DocumentFrequency:
        """Count the n-grams of references.

        Args:
            references: of each image, one or more texts.
        """
        ngrams_of = coco_module("cider.cider_scorer").precook
        counts: Counter[str] = Counter()
        n_images = 0
        for texts in references:
            counts.update({" ".join(ngram) for text in texts for ngram in ngrams_of(" ".join(tokenize(text)))})
            n_images += 1
        return cls(n_images, counts)

    def save(self, path: Path) -> None:
        """Write it as JSON, to give it when scoring another, perhaps smaller set."""
        content = {"n_images": self.n_images, "counts": dict(self.counts)}
        write_bytes(path, json.dumps(content, ensure_ascii=False).encode())

    @classmethod
    def load(cls, path: Path) -> DocumentFrequency:
        """Read what `save` wrote."""
        try:
            content = json.loads(read_bytes(path, MAX_FREQUENCY_BYTES))
            n_images, counts = content["n_images"], content["counts"]
            is_sound = all(holds(n, Count) and n <= n_images for n in (n_images, *counts.values()))
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
        """Return all but the numbers of single images, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if not name.endswith("_by_image")}


def score_captions(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    frequency: DocumentFrequency | None = None,
) -> CaptionScores:
    """Compute BLEU, ROUGE-L and CIDEr-D, with length and variety.

    Args:
        captions: one of each image, by its id.
        references: one or more of each of these images; other images are not looked at.
        frequency: the weights of CIDEr-D's words, of another set; by default counted in these references.
    """
    if not captions:
        raise UserError("there is no caption to score. Write some first.")
    bare = [image_id for image_id in captions if not references.get(image_id)]
    if bare:
        raise UserError(f"no reference for the images {shortened(bare)}. Give references, or leave them out.")
    if frequency is None:
        frequency = DocumentFrequency.count(references[image_id] for image_id in captions)
    if frequency.n_images < 2:
        raise UserError(
            f"CIDEr-D weighs words by how few images have them, and {frequency.n_images} image tells nothing. "
            "Score two images or more, or give a saved document frequency."
        )
    candidates, wanted = _tokenize_all(captions, references)
    bleu, _ = coco_module("bleu.bleu").Bleu(4).compute_score(wanted, candidates, verbose=0)
    rouge_l, rouge_l_by_image = coco_module("rouge.rouge").Rouge().compute_score(wanted, candidates)
    cider_d_by_image = _cider_d(candidates, wanted, frequency)
    note = (
        f"CIDEr-D weighs words by the references of {frequency.n_images} images: below {SMALL:,}, "
        "compare it within this set alone."
    )
    return CaptionScores(
        len(captions),
        tuple(map(float, bleu)),
        float(rouge_l),
        float(np.mean(cider_d_by_image)),
        tuple(rouge_l_by_image.tolist()),
        tuple(map(float, cider_d_by_image)),
        mean_length(captions.values()),
        distinct_ratio(captions.values()),
        (note,) if frequency.n_images < SMALL else (),
    )


def _cider_d(candidates: Tokens, references: Tokens, frequency: DocumentFrequency) -> list[float]:
    """Compute the CIDEr-D of every image with the words' weights of any set."""
    log_n_images = math.log(frequency.n_images)

    class Scorer(coco_module("cider.cider_scorer").CiderScorer):  # type: ignore[misc]
        """The library's, which would count the images that it scores."""

        ref_len = property(lambda self: log_n_images, lambda self, value: None)

    scorer = Scorer()
    scorer.document_frequency = defaultdict(float, {tuple(k.split()): n for k, n in frequency.counts.items()})
    for image_id, (candidate,) in candidates.items():
        scorer += (candidate, references[image_id])
    return scorer.compute_cider()


def java_score(metric: str, captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """Compute the mean METEOR (Denkowski and Lavie 2014) or SPICE (Anderson et al. 2016) of captions, in Java.

    Args:
        metric: `meteor` or `spice`. At its first use SPICE downloads its parser; it needs Java 8 and 8 GB.
        captions: one of each image, by its id.
        references: one or more of each of these images.
    Returns:
        A number in 0..1.
    Raises:
        UserError: pycocoevalcap or Java is missing, or Java failed.
    """
    if metric not in JAVA_METRICS:
        raise unknown_name("metric in Java", metric, JAVA_METRICS)
    scorer = getattr(coco_module(f"{metric}.{metric}"), metric.capitalize())
    if shutil.which("java") is None:
        raise UserError(f"{metric.upper()} runs in Java, which was not found. Install Java, or leave {metric} out.")
    candidates, wanted = _tokenize_all(captions, references)
    try:
        mean, _ = scorer().compute_score(wanted, candidates)
    except Exception as error:  # a process that died shows as a broken pipe, an empty answer or a download that failed
        detail = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{metric.upper()} failed in Java ({detail}). Check the Java, or leave {metric} out.") from None
    return float(mean)


def coco_module(name: str) -> Any:
    """Import a module of pycocoevalcap."""
    try:
        return import_module(f"pycocoevalcap.{name}")
    except ImportError:
        raise UserError(
            "captions are scored by pycocoevalcap, which is not installed. Run `pip install 'mmprompt[captions]'`."
        ) from None


def _tokenize_all(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> tuple[Tokens, Tokens]:
    """Tokenize captions and the references of their images, as pycocoevalcap takes them."""
    return (
        {image_id: [" ".join(tokenize(caption))] for image_id, caption in captions.items()},
        {image_id: [" ".join(tokenize(text)) for text in references[image_id]] for image_id in captions},
    )


def mean_length(captions: Iterable[str]) -> float:
    """Return the words a caption, punctuation not counted; of at least one caption."""
    return float(np.mean([len(tokenize(caption)) for caption in captions]))


def distinct_ratio(captions: Iterable[str]) -> float:
    """Return the captions that differ in their words, over all captions, 0..1; of at least one."""
    words = [tuple(tokenize(caption)) for caption in captions]
    return len(set(words)) / len(words)

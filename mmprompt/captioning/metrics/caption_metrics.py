"""How close captions are to what people wrote, and to the image in the eyes of a dual encoder.

BLEU, ROUGE-L, CIDEr-D, METEOR and SPICE are those of the COCO evaluation (Chen et al. 2015), by pycocoevalcap; the
tokens are those of `tokens.tokenize`. METEOR and SPICE need Java, the others do not. CLIPScore is in its published form
(Hessel et al. 2021) and needs no reference; its encoder should be another one than captioned or ranked.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmprompt.captioning.metrics.tokens import tokenize
from mmprompt.data.class_names import shortened
from mmprompt.errors import UserError, unknown_name
from mmprompt.models.dual_encoder.interface import DualEncoder

PREFIX = "A photo depicts "
WEIGHT = 2.5
"""Of CLIPScore: what its captions begin with, and what its cosines are multiplied by."""
SMALL = 1000
"""Images below which a CIDEr-D is not comparable with those of published sets."""
CLIP_BATCH = 64
JAVA_METRICS = ("meteor", "spice")

Tokens = dict[str, list[str]]
"""By image, one or more texts whose tokens are joined by spaces."""


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


def score_captions(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """Compute BLEU, ROUGE-L and CIDEr-D of captions, by image, with length and variety.

    Images without a caption are not looked at: CIDEr-D weighs words by the references of the others.
    """
    if not captions:
        raise UserError("there is no caption to score. Write some first.")
    bare = [image_id for image_id in captions if not references.get(image_id)]
    if bare:
        raise UserError(f"no reference for the images {shortened(bare)}. Give references, or leave them out.")
    bleu_scorer, rouge_scorer = coco_module("bleu.bleu").Bleu(4), coco_module("rouge.rouge").Rouge()
    cider_scorer = coco_module("cider.cider").Cider()  # CIDEr-D, for all its name
    if len(captions) < 2:
        raise UserError(
            "CIDEr-D weighs words by how few images have them, and 1 image tells nothing. Score two images or more."
        )
    candidates, wanted = _tokenize_all(captions, references)
    bleu, _ = bleu_scorer.compute_score(wanted, candidates, verbose=0)
    rouge_l, rouge_l_by_image = rouge_scorer.compute_score(wanted, candidates)
    cider_d, cider_d_by_image = cider_scorer.compute_score(wanted, candidates)
    note = (
        f"CIDEr-D weighs words by the references of {len(captions)} images: below {SMALL:,}, "
        "compare it within this set alone."
    )
    return CaptionScores(
        len(captions),
        tuple(map(float, bleu)),
        float(rouge_l),
        float(cider_d),
        tuple(rouge_l_by_image.tolist()),
        tuple(map(float, cider_d_by_image)),
        mean_length(captions.values()),
        distinct_ratio(captions.values()),
        (note,) if len(captions) < SMALL else (),
    )


def java_score(metric: str, captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """Compute the mean METEOR (Denkowski and Lavie 2014) or SPICE (Anderson et al. 2016) of captions, in Java: 0..1.

    At its first use SPICE downloads its parser; it needs Java 8 and 8 GB.
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


@dataclass(frozen=True)
class ClipScores:
    """CLIPScore of N captions: the mean, and 2.5 × max(cosine, 0) of each.

    `n_cut` counts captions that were longer than the encoder's text tower reads; `notes` are for a careful reader.
    """

    mean: float
    by_image: tuple[float, ...]
    encoder: str
    n_cut: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all but the numbers of single images, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "by_image"}


def clip_score(
    encoder: DualEncoder, captions: Sequence[str], image_features: Tensor, used_before: Collection[str] = ()
) -> ClipScores:
    """Compute CLIPScore, 2.5 × max(cos(image, "A photo depicts " + caption), 0) (Hessel et al. 2021, section 3).

    The image features [N, E] are of unit norm and of the same encoder, such as `encode_images` gives; `used_before`
    holds the fingerprints of the dual encoders that wrote or ranked these captions.
    """
    if not captions or len(captions) != len(image_features):
        raise UserError(
            f"CLIPScore was given {len(captions)} captions and {len(image_features)} images, but one or more of each "
            "and as many were expected. Give each image one caption."
        )
    rows = [encoder.tokenize(PREFIX + caption) for caption in captions]
    room = encoder.context_length - int(encoder.text_slots([[]]).lengths[0])  # start and end take slots too
    n_cut = sum(len(row) > room for row in rows)
    scores: list[float] = []
    for start in range(0, len(rows), CLIP_BATCH):
        with torch.no_grad():
            slots = encoder.text_slots([row[:room] for row in rows[start : start + CLIP_BATCH]])
            texts = encoder.encode_text(slots).float()  # [B, E]
        cosines = (texts * image_features[start : start + CLIP_BATCH].to(texts)).sum(-1)
        scores += (WEIGHT * cosines.clamp(min=0)).tolist()
    notes = []
    if n_cut:
        notes.append(
            f"{n_cut} of {len(rows)} captions are longer than the {encoder.context_length} slots of {encoder.name} and "
            "were cut for CLIPScore."
        )
    if encoder.fingerprint in used_before:
        notes.append(
            f"{encoder.name} wrote or ranked these captions itself, so its CLIPScore flatters them: judge by another."
        )
    return ClipScores(sum(scores) / len(scores), tuple(scores), encoder.name, n_cut, tuple(notes))

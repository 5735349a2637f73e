"""CLIPScore in its published form: how well captions fit images, in the eyes of a dual encoder (Hessel et al. 2021).

No reference is needed. The encoder that judges should be another one than captioned or ranked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder

PREFIX = "A photo depicts "
WEIGHT = 2.5
_BATCH = 64


@dataclass(frozen=True)
class ClipScores:
    """CLIPScore of N captions.

    Args:
        mean: of the scores, 0..2.5.
        by_image: [N] 2.5 × max(cosine, 0).
        encoder: the name of the dual encoder that judged.
        n_cut: captions that were longer than its text tower reads, and were cut.
        notes: what a careful reader should know, one sentence each.
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

    Args:
        encoder: the dual encoder that judges.
        captions: N texts, N at least 1.
        image_features: [N, E] of unit norm, of the same encoder, such as `encode_pictures` gives.
        used_before: fingerprints of the dual encoders that wrote or ranked these captions.
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
    for start in range(0, len(rows), _BATCH):
        with torch.no_grad():
            slots = encoder.text_slots([row[:room] for row in rows[start : start + _BATCH]])
            texts = encoder.encode_text(slots).float()  # [B, E]
        cosines = (texts * image_features[start : start + _BATCH].to(texts)).sum(-1)
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

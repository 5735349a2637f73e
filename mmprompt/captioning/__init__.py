"""Captions with a focus: prompts that say what a frozen captioner speaks of."""

from typing import TYPE_CHECKING

from mmprompt.lazy import lazy_names

if TYPE_CHECKING:
    from mmprompt.captioning.data import CaptionData, CaptionItem
    from mmprompt.captioning.decoding import Decoding
    from mmprompt.captioning.mapper import fit_mapper
    from mmprompt.captioning.measure import CaptionMeasure, measure_captions
    from mmprompt.captioning.predictor import Caption, CaptionTemplate, Guidance, hard_prompt, load_focus
    from mmprompt.captioning.task import FocusTask

__getattr__, __all__ = lazy_names(__name__)

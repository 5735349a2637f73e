"""mmprompt: multimodal prompt tuning. Learn a few vectors that steer a frozen model.

Names are resolved on first use, so that importing the package, and `mmprompt --help`, load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmprompt.version import __version__

if TYPE_CHECKING:
    from mmprompt.captioning.data import CaptionData, CaptionItem, load_caption_data
    from mmprompt.captioning.decoding import Decoding
    from mmprompt.captioning.measure import CaptionMeasure, measure_captions
    from mmprompt.captioning.predictor import (
        Caption,
        Captioner,
        Steering,
        hard_prompt,
        load_focus,
    )
    from mmprompt.captioning.readers.load import load_captioner
    from mmprompt.captioning.task import fit_mapper
    from mmprompt.classification.estimator import PromptClassifier
    from mmprompt.classification.measure import measure
    from mmprompt.classification.methods import METHODS, VPT, CoOp
    from mmprompt.classification.nearest_words import nearest_words
    from mmprompt.classification.predictor import Classifier, Prediction
    from mmprompt.classification.report.report import write_report
    from mmprompt.classification.task import evaluate, zero_shot
    from mmprompt.core.file import load, save
    from mmprompt.core.fit import Result, fit
    from mmprompt.core.losses import Outputs, cross_entropy
    from mmprompt.core.method import Method
    from mmprompt.core.metrics import Evaluation, paired_bootstrap
    from mmprompt.core.soft import HardPrompt, PrefixTuning, PromptTuning
    from mmprompt.data.catalog import list_datasets, load_dataset
    from mmprompt.data.folder import ImageFolder, ImageTable
    from mmprompt.data.images import read_image
    from mmprompt.data.splits import Dataset, Item
    from mmprompt.errors import UserError
    from mmprompt.language.bank.bank import PromptBank
    from mmprompt.language.data import TextData, TextRow, draw_shots, load_texts
    from mmprompt.language.generation import generate_texts, stream_text
    from mmprompt.language.measure import compare_language, measure_language
    from mmprompt.language.meta import meta_start
    from mmprompt.language.methods import DeepPrompts, MultitaskPrompt, PTuning
    from mmprompt.language.peft.file import load_peft
    from mmprompt.language.peft.save import save_peft
    from mmprompt.language.predictor import PromptedModel
    from mmprompt.language.search.task import search_words
    from mmprompt.language.start import PromptInit
    from mmprompt.language.task import LanguageTask
    from mmprompt.language.templates.promptsource import read_promptsource
    from mmprompt.language.templates.template import Template
    from mmprompt.language.templates.verbalizer import Verbalizer
    from mmprompt.models.decoder.generation_config import Generation
    from mmprompt.models.decoder.load import list_language_models, load_language_model
    from mmprompt.models.dual_encoder.load import list_backbones, load_backbone
    from mmprompt.training.callbacks import Callback, CSVLogger, EarlyStopping, ProgressBar
    from mmprompt.training.recipe import Recipe

_HOMES = {
    "core.fit": ("Result", "fit"),
    "core.method": ("Method",),
    "classification.measure": ("measure",),
    "captioning.readers.load": ("load_captioner",),
    "models.decoder.generation_config": ("Generation",),
    "models.decoder.load": (
        "list_language_models",
        "load_language_model",
    ),
    "models.dual_encoder.load": (
        "list_backbones",
        "load_backbone",
    ),
    "captioning.data": (
        "CaptionData",
        "CaptionItem",
        "load_caption_data",
    ),
    "data.catalog": (
        "list_datasets",
        "load_dataset",
    ),
    "data.folder": (
        "ImageFolder",
        "ImageTable",
    ),
    "data.images": ("read_image",),
    "data.splits": (
        "Dataset",
        "Item",
    ),
    "language.data": (
        "TextData",
        "TextRow",
        "draw_shots",
        "load_texts",
    ),
    "errors": ("UserError",),
    "core.metrics": (
        "Evaluation",
        "paired_bootstrap",
    ),
    "classification.report.report": ("write_report",),
    "classification.nearest_words": ("nearest_words",),
    "core.losses": (
        "Outputs",
        "cross_entropy",
    ),
    "classification.methods": (
        "METHODS",
        "VPT",
        "CoOp",
    ),
    "core.soft": ("HardPrompt", "PrefixTuning", "PromptTuning"),
    "language.methods": ("DeepPrompts", "MultitaskPrompt", "PTuning"),
    "language.start": ("PromptInit",),
    "captioning.decoding": ("Decoding",),
    "captioning.predictor": (
        "Caption",
        "Captioner",
        "Steering",
        "hard_prompt",
        "load_focus",
    ),
    "classification.predictor": (
        "Classifier",
        "Prediction",
    ),
    "core.file": (
        "load",
        "save",
    ),
    "language.predictor": ("PromptedModel",),
    "language.bank.bank": ("PromptBank",),
    "language.generation": (
        "generate_texts",
        "stream_text",
    ),
    "language.peft.file": ("load_peft",),
    "language.peft.save": ("save_peft",),
    "language.templates.promptsource": ("read_promptsource",),
    "language.templates.template": ("Template",),
    "language.templates.verbalizer": ("Verbalizer",),
    "captioning.measure": (
        "CaptionMeasure",
        "measure_captions",
    ),
    "captioning.task": ("fit_mapper",),
    "classification.task": (
        "evaluate",
        "zero_shot",
    ),
    "classification.estimator": ("PromptClassifier",),
    "language.task": ("LanguageTask",),
    "language.measure": (
        "compare_language",
        "measure_language",
    ),
    "language.meta": ("meta_start",),
    "language.search.task": ("search_words",),
    "training.callbacks": (
        "Callback",
        "CSVLogger",
        "EarlyStopping",
        "ProgressBar",
    ),
    "training.recipe": ("Recipe",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mmprompt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mmprompt.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__

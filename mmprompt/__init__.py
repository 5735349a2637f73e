"""mmprompt: multimodal prompt tuning. Learn a few vectors that steer a frozen model.

Names are resolved on first use, so that importing the package, and `mmprompt --help`, load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmprompt.version import __version__

if TYPE_CHECKING:
    from mmprompt.backbones.captioners.load import load_captioner
    from mmprompt.backbones.language.generation import Generation
    from mmprompt.backbones.language.load import list_language_models, load_language_model
    from mmprompt.backbones.load import list_backbones, load_backbone
    from mmprompt.data.captions import CaptionData, CaptionItem, load_caption_data
    from mmprompt.data.catalog import list_datasets, load_dataset
    from mmprompt.data.folder import ImageFolder, ImageTable
    from mmprompt.data.images import read_image
    from mmprompt.data.splits import Dataset, Item
    from mmprompt.data.texts import TextData, TextRow, draw_shots, load_texts
    from mmprompt.errors import UserError
    from mmprompt.evaluation.metrics import Evaluation, paired_bootstrap
    from mmprompt.experiments.report import write_report
    from mmprompt.explain.nearest_words import nearest_words
    from mmprompt.losses import Outputs, cross_entropy
    from mmprompt.methods import METHODS, VPT, CoOp, Method
    from mmprompt.methods.captions import HardPrompt, KeyValuePrompt, SoftPrompt
    from mmprompt.methods.language import (
        LANGUAGE_METHODS,
        DeepPrompts,
        MultitaskPrompt,
        PrefixTuning,
        PromptTuning,
        PTuning,
    )
    from mmprompt.methods.language_start import Start
    from mmprompt.predictors.caption_search import Decoding
    from mmprompt.predictors.captioner import (
        Caption,
        Captioner,
        FocusPrompt,
        Steering,
        hard_prompt,
        load_focus,
        save_focus,
    )
    from mmprompt.predictors.classifier import Classifier, Prediction
    from mmprompt.predictors.file import load, save
    from mmprompt.predictors.language import LanguagePrompt, PromptedModel
    from mmprompt.predictors.language_bank import PromptBank
    from mmprompt.predictors.language_file import load_language, save_language
    from mmprompt.predictors.language_generation import generate_texts, stream_text
    from mmprompt.predictors.peft_file import load_peft
    from mmprompt.predictors.peft_save import save_peft
    from mmprompt.prompts.language.promptsource import read_promptsource
    from mmprompt.prompts.language.template import Template
    from mmprompt.prompts.language.verbalizer import Verbalizer
    from mmprompt.tasks.caption_measure import CaptionMeasure, measure_captions
    from mmprompt.tasks.captioning import CaptionResult, fit_captions, fit_mapper
    from mmprompt.tasks.classification import Result, evaluate, fit, measure, zero_shot
    from mmprompt.tasks.estimator import PromptClassifier
    from mmprompt.tasks.language import LanguageResult, LanguageTask, fit_language
    from mmprompt.tasks.language_measure import compare_language, measure_language
    from mmprompt.tasks.language_meta import meta_start
    from mmprompt.tasks.language_search import search_words
    from mmprompt.training.callbacks import Callback, CSVLogger, EarlyStopping, ProgressBar
    from mmprompt.training.recipe import Recipe

_HOMES = {
    "backbones.captioners.load": ("load_captioner",),
    "backbones.language.generation": ("Generation",),
    "backbones.language.load": (
        "list_language_models",
        "load_language_model",
    ),
    "backbones.load": (
        "list_backbones",
        "load_backbone",
    ),
    "data.captions": (
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
    "data.texts": (
        "TextData",
        "TextRow",
        "draw_shots",
        "load_texts",
    ),
    "errors": ("UserError",),
    "evaluation.metrics": (
        "Evaluation",
        "paired_bootstrap",
    ),
    "experiments.report": ("write_report",),
    "explain.nearest_words": ("nearest_words",),
    "losses": (
        "Outputs",
        "cross_entropy",
    ),
    "methods": (
        "METHODS",
        "VPT",
        "CoOp",
        "Method",
    ),
    "methods.captions": (
        "HardPrompt",
        "KeyValuePrompt",
        "SoftPrompt",
    ),
    "methods.language": (
        "LANGUAGE_METHODS",
        "DeepPrompts",
        "MultitaskPrompt",
        "PTuning",
        "PrefixTuning",
        "PromptTuning",
    ),
    "methods.language_start": ("Start",),
    "predictors.caption_search": ("Decoding",),
    "predictors.captioner": (
        "Caption",
        "Captioner",
        "FocusPrompt",
        "Steering",
        "hard_prompt",
        "load_focus",
        "save_focus",
    ),
    "predictors.classifier": (
        "Classifier",
        "Prediction",
    ),
    "predictors.file": (
        "load",
        "save",
    ),
    "predictors.language": (
        "LanguagePrompt",
        "PromptedModel",
    ),
    "predictors.language_bank": ("PromptBank",),
    "predictors.language_file": (
        "load_language",
        "save_language",
    ),
    "predictors.language_generation": (
        "generate_texts",
        "stream_text",
    ),
    "predictors.peft_file": ("load_peft",),
    "predictors.peft_save": ("save_peft",),
    "prompts.language.promptsource": ("read_promptsource",),
    "prompts.language.template": ("Template",),
    "prompts.language.verbalizer": ("Verbalizer",),
    "tasks.caption_measure": (
        "CaptionMeasure",
        "measure_captions",
    ),
    "tasks.captioning": (
        "CaptionResult",
        "fit_captions",
        "fit_mapper",
    ),
    "tasks.classification": (
        "Result",
        "evaluate",
        "fit",
        "measure",
        "zero_shot",
    ),
    "tasks.estimator": ("PromptClassifier",),
    "tasks.language": (
        "LanguageResult",
        "LanguageTask",
        "fit_language",
    ),
    "tasks.language_measure": (
        "compare_language",
        "measure_language",
    ),
    "tasks.language_meta": ("meta_start",),
    "tasks.language_search": ("search_words",),
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

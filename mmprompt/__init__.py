"""mmprompt: multimodal prompt tuning. Learn a few vectors that steer a frozen model.

What serves one capability alone is in `mmprompt.classification`, `mmprompt.captioning` and `mmprompt.language`.
"""

from typing import TYPE_CHECKING

from mmprompt.lazy import lazy_names
from mmprompt.version import __version__

if TYPE_CHECKING:
    from mmprompt.captioning.data import load_captions
    from mmprompt.captioning.predictor import Captioner
    from mmprompt.captioning.readers.load import load_captioner
    from mmprompt.classification.estimator import PromptClassifier
    from mmprompt.classification.methods import (
        METHODS,
        VPT,
        CoCoOp,
        CoOp,
        LinearProbe,
        MaPLe,
        NearestClassMean,
        PromptSRC,
        TextProbe,
        TipAdapter,
    )
    from mmprompt.classification.predictor import Classifier
    from mmprompt.classification.task import zero_shot
    from mmprompt.core.file import load, save
    from mmprompt.core.fit import Result, evaluate, fit
    from mmprompt.core.hub import from_pretrained, push_to_hub
    from mmprompt.core.learned import Outputs
    from mmprompt.core.method import Method, Start, cross_entropy
    from mmprompt.core.soft import HardPrompt, PrefixTuning, PromptTuning
    from mmprompt.data.catalog import list_datasets, load_dataset
    from mmprompt.data.folder import ImageFolder, ImageTable
    from mmprompt.errors import UserError
    from mmprompt.experiments.compare import compare
    from mmprompt.exports.export import export
    from mmprompt.language.data import load_texts
    from mmprompt.language.methods import PTuning
    from mmprompt.language.predictor import LanguagePredictor
    from mmprompt.language.templates.template import Template
    from mmprompt.language.templates.verbalizer import Verbalizer
    from mmprompt.models.decoder.load import load_language_model
    from mmprompt.models.dual_encoder.load import list_backbones, load_backbone
    from mmprompt.reports.explanation import Explanation, explain
    from mmprompt.training.callbacks import Callback, EarlyStopping, ProgressBar
    from mmprompt.training.recipe import Recipe

__getattr__, _names = lazy_names(__name__, "captioning", "classification", "language")
__all__ = ["__version__", *_names]


def __dir__() -> list[str]:
    return __all__

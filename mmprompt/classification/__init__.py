"""Few-shot image classification: prompts for a frozen dual encoder."""

from typing import TYPE_CHECKING

from mmprompt.lazy import lazy_names

if TYPE_CHECKING:
    from mmprompt.classification.meta import meta_init
    from mmprompt.classification.methods import (
        CLAP,
        DPSGD,
        GDA,
        IVLP,
        TPT,
        AlignedGradient,
        CLIPAdapter,
        CLIPLoRA,
        Combination,
        Consistency,
        DeepText,
        GaussianAverage,
        KgCoOp,
        KnowledgeGuided,
        LPPlusPlus,
        ProGrad,
        TaskRes,
        TextAndMeans,
        TipAdapterF,
        ZeroShot,
        ZeroShotEnsemble,
        ZeroShotProbe,
    )
    from mmprompt.classification.predictor import CLASSIFIERS, Prediction
    from mmprompt.classification.report import write_report
    from mmprompt.classification.task import ClassificationTask
    from mmprompt.classification.template import ClassTemplate
    from mmprompt.classification.words import nearest_words
    from mmprompt.core.metrics import Evaluation, paired_bootstrap
    from mmprompt.data.images import read_image
    from mmprompt.data.splits import Dataset, Item

__getattr__, __all__ = lazy_names(__name__)

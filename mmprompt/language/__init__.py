"""Prompts for a frozen language model."""

from typing import TYPE_CHECKING

from mmprompt.lazy import lazy_names

if TYPE_CHECKING:
    from mmprompt.core.soft import LoRA
    from mmprompt.language.data import TextData, TextRow, sample_shots
    from mmprompt.language.generation import generate_texts, stream_text
    from mmprompt.language.knowledge import calibrate_words
    from mmprompt.language.measure import compare_language, measure_language
    from mmprompt.language.meta import meta_init
    from mmprompt.language.methods import (
        METHODS,
        Adapter,
        DeepPrompts,
        FullTuning,
        MultitaskPrompt,
        PromptInit,
        SoftVerbalizer,
    )
    from mmprompt.language.peft import load_peft
    from mmprompt.language.peft_save import save_peft
    from mmprompt.language.pool import PromptPool
    from mmprompt.language.search.task import search_words
    from mmprompt.language.task import LanguageTask
    from mmprompt.language.templates.openprompt import read_openprompt
    from mmprompt.language.templates.promptsource import read_promptsource
    from mmprompt.models.decoder.generation_config import Generation

__getattr__, __all__ = lazy_names(__name__)

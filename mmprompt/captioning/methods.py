"""The methods that focus a captioner, by name; each is one of the core's methods for a decoder."""

from __future__ import annotations

from mmprompt.core.soft import DecoderMethod, HardPrompt, LoRA, PrefixTuning, PromptTuning
from mmprompt.training.recipe import Recipe

METHODS: dict[str, type[DecoderMethod]] = {
    "prompt-tuning": PromptTuning,
    "prefix-tuning": PrefixTuning,
    "lora": LoRA,
    "hard": HardPrompt,
}

MAPPER_RECIPE = Recipe(
    optimizer="adamw", lr=1e-3, epochs=20, batch_size=16, weight_decay=0.01, warmup_epochs=1, augment="none"
)
"""Of mappers; a batch is so many images with all their captions."""

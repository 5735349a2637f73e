"""The methods that focus a captioner, by name; each is one of the core's methods for a decoder."""

from __future__ import annotations

from mmprompt.core.soft import DecoderMethod, HardPrompt, PrefixTuning, PromptTuning

METHODS: dict[str, type[DecoderMethod]] = {
    "prompt-tuning": PromptTuning,
    "prefix-tuning": PrefixTuning,
    "hard": HardPrompt,
}

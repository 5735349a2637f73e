"""Captions with a focus: prompts that say what a frozen captioner speaks of."""

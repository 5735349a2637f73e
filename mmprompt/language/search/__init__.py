"""Prompts in words, searched and not trained."""

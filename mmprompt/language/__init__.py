"""Prompts for a frozen language model."""

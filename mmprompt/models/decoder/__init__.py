"""Frozen language models: how they are loaded, read with vectors of a prompt, and asked for answers."""

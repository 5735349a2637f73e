"""Frozen models with an image tower and a text tower."""

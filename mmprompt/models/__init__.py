"""Frozen models, and the features of pictures kept for them."""

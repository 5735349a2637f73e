"""Frozen models, and the features of images kept for them."""

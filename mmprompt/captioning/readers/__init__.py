"""Frozen captioners: an image encoder and a text decoder, behind one small set of operations."""

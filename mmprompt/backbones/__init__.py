"""Frozen models: loading, views of their blocks, and the forward over those views."""

"""Fit and evaluate: data, method and loop put together."""

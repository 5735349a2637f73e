"""The one training loop and what it needs; it knows no image, no text and no task."""

"""Few-shot image classification: prompts for a frozen dual encoder."""

"""The report of caption prompts."""

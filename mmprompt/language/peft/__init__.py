"""PEFT's folders of prompts, read and written."""

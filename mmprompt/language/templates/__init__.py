"""What a language model is asked: templates around rows of text, words that stand for labels, PromptSource's files."""

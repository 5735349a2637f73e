"""The studio: a web page on which prompts are trained, tried, edited and taken along."""

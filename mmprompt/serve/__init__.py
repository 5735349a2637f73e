"""One frozen model of each kind behind HTTP, with as many prompts as a folder holds."""

"""Numbers from predictions; never a model choice."""

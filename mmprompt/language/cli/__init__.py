"""`mmprompt llm`: train, eval, generate, search, convert."""

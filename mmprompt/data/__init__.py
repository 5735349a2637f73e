"""Images and their labels: reading, splits, few-shot draws, the catalog. Knows no model and no prompt."""

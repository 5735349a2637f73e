"""Several prompts on one model: chosen or mixed for each text."""

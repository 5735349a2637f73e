"""What every capability shares: sites' sources, templates, methods, the fit and the prompt file."""

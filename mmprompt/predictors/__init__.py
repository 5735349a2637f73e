"""A backbone and a prompt, together: features once, predict often; and the prompt file."""

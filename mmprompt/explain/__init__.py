"""Ways to look into what a prompt has learned. They read prompts and backbones and change neither."""

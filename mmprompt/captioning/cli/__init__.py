"""`mmprompt caption`: train, write, eval."""

"""`mmprompt train` and `mmprompt eval`."""

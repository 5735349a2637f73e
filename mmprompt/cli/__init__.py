"""The command line: one file a verb, each of them settings, one call into the library, and what is printed."""

"""What is learned: vectors from sources, bound to sites."""

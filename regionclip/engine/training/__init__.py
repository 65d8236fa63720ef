"""Training: the loop, its hooks, and the state of a resumed run."""

"""Training: the loop, what happens between its steps, and what a resumed run needs."""

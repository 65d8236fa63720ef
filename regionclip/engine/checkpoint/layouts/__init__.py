"""Published key layouts of checkpoints, a file each."""

"""Training, evaluation, checkpoints, features and export, independent of the method."""

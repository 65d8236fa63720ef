"""Training, evaluation, checkpoints, features and export, whatever the method."""

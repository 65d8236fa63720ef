"""Datasets, readers and loaders."""

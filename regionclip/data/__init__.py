"""Datasets, file readers and data loaders."""

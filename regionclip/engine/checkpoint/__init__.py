"""Weights: reading files safely, recognising whose they are, and loading them with a report."""

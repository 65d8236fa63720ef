"""Weights: reading files safely, recognizing whose they are, and loading them with a report."""

"""Detector components shared by all methods."""

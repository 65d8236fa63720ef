"""Datasets of users in the formats of other tools, and how they become registered datasets."""

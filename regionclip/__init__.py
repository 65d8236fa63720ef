"""Open-vocabulary detection: find objects in images by the words a user types."""

__version__ = "0.1.0"

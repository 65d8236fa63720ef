"""The detector in a browser and over HTTP."""

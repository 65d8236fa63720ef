"""One package for each detection method; they never import each other."""

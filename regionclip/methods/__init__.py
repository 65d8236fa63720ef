"""One package per detection method; methods never import each other."""

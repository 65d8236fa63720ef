"""RALF's two add-ons to any detector: losses against negative words, and features augmented by concepts."""

"""The page at the end of an evaluation: average precision with confidence intervals, calibration, mistakes."""

"""A synthetic dataset: scenes of emoji drawings with boxes, masks and captions, made from a seed."""

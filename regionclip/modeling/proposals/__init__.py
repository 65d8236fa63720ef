"""Proposal sources: ground truth, an offline RPN, a cache, generated boxes."""

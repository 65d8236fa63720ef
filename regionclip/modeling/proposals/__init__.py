"""Where boxes come from: ground truth, an offline RPN, a cache, generated boxes."""

"""Image towers other than CLIP's ResNet: one dense map, mean over a region, projection."""

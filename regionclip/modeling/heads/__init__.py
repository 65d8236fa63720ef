"""From feature maps and boxes to region embeddings."""

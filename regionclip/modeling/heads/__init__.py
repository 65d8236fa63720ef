"""RoI heads: region embeddings of boxes on feature maps."""

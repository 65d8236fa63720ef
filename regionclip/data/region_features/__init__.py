"""Files of region features: boxes and embeddings of the regions of many images."""

"""Image-text pairs from tar shards, COCO captions, tables and upstream's TSV files, by index."""

"""Image-text pairs from tar shards, COCO captions, tables and upstream's TSV files, all by number."""

from regionclip.data.image_text.opening import FACTORIES, open_pairs
from regionclip.data.image_text.pairs import Pair, PairSource, read_json
from regionclip.data.image_text.writing import image_bytes, write_shards, write_tsv

__all__ = ["FACTORIES", "Pair", "PairSource", "image_bytes", "open_pairs", "read_json", "write_shards", "write_tsv"]

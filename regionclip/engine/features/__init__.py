"""Embeddings of regions of many images: computed, shared out over processes, written, found again."""

from regionclip.engine.features.extraction import (
    ExtractionJob,
    ExtractionReport,
    check_extraction,
    extract_region_features,
)
from regionclip.engine.features.index import FeatureFolder

__all__ = ["ExtractionJob", "ExtractionReport", "FeatureFolder", "check_extraction", "extract_region_features"]

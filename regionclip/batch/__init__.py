"""Detection on many pictures and videos: results, drawings, and a page to look through them."""

from regionclip.batch.detect import DetectOptions, DetectReport, detect

__all__ = ["DetectOptions", "DetectReport", "detect"]

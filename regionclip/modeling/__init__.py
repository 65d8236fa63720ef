"""Parts of detectors that no method owns."""

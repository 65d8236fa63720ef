"""Object localization network (OLN): class-agnostic proposals by localization quality instead of objectness."""

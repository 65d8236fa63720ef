"""Comparison of an image's size in the annotations and in its file."""

from __future__ import annotations


def size_problem(declared: tuple[int, int], actual: tuple[int, int]) -> str | None:
    """Return how the `declared` size of an image contradicts its `actual` size, or None.

    Args:
        declared: (height, width) of the annotated image.
        actual: (height, width) of the upright image.
    """
    if declared == actual:
        return None
    (height, width), (actual_height, actual_width) = declared, actual
    problem = f"{actual_width} x {actual_height} pixels, its annotations say {width} x {height}"
    if declared == actual[::-1]:
        problem += ", perhaps of the photo before its EXIF orientation is applied: turn these boxes, or remove the tag"
    return problem

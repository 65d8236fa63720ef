"""Batch detection on images and videos: results, drawn images, and an HTML report."""

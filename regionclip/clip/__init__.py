"""CLIP as plain torch; nothing here knows Detectron2."""

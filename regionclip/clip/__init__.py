"""CLIP in plain PyTorch, independent of Detectron2."""

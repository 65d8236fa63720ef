"""Image encoders as Detectron2 backbones."""

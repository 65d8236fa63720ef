"""Configuration: Detectron2's keys plus ours, and the one check of a finished config."""

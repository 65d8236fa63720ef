"""Configuration: Detectron2's keys plus ours, and the one check of a finished config."""

from regionclip.config.checks import check_config
from regionclip.config.keys import DEAD_KEYS, FIXED_KEYS, KEYS, Key, get_cfg
from regionclip.config.loading import load_config

__all__ = ["DEAD_KEYS", "FIXED_KEYS", "KEYS", "Key", "check_config", "get_cfg", "load_config"]

"""Datasets and their readers; importing this package registers every dataset name."""

from regionclip.data import coco_ovd, custom_images, emoji_scenes, lvis
from regionclip.data.coco_ovd import prepare_coco_ovd
from regionclip.data.custom_images import list_images, use_custom_image_folder
from regionclip.data.images import UnreadableImageError, read_image
from regionclip.data.loaders import TestLoader, build_test_loader, read_test_records

coco_ovd.register()
lvis.register()
custom_images.register()
emoji_scenes.datasets.register()

__all__ = [
    "TestLoader",
    "UnreadableImageError",
    "build_test_loader",
    "list_images",
    "prepare_coco_ovd",
    "read_image",
    "read_test_records",
    "use_custom_image_folder",
]

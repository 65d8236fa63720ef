"""Registers all dataset names of this package with Detectron2's catalogs on import."""

from regionclip.data.datasets import coco_ovd, custom_images, lvis
from regionclip.data.emoji_scenes import datasets as emoji_scenes

coco_ovd.register()
lvis.register()
custom_images.register()
emoji_scenes.register()

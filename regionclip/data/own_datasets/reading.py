"""Reading a dataset whose format is known by its files."""

from __future__ import annotations

from pathlib import Path

from regionclip.data.datasets.annotation_file import read_json
from regionclip.data.own_datasets.coco import FIX, files_of_splits, read_coco, read_coco_file
from regionclip.data.own_datasets.dataset import ALL, OwnDataset, require_images
from regionclip.data.own_datasets.label_studio import read_label_studio
from regionclip.data.own_datasets.voc import is_voc, read_voc
from regionclip.data.own_datasets.yolo import read_yolo
from regionclip.errors import user_error

SUPPORTED = (
    "a COCO or LVIS JSON file, a YOLO data.yaml, a Pascal VOC folder, a Label Studio JSON export, "
    "or a folder of COCO or YOLO splits"
)

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")


def read_own_dataset(path: Path, image_root: Path | None = None, split: str = ALL) -> OwnDataset:
    """Read a dataset in COCO's, LVIS's, YOLO's, Pascal VOC's or Label Studio's format.

    Args:
        path: file or folder.
        image_root: folder of the images, where they are not found from the annotations.
        split: what is needed (`needed_splits`).

    Raises:
        UserError: no such format, an entry that cannot be read, or no image or object at all.
    """
    if not path.exists():
        raise user_error(f"--data {path}", SUPPORTED, "no such file or folder", "correct the path")
    if image_root is not None and not image_root.is_dir():
        raise user_error(f"--images {image_root}", "the folder of the images", "no such folder", "correct the path")
    read = _read_folder if path.is_dir() else _read_file
    return require_images(read(path, image_root, split))


def _read_file(path: Path, image_root: Path | None, split: str) -> OwnDataset:
    if path.suffix.lower() in (".yaml", ".yml"):
        return read_yolo(path, image_root, split)
    if path.suffix.lower() != ".json":
        raise user_error(
            f"--data {path}", SUPPORTED, f"a file {path.suffix or 'without extension'}", "name one of them"
        )
    content = read_json(path, what="a COCO, LVIS or Label Studio file", fix=FIX)
    if isinstance(content, list):
        return read_label_studio(path, content, image_root)
    return read_coco_file(path, image_root)


def _read_folder(folder: Path, image_root: Path | None, split: str) -> OwnDataset:
    found = next((folder / name for name in _YAML_NAMES if (folder / name).is_file()), None)
    if found is not None:
        return read_yolo(found, image_root, split)
    if files := files_of_splits(folder):
        return read_coco(folder, files, image_root)
    if is_voc(folder):
        return read_voc(folder, image_root)
    raise user_error(f"--data {folder}", SUPPORTED, "a folder without", "name the file of the annotations")

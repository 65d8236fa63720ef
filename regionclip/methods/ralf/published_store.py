"""The published file of negatives: five arrays, in which each class has its own copy of the words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionclip.data.class_lists import CLASS_LISTS
from regionclip.errors import user_error
from regionclip.files import atomic_write
from regionclip.methods.ralf.published_arrays import load_arrays
from regionclip.modeling.retrieval_augmentation.negatives import NO_WORD, NegativeWords

KEYS = ("feat_in", "feat_out_sim", "feat_out_dis", "pad_out_sim", "pad_out_dis")
"""Classes [C, D]; hard and easy words [C, M, D], padded with zeros; numbers of hard and easy words [C]."""

ORDER_OF_FILES = {80: "coco", 1203: "lvis"}
"""Class list of the published files, by their number of classes."""

SIDES = {"hard": ("feat_out_sim", "pad_out_sim"), "easy": ("feat_out_dis", "pad_out_dis")}

Array = NDArray[Any]


def read_published_store(path: Path, names: Sequence[str], clip: str = "") -> NegativeWords:
    """Read a published file without running code from it; equal rows become one word.

    Args:
        path: file, written by `torch.save` with NumPy arrays.
        names: of the classes, in the order of the file; none takes `ORDER_OF_FILES`.
        clip: name of the CLIP size whose text encoder made it.

    Raises:
        UserError: another file, or another number of classes.
    """
    content = _load(path)
    classes, dim = content["feat_in"].shape
    if not names and classes in ORDER_OF_FILES:
        names = CLASS_LISTS[ORDER_OF_FILES[classes]]()
    if len(names) != classes:
        expected = f"the {len(names)} named classes" if names else f"{' or '.join(map(str, ORDER_OF_FILES))} classes"
        fix = "name the classes of the file with --classes, in its order"
        raise user_error(str(path), expected, f"{classes} classes", fix)
    known: dict[bytes, int] = {}
    words: list[Array] = []
    hard, easy = (_word_rows(content[rows], content[counts], known, words) for rows, counts in SIDES.values())
    matrix = torch.from_numpy(np.stack(words)) if words else torch.empty(0, dim)
    return NegativeWords(tuple(names), torch.from_numpy(content["feat_in"]).float(), matrix, hard, easy, clip=clip)


def _load(path: Path) -> dict[str, Array]:
    expected = f"a published file with {', '.join(KEYS)}"
    content = load_arrays(path, expected)
    if not isinstance(content, dict) or not all(key in content for key in KEYS):
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise user_error(str(path), expected, found, "name the file neg_feature_{coco,lvis}.pkl")
    arrays = {key: np.asarray(content[key]) for key in KEYS}
    if problem := _shape_problem(arrays):
        expected = "arrays [C, D], twice [C, M, D], and twice counts [C] from 0 to M, all finite"
        raise user_error(str(path), expected, problem, "download it again")
    return arrays


def _shape_problem(arrays: dict[str, Array]) -> str:
    """Return what is wrong with the arrays; empty if nothing is."""
    shapes = {key: array.shape for key, array in arrays.items()}
    classes, dim = shapes["feat_in"] if len(shapes["feat_in"]) == 2 else (0, 0)
    for features, counts in SIDES.values():
        shape, numbers = shapes[features], arrays[counts]
        if len(shape) != 3 or (shape[0], shape[2]) != (classes, dim) or numbers.shape != (classes,) or not classes:
            return ", ".join(f"{key} {list(shape)}" for key, shape in shapes.items())
        if not np.issubdtype(numbers.dtype, np.integer) or numbers.min() < 0 or numbers.max() > shape[1]:
            return f"{counts} of {numbers.dtype} from {numbers.min()} to {numbers.max()}"
    infinite = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    return f"NaN or infinity in {', '.join(infinite)}" if infinite else ""


def _word_rows(features: Array, counts: Array, known: dict[bytes, int], words: list[Array]) -> Tensor:
    """Return the words of each class, int32 [C, M]; new ones are appended to `words`."""
    rows = torch.full(features.shape[:2], NO_WORD, dtype=torch.int32)
    for number, (own, count) in enumerate(zip(features, counts.tolist(), strict=True)):
        for place, word in enumerate(own[:count]):
            content = word.tobytes()
            if content not in known:
                known[content] = len(words)
                words.append(word.copy())
            rows[number, place] = known[content]
    return rows


def write_published_store(path: Path, store: NegativeWords) -> None:
    """Write a store as a published file in float16, atomically."""
    arrays: dict[str, Array] = {"feat_in": store.anchors.half().numpy()}
    words = store.words.half()
    for side, (features, counts) in SIDES.items():
        rows: Tensor = getattr(store, side)
        valid = rows != NO_WORD
        arrays[features] = (words[rows.clamp(min=0).long()] * valid[..., None]).numpy()
        arrays[counts] = valid.sum(dim=1).numpy()
    with atomic_write(path) as file:
        torch.save(arrays, file)

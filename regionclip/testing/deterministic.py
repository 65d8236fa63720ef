"""Weights generated from key names: every value is a pure function of (key, shape).

Uniform numbers come from a counter-based SplitMix64 generator seeded with the CRC of the key, in
integer arithmetic, so two models with the same keys and shapes get the same bits on any machine.
The scales keep activations of order one and give objectness logits of both signs, so that a model
with such weights exercises the same paths as a trained one. Its detections are meaningless.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_RANGE = 1 << 23

Array = NDArray[Any]
Shape = tuple[int, ...]


def _integers(key: str, count: int) -> NDArray[np.int64]:
    """Return `count` integers in [-2^23, 2^23)."""
    with np.errstate(over="ignore"):
        seed = np.uint64(zlib.crc32(key.encode())) * _MIX_1 + _GOLDEN_GAMMA
        z = seed + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN_GAMMA
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.int64) - _RANGE


def uniform(key: str, shape: Shape) -> Array:
    """Return float32 numbers in [-1, 1), each exactly representable."""
    return (_integers(key, int(np.prod(shape, dtype=int))).astype(np.float32) * np.float32(1 / _RANGE)).reshape(shape)


def _spread(key: str, shape: Shape, deviation: float, zero_sum: bool = False) -> Array:
    """Return uniform weights of the given standard deviation, optionally with zero mean per output unit."""
    inputs = int(np.prod(shape[1:]))
    weights = uniform(key, shape)
    if zero_sum and inputs > 8:
        # Integer sums: the result does not depend on the order of summation.
        whole = _integers(key, int(np.prod(shape))).reshape(shape[0], -1)
        mean = whole.sum(axis=1, keepdims=True).astype(np.float64) / inputs
        weights = ((whole - mean) / float(_RANGE)).astype(np.float32).reshape(shape)
    return weights * np.float32(deviation * 3.0**0.5)


def _around(key: str, shape: Shape, centre: float, amplitude: float) -> Array:
    return np.float32(centre) + np.float32(amplitude) * uniform(key, shape)


class _Rule(NamedTuple):
    """Values of the entries whose key matches `pattern` and that have `ndim` axes (None: any)."""

    pattern: str
    ndim: int | None
    values: Callable[[str, Shape], Array]


def _affine_rule(pattern: str, centre: float, amplitude: float, ndim: int | None = None) -> _Rule:
    return _Rule(pattern, ndim, lambda key, shape: _around(key, shape, centre, amplitude))


def _weight_rule(
    pattern: str, deviation: Callable[[Shape], float], zero_sum: bool = False, ndim: int | None = None
) -> _Rule:
    return _Rule(pattern, ndim, lambda key, shape: _spread(key, shape, deviation(shape), zero_sum))


def _fan_in(shape: Shape) -> int:
    return int(np.prod(shape[1:]))


def _convolution(shape: Shape) -> float:
    # Above Kaiming's 2.0, because zero-sum filters lose the energy of the mean.
    return (2.7 / _fan_in(shape)) ** 0.5


def _pyramid_gain(level: str, shape: Shape) -> float:
    # Coarser levels get a larger gain, so that the best proposals come from all levels.
    gain = {"2": 0.45, "3": 0.8, "4": 1.2, "5": 1.7}.get(level, 1.0)
    return gain * (1.0 / _fan_in(shape)) ** 0.5


RULES: tuple[_Rule, ...] = (
    _affine_rule(r"(^|\.)running_var$", 1.0, 0.25),
    _affine_rule(r"(^|\.)running_mean$", 0.0, 0.10),
    _Rule(r"cls_bg_score\.(weight|bias)$", None, lambda key, shape: np.zeros(shape, np.float32)),
    _Rule(
        r"(cls_score\.weight|concept_emb)$",
        2,
        lambda key, shape: deterministic_text_embeddings(key, shape[0], shape[1]).numpy(),
    ),
    _weight_rule(r"bbox_pred\.weight$", lambda s: 1.0 / s[1] ** 0.5),
    _affine_rule(r"bbox_pred\.bias$", 0.0, 0.05),
    _weight_rule(r"objectness_logits\.weight$", lambda s: 0.5 / s[1] ** 0.5, zero_sum=True),
    _affine_rule(r"objectness_logits\.bias$", -2.8, 0.2),
    _weight_rule(r"anchor_deltas\.weight$", lambda s: 0.2 / s[1] ** 0.5, zero_sum=True),
    _affine_rule(r"anchor_deltas\.bias$", 0.0, 0.05),
    _weight_rule(r"token_embedding\.weight$", lambda s: 0.02),
    _weight_rule(r"attnpool\.positional_embedding$", lambda s: 0.25),
    _weight_rule(r"positional_embedding$", lambda s: 0.01),
    _weight_rule(r"text_projection$", lambda s: s[0] ** -0.5),
    _weight_rule(r"attn\.in_proj_weight$", lambda s: s[1] ** -0.5),
    _weight_rule(r"(attn\.out_proj|mlp\.c_proj)\.weight$", lambda s: (s[0] ** -0.5) * (24**-0.5)),
    _weight_rule(r"mlp\.c_fc\.weight$", lambda s: (2 * s[1]) ** -0.5),
    _affine_rule(r"in_proj_bias$", 0.0, 0.02),
    _weight_rule(r"attnpool\.[qk]_proj\.weight$", lambda s: 0.8 * s[1] ** -0.5, zero_sum=True),
    _weight_rule(r"attnpool\.v_proj\.weight$", lambda s: s[1] ** -0.5, zero_sum=True),
    _weight_rule(r"attnpool\.c_proj\.weight$", lambda s: s[1] ** -0.5),
    _affine_rule(r"(layer\d+\.\d+\.bn3|res\d\.\d+\.conv3\.norm)\.weight$", 0.5, 0.05, ndim=1),
    _affine_rule(r"(^|\.)weight$", 1.0, 0.1, ndim=1),
    _affine_rule(r"(^|\.)bias$", 0.0, 0.05),
    _affine_rule(r"", 0.0, 0.05, ndim=1),
    # The input of Detectron2's stem has pixel values of about +-60.
    _Rule(r"stem\.conv1\.weight$", 4, lambda key, s: _spread(key, s, _convolution(s) / 60.0)),
    _weight_rule(r"fpn_lateral\d", lambda s: (1.0 / _fan_in(s)) ** 0.5, zero_sum=True, ndim=4),
    *(_weight_rule(rf"fpn_output{level}", partial(_pyramid_gain, level), zero_sum=True, ndim=4) for level in "2345"),
    _weight_rule(r"(downsample\.0|shortcut)\.weight$", lambda s: (2.0 / _fan_in(s)) ** 0.5, zero_sum=True, ndim=4),
    _Rule(r"", 4, lambda key, s: _spread(key, s, _convolution(s), zero_sum=s[1] > 3)),
    _weight_rule(r"", lambda s: s[1] ** -0.5, ndim=2),
    _affine_rule(r"", 1.0, 0.1, ndim=0),
)
"""Tried in order; the first match applies."""


def deterministic_text_embeddings(name: str, rows: int, dim: int) -> Tensor:
    """Return float32 [rows, dim] embeddings with random directions and norms between 0.5 and 1.5."""
    whole = _integers(f"text_embeddings/{name}", rows * dim).reshape(rows, dim)
    squares = whole * whole  # 46 bits; summed in two halves, which cannot overflow int64
    squared_norms = (squares >> 24).sum(1, keepdims=True).astype(np.float64) * float(1 << 24)
    squared_norms += (squares & ((1 << 24) - 1)).sum(1, keepdims=True).astype(np.float64)
    lengths = _integers(f"text_embeddings_norm/{name}", rows).astype(np.float64) * (1.0 / _RANGE)
    embeddings = whole.astype(np.float64) / np.sqrt(squared_norms)
    embeddings *= 1.0 + 0.5 * lengths[:, None]
    return torch.from_numpy(embeddings.astype(np.float32))


def deterministic_state_dict(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return float32 tensors for `{key: shape}`; `num_batches_tracked` entries are omitted."""
    return {
        key: torch.from_numpy(np.ascontiguousarray(_values(key, tuple(shape))))
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked")
    }


@torch.no_grad()
def fill_deterministic(model: nn.Module, skip: Sequence[str] = ()) -> None:
    """Overwrite every floating-point entry of the model's state dict, except keys that contain one of `skip`."""
    entries = {
        key: value
        for key, value in model.state_dict().items()
        if value.is_floating_point() and not any(part in key for part in skip)
    }
    for key, values in deterministic_state_dict({k: v.shape for k, v in entries.items()}).items():
        entries[key].copy_(values.reshape(entries[key].shape))


def _values(key: str, shape: Shape) -> Array:
    for rule in RULES:
        if rule.ndim in (None, len(shape)) and re.search(rule.pattern, key):
            return np.asarray(rule.values(key, shape), dtype=np.float32)
    return _spread(key, shape, 0.02)

"""Generated weights and inputs of CORA's goldens: like `regionclip.testing.deterministic`, by the published keys."""

import re

import numpy as np
import torch

from regionclip.testing.deterministic import _around, _spread, _values, uniform

ALIASES = (
    (r"^attnpool\.", "backbone.0.attn_pool."),
    (r"^backbone\.(0\.)?attn_?pool\.", "backbone.0.attn_pool."),
    (r"^backbone\.(0\.)?layer4\.", "backbone.0.body.layer4."),
    (r"^backbone\.(?!0\.)", "backbone.0.body."),
    (r"^bbox_embed\.", "transformer.decoder.bbox_embed."),
)
"""Names of other layouts, and the name whose values a tensor has; the first match counts."""


def by_fan_in(gain, *, zero_sum=False):
    return lambda key, shape: _spread(key, shape, gain * int(np.prod(shape[1:])) ** -0.5, zero_sum)


def anchors(key, shape):
    """Logits of cx, cy, w, h: centers all over the image, sides from 6 % to 57 % of it."""
    return np.array([0.0, 0.0, -1.2, -1.2], np.float32) + np.array([2.2, 2.2, 1.5, 1.5], np.float32) * uniform(
        key, shape
    )


RULES = (
    (r"attn_pool\.positional_embedding$", lambda key, shape: _spread(key, shape, 0.25)),
    (r"attn_pool\.[qk]_proj\.weight$", by_fan_in(0.8, zero_sum=True)),
    (r"attn_pool\.v_proj\.weight$", by_fan_in(1.0, zero_sum=True)),
    (r"attn_pool\.c_proj\.weight$", by_fan_in(1.0)),
    (r"^query_embed\.weight$", anchors),
    (r"activation\.weight$", lambda key, shape: _around(key, shape, 0.25, 0.1)),
    (r"^text_proj\.layers\.0\.weight$", lambda key, shape: _spread(key, shape, 1.0)),
    (r"^text_proj\.layers\.1\.weight$", by_fan_in(1.7)),
    (r"^objectness_embed\.weight$", by_fan_in(1.3)),
    (r"^objectness_embed\.bias$", lambda key, shape: _around(key, shape, -2.4, 0.2)),
    (r"encoder\..*self_attn\.in_proj_weight$", by_fan_in(1.3)),
    (r"decoder\..*\.(sa|ca)_[qk]\w+_proj\.weight$", by_fan_in(1.4)),
    (r"(self_attn|cross_attn)\.out_proj\.weight$", by_fan_in(0.5)),
    (r"bbox_embed\.\d+\.layers\.2\.weight$", by_fan_in(0.3)),
    (r"ref_anchor_head\.layers\.1\.weight$", by_fan_in(1.5)),
)
"""Values by canonical key; the first match counts, and what none matches has those of `deterministic`."""


def value(key, shape, seed=""):
    """The tensor of a key; `seed` makes another one."""
    for pattern, name in ALIASES:
        key, count = re.subn(pattern, name, key)
        if count:
            break
    named = f"{seed}/{key}" if seed else key
    make = next((rule for pattern, rule in RULES if re.search(pattern, key)), _values)
    return torch.from_numpy(np.ascontiguousarray(np.asarray(make(named, tuple(shape)), np.float32))).reshape(
        tuple(shape)
    )


def seeded(name, shape, scale=1.0, shift=0.0):
    """An input: uniform with standard deviation `scale` around `shift`."""
    return torch.from_numpy(np.float32(shift) + np.float32(scale * 3.0**0.5) * uniform(name, tuple(shape)))


@torch.no_grad()
def fill(module, prefix="", seed="", skip=("lang_encoder.",)):
    """Give a module its generated weights; `prefix` stands before its keys."""
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not key.startswith(skip):
            tensor.copy_(value(prefix + key, tensor.shape, seed))
    return module

"""Region embeddings of anchor pre-matching: the attention pool applied to the whole map (CORA, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip.clip.attention_pool import AttentionPool2d
from regionclip.methods.cora.encodings import ValidCells
from regionclip.ops import roi_align


def boxes_on_map(boxes: Tensor, columns: int | Tensor, rows: int | Tensor) -> Tensor:
    """Return boxes [..., 4] as xyxy in cells of a map, from cx, cy, w, h in [0, 1] of its valid columns and rows."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    corners = torch.cat([center - half, center + half], dim=-1)
    scale = torch.stack([torch.as_tensor(columns), torch.as_tensor(rows)] * 2, dim=-1).to(corners)
    return corners * scale


def cheap_embeddings(
    pool: AttentionPool2d, layer4: Tensor, boxes: Sequence[Tensor], *, with_mean_token: bool = False
) -> Tensor:
    """Embed boxes on a map of the whole image: projected by the attention pool first, then RoIAlign on the projections.

    The published system has no mean token among keys and values; with it, boxes inside the image get the result of
    RoIAlign followed by the attention pool, as both are linear.

    Args:
        pool: CLIP's attention pool, with the prompt.
        layer4: map [N, C, H, W].
        boxes: for each image [R_i, 4], xyxy in cells of the map. Outside of it the projections are 0.
        with_mean_token: let the mean token be attended to (MODEL.CORA.PREMATCHING_POOL `exact`).

    Returns:
        [sum R_i, D], not normalized.
    """
    cells = layer4.permute(0, 2, 3, 1)  # [N, H, W, C]
    width = cells.shape[3]
    projections = torch.cat([project(cells) for project in (pool.q_proj, pool.k_proj, pool.v_proj)], dim=3)
    regions = roi_align(projections.permute(0, 3, 1, 2), list(boxes), pool.grid, 1.0, 0, True)  # [R, 3 C, S, S]
    query, key, value = regions.flatten(2).transpose(1, 2).split(width, dim=2)  # [R, S * S, C]
    mean, spatial = pool.positional_embedding[:1], pool.positional_embedding[1:]
    position_query = F.linear(mean, pool.q_proj.weight)  # [1, C]
    position_key, position_value = (F.linear(spatial, project.weight) for project in (pool.k_proj, pool.v_proj))
    if with_mean_token:
        key_of_mean = key.mean(1, keepdim=True) + F.linear(mean, pool.k_proj.weight)
        value_of_mean = value.mean(1, keepdim=True) + F.linear(mean, pool.v_proj.weight)
        key = torch.cat([key_of_mean, key + position_key], dim=1)
        value = torch.cat([value_of_mean, value + position_value], dim=1)
    else:
        key, value = key + position_key, value + position_value
    query = query.mean(1, keepdim=True) + position_query  # [R, 1, C]
    heads = [x.unflatten(2, (pool.heads, -1)).transpose(1, 2) for x in (query, key, value)]  # [R, heads, L, C / heads]
    attended = F.scaled_dot_product_attention(*heads)  # [R, heads, 1, C / heads]
    return pool.c_proj(attended.flatten(1))


def boxes_of_images(boxes: Tensor, cells: ValidCells) -> list[Tensor]:
    """Return the boxes [N, R, 4] (cx, cy, w, h in [0, 1]) of each image as xyxy in cells of a map."""
    parts = zip(boxes, cells.columns, cells.rows, strict=True)
    return [boxes_on_map(own, columns, rows) for own, columns, rows in parts]

"""Non-maximum suppression of boxes, faster on a CPU where most boxes are far apart."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms, nms

from cellseg.overlap import kept_greedily
from cellseg.rle import ranges

# Pairs per box that are near enough along x, near enough, and found. With more, as of boxes that
# mostly suppress each other, comparing all pairs is faster.
_MOST = (50, 20, 5)


def suppress(
    boxes: torch.Tensor, scores: torch.Tensor, iou: float, groups: torch.Tensor | None = None
) -> torch.Tensor:
    """Keep a box unless a better one, which is kept, has a higher IoU with it.

    The result is that of torchvision's `nms`, which compares all pairs. On a CPU, this compares
    only those whose position and size allow such an IoU.

    Parameters
    ----------
    boxes
        `(N, 4)` float XYXY, finite.
    scores
        `(N,)` float.
    iou
        Intersection over union, 0 to 1.
    groups
        `(N,)` int, 0 or more, such as classes; boxes of others are not compared. Default: one
        group.

    Returns
    -------
    Indices of the boxes that are kept, best score first; equal scores in their order, but on a GPU.
    """
    boxes, scores = boxes.float(), scores.float()
    if boxes.device.type == "cpu":
        order = torch.argsort(scores, descending=True, stable=True)
        ranked = boxes[order].detach().numpy()
        of_group = None if groups is None else groups[order].numpy()
        pairs = _overlapping(ranked, iou, of_group)
        if pairs is not None:
            return order[torch.from_numpy(kept_greedily(len(ranked), *pairs))]
    if groups is None:
        return torch.as_tensor(nms(boxes, scores, iou))
    if boxes.device.type != "cpu":
        return torch.as_tensor(batched_nms(boxes, scores, groups, iou))
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    for group in torch.unique(groups):
        index = (groups == group).nonzero()[:, 0]
        kept[index[nms(boxes[index], scores[index], iou)]] = True
    return order[kept[order]]


def _overlapping(
    boxes: NDArray[np.float32], iou: float, groups: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Return the indices of all pairs with a higher IoU, the lower index first, by this index.

    Or None if too many pairs would have to be compared.
    """
    if iou < 1e-3:
        return None
    # Along each axis, lengths a, b and the IoU t of the sides, which is at least that of the boxes:
    # b is at most a / t. So the centres are at most a (1 - t) / 2 t apart; more for rounding.
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size.astype(np.float64) / 2
    reach = size * ((1 - iou) / (2 * iou) + 1e-3) + 0.01
    along = centre[:, 0]
    if groups is not None and len(boxes):
        along = along + groups * (np.ptp(along) + reach[:, 0].max() + 1.0)
    by_place = np.argsort(along, kind="stable")
    ordered = along[by_place]
    ends = np.searchsorted(ordered, ordered + reach[by_place, 0], side="right")
    counts = ends - np.arange(1, len(boxes) + 1)
    most_along, most_near, most_found = (len(boxes) * most for most in _MOST)
    if counts.sum() > most_along:
        return None
    left = np.repeat(np.arange(len(boxes)), counts)
    right = ranges(np.arange(1, len(boxes) + 1), counts)
    y, reach_y = centre[by_place, 1], reach[by_place, 1]
    near = np.flatnonzero(np.abs(y[left] - y[right]) <= reach_y[left])
    if len(near) > most_near:
        return None
    a, b = by_place[left[near]], by_place[right[near]]
    a, b = np.minimum(a, b), np.maximum(a, b)
    # In float32 and in this order, as torchvision does.
    low = np.maximum(boxes[a, :2], boxes[b, :2])
    high = np.minimum(boxes[a, 2:], boxes[b, 2:])
    width, height = np.maximum(high - low, 0).T
    intersection = width * height
    area = size[:, 0] * size[:, 1]
    with np.errstate(invalid="ignore"):  # boxes without area
        ratio = intersection / (area[a] + area[b] - intersection)
    found = ratio.astype(np.float64) > iou
    if found.sum() > most_found:
        return None
    a, b = a[found], b[found]
    order = np.argsort(a, kind="stable")
    return a[order], b[order]

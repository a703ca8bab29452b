"""Non-maximum suppression of boxes, faster on a CPU where most boxes are far apart."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms, nms

# Pairs that are compared: of N boxes a tenth of N², between these. With more, torchvision is faster
# or needs less memory.
_FEW_PAIRS, _MOST_PAIRS = 1000, 2_000_000


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
    Indices of the boxes that are kept, best score first; equal scores in their order.
    """
    boxes, scores = boxes.float(), scores.float()
    if boxes.device.type == "cpu":
        order = torch.argsort(scores, descending=True, stable=True)
        ranked = boxes[order].detach().numpy()
        of_group = None if groups is None else groups[order].numpy()
        pairs = _overlapping(ranked, iou, of_group)
        if pairs is not None:
            return order[torch.from_numpy(_keep(len(ranked), *pairs))]
    best = nms(boxes, scores, iou) if groups is None else batched_nms(boxes, scores, groups, iou)
    return torch.as_tensor(best)


def _overlapping(
    boxes: NDArray[np.float32], iou: float, groups: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Return the indices of all pairs with a higher IoU, the lower index first, by this index.

    Or None if too many pairs would have to be compared.
    """
    # Along each axis, the IoU is at most the shared length of the larger side. So the larger side
    # is at most 1 / IoU times the smaller one, and the centres are at most (1 - IoU) times the
    # larger side apart; a little more for rounding.
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size / 2
    reach = size * ((1 - iou) / max(iou, 1e-3) + 1e-3) + 0.01
    along = centre[:, 0].astype(np.float64)
    if groups is not None and len(boxes):
        along += groups * (np.ptp(along) + reach[:, 0].max() + 1.0)
    by_place = np.argsort(along, kind="stable")
    ordered = along[by_place]
    ends = np.searchsorted(ordered, ordered + reach[by_place, 0], side="right")
    counts = ends - np.arange(1, len(boxes) + 1)
    if counts.sum() > np.clip(len(boxes) ** 2 / 10, _FEW_PAIRS, _MOST_PAIRS):
        return None
    left = np.repeat(np.arange(len(boxes)), counts)
    right = left + 1 + np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
    near = (
        np.abs(centre[by_place, 1][left] - centre[by_place, 1][right]) <= reach[by_place, 1][left]
    )
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
    a, b = a[found], b[found]
    order = np.argsort(a, kind="stable")
    return a[order], b[order]


def _keep(n: int, better: NDArray[np.int64], worse: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices, 0…n−1, that no kept one suppresses, given all pairs."""
    kept = [True] * n
    for first, second in zip(better.tolist(), worse.tolist(), strict=True):
        if kept[first]:
            kept[second] = False
    return np.flatnonzero(kept)

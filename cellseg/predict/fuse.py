"""Fuse the detections of several views: test-time augmentation for masks.

Detections of one cell in several views are matched by mask overlap and averaged: boxes and
scores as in weighted boxes fusion (Solovyev, Wang and Gabruseva 2021, doi
10.1016/j.imavis.2021.104117), masks as probabilities, before any threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from cellseg.network import Detections, enlarge_boxes

# Boxes, and pairs of masks, compared at a time: bounds memory, and fits the processor's cache.
_ROWS = 128
_PAIRS = 512


def fuse(views: Sequence[Detections], *, iou: float = 0.5) -> Detections:
    """Fuse the detections of several views of one tile.

    Best score first, each unmatched detection takes from every other view the unmatched
    detection of its class whose mask has the highest IoU. Of these members

    - the box is the mean, weighted by score;
    - the mask is the weighted mean, each resampled to the fused box, 0 outside its own grid;
    - the score is the sum divided by the number of views, so a cell detected in few views
      scores low: the rule of weighted boxes fusion, mean score x min(T, N) / N for T members
      in N views, since here T is at most N.

    A single detection, and one on which all views agree, keeps its box and mask bit for bit.
    The order of the views makes no difference.

    Parameters
    ----------
    views
        Detections of each view, by one network or several: in the pixels of the same tile,
        on the CPU, masks in the tile's orientation. Their sides M may differ.
    iou
        Minimum mask IoU, above 0, of one cell in two views.

    Returns
    -------
    Fused detections, best score first, equal scores by class, then box; masks have the finest grid,
    in boxes enlarged by the largest factor. Raises ValueError without views.
    """
    if not views:
        raise ValueError("no views, expected one or more")
    if len(views) == 1:
        return views[0][_best_first(views[0])]
    detections, view = _stack(views)
    first, second, overlap = _overlaps(detections, iou)
    cluster = _cluster(view.tolist(), first.tolist(), second.tolist(), overlap.tolist())
    fused = _average(detections, torch.tensor(cluster, dtype=torch.int64), len(views))
    limited_by = tuple(sorted({key for view in views for key in view.limited_by}))
    return replace(fused[_best_first(fused)], limited_by=limited_by)


def _stack(views: Sequence[Detections]) -> tuple[Detections, torch.Tensor]:
    """Return the N detections of all views, best first, and `(N,)` int64, the view of each."""
    scale = max(view.mask_scale for view in views)
    # The finest grid, enlarged likewise.
    side = max(round(view.masks.shape[1] * scale / view.mask_scale) for view in views)
    stacked = Detections(
        torch.cat([view.boxes for view in views]),
        torch.cat([view.scores for view in views]),
        torch.cat([view.classes for view in views]),
        torch.cat(
            [
                _resample(view.masks, view.mask_boxes, enlarge_boxes(view.boxes, scale), side)
                for view in views
            ]
        ),
        mask_scale=scale,
    )
    origin = torch.cat([torch.full((len(view),), n) for n, view in enumerate(views)])
    order = _best_first(stacked)
    return stacked[order], origin[order]


def _best_first(detections: Detections) -> torch.Tensor:
    """Order by score, class and box, so that equal scores don't depend on the views' order."""
    keys = [*detections.boxes.T.numpy(), detections.classes.numpy(), -detections.scores.numpy()]
    return torch.from_numpy(np.lexsort(keys))


def _overlaps(
    detections: Detections, iou: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the pairs of one class with at least this mask IoU.

    Returns
    -------
    first, second, overlap
        `(P,)` each: indices of detections, `first < second`, and their mask IoU.
    """
    areas = _mask_areas(detections)
    first, second = _candidates(detections, iou * areas)
    shared = torch.cat(
        [
            _shared_mask_area(detections[a], detections[b])
            for a, b in zip(torch.split(first, _PAIRS), torch.split(second, _PAIRS), strict=True)
        ]
    )
    overlap = shared / (areas[first] + areas[second] - shared)
    same = overlap >= iou
    return first[same], second[same], overlap[same]


def _box_areas(boxes: torch.Tensor) -> torch.Tensor:
    """Return the `(N,)` areas of boxes."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _mask_areas(detections: Detections) -> torch.Tensor:
    """Return the `(N,)` areas of masks, as sampled on their grids."""
    return _box_areas(detections.mask_boxes) * (detections.masks >= 0.5).float().mean((1, 2))


def _shared_mask_area(first: Detections, second: Detections) -> torch.Tensor:
    """Return the `(P,)` intersection areas of pairs of masks, counted on the first's grid."""
    sampled = _resample(second.masks, second.mask_boxes, first.mask_boxes, first.masks.shape[1])
    both = (first.masks >= 0.5) & (sampled >= 0.5)
    return _box_areas(first.mask_boxes) * both.float().mean((1, 2))


def _candidates(
    detections: Detections, min_shared: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pairs of one class whose boxes overlap enough for a match of their masks.

    The intersection of two matching masks lies in both boxes and is at least the IoU times
    the larger mask. Boxes need a tenth less, since areas on a grid are coarse.

    Parameters
    ----------
    min_shared
        `(N,)` minimum intersection area of each mask with a match.

    Returns
    -------
    first, second
        `(P,)` int64 each, `first < second`.
    """
    # Sorted by left edge, so that boxes too far to the right are skipped.
    boxes = detections.mask_boxes
    order = boxes[:, 0].argsort()
    boxes, min_shared = boxes[order], 0.9 * min_shared[order]
    left = boxes[:, 0].contiguous()
    pairs = [torch.zeros((0, 2), dtype=torch.int64)]
    for begin in range(0, len(boxes), _ROWS):
        rows = slice(begin, begin + _ROWS)
        end = int(torch.searchsorted(left, boxes[rows, 2].max()))
        shared = _shared_area(boxes[rows], boxes[begin:end])
        enough = shared > torch.maximum(min_shared[rows, None], min_shared[begin:end])
        pairs.append(order[begin + enough.triu_(1).nonzero()])
    first, second = torch.cat(pairs).sort(1).values.unbind(1)
    same_class = detections.classes[first] == detections.classes[second]
    return first[same_class], second[same_class]


def _shared_area(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the `(N, M)` intersection areas of N boxes with M others."""
    width, height = (
        torch.minimum(boxes[:, None, end], others[:, end])
        .sub_(torch.maximum(boxes[:, None, start], others[:, start]))
        .clamp_(min=0)
        for start, end in ((0, 2), (1, 3))
    )
    return width.mul_(height)


def _cluster(
    view: list[int], first: list[int], second: list[int], overlap: list[float]
) -> list[int]:
    """Group the detections of one cell.

    Parameters
    ----------
    view
        View of each of N detections, best score first.
    first, second, overlap
        Pairs that may be one cell, `first < second`, and their IoU.

    Returns
    -------
    Cell of each detection, 0…C−1 in the order of their best detections.
    """
    partners: list[list[tuple[float, int]]] = [[] for _ in view]
    for a, b, value in zip(first, second, overlap, strict=True):
        partners[a].append((-value, b))
    cluster = [-1] * len(view)
    n_clusters = 0
    for best in range(len(view)):
        if cluster[best] >= 0:
            continue
        cluster[best] = n_clusters
        used_views = {view[best]}
        for _, other in sorted(partners[best]):
            if cluster[other] < 0 and view[other] not in used_views:
                cluster[other] = n_clusters
                used_views.add(view[other])
        n_clusters += 1
    return cluster


def _average(detections: Detections, cluster: torch.Tensor, n_views: int) -> Detections:
    """Average the detections of each cell, in float64: the mean of equal numbers is exact."""
    n_clusters = int(cluster.max()) + 1 if len(cluster) else 0
    scores = detections.scores.double()
    # With scores of 0 only, a cell still needs a box.
    weights = scores.clamp(min=torch.finfo(torch.float32).tiny)
    weights /= _sum(weights, cluster, n_clusters)[cluster]
    boxes = _sum(weights[:, None] * detections.boxes, cluster, n_clusters).float()
    targets = enlarge_boxes(boxes, detections.mask_scale)[cluster]
    grids = _resample(detections.masks, detections.mask_boxes, targets, detections.masks.shape[1])
    classes = detections.classes.new_zeros(n_clusters)
    classes[cluster] = detections.classes
    return Detections(
        boxes,
        (_sum(scores, cluster, n_clusters) / n_views).float(),
        classes,
        _sum(weights[:, None, None] * grids, cluster, n_clusters).float(),
        mask_scale=detections.mask_scale,
    )


def _sum(values: torch.Tensor, cluster: torch.Tensor, n_clusters: int) -> torch.Tensor:
    """Sum the `(N, …)` values of each cluster."""
    return values.new_zeros((n_clusters, *values.shape[1:])).index_add_(0, cluster, values)


def _resample(
    masks: torch.Tensor, boxes: torch.Tensor, target_boxes: torch.Tensor, side: int
) -> torch.Tensor:
    """Resample masks from one box to a grid over another.

    Equals `grid_sample` with `align_corners=False`, which pastes masks: values are at the
    centres of grid cells and fall to 0 within half a cell outside the box. Boxes are
    axis-aligned, so rows and columns are weighted separately; for the same box and side the
    mask is unchanged, bit for bit.

    Parameters
    ----------
    masks
        `(N, M, M)` float32.
    boxes, target_boxes
        `(N, 4)` float32, XYXY: boxes of the masks and of the result.
    side
        Side S of the new grid.

    Returns
    -------
    `(N, S, S)` float32.
    """
    columns = _weights(boxes[:, 0::2], target_boxes[:, 0::2], masks.shape[1], side)
    rows = _weights(boxes[:, 1::2], target_boxes[:, 1::2], masks.shape[1], side)
    return rows @ masks @ columns.mT


def _weights(span: torch.Tensor, target: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Return the `(N, new, old)` weights of old grid cells in new ones along one axis.

    `span` and `target` are the `(N, 2)` ends of the old and of the new grids on this axis.
    """
    length = span[:, 1] - span[:, 0]
    start = (target[:, 0] - span[:, 0]) / length * old
    step = (target[:, 1] - target[:, 0]) / length * (old / new)
    centre = start[:, None] + step[:, None] * (torch.arange(new) + 0.5) - 0.5
    distance = (centre[:, :, None] - torch.arange(old)).abs_()
    return distance.neg_().add_(1).clamp_(min=0)

"""One answer from several views of the same place: test-time augmentation for masks.

Detections of different views that show the same cell are found by the overlap of their
masks and averaged, the boxes and scores as in weighted boxes fusion (Solovyev, Wang and
Gabruseva 2021, doi 10.1016/j.imavis.2021.104117), the masks as probabilities, before any
threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cellseg.network import Detections

# Boxes compared with the others at a time, and pairs of masks: bounds of the memory, small
# enough for the processor's cache.
_ROWS = 128
_PAIRS = 512


def fuse(views: Sequence[Detections], *, iou: float = 0.5) -> Detections:
    """Fuse what was found in several views of one place.

    Best score first, each detection that is still free takes from every other view the
    free one of its class whose mask overlaps its own the most. Of these members

    - the box is the mean, weighted by score;
    - the mask is the mean too, each sampled on a grid over the fused box, 0 where its own
      box doesn't reach;
    - the score is the sum over the number of views, so that a cell seen in few of them
      sinks. This is the rule of weighted boxes fusion, mean score x min(T, N) / N for T
      members in N views, since here T is at most N.

    A cell that is alone keeps its box and mask bit for bit, and so does one that all
    views agree on. The order of the views makes no difference.

    Parameters
    ----------
    views
        What was found in each view, by one network or several: all in the pixels of the
        same image, on the CPU, their grids turned as the image is. Their sides M may
        differ.
    iou
        The least IoU, above 0, of the masks of one cell in two views.

    Returns
    -------
    The fused cells, best score first, equal ones by class, then box; the grids have the
    largest M.

    Raises
    ------
    ValueError
        If there are no views.
    """
    if not views:
        raise ValueError("no views, expected one or more")
    detections, view = _stack(views)
    first, second, overlap = _overlaps(detections, iou)
    cluster = _cluster(view.tolist(), first.tolist(), second.tolist(), overlap.tolist())
    fused = _average(detections, torch.tensor(cluster, dtype=torch.int64), len(views))
    return fused[_best_first(fused)]


def _stack(views: Sequence[Detections]) -> tuple[Detections, torch.Tensor]:
    """Return the N detections of all views, best first, and `(N,)` int64, the view of each."""
    side = max(view.masks.shape[1] for view in views)
    stacked = Detections(
        torch.cat([view.boxes for view in views]),
        torch.cat([view.scores for view in views]),
        torch.cat([view.classes for view in views]),
        torch.cat([_resample(view.masks, view.boxes, view.boxes, side) for view in views]),
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
    """Find the pairs of one class whose masks have at least this IoU.

    Returns
    -------
    first, second, overlap
        `(P,)` each: the detections, `first < second`, and the IoU of their masks.
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
    """`(N,)`: the area of each box."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _mask_areas(detections: Detections) -> torch.Tensor:
    """`(N,)`: the area of each mask, as its grid has it."""
    return _box_areas(detections.boxes) * (detections.masks >= 0.5).float().mean((1, 2))


def _shared_mask_area(first: Detections, second: Detections) -> torch.Tensor:
    """`(P,)`: what two masks have in common; it lies in the first's box, and is counted there."""
    sampled = _resample(second.masks, second.boxes, first.boxes, first.masks.shape[1])
    both = (first.masks >= 0.5) & (sampled >= 0.5)
    return _box_areas(first.boxes) * both.float().mean((1, 2))


def _candidates(
    detections: Detections, min_shared: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the pairs of one class whose masks could have enough in common.

    What two masks share lies in both boxes, and is at least the IoU times the larger
    mask. A tenth less is asked of the boxes, since areas on a grid are coarse.

    Parameters
    ----------
    min_shared
        `(N,)`: the area that a mask shares at least with its like.

    Returns
    -------
    first, second
        `(P,)` int64 each, `first < second`.
    """
    # From left to right, so that what is too far to the right is not looked at.
    order = detections.boxes[:, 0].argsort()
    boxes, min_shared = detections.boxes[order], 0.9 * min_shared[order]
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
    """`(N, M)`: the area that each of N boxes has in common with each of M others."""
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
    """Return which detections, best first, are of one cell.

    Parameters
    ----------
    view
        The view of each of N detections.
    first, second, overlap
        The pairs that may be one cell, `first < second`, and their IoU.

    Returns
    -------
    The number of each detection's cell, 0…C−1 in the order of their best detections.
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
    """Average the detections of each cell.

    The sums are in float64, so that the mean of equal numbers is that number.
    """
    n_clusters = int(cluster.max()) + 1 if len(cluster) else 0
    scores = detections.scores.double()
    # A score of 0 must not leave a cell without a box.
    weights = scores.clamp(min=torch.finfo(torch.float32).tiny)
    weights /= _sum(weights, cluster, n_clusters)[cluster]
    boxes = _sum(weights[:, None] * detections.boxes, cluster, n_clusters).float()
    grids = _resample(detections.masks, detections.boxes, boxes[cluster], detections.masks.shape[1])
    classes = detections.classes.new_zeros(n_clusters)
    classes[cluster] = detections.classes
    return Detections(
        boxes,
        (_sum(scores, cluster, n_clusters) / n_views).float(),
        classes,
        _sum(weights[:, None, None] * grids, cluster, n_clusters).float(),
    )


def _sum(values: torch.Tensor, cluster: torch.Tensor, n_clusters: int) -> torch.Tensor:
    """Add up the `(N, …)` values of each cluster."""
    return values.new_zeros((n_clusters, *values.shape[1:])).index_add_(0, cluster, values)


def _resample(
    masks: torch.Tensor, boxes: torch.Tensor, target_boxes: torch.Tensor, side: int
) -> torch.Tensor:
    """Sample masks over one box on a grid over another.

    The values are those of `grid_sample` with `align_corners=False`, which is how masks
    are pasted; the value of a grid is at the centres of its cells, and falls to 0 within
    half a cell of the box. Boxes are upright, hence rows and columns can be weighted
    apart; onto the same box and side, a mask stays as it is to the last bit.

    Parameters
    ----------
    masks
        `(N, M, M)` float32.
    boxes, target_boxes
        `(N, 4)` float32, XYXY: where the masks are, and where they are wanted.
    side
        The new grid's side S.

    Returns
    -------
    `(N, S, S)` float32.
    """
    columns = _weights(boxes[:, 0::2], target_boxes[:, 0::2], masks.shape[1], side)
    rows = _weights(boxes[:, 1::2], target_boxes[:, 1::2], masks.shape[1], side)
    return rows @ masks @ columns.mT


def _weights(span: torch.Tensor, target_boxes: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """`(N, new, old)`: how much each old cell along an axis counts in each new one."""
    length = span[:, 1] - span[:, 0]
    start = (target_boxes[:, 0] - span[:, 0]) / length * old
    step = (target_boxes[:, 1] - target_boxes[:, 0]) / length * (old / new)
    centre = start[:, None] + step[:, None] * (torch.arange(new) + 0.5) - 0.5
    distance = (centre[:, :, None] - torch.arange(old)).abs_()
    return distance.neg_().add_(1).clamp_(min=0)

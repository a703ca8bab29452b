"""Masks of an image that overlap, and the cells of detections, each once.

A network detects a cell in several classes if it is uncertain, and sometimes with several outlines.
AP wants all of these detections; people who count cells, or look at them, want each cell once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellseg.rle import MaskRuns, areas, boxes_xyxy, ranges

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SAME_CELL_IOU = 0.5
"""Minimum mask IoU of detections of one cell."""

_LEAST_VISIBLE = 0.5  # of a cell's pixels, outside of the cells with higher scores

_BLOCK = 1 << 14  # pairs of masks compared at a time


def distinct_cells(mask_runs: MaskRuns, classes: Ints, scores: Floats) -> tuple[Ints, Floats]:
    """Return the cells of the N detections of an image, each once.

    1. A detection whose mask has an IoU of 0.5 or more with one of a higher score, of any class,
       is the same cell. The best one gives the mask and the class; the score is the sum of the best
       score of each class, at most 1: the probability of a cell, if these are of its classes.
    2. A cell of which less than half lies outside of the cells with higher scores is left out, as
       in the panoptic segmentation of Kirillov et al. (CVPR 2019, arXiv:1801.00868).

    A cell stays at every minimum score that it reaches: the second rule compares it with cells of
    higher scores only. Cells that are already distinct all stay, with their scores.

    Parameters
    ----------
    mask_runs
        N masks.
    classes
        `(N,)` int64, 0…K−1.
    scores
        `(N,)`, of equal scores the first is the best. They are summed only if all are 0 to 1.

    Returns
    -------
    `(M,)` int64 indices of detections, and `(M,)` float64 scores, highest first. Detections without
    pixels are left out.
    """
    scores = np.asarray(scores, np.float64)
    area = areas(mask_runs)
    pairs = overlapping_boxes(boxes_xyxy(mask_runs))
    shared = shared_pixels(mask_runs, pairs)
    pairs, shared = pairs[shared > 0], shared[shared > 0]

    same = shared >= SAME_CELL_IOU * (area[pairs].sum(1) - shared)
    owner = _assign_to_best(np.argsort(-scores, kind="stable"), pairs[same])
    is_cell = (owner == np.arange(len(owner))) & (area > 0)
    totals = _sum_over_classes(owner, classes, scores)

    order = np.argsort(-totals, kind="stable")
    order = order[is_cell[order]]
    of_cells = is_cell[pairs].all(1)
    order = order[_visible(order, area, pairs[of_cells], shared[of_cells])]
    return order, totals[order]


def _better_first(order: Ints, pairs: Ints) -> tuple[Ints, Ints]:
    """Return pairs with their better index first, sorted by its rank, and the order of the pairs.

    `order` has indices, best first, at least those of the pairs.
    """
    rank = np.zeros(int(order.max(initial=-1)) + 1, np.int64)
    rank[order] = np.arange(len(order))
    ranked = np.sort(rank[pairs], axis=1)
    by_rank = np.lexsort((ranked[:, 1], ranked[:, 0]))
    return order[ranked[by_rank]], by_rank


def _assign_to_best(order: Ints, pairs: Ints) -> Ints:
    """Return the `(N,)` index of the detection whose cell each one is: its own, or a better one's.

    Best first, each that is not assigned yet takes those that it is paired with.
    """
    owner = list(range(len(order)))
    ranked, _ = _better_first(order, pairs)
    # By columns: a list for each pair would keep the garbage collector busy.
    for better, worse in zip(*ranked.T.tolist(), strict=True):
        if owner[better] == better and owner[worse] == worse:
            owner[worse] = better
    return np.array(owner, np.int64)


def _sum_over_classes(owner: Ints, classes: Ints, scores: Floats) -> Floats:
    """Return the `(N,)` sums of the best score of each class of those with the same owner."""
    if not ((scores >= 0) & (scores <= 1)).all():
        return scores
    order = np.lexsort((-scores, classes, owner))
    key = np.stack([owner, classes])[:, order]
    first = np.append(True, (key[:, 1:] != key[:, :-1]).any(0))[: len(order)]
    best = order[first]
    totals = np.bincount(owner[best], scores[best], minlength=len(scores))
    return np.minimum(totals, 1)


def _visible(order: Ints, area: Ints, pairs: Ints, shared: Ints) -> NDArray[np.bool_]:
    """Return which cells of `order`, best first, are visible enough, `(M,)` bool.

    Pixels that two better cells share are counted twice; these are few, as both are visible.
    """
    covered, limit = [0] * len(area), ((1 - _LEAST_VISIBLE) * area).tolist()
    ranked, by_rank = _better_first(order, pairs)
    for better, worse, pixels in zip(*ranked.T.tolist(), shared[by_rank].tolist(), strict=True):
        if covered[better] <= limit[better]:
            covered[worse] += pixels
    return np.array([covered[n] <= limit[n] for n in order.tolist()], bool)


def overlapping_boxes(boxes: Ints) -> Ints:
    """Return the pairs of boxes that share a pixel, at a cost that grows with the pairs.

    Parameters
    ----------
    boxes
        `(N, 4)` int64, XYXY in pixels, right and bottom exclusive. An empty box overlaps none.

    Returns
    -------
    `(P, 2)` int64 indices of `boxes`, each pair once.
    """
    has_pixels = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    left, top, right, bottom = np.where(has_pixels, boxes.T, 0)
    # Strips of the image about as high as a box; in each, boxes sorted by left edge.
    strip = max(1, int((bottom - top).mean())) if len(boxes) else 1
    first, n_strips = top // strip, -(-bottom // strip) - top // strip
    box = np.repeat(np.arange(len(boxes)), n_strips)
    row = ranges(first, n_strips)
    order = np.lexsort((left[box], row))
    box, row = box[order], row[order]
    base = row * (int(right.max(initial=0)) + 1)
    # Boxes whose left edge lies within this box.
    n_after = np.searchsorted(base + left[box], base + right[box]) - np.arange(len(box)) - 1
    this, other = np.repeat(box, n_after), box[ranges(np.arange(len(box)) + 1, n_after)]
    overlap = np.maximum(top[this], top[other]) < np.minimum(bottom[this], bottom[other])
    # Two boxes may share several strips: count the first.
    overlap &= np.repeat(row, n_after) == np.maximum(first[this], first[other])
    return np.stack([this[overlap], other[overlap]], axis=1)


def shared_pixels(mask_runs: MaskRuns, pairs: Ints) -> Ints:
    """Return the `(P,)` int64 intersections in pixels of `(P, 2)` pairs of mask indices."""
    # All masks in one line, each as long as the image. The pixels of b in a run of a are the
    # pixels of the line up to the run's end minus those up to its start.
    total = mask_runs.size[0] * mask_runs.size[1]
    base = total * np.repeat(np.arange(len(mask_runs)), np.diff(mask_runs.offsets))
    starts, ends = base + mask_runs.starts, base + mask_runs.ends
    covered = np.append(0, np.cumsum(ends - starts))
    ends = np.append(0, ends)

    def pixels_before(position: Ints) -> Ints:
        run = np.searchsorted(starts, position, side="right")
        before: Ints = covered[run] - np.maximum(ends[run] - position, 0)
        return before

    n_runs = np.diff(mask_runs.offsets)
    fewer = np.argmin(n_runs[pairs], axis=1)[:, None]
    a = np.take_along_axis(pairs, fewer, 1)[:, 0]
    b = np.take_along_axis(pairs, 1 - fewer, 1)[:, 0]
    shared = np.zeros(len(pairs), np.int64)
    for begin in range(0, len(pairs), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        run = ranges(mask_runs.offsets[a[block]], n_runs[a[block]])
        pair = np.repeat(np.arange(len(a[block])), n_runs[a[block]])
        line = total * b[block][pair]
        begins, stops = line + mask_runs.starts[run], line + mask_runs.ends[run]
        np.add.at(shared[block], pair, pixels_before(stops) - pixels_before(begins))
    return shared

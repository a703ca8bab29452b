"""Masks of an image that overlap, and the cells of detections, each once.

A network detects a cell in several classes if it is uncertain, and sometimes with several outlines.
AP wants all of these detections; people who count cells, or look at them, want each cell once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellseg.rle import Ints, MaskRuns, areas, boxes_xyxy, first_and_last, ranges

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SAME_CELL = 0.5  # minimum mask IoU of detections of one cell
_LEAST_VISIBLE = 0.5  # of a cell's pixels, outside of cells with higher scores …
_MOST_LARGER = 4  # … that are at most this many times as large: others may contain cells

_DIGITS = 6  # of joined scores, as in files

_BLOCK = 1 << 14  # pairs of masks compared at a time


class DistinctCells(NamedTuple):
    """The M cells of some detections, each once, and the H that are hidden.

    Attributes
    ----------
    indices
        `(M,)` int64 indices of detections, highest score first; of equal scores the one with the
        best detection, then the smaller, then the one with the first pixel, column by column. What
        draws or counts cells keeps this order where scores are equal.
    scores
        `(M,)` float64.
    hidden
        `(H,)` float64 scores of the cells that are left out, as most of each is under others.
    """

    indices: Ints
    scores: Floats
    hidden: Floats


def distinct_cells(mask_runs: MaskRuns, classes: Ints, scores: Floats) -> DistinctCells:
    """Return the cells of the N detections of an image, each once.

    1. A detection whose mask has an IoU of 0.5 or more with a better one, of any class, is the
       same cell. The higher score is better, of equal scores the smaller cell, of equal areas the
       one with the first pixel, whatever the order of the detections. The best one gives
       the mask and the class. The score is the root of the sum of squares of the best score of
       each class, at most 1: 0.3 and 0.4 give 0.5. With `lite_fpn`'s scores √(p f) o
       (`select_detections`), that is f o, the probability of a cell.
    2. A cell of which less than half lies outside of cells with higher scores is hidden, as in
       panoptic segmentation (Kirillov et al., CVPR 2019, arXiv:1801.00868). Cells of more than
       four times its area hide none of it: they may be tissue that contains cells, or mistakes.

    A cell stays at every minimum score that it reaches: the second rule compares it with cells of
    higher scores only. So ground truth as results, with equal scores, has none hidden. Cells that
    are already distinct all stay, with their scores.

    Parameters
    ----------
    mask_runs
        N masks. Those without pixels are no cells.
    classes
        `(N,)` int64, 0…K−1.
    scores
        `(N,)`. Those of a cell are joined only if all are 0 to 1; else it has the best.
    """
    scores = np.asarray(scores, np.float64)
    boxes, area = boxes_xyxy(mask_runs), areas(mask_runs)
    first, last = first_and_last(mask_runs)
    order = np.lexsort((last, first, area, -scores))
    pairs = overlapping_boxes(boxes)
    owner = _assign_to_best(order, pairs[same_cell(mask_runs, boxes, area, pairs, SAME_CELL)])
    totals = _join_classes(owner, classes, scores)

    is_cell = (owner == np.arange(len(owner))) & (area > 0)
    order = np.lexsort((last, first, area, -scores, -totals))
    order = order[is_cell[order]]
    pairs = pairs[is_cell[pairs].all(1)]
    a, b = pairs.T
    equal = (totals[a] == totals[b]) & (scores[a] == scores[b])
    visible = _visible(mask_runs, order, area, pairs[~equal])
    return DistinctCells(order[visible], totals[order[visible]], totals[order[~visible]])


def same_cell(
    mask_runs: MaskRuns, boxes: Ints, area: Ints, pairs: Ints, iou: float, ios: float = 2.0
) -> Bools:
    """Return `(P,)` bool: which `(P, 2)` pairs of masks overlap enough to be the same cell.

    Parameters
    ----------
    mask_runs, boxes, area
        N masks, their `(N, 4)` boxes and `(N,)` areas.
    pairs
        `(P, 2)` int64 indices.
    iou
        Enough intersection over union.
    ios
        Enough intersection over the smaller area; above 1, it is not regarded.
    """

    def enough(shared: Ints, area: Ints) -> Bools:
        same: Bools = (shared >= iou * (area.sum(1) - shared)) | (shared >= ios * area.min(1))
        return same

    # Masks share no more pixels than their boxes: few pairs of neighbours need a look at the masks.
    same = enough(box_intersections(boxes, pairs), area[pairs])
    pairs = pairs[same]
    same[same] = enough(shared_pixels(mask_runs, pairs), area[pairs])
    return same


def better_first(order: Ints, pairs: Ints) -> tuple[Ints, Ints]:
    """Return pairs with their better index first, sorted by its rank, and the order of the pairs.

    `order` has indices, best first, at least those of the pairs.
    """
    ranked = np.sort(_ranks(order)[pairs], axis=1)
    by_rank = np.lexsort((ranked[:, 1], ranked[:, 0]))
    return order[ranked[by_rank]], by_rank


def kept_greedily(n: int, better: Ints, worse: Ints) -> Bools:
    """Return `(n,)` bool: kept, if each kept one suppresses those that it is paired with.

    `better` and `worse` are the indices of the pairs, sorted by the rank of the better one.
    """
    kept = [True] * n
    for first, second in zip(better.tolist(), worse.tolist(), strict=True):
        if kept[first]:
            kept[second] = False
    return np.array(kept, bool)


def _ranks(order: Ints) -> Ints:
    """Return the rank of each index in `order`, which has them best first."""
    rank = np.zeros(int(order.max(initial=-1)) + 1, np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _assign_to_best(order: Ints, pairs: Ints) -> Ints:
    """Return the `(N,)` index of the detection whose cell each one is: its own, or a better one's.

    Best first, each that is not assigned yet takes those that it is paired with.
    """
    owner = list(range(len(order)))
    ranked, _ = better_first(order, pairs)
    # By columns: a list for each pair would keep the garbage collector busy.
    for better, worse in zip(*ranked.T.tolist(), strict=True):
        if owner[better] == better and owner[worse] == worse:
            owner[worse] = better
    return np.array(owner, np.int64)


def _join_classes(owner: Ints, classes: Ints, scores: Floats) -> Floats:
    """Return the `(N,)` scores of the cells of owners, at others any number."""
    n = len(scores)
    order = np.lexsort((-scores, classes, owner))
    key = np.stack([owner, classes])[:, order]
    best = order[np.append(True, (key[:, 1:] != key[:, :-1]).any(0))[:n]]
    valid = np.clip(scores, 0, 1)  # others can be too large to be squared, and are not joined
    total = np.sqrt(np.bincount(owner[best], valid[best] ** 2, minlength=n)).round(_DIGITS)
    joined = np.bincount(owner[best], minlength=n) > 1
    joined[owner[valid != scores]] = False
    return np.where(joined, np.minimum(total, 1), scores)


def _visible(mask_runs: MaskRuns, order: Ints, area: Ints, pairs: Ints) -> Bools:
    """Return which cells of `order`, best first, are visible enough, `(M,)` bool."""
    ranked, _ = better_first(order, pairs)
    ranked = ranked[area[ranked[:, 0]] <= _MOST_LARGER * area[ranked[:, 1]]]
    shared = shared_pixels(mask_runs, ranked)
    limit = (1 - _LEAST_VISIBLE) * area
    # Few share so much with all better ones, hidden ones too.
    doubtful = np.bincount(ranked[:, 1], shared, minlength=len(area)) > limit
    ranked, shared = ranked[doubtful[ranked[:, 1]]], shared[doubtful[ranked[:, 1]]]
    by_cell = np.argsort(_ranks(order)[ranked[:, 1]], kind="stable")
    better, cells = ranked[by_cell].T
    visible = np.ones(len(area), bool)
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    for cell, others, pixels in zip(
        cells[starts].tolist(),
        np.split(better, starts[1:]),
        np.split(shared[by_cell], starts[1:]),
        strict=False,  # without doubtful cells, numpy splits into one empty part
    ):
        others, pixels = others[visible[others]], pixels[visible[others]]
        covered = pixels.sum()
        if pixels.max(initial=0) <= limit[cell] < covered:  # some may share pixels of it
            with_cell = _joint_area(mask_runs, np.append(others, cell))
            covered = area[cell] + _joint_area(mask_runs, others) - with_cell
        visible[cell] = covered <= limit[cell]
    return visible[order]


def _joint_area(mask_runs: MaskRuns, masks: Ints) -> int:
    """Return how many pixels are in at least one of some masks."""
    first = mask_runs.offsets[masks]
    run = ranges(first, mask_runs.offsets[masks + 1] - first)
    run = run[np.argsort(mask_runs.starts[run])]
    reach = np.maximum.accumulate(mask_runs.ends[run])
    return int((reach - np.maximum(mask_runs.starts[run], np.append(0, reach[:-1]))).sum())


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


def reach_into(boxes: Ints, window: tuple[int, int, int, int]) -> Bools:
    """Return which of `(N, 4)` boxes reach into a window, `(N,)` bool; all are XYXY."""
    return np.asarray(((boxes[:, :2] < window[2:]) & (boxes[:, 2:] > window[:2])).all(axis=1))


def box_intersections(boxes: Ints, pairs: Ints) -> Ints:
    """Return the `(P,)` int64 areas that `(P, 2)` pairs of `(N, 4)` XYXY boxes share."""
    a, b = boxes[pairs].transpose(1, 0, 2)
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared: Ints = np.maximum(sides, 0).prod(1)
    return shared


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
    order = np.argsort(b)  # neighbours in memory one after the other: half of the time
    a, b = a[order], b[order]
    shared = np.zeros(len(pairs), np.int64)
    for begin in range(0, len(pairs), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        run = ranges(mask_runs.offsets[a[block]], n_runs[a[block]])
        pair = np.repeat(np.arange(len(a[block])), n_runs[a[block]])
        line = total * b[block][pair]
        begins, stops = line + mask_runs.starts[run], line + mask_runs.ends[run]
        np.add.at(shared[block], pair, pixels_before(stops) - pixels_before(begins))
    in_order = np.empty_like(shared)
    in_order[order] = shared
    return in_order

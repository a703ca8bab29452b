"""Signs that masks are not what they should be, for any source of cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellseg.rle import MaskRuns, areas, boxes_xyxy, cut_at_columns, select_masks

SMALL = 10
"""Area in pixels; cells this small are probably slips. The smallest of NYCU HW3 has 11."""

_FAR = 3
"""Gap between pieces of one cell, in diameters; on CoNSeP it is at most 1.7."""

_SPARSE = 50


def count_overlap_pixels(masks: Sequence[MaskRuns]) -> int:
    """Count the pixels that are in two or more of the masks of one image."""
    none = np.zeros(0, np.int64)
    starts = np.concatenate([none, *(mask_runs.starts for mask_runs in masks)])
    ends = np.concatenate([none, *(mask_runs.ends for mask_runs in masks)])
    index = np.concatenate([starts, ends])
    step = np.repeat([1, -1], [len(starts), len(ends)])
    order = np.argsort(index, kind="stable")
    cover = np.cumsum(step[order])
    return int(np.diff(index[order])[cover[:-1] >= 2].sum())


def scattered(mask_runs: MaskRuns) -> NDArray[np.bool_]:
    """Return which of N masks of one class have pieces far apart, `(N,)`.

    A mask is scattered if there is a gap between its rows or columns of more than three diameters
    (the root of the area of this or of the median mask, whichever is larger; another cell that
    lies across this one makes no such gap), or if it fills less than 1/50 of its box.
    """
    if not len(mask_runs):
        return np.zeros(0, bool)
    sizes = areas(mask_runs)
    limit = _FAR * np.sqrt(np.maximum(sizes, np.median(sizes)))
    boxes = boxes_xyxy(mask_runs)
    sides = boxes[:, 2:] - boxes[:, :2]
    far: NDArray[np.bool_] = sizes < sides.prod(axis=1) / _SPARSE
    for n in np.flatnonzero((sides.max(axis=1) > limit) & ~far):
        _, column, top, bottom = cut_at_columns(select_masks(mask_runs, np.array([n])))
        far[n] = max(_largest_gap(column, column + 1), _largest_gap(top, bottom)) > limit[n]
    return far


def _largest_gap(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> int:
    """Return the length of the largest gap between intervals."""
    order = np.argsort(starts)
    covered = np.maximum.accumulate(ends[order])
    return int((starts[order][1:] - covered[:-1]).max(initial=0))

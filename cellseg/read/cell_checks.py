"""Signs that masks are not what they should be, for any source of cells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellseg.pieces import label_runs
from cellseg.rle import MaskRuns, areas, boxes_xyxy, cut_at_columns, select_masks

SMALL = 10
"""Area in pixels; cells this small are probably slips. The smallest of NYCU HW3 has 11."""

OVERLAP_TEXT = "pixels in two cells"
"""What `count_overlap_pixels` counts, in warnings."""

_FAR = 5
"""Length of a scattered mask in diameters of a cell; it is below 4 for CoNSeP's cells in pieces."""


def remove_copies(mask_runs: MaskRuns) -> MaskRuns:
    """Return the N masks without those that are equal to an earlier one."""
    seen: set[bytes] = set()
    kept = []
    for n, (first, last) in enumerate(itertools.pairwise(mask_runs.offsets.tolist())):
        key = mask_runs.starts[first:last].tobytes() + mask_runs.ends[first:last].tobytes()
        if key not in seen:
            kept.append(n)
        seen.add(key)
    return mask_runs if len(kept) == len(mask_runs) else select_masks(mask_runs, np.array(kept))


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
    """Return which of N masks have pieces so far apart that they are several cells, `(N,)`.

    They have two or more pieces of more than `SMALL` pixels, fill less than half of their box, and
    are longer than five diameters, where a diameter is the root of the area of the largest piece or
    of the median mask that fills half of its box, whichever is larger.
    """
    sizes, boxes = areas(mask_runs), boxes_xyxy(mask_runs)
    sides = boxes[:, 2:] - boxes[:, :2]
    length = sides.max(axis=1)
    is_sparse: NDArray[np.bool_] = 2 * sizes < sides.prod(axis=1)
    if not is_sparse.any():
        return is_sparse
    median = 0 if is_sparse.all() else np.median(sizes[~is_sparse])
    far: NDArray[np.bool_] = is_sparse & (length > _FAR * np.sqrt(median))
    sparse = np.flatnonzero(far)
    if not len(sparse):
        return far
    mask, column, top, bottom = cut_at_columns(select_masks(mask_runs, sparse))
    n_pieces, piece = label_runs(mask_runs.size, mask, column, top, bottom)
    piece_area = np.bincount(piece, bottom - top, minlength=n_pieces)
    owner: NDArray[np.int64] = np.zeros(n_pieces, np.int64)
    owner[piece] = mask
    is_large = piece_area > SMALL
    owner, piece_area = owner[is_large], piece_area[is_large]
    largest = np.zeros(len(sparse))
    np.maximum.at(largest, owner, piece_area)
    diameter = np.sqrt(np.maximum(largest, median))
    several = np.bincount(owner, minlength=len(sparse)) >= 2
    far[sparse] = several & (length[sparse] > _FAR * diameter)
    return far

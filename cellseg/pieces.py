"""Connected pieces of masks. Pixels are connected if they touch, also at corners."""

from __future__ import annotations

import numpy as np
import scipy.sparse.csgraph
from numpy.typing import NDArray

from cellseg.rle import Ints, MaskRuns, cut_at_columns, join_runs, ranges


def largest_pieces(mask_runs: MaskRuns, which: NDArray[np.bool_] | None = None) -> MaskRuns:
    """Return the largest connected piece of each mask; of equal ones, that with the first pixel.

    With `which`, `(N,)`, other masks keep all pieces.
    """
    mask, column, top, bottom = cut_at_columns(mask_runs)
    n_pieces, piece = label_runs(mask_runs.size, mask, column, top, bottom)
    area = np.bincount(piece, bottom - top, minlength=n_pieces)
    largest_first = np.lexsort((-area[piece], mask))
    _, at = np.unique(mask[largest_first], return_index=True)
    is_kept = np.zeros(n_pieces, bool)
    is_kept[piece[largest_first[at]]] = True
    keep = is_kept[piece]
    if which is not None:
        keep |= ~which[mask]
    start = column[keep] * mask_runs.size[0]
    return join_runs(
        mask_runs.size, len(mask_runs), mask[keep], start + top[keep], start + bottom[keep]
    )


def label_runs(
    size: tuple[int, int], mask: Ints, column: Ints, top: Ints, bottom: Ints
) -> tuple[int, Ints]:
    """Return the number of connected pieces of masks, and the piece of each run.

    The runs are those of `cut_at_columns`; they are connected if they touch, also at corners.
    """
    height, width = size
    # Rising keys: by mask, column, row.
    base = (mask * (width + 1) + column) * (height + 1)
    following = base + height + 1
    first = np.searchsorted(base + bottom, following + top)
    last = np.searchsorted(base + top, following + bottom, side="right")
    n_touching = np.maximum(last - first, 0)
    offsets = np.append(0, np.cumsum(n_touching))
    touching = ranges(first, n_touching)
    graph = scipy.sparse.csr_array(
        (np.ones(len(touching), bool), touching, offsets), shape=(len(mask), len(mask))
    )
    n_pieces, piece = scipy.sparse.csgraph.connected_components(graph, directed=False)
    return int(n_pieces), piece

"""Cells as simple polygons, for formats without holes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cellseg.outline import Ring, trace_masks
from cellseg.rle import RLE


def traced_rings(masks: Sequence[RLE], size: tuple[int, int]) -> Iterator[list[Ring]]:
    """Yield one ring for each piece of each of N masks, along the pixels' edges.

    A ring is `(V, 2)` int64 x, y in pixels, the last point not repeated. Holes are joined to the
    outer ring by a line there and back, so that the ring's area is the piece's number of pixels,
    and pycocotools fills it to exactly these.
    """
    for polygons in trace_masks(masks, size):
        yield [join_holes(polygon) for polygon in polygons]


def join_holes(polygon: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return an outer ring and its holes, all closed, as one ring that is not closed."""
    ring = polygon[0][:-1]
    for hole in polygon[1:]:
        hole = hole[:-1]
        # Through the nearest corners, so that the line is short and within the cell.
        apart = np.abs(ring[:, None] - hole[None]).sum(axis=2)
        at, start = np.unravel_index(apart.argmin(), apart.shape)
        around = np.concatenate([hole[start:], hole[: start + 1]])
        ring = np.concatenate([ring[: at + 1], around, ring[at:]])
    return ring

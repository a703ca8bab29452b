"""Trace masks along the edges of their pixels, many cells at once.

A polygon through pixel centres (`cv2.findContours`) is half a pixel too small on every
side and loses one-pixel cells. The outlines here run between pixels, from corner to
corner, so that the area of a polygon is the number of its pixels, exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellseg.rle import MaskRuns, cut_at_columns

# A ring is an (V, 2) int64 array of x, y; a polygon its outer ring, then its holes.
Ring = NDArray[np.int64]
Polygon = list[Ring]
Ints = NDArray[np.int64]


def trace(mask_runs: MaskRuns) -> list[list[Polygon]]:
    """Outline every mask by polygons on the edges of its pixels.

    Parameters
    ----------
    mask_runs
        N masks of one image.

    Returns
    -------
    For each mask its pieces, topmost first; a mask with no pixel has none. A piece is a
    polygon: its outer ring, then its holes. A ring is a `(V, 2)` int64 array of x, y in
    pixels, origin at the image's top left corner, y downwards: the pixel in row r and
    column c is the square from (c, r) to (c + 1, r + 1). Its first point is repeated as
    its last. By the numbers, outer rings run counter-clockwise and holes clockwise
    (RFC 7946, 3.1.6); on the screen, where y points down, the other way round.

    Pixels that share an edge belong to one piece; pieces that meet in no more than a
    corner stay apart. So every ring is simple and every polygon valid (OGC 06-103r4,
    6.1.11.1): a ring that would come back to one of its corners is cut there into two.
    """
    corners = _Corners(mask_runs)
    if not len(corners.mask):
        return [[] for _ in range(len(mask_runs))]
    vertical = np.arange(len(corners.mask))
    edges = _Edges(corners)
    ring = _Rings(_successors(edges, vertical))
    # Where two pixels meet in a corner alone, the outline passes twice; two pieces may
    # meet there, but one ring may not. Joining the pixels instead cuts the ring in two.
    first = corners.crossings
    self_touch = first[ring.of[edges.at[first]] == ring.of[edges.at[first + 1]]]
    if len(self_touch):
        vertical[self_touch], vertical[self_touch + 1] = self_touch + 1, self_touch
        ring = _Rings(_successors(edges, vertical))

    # Each horizontal edge brings two points, its tail and its head; the vertical edge
    # between one's head and the next one's tail is implied.
    tail, head = edges.tail[ring.order], edges.head[ring.order]
    points = np.empty((2 * len(tail), 2), np.int64)
    points[0::2, 0], points[1::2, 0] = corners.x[tail], corners.x[head]
    points[0::2, 1] = points[1::2, 1] = corners.y[tail]

    masks = corners.mask[edges.tail[ring.first]].tolist()
    outer = _outer_rings(mask_runs, corners, edges, ring).tolist()
    bounds = (2 * ring.bounds).tolist()
    result: list[list[Polygon]] = [[] for _ in range(len(mask_runs))]
    polygons: dict[int, Polygon] = {}
    # Rings are ordered by their topmost edge, so the outer one comes before its holes.
    for number, parent in enumerate(outer):
        begin, end = bounds[number], bounds[number + 1]
        closed = np.concatenate([points[begin:end], points[begin : begin + 1]])
        if parent == number:
            polygons[number] = [closed]
            result[masks[number]].append(polygons[number])
        else:
            polygons[parent].append(closed)
    return result


class _Corners:
    """The corners of all outlines, each where a horizontal and a vertical edge meet.

    Sorted by mask, x, y: then along each vertical line of a mask the corners 0 and 1
    are the ends of an edge, 2 and 3 of the next, and so on. `opens` tells whether the
    mask is below the corner's horizontal edge (the edge is a top) or above it. Where two
    pixels meet in a corner alone there are two of these at the same place, the one that
    closes the edge above first.
    """

    def __init__(self, mask_runs: MaskRuns) -> None:
        height, width = mask_runs.size
        mask, column, top, bottom = cut_at_columns(mask_runs)
        # One int64 holds mask, x, y and opens: 200,000 masks in 10^12 pixels fit.
        line = mask * (width + 1) + column
        ends = np.empty(2 * len(line), np.int64)
        ends[0::2] = (line * (height + 1) + top) * 2 + 1
        ends[1::2] = (line * (height + 1) + bottom) * 2
        # The ends of the runs in a column are those of its pixels' horizontal edges, to
        # the right of x = column and to the left of x = column + 1. An edge that goes on
        # straight through has both and no corner.
        both = np.concatenate([ends, ends + 2 * (height + 1)])
        both.sort(kind="stable")
        lone = np.ones(len(both), bool)
        same = both[1:] == both[:-1]
        lone[1:] &= ~same
        lone[:-1] &= ~same
        key = both[lone]
        self.opens = key & 1 == 1
        key >>= 1
        self.crossings = np.flatnonzero(key[1:] == key[:-1])
        line, self.y = np.divmod(key, height + 1)
        self.mask, self.x = np.divmod(line, width + 1)


class _Edges:
    """The horizontal edges, sorted by mask, y, opens and x.

    `left`, `tail`, `head`: the corner at its left end, where it begins and where it
    ends, for one who walks with the mask on the right-hand side (on the screen). `at`:
    the edge of each corner.
    """

    def __init__(self, corners: _Corners) -> None:
        self._width, self._height = corners.x.max() + 1, corners.y.max() + 1
        key = self._key(corners.mask, corners.y, corners.opens, corners.x)
        order = np.argsort(key)
        self._keys = key[order[0::2]]
        self.left, right = order[0::2], order[1::2]
        opens = corners.opens[self.left]
        self.tail = np.where(opens, self.left, right)
        self.head = np.where(opens, right, self.left)
        self.at = np.empty_like(order)
        self.at[order] = np.arange(len(order)) // 2

    def _key(self, mask: Ints, y: Ints, opens: Ints | bool, x: Ints) -> Ints:
        key: Ints = ((mask * self._height + y) * 2 + opens) * self._width + x
        return key

    def top_edge(self, mask: Ints, y: Ints, column: Ints) -> Ints:
        """Find the edges on top of the pixels in row y of a column."""
        return np.searchsorted(self._keys, self._key(mask, y, True, column), side="right") - 1


def _successors(edges: _Edges, vertical: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which horizontal edge follows each, one vertical edge later.

    `vertical` holds the corners in pairs: the two ends of each vertical edge.
    """
    other_end = np.empty_like(vertical)
    other_end[vertical[0::2]] = vertical[1::2]
    other_end[vertical[1::2]] = vertical[0::2]
    follower: Ints = edges.at[other_end[edges.head]]
    return follower


class _Rings:
    """The cycles of a permutation of edges.

    `of`: each edge's ring; rings are numbered by their first edge. `first`: that edge of
    each ring, its topmost. `order`, `bounds`: the edges of ring r, as one walks, are
    `order[bounds[r] : bounds[r + 1]]`.

    Found by doubling steps (pointer jumping), in as many rounds as the logarithm of the
    longest ring, so that a walk never goes through Python point by point.
    """

    def __init__(self, successor: NDArray[np.int64]) -> None:
        n = len(successor)
        smallest = np.arange(n)
        jump = successor
        while not np.array_equal(smallest, smallest[successor]):
            smallest = np.minimum(smallest, smallest[jump])
            jump = jump[jump]
        is_first = smallest == np.arange(n)
        self.first = np.flatnonzero(is_first)
        self.of = (np.cumsum(is_first) - 1)[smallest]
        # Steps to the first edge: walk on until there, then stand still.
        steps = (~is_first).astype(np.int64)
        jump = np.where(is_first, np.arange(n), successor)
        while not is_first[jump].all():
            steps += steps[jump]
            jump = jump[jump]
        length = np.bincount(self.of, minlength=len(self.first))
        self.bounds = np.append(0, np.cumsum(length))
        self.order = np.empty(n, np.int64)
        place = np.where(is_first, 0, length[self.of] - steps)
        self.order[self.bounds[self.of] + place] = np.arange(n)


def _outer_rings(
    mask_runs: MaskRuns, corners: _Corners, edges: _Edges, ring: _Rings
) -> NDArray[np.int64]:
    """Return each ring the outer ring of its piece: itself, unless it is a hole."""
    left = edges.left[ring.first]
    outer = np.arange(len(ring.first))
    # The topmost edge of an outer ring has the mask below it, that of a hole above.
    holes = np.flatnonzero(~corners.opens[left])
    if not len(holes):
        return outer
    # Above a hole's topmost edge stands a run, whose upper end lies on a ring that
    # begins further up: the outer one, or a hole from which the search goes on.
    height, width = mask_runs.size
    mask, column, top, _ = cut_at_columns(mask_runs)
    at = left[holes]
    run_key = (mask * (width + 1) + column) * (height + 1) + top
    wanted = (corners.mask[at] * (width + 1) + corners.x[at]) * (height + 1) + corners.y[at]
    run = np.searchsorted(run_key, wanted) - 1

    outer[holes] = ring.of[edges.top_edge(mask[run], top[run], column[run])]
    while not np.array_equal(outer, outer[outer]):
        outer = outer[outer]
    return outer

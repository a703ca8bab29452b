"""Outlines of many masks at once, along the edges of their pixels.

A polygon through pixel centres (`cv2.findContours`) is half a pixel too small on each side and
loses one-pixel cells. These outlines run from pixel corner to pixel corner: the area of a
polygon is exactly its number of pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cellseg.rle import RLE, Ints, MaskRuns, cut_at_columns, decode

# A ring is a (V, 2) int64 array of x, y; a polygon its outer ring, then its holes.
Ring = Ints
Polygon = list[Ring]

_BLOCK = 2048  # masks that are traced at once


def trace_masks(masks: Sequence[RLE], size: tuple[int, int]) -> Iterator[list[Polygon]]:
    """Yield the outline of each mask of an image of `size` (H, W) as `trace`, block by block.

    Raises ValueError if a mask isn't an RLE of this size.
    """
    for begin in range(0, len(masks), _BLOCK):
        yield from trace(decode(masks[begin : begin + _BLOCK], size))


def trace(mask_runs: MaskRuns) -> list[list[Polygon]]:
    """Return the outline of every mask as polygons on the edges of its pixels.

    Returns
    -------
    For each mask its pieces, topmost first; none for a mask without pixels. A piece is a
    polygon: its outer ring, then its holes. A ring is a `(V, 2)` int64 array of x, y in pixels,
    origin at the image's top left corner, y downwards: the pixel in row r and column c is the
    square from (c, r) to (c + 1, r + 1). The last point repeats the first. By the numbers,
    outer rings are counter-clockwise and holes clockwise (RFC 7946, 3.1.6); on the screen,
    where y points down, it is the opposite.

    Pixels that share an edge are in one piece; pieces that share only a corner are separate.
    So every ring is simple and every polygon valid (OGC 06-103r4, 6.1.11.1): a ring that would
    pass one of its corners twice is split there.
    """
    corners = _Corners(mask_runs)
    if not len(corners.mask):
        return [[] for _ in range(len(mask_runs))]
    vertical = np.arange(len(corners.mask))
    edges = _Edges(corners)
    ring = _Rings(_successors(edges, vertical))
    # The outline passes a corner that is all that two pixels share twice. Two pieces may touch
    # there, but not one ring itself: joining the pixels instead splits it.
    first = corners.crossings
    self_touch = first[ring.of[edges.at[first]] == ring.of[edges.at[first + 1]]]
    if len(self_touch):
        vertical[self_touch], vertical[self_touch + 1] = self_touch + 1, self_touch
        ring = _Rings(_successors(edges, vertical))

    # Each horizontal edge has two points, its tail and its head; the vertical edge from a head
    # to the next tail is implied.
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
    """The corners of all outlines, each between a horizontal and a vertical edge.

    Sorted by mask, x, y: along each vertical line of a mask, corners 0 and 1 are the ends of an
    edge, 2 and 3 of the next, and so on. `opens`: whether the mask is below the corner's
    horizontal edge (a top edge) or above it. Where two pixels share only a corner there are two
    corners at the same place, first the one that closes the edge above.
    """

    def __init__(self, mask_runs: MaskRuns) -> None:
        height, width = mask_runs.size
        mask, column, top, bottom = cut_at_columns(mask_runs)
        # mask, x, y and opens in one int64: enough for 200,000 masks in 10^12 pixels.
        line = mask * (width + 1) + column
        ends = np.empty(2 * len(line), np.int64)
        ends[0::2] = (line * (height + 1) + top) * 2 + 1
        ends[1::2] = (line * (height + 1) + bottom) * 2
        # The ends of the runs in a column are those of its pixels' horizontal edges, at the
        # right of x = column and at the left of x = column + 1. An edge that continues straight
        # has both and no corner.
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

    `left`, `tail`, `head`: the corners at an edge's left end, begin and end, in the direction
    that has the mask on its right (on the screen). `at`: the edge of each corner.
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
        """Return the edges on top of the pixels in row y of a column."""
        return np.searchsorted(self._keys, self._key(mask, y, True, column), side="right") - 1


def _successors(edges: _Edges, vertical: Ints) -> Ints:
    """Return the horizontal edge after each, one vertical edge later.

    `vertical` has the corners in pairs: the two ends of each vertical edge.
    """
    other_end = np.empty_like(vertical)
    other_end[vertical[0::2]] = vertical[1::2]
    other_end[vertical[1::2]] = vertical[0::2]
    follower: Ints = edges.at[other_end[edges.head]]
    return follower


class _Rings:
    """The cycles of a permutation of edges.

    `of`: each edge's ring; rings are numbered by their first edge. `first`: the first edge of
    each ring, its topmost. `order`, `bounds`: the edges of ring r, in their order along it, are
    `order[bounds[r] : bounds[r + 1]]`.

    Computed by pointer jumping (doubling steps), with as many rounds as the logarithm of the
    longest ring and no Python loop over points.
    """

    def __init__(self, successor: Ints) -> None:
        n = len(successor)
        smallest = np.arange(n)
        jump = successor
        while not np.array_equal(smallest, smallest[successor]):
            smallest = np.minimum(smallest, smallest[jump])
            jump = jump[jump]
        is_first = smallest == np.arange(n)
        self.first = np.flatnonzero(is_first)
        self.of = (np.cumsum(is_first) - 1)[smallest]
        # The number of steps to the first edge.
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


def _outer_rings(mask_runs: MaskRuns, corners: _Corners, edges: _Edges, ring: _Rings) -> Ints:
    """Return for each ring the outer ring of its piece: itself, unless it is a hole."""
    left = edges.left[ring.first]
    outer = np.arange(len(ring.first))
    # The topmost edge of an outer ring has the mask below it, that of a hole above.
    holes = np.flatnonzero(~corners.opens[left])
    if not len(holes):
        return outer
    # Above a hole's topmost edge is a run whose upper end is on a ring that begins further up:
    # the outer ring, or a hole from which the search continues.
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

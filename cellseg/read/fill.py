"""Fill polygons, column by column: the cost grows with their outlines, not with their area."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.limits import check_outline_length
from cellseg.rle import Ints, MaskRuns, concatenate, ranges, subtract_masks, unite_masks, unite_runs

Floats = NDArray[np.float64]
Polygon = list[Floats]

_BLOCK = 2_000_000  # crossings of outlines and columns that are computed at once


def fill_polygons(cells: Sequence[list[Polygon]], size: tuple[int, int]) -> MaskRuns:
    """Return the N masks of cells in an image of `size` (H, W).

    A mask has the pixels whose centres are inside or exactly on the outline, as in
    `skimage.draw.polygon`, with which NYCU HW3's masks were drawn, also on the outline of a hole,
    as in `cv2.drawContours`.

    Parameters
    ----------
    cells
        The pieces of each cell: an outer ring, then its holes, whose pixels are left out. A ring
        is a `(V, 2)` float64 array of x, y in pixels, integers being pixel centres; parts outside
        the image are cut off.
    size
        Height and width in pixels.
    """
    polygons = [polygon for pieces in cells for polygon in pieces]
    masks = _fill([polygon[0] for polygon in polygons], size)
    if holes := [hole for polygon in polygons for hole in polygon[1:]]:
        of_polygon = np.repeat(np.arange(len(polygons)), [len(polygon) - 1 for polygon in polygons])
        filled = _fill(holes, size, with_outline=False)
        masks = subtract_masks(masks, unite_masks(filled, of_polygon, len(polygons)))
    if all(len(pieces) == 1 for pieces in cells):
        return masks
    of_cell = np.repeat(np.arange(len(cells)), [len(pieces) for pieces in cells])
    return unite_masks(masks, of_cell, len(cells))


def check_lengths(path: object, cells: Sequence[list[Polygon]], size: tuple[int, int]) -> None:
    """Raise InputError if the outlines of a file's cells are too long for `fill_polygons`."""
    rings = [ring for polygons in cells for polygon in polygons for ring in polygon]
    length = float(_outline_lengths(rings, size).sum())
    check_outline_length(path, length, sum(map(len, rings)))


def _outline_lengths(rings: Sequence[Floats], size: tuple[int, int]) -> Floats:
    """Return the lengths of N rings inside an image of `size` (H, W), `(N,)` in pixels.

    An edge counts with the larger of its extents in x and y.
    """
    points, previous, ring_of_edge = _edges(rings)
    corners = (-1, -1), (size[1], size[0])
    extent = np.abs(np.clip(points, *corners) - np.clip(previous, *corners)).max(axis=1, initial=0)
    lengths: Floats = np.bincount(ring_of_edge, extent, len(rings)).astype(np.float64)
    return lengths


def outline_box(polygons: Sequence[Polygon]) -> Floats:
    """Return the box of the outer rings of polygons, XYXY; integers are pixel centres."""
    points = np.concatenate([polygon[0] for polygon in polygons])
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def ring_area(ring: NDArray[Any]) -> float:
    """Return the area that a `(V, 2)` ring, closed or not, encloses."""
    x, y = ring.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _edges(rings: Sequence[Floats]) -> tuple[Floats, Floats, Ints]:
    """Return all points of rings, the point before each in its ring, and the ring's index."""
    lengths = np.array([len(ring) for ring in rings], np.int64)
    points = np.concatenate([np.zeros((0, 2)), *rings])
    before = np.arange(len(points)) - 1
    before[(np.cumsum(lengths) - lengths)[lengths > 0]] += lengths[lengths > 0]
    return points, points[before], np.repeat(np.arange(len(rings)), lengths)


def _blocks(rings: Sequence[Floats], size: tuple[int, int]) -> Iterator[Sequence[Floats]]:
    """Yield the rings in blocks of bounded cost."""
    cost = np.cumsum(_outline_lengths(rings, size) + [len(ring) for ring in rings])
    block = (cost // _BLOCK).astype(np.int64)
    for begin, end in itertools.pairwise(np.flatnonzero(np.diff(block, prepend=-1, append=-1))):
        yield rings[begin:end]


def _fill(rings: Sequence[Floats], size: tuple[int, int], with_outline: bool = True) -> MaskRuns:
    """Return the mask of each ring by the even-odd rule, with or without centres on the ring."""
    parts = [_fill_block(block, size, with_outline) for block in _blocks(rings, size)]
    return concatenate(size, parts)


def _fill_block(rings: Sequence[Floats], size: tuple[int, int], with_outline: bool) -> MaskRuns:
    edges = _edges(rings)
    inside, outline = _inside(*edges, size), _on_outline(*edges, size)
    if with_outline:
        owner, starts, ends = (np.concatenate(part) for part in zip(inside, outline, strict=True))
        return unite_runs(size, len(rings), owner, starts, ends)
    filled, border = (unite_runs(size, len(rings), *part) for part in (inside, outline))
    return subtract_masks(filled, border)


def _inside(
    points: Floats, previous: Floats, ring_of_edge: Ints, size: tuple[int, int]
) -> tuple[Ints, Ints, Ints]:
    """Return ring, start and end of the runs inside, between each odd and the next even crossing.

    As O'Rourke (Computational Geometry in C, 1998, section 7.4): edges count in a column if they
    reach it from the left, so that a vertex counts once. Of the centres on the outline, some are
    in these runs.
    """
    low, high = (extreme(points[:, 0], previous[:, 0]) for extreme in (np.minimum, np.maximum))
    edge, column, y = _crossings(points, previous, size, np.ceil(low), np.ceil(high) - 1)
    ring = ring_of_edge[edge]
    order = np.lexsort((y, column, ring))
    ring, column, y = ring[order][::2], column[order][::2], y[order]
    top = np.clip(np.ceil(y[::2]), 0, size[0]).astype(np.int64)
    bottom = np.clip(np.ceil(y[1::2]), 0, size[0]).astype(np.int64)
    some = bottom > top
    base = column[some] * size[0]
    return ring[some], base + top[some], base + bottom[some]


def _on_outline(
    points: Floats, previous: Floats, ring_of_edge: Ints, size: tuple[int, int]
) -> tuple[Ints, Ints, Ints]:
    """Return ring, start and end of runs of the pixels whose centres are on the outline."""
    height, width = size
    low, high = np.minimum(points, previous), np.maximum(points, previous)
    is_vertical = (low[:, 0] == high[:, 0]) & (low[:, 0] == np.floor(low[:, 0]))
    is_vertical &= (low[:, 0] >= 0) & (low[:, 0] < width)
    top = np.clip(np.ceil(low[is_vertical, 1]), 0, height).astype(np.int64)
    bottom = np.clip(np.floor(high[is_vertical, 1]) + 1, 0, height).astype(np.int64)
    base = low[is_vertical, 0].astype(np.int64) * height
    some = bottom > top
    vertical = ring_of_edge[is_vertical][some], (base + top)[some], (base + bottom)[some]

    slanted = np.flatnonzero(low[:, 0] < high[:, 0])
    columns = np.ceil(low[slanted, 0]), np.floor(high[slanted, 0])
    edge, column, y = _crossings(points[slanted], previous[slanted], size, *columns)
    at = (y == np.floor(y)) & (y >= 0) & (y < height)
    position = column[at] * height + y[at].astype(np.int64)
    ring = ring_of_edge[slanted[edge[at]]]
    crossed = ring, position, position + 1

    at = ((points == np.floor(points)) & (points >= 0) & (points < (width, height))).all(axis=1)
    position = points[at].astype(np.int64) @ (height, 1)
    vertices = ring_of_edge[at], position, position + 1  # rounding may miss them
    owner, starts, ends = zip(vertical, crossed, vertices, strict=True)
    return np.concatenate(owner), np.concatenate(starts), np.concatenate(ends)


def _crossings(
    points: Floats, previous: Floats, size: tuple[int, int], first: Floats, last: Floats
) -> tuple[Ints, Ints, Floats]:
    """Return edge, column and y of each edge in each column of the image from `first` to `last`."""
    begin = np.clip(first, 0, size[1]).astype(np.int64)
    n_columns = np.maximum(np.clip(last, -1, size[1] - 1).astype(np.int64) - begin + 1, 0)
    edge = np.repeat(np.arange(len(points)), n_columns)
    column = ranges(begin, n_columns)
    # From the edge's ends relative to the column, as exact as the coordinates allow.
    (x0, y0), (x1, y1) = points[edge].T, previous[edge].T
    y = (y0 * (x1 - column) - y1 * (x0 - column)) / (x1 - x0)
    return edge, column, y

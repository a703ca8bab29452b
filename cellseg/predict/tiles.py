"""Split an image into overlapping tiles."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.coarse import CoarseMask, Window
from cellseg.errors import InputError

# Network pixels: a cell nearer to a tile's edge may be cut. Not 1, since the network's boxes and
# masks of cut cells end a little before the edge.
EDGE_MARGIN = 3

# Network pixels: smaller tiles cost more calls than they save memory, and cut more cells.
_MIN_TILE = 1536

_UNITS = 16  # lengths that a side of a trimmed tile can have


@dataclass(frozen=True)
class Tile:
    """Window of an image.

    Attributes
    ----------
    window
        XYXY in pixels of the image, right and bottom exclusive, within the image.
    inner_edges
        Whether the left, top, right and bottom edge lie inside the image and may cut cells.
    margin
        Pixels: a cell nearer to an inner edge may be cut.
    """

    window: Window
    inner_edges: tuple[bool, bool, bool, bool]
    margin: int = EDGE_MARGIN

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        left, top, right, bottom = self.window
        return bottom - top, right - left

    def may_cut(self, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which cells the tile may cut: nearer than `margin` to an inner edge.

        Parameters
        ----------
        boxes
            `(N, 4)` XYXY in pixels of the image, of cells as detected in the tile.

        Returns
        -------
        `(N,)` bool.
        """
        cut: NDArray[np.bool_] = np.any(self._near_inner_edges(boxes), axis=1)
        return cut

    def shows_less_than_half(self, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which cut cells, if round, lie less than half inside the tile.

        Such a piece is less than half as deep as it is long at the edge. A piece at most
        `2 * margin` pixels deep is too small for a network to recognise and counts too.
        `boxes` and the result are as for `may_cut`.
        """
        left, top, right, bottom = self.window
        depth = boxes[:, [2, 3, 0, 1]] * (1, 1, -1, -1) - (left, top, -right, -bottom)
        width, height = (boxes[:, 2:] - boxes[:, :2]).T
        length = np.stack([height, width] * 2, axis=1)
        little = (depth <= 2 * self.margin) | (2 * depth < length)
        hardly: NDArray[np.bool_] = np.any(self._near_inner_edges(boxes) & little, axis=1)
        return hardly

    def _near_inner_edges(self, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return `(N, 4)` bool: near the left, top, right, bottom edge where that is inner."""
        left, top, right, bottom = self.window
        space = boxes * (1, 1, -1, -1) - (left, top, -right, -bottom)
        return (space < self.margin) & self.inner_edges


@dataclass(frozen=True)
class TilePlan:
    """Tiles of an image, row by row from the top left.

    All tiles of a grid, of one size, or some of these or of their parts.

    Attributes
    ----------
    size
        Height and width of the image in pixels.
    tile_size
        Height and width of each tile of the grid in pixels.
    tops, lefts
        First pixel of each row and column of the grid, increasing.
    parts
        The windows of the plan's tiles, by rising index in the grid; None for all of the grid.
    margin
        That of the tiles.
    """

    size: tuple[int, int]
    tile_size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    parts: tuple[tuple[int, Window], ...] | None = None
    margin: int = EDGE_MARGIN

    @property
    def n_grid(self) -> int:
        """Number of tiles of the grid."""
        return len(self.tops) * len(self.lefts)

    def __len__(self) -> int:
        return self.n_grid if self.parts is None else len(self.parts)

    def __getitem__(self, index: int) -> Tile:
        window = self._grid_window(index) if self.parts is None else self.parts[index][1]
        left, top, right, bottom = window
        inner_edges = (left > 0, top > 0, right < self.size[1], bottom < self.size[0])
        return Tile(window, inner_edges, self.margin)

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(len(self)))

    def _grid_window(self, index: int) -> Window:
        row, column = divmod(range(self.n_grid)[index], len(self.lefts))
        left, top = self.lefts[column], self.tops[row]
        return left, top, left + self.tile_size[1], top + self.tile_size[0]

    @functools.cached_property
    def _windows(self) -> NDArray[np.int64]:
        """`(T, 4)` XYXY of the tiles."""
        return np.array([tile.window for tile in self], np.int64).reshape(-1, 4)

    def some_tile_contains(self, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return `(N,)` bool: which boxes, XYXY in pixels of the image, some tile doesn't cut."""
        if not len(boxes):
            return np.zeros(0, bool)
        low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        near = (self._windows[:, :2] < high).all(axis=1) & (self._windows[:, 2:] > low).all(axis=1)
        windows = self._windows[near][:, None]
        edges = self.margin * np.array([1, 1, -1, -1])
        width, height = self.size[::-1]
        inner = (windows > 0) & (windows < (width + 1, height + 1, width, height))
        whole = boxes >= windows + edges * inner
        whole[..., 2:] = boxes[:, 2:] <= (windows + edges * inner)[..., 2:]
        contained: NDArray[np.bool_] = whole.all(axis=2).any(axis=0)
        return contained

    def is_in_later_tiles(self, index: int, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return `(N,)` bool: which boxes, XYXY in pixels, overlap a tile after tile `index`.

        Where the plan has only parts, all of the grid counts from the next part's tile on.
        """
        again = np.zeros(len(boxes), bool)
        if index + 1 == len(self):
            return again
        following = index + 1 if self.parts is None else self.parts[index + 1][0]
        row, column = divmod(following, len(self.lefts))
        left, top = self.lefts[column], self.tops[row]
        again |= boxes[:, 2] > left
        again &= (boxes[:, 3] > top) & (boxes[:, 1] < top + self.tile_size[0])
        if row + 1 < len(self.tops):
            again |= boxes[:, 3] > self.tops[row + 1]
        return again

    def restricted_to(self, part: CoarseMask, margin: int) -> TilePlan:
        """Return the plan without what lies further than `margin` pixels from a part of the image.

        A tile is trimmed to the part in it and its margin, split if pieces of the part are far
        from each other, and left out if a neighbour shows all of that. A cell that touches the part
        is as whole in these tiles as in those of this plan, if it is not longer than `margin` less
        the margin of the tiles.
        """
        every = ((index, self._grid_window(index)) for index in range(self.n_grid))
        boxes: dict[int, list[Window]] = {}
        for index, tile in every if self.parts is None else self.parts:
            boxes.setdefault(index, []).extend(_join(tile, part.boxes(tile, margin)))
        parts = tuple(
            (index, _round_up(self._grid_window(index), box))
            for index, own in boxes.items()
            for box in own
            if not self._is_shown_nearby(index, box, boxes)
        )
        return replace(self, parts=parts)

    def _is_shown_nearby(
        self, index: int, box: Window, boxes: Mapping[int, Sequence[Window]]
    ) -> bool:
        """Return whether a box lies in one of a neighbouring tile, an earlier one if equal."""
        row, column = divmod(index, len(self.lefts))
        return any(
            _contains(other, box) and (other != box or near < index)
            for r, c in itertools.product(range(row - 1, row + 2), range(column - 1, column + 2))
            if 0 <= c < len(self.lefts) and (r, c) != (row, column)
            for near in [r * len(self.lefts) + c]
            for other in boxes.get(near, ())
        )

    @property
    def area(self) -> int:
        """Pixels of all tiles; overlaps count several times."""
        return sum(math.prod(tile.size) for tile in self)

    @property
    def n_skipped(self) -> int:
        """Number of tiles of the grid of which the plan has no part."""
        return self.n_grid - len(self if self.parts is None else dict(self.parts))

    @property
    def grid_area(self) -> int:
        """Pixels of all tiles of the grid, as `area`."""
        return self.n_grid * math.prod(self.tile_size)


def _join(tile: Window, boxes: Sequence[Window]) -> list[Window]:
    """Join boxes in a tile until their windows are apart, all if that makes it hardly larger."""
    apart: list[Window] = []
    for box in boxes:
        while near := [
            other for other in apart if _overlap(_round_up(tile, box), _round_up(tile, other))
        ]:
            apart = [other for other in apart if other not in near]
            box = _around([box, *near])
        apart.append(box)
    if not apart:
        return []
    separate = sum(_area(_round_up(tile, box)) for box in apart)
    one = _around(apart)
    return [one] if separate > 0.75 * _area(_round_up(tile, one)) else sorted(apart)


def _around(windows: Sequence[Window]) -> Window:
    lefts, tops, rights, bottoms = zip(*windows, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _overlap(one: Window, other: Window) -> bool:
    lower = max(one[0], other[0]) < min(one[2], other[2])
    return lower and max(one[1], other[1]) < min(one[3], other[3])


def _contains(one: Window, other: Window) -> bool:
    lower = one[0] <= other[0] and one[1] <= other[1]
    return lower and one[2] >= other[2] and one[3] >= other[3]


def _area(window: Window) -> int:
    return (window[2] - window[0]) * (window[3] - window[1])


def _round_up(tile: Window, box: Window) -> Window:
    """Return a window of a tile that contains a box in it, with sides of whole sixteenths.

    So a network's inputs have few shapes.
    """
    starts, ends = [], []
    for axis in (0, 1):
        first, last = tile[axis], tile[axis + 2]
        unit = math.ceil((last - first) / _UNITS)
        length = min(last - first, math.ceil((box[axis + 2] - box[axis]) / unit) * unit)
        starts.append(min(box[axis], last - length))
        ends.append(starts[axis] + length)
    return starts[0], starts[1], ends[0], ends[1]


def edge_margin(scale: float) -> int:
    """Return the pixels of the image in `EDGE_MARGIN` network pixels, at least as many."""
    return math.ceil(EDGE_MARGIN / min(1.0, scale))


def plan_tiles(
    size: tuple[int, int], tile: int, overlap: int, margin: int = EDGE_MARGIN
) -> TilePlan:
    """Distribute as few tiles as cover an image evenly over it, no larger than they need to be.

    Parameters
    ----------
    size
        Height and width of the image in pixels.
    tile
        Longest side of a tile in pixels.
    overlap
        Minimum overlap of neighbouring tiles in pixels, 1 or more: cells are merged by the
        pixels that two tiles share.
    margin
        That of the tiles: `edge_margin` of the network's scale.

    Raises
    ------
    InputError
        If the tile is not larger than the overlap, or the overlap less than 1.
    """
    if not 1 <= overlap < tile:
        raise InputError(
            f"tiles of {tile} px with an overlap of {overlap} px: expected an overlap of 1 px or "
            "more and less than the tile; choose a larger tile or another overlap"
        )
    counts = [
        math.ceil((length - overlap) / (tile - overlap)) if length > tile else 1 for length in size
    ]
    sides = [
        math.ceil((length + (n - 1) * overlap) / n) for length, n in zip(size, counts, strict=True)
    ]
    if min(counts) > 1:  # square, so that turned views are of the same shape
        sides = [max(sides)] * 2
    tops, lefts = map(_tile_starts, size, sides, counts)
    return TilePlan(size, (sides[0], sides[1]), tops, lefts, margin=margin)


def _tile_starts(length: int, side: int, n: int) -> tuple[int, ...]:
    """Return the starts of `n` tiles that cover the length, evenly spaced to one pixel."""
    return tuple(k * (length - side) // max(1, n - 1) for k in range(n))


def choose_tile_size(
    longest_cell: float, scale: float = 1.0, margin: int = EDGE_MARGIN
) -> tuple[int, int]:
    """Choose tile and overlap so that nearly every cell is whole in some tile.

    Parameters
    ----------
    longest_cell
        Longer side of the largest expected cells' boxes, in pixels of the image.
    scale
        Network pixels per image pixel.
    margin
        That of the tiles.

    Returns
    -------
    tile, overlap
        In pixels of the image. The overlap is 1.25 cells, the tile at least four overlaps:
        at most 44 % of the network's pixels are repeats.
    """
    overlap = math.ceil(1.25 * longest_cell) + 2 * margin
    return max(round(_MIN_TILE / scale), 4 * overlap), overlap

"""Split an image into overlapping tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError

# Pixels: a cell nearer to a tile's edge may be cut. Not 1, since the network's boxes and masks
# of cut cells end a little before the edge.
EDGE_MARGIN = 3

# Network pixels: smaller tiles cost more calls than they save memory, and cut more cells.
_MIN_TILE = 1536


@dataclass(frozen=True)
class Tile:
    """Window of an image.

    Attributes
    ----------
    window
        XYXY in pixels of the image, right and bottom exclusive, within the image.
    inner_edges
        Whether the left, top, right and bottom edge lie inside the image and may cut cells.
    """

    window: tuple[int, int, int, int]
    inner_edges: tuple[bool, bool, bool, bool]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        left, top, right, bottom = self.window
        return bottom - top, right - left

    def may_cut(self, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which cells the tile may cut: nearer than `EDGE_MARGIN` to an inner edge.

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
        `2 * EDGE_MARGIN` pixels deep is too small for a network to recognise and counts too.
        `boxes` and the result are as for `may_cut`.
        """
        left, top, right, bottom = self.window
        depth = boxes[:, [2, 3, 0, 1]] * (1, 1, -1, -1) - (left, top, -right, -bottom)
        width, height = (boxes[:, 2:] - boxes[:, :2]).T
        length = np.stack([height, width] * 2, axis=1)
        little = (depth <= 2 * EDGE_MARGIN) | (2 * depth < length)
        hardly: NDArray[np.bool_] = np.any(self._near_inner_edges(boxes) & little, axis=1)
        return hardly

    def _near_inner_edges(self, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return `(N, 4)` bool: near the left, top, right, bottom edge where that is inner."""
        left, top, right, bottom = self.window
        space = boxes * (1, 1, -1, -1) - (left, top, -right, -bottom)
        return (space < EDGE_MARGIN) & self.inner_edges


@dataclass(frozen=True)
class TilePlan:
    """Tiles of an image, all of one size, row by row from the top left.

    Attributes
    ----------
    size
        Height and width of the image in pixels.
    tile_size
        Height and width of each tile in pixels.
    tops, lefts
        First pixel of each row and column of tiles, increasing.
    """

    size: tuple[int, int]
    tile_size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def __getitem__(self, index: int) -> Tile:
        row, column = divmod(range(len(self))[index], len(self.lefts))
        left, top = self.lefts[column], self.tops[row]
        right, bottom = left + self.tile_size[1], top + self.tile_size[0]
        inner_edges = (left > 0, top > 0, right < self.size[1], bottom < self.size[0])
        return Tile((left, top, right, bottom), inner_edges)

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(len(self)))

    def some_tile_contains(self, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return `(N,)` bool: which boxes, XYXY in pixels of the image, some tile doesn't cut."""
        whole = np.ones(len(boxes), bool)
        for axis, starts in ((0, self.lefts), (1, self.tops)):
            start, end = boxes[:, axis], boxes[:, axis + 2]
            # Of the tiles that don't cut the box's start, the last reaches furthest.
            last = np.searchsorted(starts[1:], start - EDGE_MARGIN, side="right")
            tile_end = np.array(starts)[last] + self.tile_size[1 - axis]
            whole &= (end <= tile_end - EDGE_MARGIN) | (last == len(starts) - 1)
        return whole

    def is_in_later_tiles(self, index: int, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return `(N,)` bool: which boxes, XYXY in pixels, overlap a tile after tile `index`."""
        row, column = divmod(index, len(self.lefts))
        again = np.zeros(len(boxes), bool)
        if column + 1 < len(self.lefts):
            left, top = self.lefts[column + 1], self.tops[row]
            again |= (
                (boxes[:, 2] > left) & (boxes[:, 3] > top) & (boxes[:, 1] < top + self.tile_size[0])
            )
        if row + 1 < len(self.tops):
            again |= boxes[:, 3] > self.tops[row + 1]
        return again


def plan_tiles(size: tuple[int, int], tile: int, overlap: int) -> TilePlan:
    """Distribute tiles evenly over an image.

    Parameters
    ----------
    size
        Height and width of the image in pixels.
    tile
        Side of a tile in pixels. A tile is not larger than the image.
    overlap
        Minimum overlap of neighbouring tiles in pixels, 1 or more: cells are merged by the
        pixels that two tiles share.

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
    height, width = size
    tops, lefts = (_tile_starts(length, tile, overlap) for length in size)
    return TilePlan(size, (min(tile, height), min(tile, width)), tops, lefts)


def _tile_starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Return the starts of as few tiles as cover the length, evenly spaced to one pixel."""
    if length <= tile:
        return (0,)
    gaps = math.ceil((length - tile) / (tile - overlap))
    return tuple(n * (length - tile) // gaps for n in range(gaps + 1))


def choose_tile_size(longest_cell: float, scale: float = 1.0) -> tuple[int, int]:
    """Choose tile and overlap so that nearly every cell is whole in some tile.

    Parameters
    ----------
    longest_cell
        Longer side of the largest expected cells' boxes, in pixels of the image.
    scale
        Network pixels per image pixel.

    Returns
    -------
    tile, overlap
        In pixels of the image. The overlap is 1.25 cells, the tile at least four overlaps:
        at most 44 % of the network's pixels are repeats.
    """
    overlap = math.ceil(1.25 * longest_cell) + 2 * EDGE_MARGIN
    return max(round(_MIN_TILE / scale), 4 * overlap), overlap

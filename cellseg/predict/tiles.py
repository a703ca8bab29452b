"""The overlapping tiles that a large image is predicted in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError

# Pixels: a cell that comes nearer to a tile's edge may go on beyond it. Not 1, since the
# network's boxes and masks of cut cells end a little before the edge.
EDGE_MARGIN = 3

# As the network sees it: smaller tiles cost more calls than they save memory, and cut cells.
_MIN_TILE = 1536


@dataclass(frozen=True)
class Tile:
    """A window of the image.

    Attributes
    ----------
    window
        XYXY in pixels of the image, right and bottom exclusive, within the image.
    inner_edges
        Which of the left, top, right and bottom edge lie within the image, so that they
        may cut cells. The others are the image's own.
    """

    window: tuple[int, int, int, int]
    inner_edges: tuple[bool, bool, bool, bool]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        left, top, right, bottom = self.window
        return bottom - top, right - left

    def may_cut(self, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which cells the tile may show a part of only.

        Parameters
        ----------
        boxes
            `(N, 4)` XYXY in pixels of the image, of cells as the tile shows them.

        Returns
        -------
        `(N,)` bool: comes nearer than `EDGE_MARGIN` pixels to an inner edge.
        """
        cut: NDArray[np.bool_] = np.any(self._near_inner_edges(boxes), axis=1)
        return cut

    def shows_less_than_half(self, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return of which of the cells that it cuts the tile shows less than half, if they are round.

        Such a piece reaches into the tile less than half as far as it is long at the edge. Of
        a piece that reaches in `2 * EDGE_MARGIN` pixels at most, a network sees too little to tell.

        Parameters
        ----------
        boxes
            As for `may_cut`.

        Returns
        -------
        `(N,)` bool.
        """
        left, top, right, bottom = self.window
        depth = boxes[:, [2, 3, 0, 1]] * (1, 1, -1, -1) - (left, top, -right, -bottom)
        width, height = (boxes[:, 2:] - boxes[:, :2]).T
        length = np.stack([height, width] * 2, axis=1)
        little = (depth <= 2 * EDGE_MARGIN) | (2 * depth < length)
        hardly: NDArray[np.bool_] = np.any(self._near_inner_edges(boxes) & little, axis=1)
        return hardly

    def _near_inner_edges(self, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """`(N, 4)`: whether a cell comes near to the left, top, right, bottom, an inner edge."""
        left, top, right, bottom = self.window
        space = boxes * (1, 1, -1, -1) - (left, top, -right, -bottom)
        return (space < EDGE_MARGIN) & self.inner_edges


@dataclass(frozen=True)
class TilePlan:
    """The tiles of an image, all of one size, row by row from the top left.

    Attributes
    ----------
    size
        Height and width of the image in pixels.
    tile_size
        Height and width of each tile in pixels.
    tops, lefts
        Where the rows and the columns of tiles begin, rising.
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
        """Return which boxes some tile shows without cutting them (`Tile.may_cut`).

        Parameters
        ----------
        boxes
            `(N, 4)` XYXY in pixels of the image.

        Returns
        -------
        `(N,)` bool.
        """
        whole = np.ones(len(boxes), bool)
        for axis, starts in ((0, self.lefts), (1, self.tops)):
            start, end = boxes[:, axis], boxes[:, axis + 2]
            # Of the tiles that don't cut its start, the last shows most of what follows.
            last = np.searchsorted(starts[1:], start - EDGE_MARGIN, side="right")
            tile_end = np.array(starts)[last] + self.tile_size[1 - axis]
            whole &= (end <= tile_end - EDGE_MARGIN) | (last == len(starts) - 1)
        return whole

    def is_in_later_tiles(self, index: int, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which boxes a tile after tile `index` shows a pixel of.

        Parameters
        ----------
        index
            0…len − 1.
        boxes
            `(N, 4)` XYXY in pixels of the image.

        Returns
        -------
        `(N,)` bool.
        """
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
    """Spread tiles evenly over an image.

    Parameters
    ----------
    size
        Height and width of the image in pixels.
    tile
        Side of a tile in pixels. Where the image is shorter, so is the tile.
    overlap
        The least overlap of neighbours in pixels: 1 or more, since cells are put
        together by the pixels that two tiles show.

    Raises
    ------
    InputError
        If the tile is not larger than the overlap, or the overlap less than 1.
    """
    if not 1 <= overlap < tile:
        raise InputError(
            f"tiles of {tile} px that overlap by {overlap} px: the overlap must be at least 1 px "
            "and less than the tile; choose a larger tile or another overlap"
        )
    height, width = size
    return TilePlan(
        size,
        (min(tile, height), min(tile, width)),
        _tile_starts(height, tile, overlap),
        _tile_starts(width, tile, overlap),
    )


def _tile_starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Begin as few tiles as cover the length, at distances that differ by one pixel at most."""
    if length <= tile:
        return (0,)
    gaps = math.ceil((length - tile) / (tile - overlap))
    return tuple(n * (length - tile) // gaps for n in range(gaps + 1))


def choose_tile_size(longest_cell: float, scale: float = 1.0) -> tuple[int, int]:
    """Choose tile and overlap so that nearly every cell is whole in some tile.

    Parameters
    ----------
    longest_cell
        The longer side of the box of the largest cells to expect, in pixels of the image.
    scale
        The network's pixels for each pixel of the image.

    Returns
    -------
    tile, overlap
        In pixels of the image. The overlap is the cell with a quarter of its length as
        surroundings, the tile at least four overlaps: then no more than 44 % of the pixels
        that the network sees are seen again.
    """
    overlap = math.ceil(1.25 * longest_cell) + 2 * EDGE_MARGIN
    return max(round(_MIN_TILE / scale), 4 * overlap), overlap

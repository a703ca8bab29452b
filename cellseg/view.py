"""How the network sees an image: a window of it, resized, flipped and turned."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cellseg.cellmasks import CellMasks
from cellseg.rle import MaskRuns, cut_at_columns


@dataclass(frozen=True)
class View:
    """A window of an image as the network gets it, in training and in prediction.

    Attributes
    ----------
    window
        XYXY in whole pixels of the image, right and bottom exclusive, within it.
    size
        Height and width that the window is resized to, before flips and turn; 1 or more.
    flip_x
        Whether it is mirrored left to right, after the zoom.
    flip_y
        Whether it is mirrored top to bottom, after the zoom.
    transpose
        Whether rows and columns are exchanged, last. With the flips, this gives all
        eight flips and rotations of the square.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    flip_x: bool = False
    flip_y: bool = False
    transpose: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what the network gets."""
        return self.size[::-1] if self.transpose else self.size

    def apply_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Look at an image: `(H, W, C)` uint8 to `(h, w, C)` uint8, C-contiguous.

        It is resized bilinearly, or by the mean of the pixels where it shrinks.
        """
        left, top, right, bottom = self.window
        viewed = image[top:bottom, left:right]
        height, width = self.size
        if viewed.shape[:2] != self.size:
            shrinks = height <= viewed.shape[0] and width <= viewed.shape[1]
            method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            # OpenCV drops the axis of a single channel.
            viewed = cv2.resize(viewed, (width, height), interpolation=method).reshape(
                height, width, -1
            )
        viewed = viewed[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        return np.ascontiguousarray(viewed.swapaxes(0, 1) if self.transpose else viewed)

    def invert_boxes(self, boxes: torch.Tensor) -> torch.Tensor:
        """Return `(N, 4)` boxes, XYXY in the network's pixels, as floats in the image's."""
        inverted = boxes * 1.0
        for edge, (source, origin, scale) in enumerate(self._edges()):
            inverted[:, source] = boxes[:, edge] / scale + origin
        return inverted

    def _edges(self) -> list[tuple[int, int, float]]:
        """For left, top, right, bottom as seen: the edge in the image, its origin and scale."""
        left, top, right, bottom = self.window
        scale_x, scale_y = self.size[1] / (right - left), self.size[0] / (bottom - top)
        x = [(0, left, scale_x), (2, left, scale_x)]
        y = [(1, top, scale_y), (3, top, scale_y)]
        if self.flip_x:
            x = [(2, right, -scale_x), (0, right, -scale_x)]
        if self.flip_y:
            y = [(3, bottom, -scale_y), (1, bottom, -scale_y)]
        if self.transpose:
            x, y = y, x
        return [x[0], y[0], x[1], y[1]]

    def invert_grids(self, grids: torch.Tensor) -> torch.Tensor:
        """Turn `(N, M, M)` grids over boxes as seen to grids over the boxes in the image."""
        if self.transpose:
            grids = grids.transpose(1, 2)
        flipped = [axis for axis, flip in ((1, self.flip_y), (2, self.flip_x)) if flip]
        return grids.flip(flipped)

    def apply_masks(self, mask_runs: MaskRuns) -> tuple[NDArray[np.int64], CellMasks]:
        """Look at the cells of an image.

        Equal to zooming each full mask by nearest neighbour, where output pixel i takes the
        source pixel floor((i + 0.5) source / output), but without an array of the image's
        size. OpenCV's INTER_NEAREST_EXACT is the same, save where rounding misleads it.

        Parameters
        ----------
        mask_runs
            The masks of all cells of the image.

        Returns
        -------
        kept
            `(N,)` int64, rising: which masks of `mask_runs` have at least one pixel here.
        masks
            These masks, of the size `shape`.
        """
        left, top, right, bottom = self.window
        height, width = self.size
        mask, column, start, end = cut_at_columns(mask_runs)
        rows = _first_output_pixel(bottom - top, height)
        start = rows[(start - top).clip(0, bottom - top)]
        end = rows[(end - top).clip(0, bottom - top)]
        columns = _first_output_pixel(right - left, width)
        first = columns[(column - left).clip(0, right - left)]
        last = columns[(column + 1 - left).clip(0, right - left)]

        # One piece for each column as seen.
        n_pieces = np.where(end > start, last - first, 0)
        piece = np.repeat(np.arange(len(mask)), n_pieces)
        column = np.arange(len(piece)) + (first - np.cumsum(n_pieces) + n_pieces)[piece]
        start, end = start[piece], end[piece]
        if self.flip_x:
            column = width - 1 - column
        if self.flip_y:
            start, end = height - end, height - start
        kept, owner = np.unique(mask[piece], return_inverse=True)
        draw = CellMasks.from_rows if self.transpose else CellMasks.from_columns
        return kept, draw(self.shape, owner, column, start, end)


def _first_output_pixel(source: int, output: int) -> NDArray[np.int64]:
    """`(source + 1,)`: the first output pixel that takes each source pixel or a later one."""
    taken = (2 * np.arange(output) + 1) * source // (2 * output)
    return np.searchsorted(taken, np.arange(source + 1))


def resize_shortest_edge(size: tuple[int, int], shortest: int, longest: int) -> tuple[int, int]:
    """Zoom a size until its short side is `shortest`, or its long side `longest` if that is less.

    The rounding is that of Detectron2's `ResizeShortestEdge`, but a strip's short side
    keeps at least one pixel.

    Parameters
    ----------
    size
        Height and width in pixels.
    shortest, longest
        In pixels; 0 for `shortest` leaves the size as it is.
    """
    if shortest == 0:
        return size
    scale = shortest / min(size)
    # In these steps, as Detectron2 rounds after each.
    height, width = (shortest if side == min(size) else scale * side for side in size)
    if max(height, width) > longest:
        scale = longest / max(height, width)
        height, width = scale * height, scale * width
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


def to_tensor(image: NDArray[np.uint8], image_format: str) -> torch.Tensor:
    """Turn an `(H, W, 3)` uint8 RGB image into the `(3, H, W)` tensor of the network's format."""
    if image_format == "BGR":
        image = image[:, :, ::-1]
    # A copy in any case: of a side of one pixel, a flip leaves a negative stride that numpy
    # takes for contiguous and torch refuses.
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))

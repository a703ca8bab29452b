"""Views: windows of an image, resized, flipped and transposed for the network."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cellseg.cellmasks import CellMasks
from cellseg.rle import Ints, MaskRuns, cut_at_columns, ranges


@dataclass(frozen=True)
class View:
    """A window of an image as input of the network, in training and prediction.

    Attributes
    ----------
    window
        XYXY in whole pixels of the image, right and bottom exclusive, within the image.
    size
        Height and width that the window is resized to, before flips and transposition.
    flip_x, flip_y
        Whether the resized window is mirrored left to right, top to bottom.
    transpose
        Whether rows and columns are exchanged, last. With the flips, this gives all eight
        flips and rotations of the square.
    sharp
        Whether to enlarge by Lanczos interpolation instead of bilinearly, which blurs.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    flip_x: bool = False
    flip_y: bool = False
    transpose: bool = False
    sharp: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in network pixels."""
        return self.size[::-1] if self.transpose else self.size

    def apply_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the view of an image: `(H, W, C)` uint8 to `(h, w, C)` uint8, C-contiguous.

        Resized as `sharp` says, or by the mean of the pixels if it shrinks.
        """
        left, top, right, bottom = self.window
        viewed = image[top:bottom, left:right]
        height, width = self.size
        if viewed.shape[:2] != self.size:
            shrinks = height <= viewed.shape[0] and width <= viewed.shape[1]
            enlarging = cv2.INTER_LANCZOS4 if self.sharp else cv2.INTER_LINEAR
            method = cv2.INTER_AREA if shrinks else enlarging
            # OpenCV drops the axis of a single channel.
            viewed = cv2.resize(viewed, (width, height), interpolation=method).reshape(
                height, width, -1
            )
        viewed = viewed[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        return np.ascontiguousarray(viewed.swapaxes(0, 1) if self.transpose else viewed)

    def orient(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the view of `(C, h, w)` pixels that are resized already, contiguous."""
        flipped = pixels.flip([axis for axis, flip in ((1, self.flip_y), (2, self.flip_x)) if flip])
        return (flipped.transpose(1, 2) if self.transpose else flipped).contiguous()

    def invert_boxes(self, boxes: torch.Tensor) -> torch.Tensor:
        """Map `(N, 4)` boxes, XYXY, from network pixels to image pixels, as floats."""
        inverted = boxes * 1.0
        for edge, (source, origin, scale) in enumerate(self._edges()):
            inverted[:, source] = boxes[:, edge] / scale + origin
        return inverted

    def _edges(self) -> list[tuple[int, int, float]]:
        """Return for left, top, right, bottom of the view: the image's edge, origin, scale."""
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
        """Map `(N, M, M)` grids over boxes of the view to grids over boxes of the image."""
        if self.transpose:
            grids = grids.transpose(1, 2)
        flipped = [axis for axis, flip in ((1, self.flip_y), (2, self.flip_x)) if flip]
        return grids.flip(flipped)

    def apply_masks(self, mask_runs: MaskRuns) -> tuple[Ints, CellMasks]:
        """Return the cell masks in the view.

        Equal to resizing each full mask by nearest neighbour, where output pixel i has the
        source pixel floor((i + 0.5) source / output), but without an array of the image's
        size. OpenCV's INTER_NEAREST_EXACT is the same except for rounding errors.

        Returns
        -------
        kept
            `(N,)` int64, rising: indices of the masks with at least one pixel in the view.
        masks
            Those masks, of size `shape`.
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

        # One piece per column of the view.
        n_pieces = np.where(end > start, last - first, 0)
        piece = np.repeat(np.arange(len(mask)), n_pieces)
        column = ranges(first, n_pieces)
        start, end = start[piece], end[piece]
        if self.flip_x:
            column = width - 1 - column
        if self.flip_y:
            start, end = height - end, height - start
        kept, owner = np.unique(mask[piece], return_inverse=True)
        draw = CellMasks.from_rows if self.transpose else CellMasks.from_columns
        return kept, draw(self.shape, owner, column, start, end)


def _first_output_pixel(source: int, output: int) -> Ints:
    """`(source + 1,)`: the first output pixel that has each source pixel or a later one."""
    taken = (2 * np.arange(output) + 1) * source // (2 * output)
    return np.searchsorted(taken, np.arange(source + 1))


def resize_shortest_edge(size: tuple[int, int], shortest: int, longest: int) -> tuple[int, int]:
    """Scale a size (height, width) to a short side of `shortest` or a long side of `longest`.

    The smaller of both results, in pixels, rounded as Detectron2's `ResizeShortestEdge` does,
    but at least one pixel a side. 0 for `shortest` returns `size`.
    """
    if shortest == 0:
        return size
    scale = shortest / min(size)
    # In the steps of Detectron2, which rounds after each.
    height, width = (shortest if side == min(size) else scale * side for side in size)
    if max(height, width) > longest:
        scale = longest / max(height, width)
        height, width = scale * height, scale * width
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


def to_tensor(image: NDArray[np.uint8], image_format: str) -> torch.Tensor:
    """Return an `(H, W, 3)` uint8 RGB image as a `(3, H, W)` uint8 tensor, "RGB" or "BGR"."""
    if image_format == "BGR":
        image = image[:, :, ::-1]
    # Always a copy: after a flip, a side of one pixel may have a negative stride, which torch
    # rejects although numpy calls it contiguous.
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))

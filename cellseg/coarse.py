"""Images at a coarse scale: reduced pixels, and a part of one, such as its tissue, as a mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Window = tuple[int, int, int, int]  # XYXY in pixels, right and bottom exclusive


@dataclass(frozen=True)
class CoarseMask:
    """A part of an image.

    Attributes
    ----------
    size
        Height and width of the image in pixels.
    step
        Height and width of a mask pixel in pixels of the image, not necessarily whole.
    pixels
        `(h, w)` bool, covering the image from its top left corner; the last row and column may
        extend beyond it.
    """

    size: tuple[int, int]
    step: tuple[float, float]
    pixels: NDArray[np.bool_]

    @property
    def area(self) -> float:
        """Area in pixels of the image."""
        heights, widths = (
            np.clip(length - step * np.arange(n), 0, step)
            for length, step, n in zip(self.size, self.step, self.pixels.shape, strict=True)
        )
        return float(heights @ self.pixels @ widths)

    def boxes(self, window: Window, margin: int) -> list[Window]:
        """Return boxes around what lies in a window or near it, one for each separate piece.

        The boxes are XYXY in pixels, within the window, and may overlap. Whatever is at most
        `margin` pixels, in x and in y, from the part lies in one of them.
        """
        left, top, right, bottom = window
        (y0, y1), (x0, x1) = (
            (max(0, math.floor((start - margin) / step)), math.ceil((end + margin) / step))
            for start, end, step in ((top, bottom, self.step[0]), (left, right, self.step[1]))
        )
        inside = self.pixels[y0:y1, x0:x1].astype(np.uint8)
        if not inside.any():
            return []
        reach = [math.ceil(margin / step) for step in self.step]
        frame = cv2.copyMakeBorder(
            inside, reach[0], reach[0], reach[1], reach[1], cv2.BORDER_CONSTANT, value=0
        )
        grown = cv2.dilate(frame, np.ones([2 * n + 1 for n in reach], np.uint8))
        _, _, stats, _ = cv2.connectedComponentsWithStats(grown, connectivity=8)
        boxes = []
        for x, y, width, height, _ in (
            stats[1:] + (x0 - reach[1], y0 - reach[0], 0, 0, 0)
        ).tolist():
            x_from, x_to = (edge * self.step[1] for edge in (x, x + width))
            y_from, y_to = (edge * self.step[0] for edge in (y, y + height))
            box = (
                max(left, math.floor(x_from)),
                max(top, math.floor(y_from)),
                min(right, math.ceil(x_to)),
                min(bottom, math.ceil(y_to)),
            )
            if box[0] < box[2] and box[1] < box[3]:
                boxes.append(box)
        return boxes


def reduce_pixels(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Return the means of squares of that side, `(ceil(H / factor), ceil(W / factor), 3)` uint8.

    `pixels` is `(H, W, 3)` uint8; its last row and column count for what is missing beyond them.
    """
    below, right = (-side % factor for side in pixels.shape[:2])
    whole = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = whole.shape[1] // factor, whole.shape[0] // factor
    return np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.uint8)

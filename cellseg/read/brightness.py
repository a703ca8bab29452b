"""Images that are almost black, or whose values don't use the full range."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DARK = 64
"""Of 255; stained tissue has a bright background, and crops without any are brighter too."""

STRAY = 0.001
"""Share of the pixels that may be brighter in a dark image: hot pixels, a scale bar."""

DARK_TEXT = f"images with hardly a pixel above {DARK} of 255, almost black or not of the full range"


def count_bright(pixels: NDArray[np.uint8]) -> int:
    """Return the number of pixels of an `(H, W, 3)` image with a value above `DARK`."""
    bright = pixels > DARK
    return int(np.count_nonzero(bright[..., 0] | bright[..., 1] | bright[..., 2]))


def is_dark(n_bright: int, n_pixels: int) -> bool:
    """Return whether an image with this number of bright pixels is dark."""
    return n_bright <= STRAY * n_pixels

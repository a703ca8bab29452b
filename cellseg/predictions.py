"""`Predictions`: what any engine says of an image, and what every later step takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg.rle import RLE


@dataclass(frozen=True)
class Predictions:
    """The N cells found in one image, best score first.

    Attributes
    ----------
    size
        Height and width of the image in pixels.
    boxes
        `(N, 4)` float32, XYXY in pixels of the image, right and bottom exclusive.
    scores
        `(N,)` float32 in 0…1.
    classes
        `(N,)` int64, 0…K−1 (files have 1…K).
    masks
        N compressed COCO RLEs of the image's size, `counts` a str. Never an
        `(N, H, W)` array: memory depends on the cells, not on the image.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: list[RLE]

    @classmethod
    def none(cls, size: tuple[int, int]) -> Predictions:
        """Give the predictions of an image in which nothing was found."""
        return cls(
            size,
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
            [],
        )

    def __len__(self) -> int:
        return len(self.scores)

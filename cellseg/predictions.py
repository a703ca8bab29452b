"""`Predictions`: what any engine says of an image, and what every later step takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cellseg.rle import RLE


@dataclass(frozen=True, repr=False)
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
    class_names
        The names of the classes 0…K−1, so that a detection's is `class_names[classes[n]]`;
        empty where they are not known.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: list[RLE]
    class_names: tuple[str, ...] = ()

    @classmethod
    def empty(cls, size: tuple[int, int]) -> Predictions:
        """Return the predictions of an image in which nothing was found."""
        return cls(
            size,
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
            [],
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Predictions:
        """Return some of the cells, chosen and ordered as by an index of `scores`."""
        return replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            classes=self.classes[index],
            masks=[self.masks[n] for n in np.arange(len(self))[index]],
        )

    def __repr__(self) -> str:
        """Return one line: how many cells, of which classes, in an image of which size."""
        height, width = self.size
        cells = "1 cell" if len(self) == 1 else f"{len(self)} cells"
        names = dict(enumerate(self.class_names))
        classes, counts = (a.tolist() for a in np.unique(self.classes, return_counts=True))
        of_class = ", ".join(
            f"{count} {names.get(k, f'of class {k}')}"
            for k, count in zip(classes, counts, strict=True)
        )
        return f"Predictions({cells} in {height} x {width} px{of_class and ': ' + of_class})"

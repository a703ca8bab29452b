"""`Predictions`: the cells detected in an image, the same for every engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.messages import plural
from cellseg.overlap import distinct_cells
from cellseg.rle import RLE, decode


@dataclass(frozen=True, repr=False)
class Predictions:
    """The N detections in one image, highest score first; a cell may have one in several classes.

    Attributes
    ----------
    size
        Height and width of the image in pixels.
    boxes
        `(N, 4)` float32, XYXY in pixels of the image, right and bottom exclusive.
    scores
        `(N,)` float32 in 0…1.
    classes
        `(N,)` int64, 0…K−1 (1…K in files).
    masks
        N compressed COCO RLEs of the image's size, `counts` a str. There is no `(N, H, W)`
        array: memory depends on the cells, not on the image.
    class_names
        The names of the classes 0…K−1; empty if unknown.
    limited_by
        Config keys of the limits that left out boxes that are probably cells; see
        `cellseg.network.limits`.
    is_distinct
        Whether each cell is there once, as of `distinct`.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: list[RLE]
    class_names: tuple[str, ...] = ()
    limited_by: tuple[str, ...] = ()
    is_distinct: bool = False

    @classmethod
    def empty(cls, size: tuple[int, int]) -> Predictions:
        """Return predictions without detections, for an image of `size`."""
        scores = np.zeros(0, np.float32)
        return cls(size, np.zeros((0, 4), np.float32), scores, np.zeros(0, np.int64), [])

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(
        self, index: int | slice | NDArray[np.bool_] | NDArray[np.int64]
    ) -> Predictions:
        """Return the detections that an index of `scores` selects, in order; one for a number."""
        if isinstance(index, Integral):
            index = np.array([range(len(self))[index]])
        return replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            classes=self.classes[index],
            masks=[self.masks[n] for n in np.arange(len(self))[index]],
        )

    def __iter__(self) -> Iterator[Predictions]:
        """Yield the detections one by one."""
        return (self[index] for index in range(len(self)))

    def distinct(self, score_threshold: float = 0.0) -> Predictions:
        """Return each cell once, of a score of `score_threshold` or more.

        A cell can be detected in several classes, each with a score. Here it has its best class,
        and a joint score; see `cellseg.overlap.distinct_cells`.

        Parameters
        ----------
        score_threshold
            Minimum score of a cell, 0 to 1.

        Returns
        -------
        Cells with pixels, best score first; those mostly under others of higher scores are left
        out.

        Raises
        ------
        InputError
            If the threshold is not from 0 to 1.
        """
        check_score_threshold(score_threshold)
        index, scores, _ = distinct_cells(
            decode(self.masks, self.size), self.classes, self.scores.astype(np.float64)
        )
        cells = replace(self[index], scores=scores.astype(np.float32), is_distinct=True)
        return cells[cells.scores >= score_threshold]

    def __repr__(self) -> str:
        """Return one line with the number of detections or cells per class and the image size."""
        height, width = self.size
        what = plural(len(self), "cell" if self.is_distinct else "detection")
        names = dict(enumerate(self.class_names))
        classes, counts = (a.tolist() for a in np.unique(self.classes, return_counts=True))
        of_class = ", ".join(
            f"{count} {names.get(k, f'of class {k}')}"
            for k, count in zip(classes, counts, strict=True)
        )
        return f"Predictions({what} in {height} x {width} px{of_class and ': ' + of_class})"


def check_score_threshold(value: object) -> None:
    """Raise InputError unless a `score_threshold` is a number from 0 to 1."""
    if not (isinstance(value, Real) and 0 <= float(value) <= 1):
        raise InputError(f"score_threshold {value!r}: a number from 0 to 1 is expected")

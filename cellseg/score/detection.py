"""How many cells are found, missed and made up: precision, recall and F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg.score.labelmap import MATCH_IOU, Comparison


@dataclass(frozen=True)
class Tally:
    """Sums for each of I images and K classes, `(I, K)` each.

    Attributes
    ----------
    hits
        int64: true cells matched by a found cell of their class.
    misses, false_alarms
        int64: true and found cells without such a match.
    iou
        float64: the sum of the hits' IoU.
    """

    hits: NDArray[np.int64]
    misses: NDArray[np.int64]
    false_alarms: NDArray[np.int64]
    iou: NDArray[np.float64]


def tally(comparisons: Sequence[Comparison], n_classes: int, threshold: float = MATCH_IOU) -> Tally:
    """Count hits, misses and false alarms of each image and class.

    A hit has an IoU above `threshold` (0.5 or more) and the right class.
    """
    shape = (len(comparisons), n_classes)
    hits, misses, false_alarms = (np.zeros(shape, np.int64) for _ in range(3))
    iou = np.zeros(shape)
    for i, comparison in enumerate(comparisons):
        at, at_iou = comparison.matches(threshold)
        right = comparison.truth_classes[at[:, 0]] == comparison.classes[at[:, 1]]
        k = comparison.truth_classes[at[right, 0]]
        hits[i] = np.bincount(k, minlength=n_classes)
        iou[i] = np.bincount(k, at_iou[right], minlength=n_classes)
        misses[i] = np.bincount(comparison.truth_classes, minlength=n_classes) - hits[i]
        wrong = ~comparison.excused
        wrong[at[right, 1]] = False
        false_alarms[i] = np.bincount(comparison.classes[wrong], minlength=n_classes)
    return Tally(hits, misses, false_alarms, iou)


@dataclass(frozen=True)
class Detection:
    """Precision, recall and F1 of the cells of all images together, `(…, K)` float64.

    NaN for a class that has no true cell.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def detection(sums: Tally, weights: NDArray[np.int64]) -> Detection:
    """Precision, recall and F1 = 2 hits / (2 hits + misses + false alarms).

    Parameters
    ----------
    sums
        I images and K classes.
    weights
        `(…, I)`: how often each image is in the set.
    """
    hits, misses, false_alarms = (
        weights @ part for part in (sums.hits, sums.misses, sums.false_alarms)
    )
    known = hits + misses > 0
    # Nothing found is nothing right: precision 0, so that F1 stays its harmonic mean.
    precision = np.where(known, hits / np.maximum(hits + false_alarms, 1), np.nan)
    return Detection(
        precision,
        ratio(hits, hits + misses),
        ratio(2 * hits, np.where(known, 2 * hits + misses + false_alarms, 0)),
    )


def ratio(part: NDArray[np.number], whole: NDArray[np.number]) -> NDArray[np.float64]:
    """`part / whole`; NaN where the whole is 0."""
    result = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    np.divide(part, whole, out=result, where=whole != 0)
    return result

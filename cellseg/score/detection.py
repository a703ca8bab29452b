"""How many cells are found, missed and made up: precision, recall and F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg.score.labelmap import MATCH_IOU, Comparison


@dataclass(frozen=True)
class MatchCounts:
    """Sums for each of I images and K classes, `(I, K)` each.

    Attributes
    ----------
    tp
        int64: ground-truth cells matched by a detected cell of their class.
    fn, fp
        int64: true and detected cells without such a match.
    iou
        float64: the sum of the hits' IoU.
    """

    tp: NDArray[np.int64]
    fn: NDArray[np.int64]
    fp: NDArray[np.int64]
    iou: NDArray[np.float64]


def count_matches(
    comparisons: Sequence[Comparison], n_classes: int, threshold: float = MATCH_IOU
) -> MatchCounts:
    """Count hits, misses and false positives of each image and class.

    A hit has an IoU above `threshold` (0.5 or more) and the right class.
    """
    shape = (len(comparisons), n_classes)
    tp, fn, fp = (np.zeros(shape, np.int64) for _ in range(3))
    iou = np.zeros(shape)
    for i, comparison in enumerate(comparisons):
        pairs, pair_iou = comparison.matches(threshold)
        right = comparison.gt_classes[pairs[:, 0]] == comparison.classes[pairs[:, 1]]
        k = comparison.gt_classes[pairs[right, 0]]
        tp[i] = np.bincount(k, minlength=n_classes)
        iou[i] = np.bincount(k, pair_iou[right], minlength=n_classes)
        fn[i] = np.bincount(comparison.gt_classes, minlength=n_classes) - tp[i]
        wrong = ~comparison.in_crowd
        wrong[pairs[right, 1]] = False
        fp[i] = np.bincount(comparison.classes[wrong], minlength=n_classes)
    return MatchCounts(tp, fn, fp, iou)


@dataclass(frozen=True)
class DetectionScores:
    """Precision, recall and F1 of the cells of all images together, `(…, K)` float64.

    NaN for a class that has no ground-truth cell.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def detection_scores(sums: MatchCounts, weights: NDArray[np.int64]) -> DetectionScores:
    """Precision, recall and F1 = 2 hits / (2 hits + misses + false positives).

    Parameters
    ----------
    sums
        I images and K classes.
    weights
        `(…, I)`: how often each image is in the set.
    """
    tp, fn, fp = (weights @ part for part in (sums.tp, sums.fn, sums.fp))
    known = tp + fn > 0
    # Nothing found is nothing right: precision 0, so that F1 stays its harmonic mean.
    precision = np.where(known, tp / np.maximum(tp + fp, 1), np.nan)
    return DetectionScores(
        precision,
        ratio(tp, tp + fn),
        ratio(2 * tp, np.where(known, 2 * tp + fn + fp, 0)),
    )


def ratio(part: NDArray[np.number], whole: NDArray[np.number]) -> NDArray[np.float64]:
    """`part / whole`; NaN where the whole is 0."""
    result = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    np.divide(part, whole, out=result, where=whole != 0)
    return result

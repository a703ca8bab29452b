"""Detection scores: precision, recall and F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg.score.labelmap import MATCH_IOU, Comparison


@dataclass(frozen=True)
class MatchCounts:
    """Counts of I images and K classes, `(I, K)` each.

    Attributes
    ----------
    tp
        int64: ground-truth cells with a matching detection of their class.
    fn, fp
        int64: ground-truth cells and detections without such a match.
    iou
        float64: sum of the true positives' IoU.
    """

    tp: NDArray[np.int64]
    fn: NDArray[np.int64]
    fp: NDArray[np.int64]
    iou: NDArray[np.float64]


def count_matches(
    comparisons: Sequence[Comparison], n_classes: int, threshold: float = MATCH_IOU
) -> MatchCounts:
    """Count true positives, false negatives and false positives of each image and class.

    A true positive has an IoU above `threshold` (0.5 or more) and the correct class.
    """
    shape = (len(comparisons), n_classes)
    tp, fn, fp = (np.zeros(shape, np.int64) for _ in range(3))
    iou = np.zeros(shape)
    for i, comparison in enumerate(comparisons):
        pairs, pair_iou = comparison.matches(threshold)
        correct = comparison.gt_classes[pairs[:, 0]] == comparison.classes[pairs[:, 1]]
        k = comparison.gt_classes[pairs[correct, 0]]
        is_fn, is_fp = comparison.unmatched(pairs[correct])
        tp[i] = np.bincount(k, minlength=n_classes)
        iou[i] = np.bincount(k, pair_iou[correct], minlength=n_classes)
        fn[i] = np.bincount(comparison.gt_classes[is_fn], minlength=n_classes)
        fp[i] = np.bincount(comparison.classes[is_fp], minlength=n_classes)
    return MatchCounts(tp, fn, fp, iou)


@dataclass(frozen=True)
class DetectionScores:
    """Precision, recall and F1 over all images, `(…, K)` float64; NaN without ground truth."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def detection_scores(sums: MatchCounts, weights: NDArray[np.int64]) -> DetectionScores:
    """Return precision, recall and F1 = 2 TP / (2 TP + FN + FP).

    Parameters
    ----------
    sums
        Counts of I images and K classes.
    weights
        `(…, I)`: how often each image is in the set.
    """
    tp, fn, fp = (weights @ part for part in (sums.tp, sums.fn, sums.fp))
    known = tp + fn > 0
    # Precision 0 without detections, so that F1 stays the harmonic mean.
    precision = np.where(known, tp / np.maximum(tp + fp, 1), np.nan)
    f1 = ratio(2 * tp, np.where(known, 2 * tp + fn + fp, 0))
    return DetectionScores(precision, ratio(tp, tp + fn), f1)


def ratio(part: NDArray[np.number], whole: NDArray[np.number]) -> NDArray[np.float64]:
    """Return `part / whole`, NaN where `whole` is 0."""
    result = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    np.divide(part, whole, out=result, where=whole != 0)
    return result

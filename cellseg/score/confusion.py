"""Confusion matrix of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellseg.score.labelmap import Comparison


def confusion_matrix(comparisons: Sequence[Comparison], n_classes: int) -> NDArray[np.int64]:
    """Count the cells by ground-truth and by predicted class.

    Cells match, regardless of class, with an IoU above 0.5.

    Returns
    -------
    `(K + 1, K + 1)` int64, as `count_by_class`, of all images.
    """
    matrix = np.zeros((n_classes + 1, n_classes + 1), np.int64)
    for comparison in comparisons:
        matrix += count_by_class(comparison, comparison.matches()[0], n_classes)
    return matrix


def count_by_class(
    comparison: Comparison, pairs: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """Count the cells of an image by ground-truth and by predicted class.

    Parameters
    ----------
    comparison
        The cells.
    pairs
        `(Q, 2)` int64: those that match, as indices of ground-truth cells and detections.
    n_classes
        Number K of classes.

    Returns
    -------
    `(K + 1, K + 1)` int64: rows are ground-truth classes, columns predicted classes; the last
    column holds false negatives, the last row false positives, and their corner 0.
    """
    matrix = np.zeros((n_classes + 1, n_classes + 1), np.int64)
    np.add.at(matrix, (comparison.gt_classes[pairs[:, 0]], comparison.classes[pairs[:, 1]]), 1)
    fn, fp = comparison.unmatched(pairs)
    np.add.at(matrix[:, -1], comparison.gt_classes[fn], 1)
    np.add.at(matrix[-1], comparison.classes[fp], 1)
    return matrix

"""What the detected cells are called, beside what they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellseg.score.labelmap import Comparison


def confusion_matrix(comparisons: Sequence[Comparison], n_classes: int) -> NDArray[np.int64]:
    """Count the cells by true and by given class.

    Cells are matched whatever their classes: an IoU above 0.5 is a match.

    Returns
    -------
    `(K + 1, K + 1)` int64: row k the ground-truth cells of class k, column k the found ones
    called k; the last column holds the missed cells, the last row the false positives, the
    last place of both 0.
    """
    matrix = np.zeros((n_classes + 1, n_classes + 1), np.int64)
    for comparison in comparisons:
        pairs, _ = comparison.matches()
        np.add.at(matrix, (comparison.gt_classes[pairs[:, 0]], comparison.classes[pairs[:, 1]]), 1)
        missed = np.ones(len(comparison.gt_indices), bool)
        missed[pairs[:, 0]] = False
        np.add.at(matrix[:, -1], comparison.gt_classes[missed], 1)
        false = ~comparison.in_crowd
        false[pairs[:, 1]] = False
        np.add.at(matrix[-1], comparison.classes[false], 1)
    return matrix

"""Aggregated Jaccard index: intersection of matched cells over the union of all cells.

AJI: N. Kumar et al., IEEE TMI 36(7), 2017, doi 10.1109/TMI.2017.2677499. Each ground-truth cell
is matched with the detection of highest IoU, which several may share: penalises over-detection.
AJI+: S. Graham et al., Medical Image Analysis 58, 2019, doi 10.1016/j.media.2019.101563.
One-to-one assignment with the highest sum of IoU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cellseg.score.detection import ratio
from cellseg.score.labelmap import Comparison


def aji(comparison: Comparison) -> float:
    """Return the class-agnostic AJI of one image, 0…1; of equal IoUs the first detection matches.

    NaN without ground truth and detections, 0 if only one of them is empty.
    """
    return _aggregated_jaccard(comparison, _best_pair_per_gt)


def aji_plus(comparison: Comparison) -> float:
    """Return the class-agnostic AJI+ of one image, 0…1; NaN and 0 as with `aji`."""
    return _aggregated_jaccard(comparison, _assignment_pairs)


def _aggregated_jaccard(
    comparison: Comparison, choose: Callable[[Comparison], NDArray[np.int64]]
) -> float:
    chosen = choose(comparison)
    fn, fp = comparison.unmatched(comparison.pairs[chosen])
    intersection = comparison.intersection[chosen].sum()
    covered = (
        comparison.union[chosen].sum() + comparison.gt_areas[fn].sum() + comparison.areas[fp].sum()
    )
    return float(intersection / covered) if covered else float("nan")


def _best_pair_per_gt(comparison: Comparison) -> NDArray[np.int64]:
    """Return the index of the pair of highest IoU of each ground-truth cell with a pair."""
    order = np.lexsort((comparison.pairs[:, 1], -comparison.iou, comparison.pairs[:, 0]))
    gt = comparison.pairs[order, 0]
    best: NDArray[np.int64] = order[np.diff(gt, prepend=-1) > 0]
    return best


def _assignment_pairs(comparison: Comparison) -> NDArray[np.int64]:
    """Return the indices of the pairs of the assignment with the highest sum of IoU."""
    n_gt, n_detections = len(comparison.gt_indices), len(comparison.detection_indices)
    gt, detection = comparison.pairs[:, 0], comparison.pairs[:, 1]
    # One small problem per connected component instead of one of the image's size.
    graph = coo_array((np.ones(len(gt)), (gt, n_gt + detection)), shape=(n_gt + n_detections,) * 2)
    group = connected_components(graph, directed=False)[1][gt]
    order = np.argsort(group, kind="stable")
    bounds = np.flatnonzero(np.diff(group[order], prepend=-1))
    iou = comparison.iou
    chosen = []
    for pairs in np.split(order, bounds[1:]):
        if len(pairs) == 1:
            chosen.append(pairs)
            continue
        rows, row = np.unique(gt[pairs], return_inverse=True)
        columns, column = np.unique(detection[pairs], return_inverse=True)
        gain = np.zeros((len(rows), len(columns)))
        gain[row, column] = iou[pairs]
        partner = np.full(len(rows), -1)
        row_at, column_at = linear_sum_assignment(gain, maximize=True)
        partner[row_at] = column_at
        chosen.append(pairs[partner[row] == column])
    return np.concatenate(chosen)


def mean_over_images(
    values: NDArray[np.float64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the `(…, K)` means of `(I, K)` values over images, without NaN; `weights` `(…, I)`."""
    known = ~np.isnan(values)
    return ratio(weights @ np.where(known, values, 0), weights @ known.astype(np.int64))

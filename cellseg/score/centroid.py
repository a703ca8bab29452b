"""Detection scores by the distance of centroids, as HoVer-Net defines them.

Graham et al., "HoVer-Net: Simultaneous segmentation and classification of nuclei in multi-tissue
histology images", Medical Image Analysis 58, 2019, doi 10.1016/j.media.2019.101563. Unlike F1 at an
IoU of 0.5, they don't ask how well a cell is outlined.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from cellseg.images import EvalImage
from cellseg.rle import centroids, select_masks
from cellseg.score.confusion import count_by_class
from cellseg.score.detection import ratio
from cellseg.score.labelmap import Comparison

RADIUS = 12.0  # pixels: of HoVer-Net's evaluation, for images of 0.25 µm per pixel
_MAX_DISTANCES = 1 << 24  # 128 MB, some seconds


def count_by_centroid(
    eval_image: EvalImage, comparison: Comparison, n_classes: int, radius: float = RADIUS
) -> NDArray[np.int64]:
    """Count the cells of an image's label maps by class, where centroids match.

    Centroids are those of the masks. Returns `(K + 1, K + 1)` int64 as `count_by_class`.
    """
    gt = centroids(select_masks(eval_image.gt_runs, comparison.gt_indices))
    detected = centroids(select_masks(eval_image.mask_runs, comparison.detection_indices))
    return count_by_class(comparison, match_centroids(gt, detected, radius), n_classes)


def match_centroids(
    gt: NDArray[np.float64], detected: NDArray[np.float64], radius: float
) -> NDArray[np.int64]:
    """Pair ground-truth cells with detections of at most a distance, each cell once.

    As HoVer-Net's evaluation does: as many pairs as there are cells of the fewer kind, with the
    least sum of distances; those further apart than `radius` are dropped then. A cell may be left
    without a partner so, although a free one is near, if that makes others' distances smaller. With
    more than `_MAX_DISTANCES`, the halves of an image are paired by themselves.

    Parameters
    ----------
    gt, detected
        `(N, 2)` and `(M, 2)` centroids in pixels.
    radius
        Largest distance in pixels.

    Returns
    -------
    `(Q, 2)` int64 indices of both.
    """
    if len(gt) > 1 and len(gt) * len(detected) > _MAX_DISTANCES:
        return _match_halves(gt, detected, radius)
    distances = cdist(gt, detected)
    rows, columns = linear_sum_assignment(distances)
    near: NDArray[np.bool_] = distances[rows, columns] <= radius
    return np.stack([rows[near], columns[near]], axis=1).astype(np.int64)


def _match_halves(
    gt: NDArray[np.float64], detected: NDArray[np.float64], radius: float
) -> NDArray[np.int64]:
    """Pair each half of an image, with half of the ground-truth cells and what is nearest to them.

    A cut through the detections, too, would leave both halves with cells too many along it.
    """
    axis = np.argmax(np.ptp(gt, axis=0))
    is_after = np.zeros(len(gt), bool)
    is_after[np.argsort(gt[:, axis], kind="stable")[len(gt) // 2 :]] = True
    detected_after = is_after[cKDTree(gt).query(detected)[1]]
    pairs = []
    for side in (False, True):
        g, d = np.flatnonzero(is_after == side), np.flatnonzero(detected_after == side)
        found = match_centroids(gt[g], detected[d], radius)
        pairs.append(np.stack([g[found[:, 0]], d[found[:, 1]]], axis=1))
    return np.concatenate(pairs)


def centroid_f1(counts: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the F1 of detection and classification over all images.

    Of a class t it is F_c = 2 TP / (2 TP + 2 FP_c + 2 FN_c + FP_d + FN_d): pairs of two cells of
    class t are TP, those of one FP_c (the detection) or FN_c (the ground-truth cell); cells of
    class t without a partner are FP_d and FN_d. Of any class it is F_d = 2 TP / (2 TP + FP + FN).

    Parameters
    ----------
    counts
        `(I, K + 1, K + 1)` of I images, as of `count_by_centroid`.
    weights
        `(…, I)`: how often each image is in the set.

    Returns
    -------
    `(…, K + 1)` float64: of each class, and of any; NaN without ground truth.
    """
    total = np.tensordot(weights, counts, axes=1)
    paired = total[..., :-1, :-1]
    missed, false = total[..., :-1, -1], total[..., -1, :-1]
    tp = np.diagonal(paired, axis1=-2, axis2=-1)
    n_gt, n_detected = paired.sum(axis=-1), paired.sum(axis=-2)
    errors = 2 * (n_gt - tp) + 2 * (n_detected - tp) + missed + false
    each = ratio(2 * tp, np.where(n_gt + missed > 0, 2 * tp + errors, 0))
    n_pairs = n_gt.sum(axis=-1)
    n_missed, n_false = missed.sum(axis=-1), false.sum(axis=-1)
    known = n_pairs + n_missed > 0
    any_class = ratio(2 * n_pairs, np.where(known, 2 * n_pairs + n_missed + n_false, 0))
    return np.concatenate([each, any_class[..., None]], axis=-1)

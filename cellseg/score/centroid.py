"""Detection scores by the distance of centroids, as HoVer-Net defines them.

Graham et al., "HoVer-Net: Simultaneous segmentation and classification of nuclei in multi-tissue
histology images", Medical Image Analysis 58, 2019, doi 10.1016/j.media.2019.101563. Unlike F1 at an
IoU of 0.5, they don't ask how well a cell is outlined.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, diags_array, hstack
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from cellseg.images import EvalImage
from cellseg.rle import centroids, select_masks
from cellseg.score.confusion import count_by_class
from cellseg.score.detection import ratio
from cellseg.score.labelmap import Comparison

RADIUS = 12.0  # pixels: of HoVer-Net's evaluation, for images of 0.25 µm per pixel


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

    As many pairs as possible, and among these the nearest: with the least sum of distances.

    Parameters
    ----------
    gt, detected
        `(N, 2)` and `(M, 2)` centroids in pixels.
    radius
        Largest distance in pixels.

    Returns
    -------
    `(Q, 2)` int64 indices of both, by ground-truth cell.
    """
    if not len(gt) or not len(detected):
        return np.zeros((0, 2), np.int64)
    near = cKDTree(gt).sparse_distance_matrix(cKDTree(detected), radius, output_type="coo_matrix")
    rows, columns = near.row.astype(np.int64), near.col.astype(np.int64)
    # Most cells have one candidate, which has no other.
    single = (np.bincount(rows)[rows] == 1) & (np.bincount(columns)[columns] == 1)
    pairs = np.stack([rows, columns], axis=1)
    chosen = _match(pairs[~single], near.data[~single], radius)
    found: NDArray[np.int64] = np.concatenate([pairs[single], chosen])
    return found[np.argsort(found[:, 0])]


def _match(
    pairs: NDArray[np.int64], distances: NDArray[np.float64], radius: float
) -> NDArray[np.int64]:
    """Return the best of the candidate pairs."""
    rows, row = np.unique(pairs[:, 0], return_inverse=True)
    columns, column = np.unique(pairs[:, 1], return_inverse=True)
    if not len(rows):
        return pairs
    # Zeros would not be candidates. A cell without a partner, a column of its own, costs more than
    # all pairs together.
    costs = coo_array((distances + 1, (row, column)), shape=(len(rows), len(columns)))
    alone = diags_array(np.full(len(rows), (radius + 2) * len(rows)))
    chosen_row, chosen = min_weight_full_bipartite_matching(hstack([costs, alone], format="csr"))
    paired = chosen < len(columns)
    return np.stack([rows[chosen_row[paired]], columns[chosen[paired]]], axis=1)


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

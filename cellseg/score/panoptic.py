"""Panoptic quality: PQ = DQ × SQ, how well cells are detected times how well outlined.

A. Kirillov et al., "Panoptic segmentation", CVPR 2019. DQ is an F1 that hits of IoU above
0.5 make up, SQ the mean IoU of the hits. PQ alone hides which of the two went wrong, and
IoU is harsh on small cells (A. Foucart et al., Scientific Reports 13, 2023, doi
10.1038/s41598-023-35605-7): the three stand side by side here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.score.detection import MatchCounts, ratio


@dataclass(frozen=True)
class Panoptic:
    """PQ, DQ and SQ, `(…, K)` float64 each; NaN for a class that has no ground-truth cell.

    Attributes
    ----------
    pq, dq, sq
        As in the MoNuSAC 2020 challenge (R. Verma et al., IEEE TMI 40(12), 2021, and its
        `PQ_metric.ipynb`, without the slip in its false positives that A. Foucart et al.
        found, doi 10.1109/TMI.2022.3156023): of each image that has ground-truth cells of the
        class, then the mean over these images. An image without ground-truth cells of the class
        is left out, even if some are found there. SQ is the mean over the images with a
        hit, so that the mean PQ isn't the product of the two other means.
    pooled_pq, pooled_dq, pooled_sq
        Of the cells of all images together, as Kirillov et al. define it and CoNIC 2022
        ranks by: here false positives count in every image, and a large image for more than
        a small one.
    """

    pq: NDArray[np.float64]
    dq: NDArray[np.float64]
    sq: NDArray[np.float64]
    pooled_pq: NDArray[np.float64]
    pooled_dq: NDArray[np.float64]
    pooled_sq: NDArray[np.float64]


def panoptic(sums: MatchCounts, weights: NDArray[np.int64]) -> Panoptic:
    """PQ, DQ and SQ of each class.

    Parameters
    ----------
    sums
        I images and K classes.
    weights
        `(…, I)`: how often each image is in the set.
    """
    has_gt = sums.tp + sums.fn > 0
    has_tp = sums.tp > 0
    of_image = _quality(sums.tp, sums.fn, sums.fp, sums.iou)
    pq, dq, sq = (
        ratio(weights @ np.where(counts, value, 0), weights @ counts.astype(np.int64))
        for value, counts in zip(of_image, (has_gt, has_gt, has_tp), strict=True)
    )
    tp, fn, fp, iou = (weights @ part for part in (sums.tp, sums.fn, sums.fp, sums.iou))
    pooled = _quality(tp, fn, fp, iou)
    return Panoptic(pq, dq, sq, *(np.where(tp + fn > 0, value, np.nan) for value in pooled))


def _quality(
    tp: NDArray[Any], fn: NDArray[Any], fp: NDArray[Any], iou: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    weight = tp + 0.5 * (fn + fp)
    return ratio(iou, weight), ratio(tp, weight), ratio(iou, tp)

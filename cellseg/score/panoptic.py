"""Panoptic quality: PQ = DQ × SQ, detection quality times segmentation quality.

A. Kirillov et al., "Panoptic segmentation", CVPR 2019. DQ is the F1 at IoU 0.5, SQ the mean IoU
of the true positives. PQ hides which of the two is low, and IoU penalises small cells (A. Foucart
et al., Scientific Reports 13, 2023, doi 10.1038/s41598-023-35605-7), so all three are reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.score.detection import MatchCounts, ratio


@dataclass(frozen=True)
class Panoptic:
    """PQ, DQ and SQ, `(…, K)` float64 each; NaN for a class without ground truth.

    Attributes
    ----------
    pq, dq, sq
        As in the MoNuSAC 2020 challenge (R. Verma et al., IEEE TMI 40(12), 2021, and its
        `PQ_metric.ipynb`, without the error in its false positives reported by A. Foucart et
        al., doi 10.1109/TMI.2022.3156023): means over the images with ground-truth cells of
        the class; other images are ignored, even with false positives. SQ is the mean over
        images with a true positive, so that mean PQ is not mean DQ × mean SQ.
    pooled_pq, pooled_dq, pooled_sq
        Of the cells of all images together, as Kirillov et al. define it and CoNIC 2022 ranks
        by: false positives count in every image, and larger images count more.
    """

    pq: NDArray[np.float64]
    dq: NDArray[np.float64]
    sq: NDArray[np.float64]
    pooled_pq: NDArray[np.float64]
    pooled_dq: NDArray[np.float64]
    pooled_sq: NDArray[np.float64]


def panoptic(sums: MatchCounts, weights: NDArray[np.int64]) -> Panoptic:
    """Return PQ, DQ and SQ of each class; `weights`, `(…, I)`, count each image in the set."""
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

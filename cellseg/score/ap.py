"""Average precision of masks as COCO defines it (T.-Y. Lin et al., ECCV 2014).

Equal to `pycocotools.cocoeval.COCOeval`. Detections are matched once per image; precision and
recall take image weights, so that a bootstrap over images needs no new matching.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg.images import EvalImage
from cellseg.score.match import MatchCandidates, class_candidates, match_greedily

THRESHOLDS = np.linspace(0.5, 0.95, 10).astype(np.float64)
RECALLS = np.linspace(0, 1, 101).astype(np.float64)


@dataclass(frozen=True)
class RankedDetections:
    """The D detections of one class in all images, best score first.

    Attributes
    ----------
    image_indices
        `(D,)` int64 index of the image of each.
    scores
        `(D,)` float64.
    ranks
        `(D,)` int64 rank within its image and class, from 0.
    tp, ignored
        `(T, D)` bool for each IoU threshold: true positive; not counted.
    n_gt
        `(I,)` int64 number of counted ground-truth cells of each image.
    """

    image_indices: NDArray[np.int64]
    scores: NDArray[np.float64]
    ranks: NDArray[np.int64]
    tp: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    n_gt: NDArray[np.int64]


@dataclass(frozen=True)
class AveragePrecision:
    """AP with at most `max_detections` per image and class; NaN without ground truth.

    Attributes
    ----------
    max_detections
        None for all.
    ap, ap50, ap75
        Mean over the classes with ground truth: over the IoU thresholds 0.5, 0.55 … 0.95,
        at 0.5, at 0.75.
    class_ap, class_ap50, class_ap75
        `(K,)` float64: the same for each class.
    """

    max_detections: int | None
    ap: float
    ap50: float
    ap75: float
    class_ap: NDArray[np.float64]
    class_ap50: NDArray[np.float64]
    class_ap75: NDArray[np.float64]


def mask_ap(
    eval_images: Sequence[EvalImage],
    n_classes: int,
    max_detections: Sequence[int | None] = (100, None),
) -> dict[int | None, AveragePrecision]:
    """Return the AP of masks for each of the `max_detections` per image and class (None: all).

    `eval_images` are all images of the ground truth, also those without detections.
    """
    rankings = rank_detections(find_match_candidates(eval_images, n_classes), n_classes)
    return {cap: average_precision(rankings, cap) for cap in max_detections}


def find_match_candidates(
    eval_images: Iterable[EvalImage], n_classes: int
) -> list[list[MatchCandidates]]:
    """Return the candidates of the K classes for every image, the slow part of the matching."""
    return [
        [class_candidates(eval_image, k, float(THRESHOLDS[0])) for k in range(n_classes)]
        for eval_image in eval_images
    ]


def rank_detections(
    candidates: Sequence[Sequence[MatchCandidates]],
    n_classes: int,
    area_range: tuple[float, float] = (0, np.inf),
) -> list[RankedDetections]:
    """Match and rank the detections of each class.

    Parameters
    ----------
    candidates, n_classes
        `find_match_candidates` of the images, and K.
    area_range
        Minimum and maximum area in pixels, both inclusive, of counted cells. Cells outside
        are ignored, and so are unmatched detections outside.
    """
    low, high = area_range
    rankings = []
    for k in range(n_classes):
        image_indices, scores, ranks, n_gt, tp, ignored = [], [], [], [], [], []
        for i, match in enumerate(of_image[k] for of_image in candidates):
            gt_ignored = match.crowd | (match.gt_areas < low) | (match.gt_areas > high)
            n = len(match.scores)
            matched = match_greedily(match.pairs, n, gt_ignored, match.crowd, THRESHOLDS)
            # Unmatched (−1) detections are ignored if their own area is outside.
            is_ignored = np.append(gt_ignored, False)[matched]
            is_ignored |= (matched < 0) & ((match.areas < low) | (match.areas > high))
            image_indices.append(np.full(n, i))
            scores.append(match.scores)
            ranks.append(np.arange(n))
            tp.append((matched >= 0) & ~is_ignored)
            ignored.append(is_ignored)
            n_gt.append(np.count_nonzero(~gt_ignored))
        all_scores = np.concatenate([np.zeros(0), *scores])
        order = np.argsort(-all_scores, kind="stable")
        none = np.zeros((len(THRESHOLDS), 0), bool)
        rankings.append(
            RankedDetections(
                image_indices=np.concatenate([np.zeros(0, np.int64), *image_indices])[order],
                scores=all_scores[order],
                ranks=np.concatenate([np.zeros(0, np.int64), *ranks])[order],
                tp=np.concatenate([none, *tp], axis=1)[:, order],
                ignored=np.concatenate([none, *ignored], axis=1)[:, order],
                n_gt=np.array(n_gt, np.int64),
            )
        )
    return rankings


def limit_detections(ranking: RankedDetections, max_detections: int | None) -> RankedDetections:
    """Return the best detections of each image."""
    if max_detections is None or not (ranking.ranks >= max_detections).any():
        return ranking
    keep = ranking.ranks < max_detections
    return RankedDetections(
        ranking.image_indices[keep],
        ranking.scores[keep],
        ranking.ranks[keep],
        ranking.tp[:, keep],
        ranking.ignored[:, keep],
        ranking.n_gt,
    )


def precisions(
    ranking: RankedDetections, weights: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return the precision of one class at the 101 recalls 0, 0.01 … 1, for each IoU threshold.

    Parameters
    ----------
    ranking
        Detections of the class.
    weights
        `(I,)` integers: how often each image is in the set (once if None).

    Returns
    -------
    `(T, 101)` float64: the maximum precision at this recall or a higher one, 0 where the
    recall is not reached, NaN without ground truth.
    """
    n_thresholds = len(ranking.tp)
    result = np.zeros((n_thresholds, len(RECALLS)))
    if weights is None:
        weights = np.ones(len(ranking.n_gt), np.int64)
    n_gt = int(weights @ ranking.n_gt)
    if n_gt == 0:
        result[:] = np.nan
        return result
    weight = weights[ranking.image_indices]
    shared = None if ranking.ignored.any() else np.cumsum(weight)
    for t in range(n_thresholds):
        # Between true positives precision only falls: its maxima are at true positives.
        at = np.flatnonzero(ranking.tp[t])
        n_seen = (np.cumsum(weight * ~ranking.ignored[t]) if shared is None else shared)[at]
        n_tp = np.cumsum(weight[at])
        precision = n_tp / (n_seen + np.spacing(1))
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        first = np.searchsorted(n_tp / n_gt, RECALLS, side="left")
        reached = first < len(at)
        result[t, reached] = precision[first[reached]]
    return result


def average_precision(
    rankings: Sequence[RankedDetections],
    max_detections: int | None = None,
    weights: NDArray[np.int64] | None = None,
) -> AveragePrecision:
    """Return the AP of K classes; `weights` as in `precisions`."""
    by_class = np.full((len(rankings), len(THRESHOLDS)), np.nan)
    for k, ranking in enumerate(rankings):
        by_class[k] = precisions(limit_detections(ranking, max_detections), weights).mean(axis=1)
    class_ap, class_ap50, class_ap75 = by_class.mean(axis=1), by_class[:, 0], by_class[:, 5]
    ap, ap50, ap75 = (nan_mean(values) for values in (class_ap, class_ap50, class_ap75))
    return AveragePrecision(max_detections, ap, ap50, ap75, class_ap, class_ap50, class_ap75)


def nan_mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the numbers; NaN, without a warning, if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")

"""Average precision of masks, as COCO defines it.

T.-Y. Lin et al., "Microsoft COCO", ECCV 2014; the reference is
`pycocotools.cocoeval.COCOeval`, whose numbers these are. Matches are found once, image
by image; precision and recall then take a weight for each image, so that resampling
the images (`cellseg.score.bootstrap`) costs no new match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg import rle
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
        `(D,)` int64: the place of each one's image among the images.
    scores
        `(D,)` float64.
    ranks
        `(D,)` int64: the place among the detections of its image and class, from 0.
    tp, ignored
        `(T, D)` bool, for each IoU threshold: found a cell; neither right nor wrong.
    n_gt
        `(I,)` int64: the ground-truth cells of each image that count.
    """

    image_indices: NDArray[np.int64]
    scores: NDArray[np.float64]
    ranks: NDArray[np.int64]
    tp: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    n_gt: NDArray[np.int64]


@dataclass(frozen=True)
class AveragePrecision:
    """AP with at most `max_detections` of each image and class; NaN where there is no ground truth.

    Attributes
    ----------
    max_detections
        None for all.
    ap, ap50, ap75
        Mean over the classes that have truth: over the IoU thresholds 0.5, 0.55 … 0.95,
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
    """AP of masks for each cap on the detections of an image and class.

    Parameters
    ----------
    eval_images
        All images of the ground truth, also those without detections, whose cells count as missed.
    n_classes
        K.
    max_detections
        The caps; None for no cap.
    """
    rankings = rank_detections(eval_images, find_match_candidates(eval_images, n_classes))
    return {cap: average_precision(rankings, cap) for cap in max_detections}


def find_match_candidates(
    eval_images: Sequence[EvalImage], n_classes: int
) -> list[list[MatchCandidates]]:
    """`K` lists of the candidates of every image: the slow part, needed once."""
    return [
        [class_candidates(eval_image, k, float(THRESHOLDS[0])) for eval_image in eval_images]
        for k in range(n_classes)
    ]


def rank_detections(
    eval_images: Sequence[EvalImage],
    candidates: Sequence[Sequence[MatchCandidates]],
    area_range: tuple[float, float] = (0, np.inf),
) -> list[RankedDetections]:
    """Match and rank the detections of each class.

    Parameters
    ----------
    eval_images, candidates
        The images and what `find_match_candidates` says of them.
    area_range
        Least and greatest area in pixels, both inclusive, of the cells that count.
        Cells outside are ignored, and so are detections outside that match none.
    """
    low, high = area_range
    outside = [
        tuple(
            (areas < low) | (areas > high) for areas in (rle.areas(mask_runs) for mask_runs in both)
        )
        for both in ((eval_image.gt_runs, eval_image.mask_runs) for eval_image in eval_images)
    ]
    rankings = []
    for of_one_class in candidates:
        image_indices, scores, ranks, n_gt = [], [], [], []
        tp, ignored = [], []
        for i, (eval_image, match) in enumerate(zip(eval_images, of_one_class, strict=True)):
            gt_outside, outside_here = outside[i]
            crowd = eval_image.crowd[match.gt_indices]
            gt_ignored = crowd | gt_outside[match.gt_indices]
            n = len(match.detection_indices)
            matched = match_greedily(match.pairs, n, gt_ignored, crowd, THRESHOLDS)
            # The cell −1, "none", is ignored if the detection itself is.
            is_ignored = np.append(gt_ignored, False)[matched]
            is_ignored |= (matched < 0) & outside_here[match.detection_indices]
            image_indices.append(np.full(n, i))
            scores.append(eval_image.scores[match.detection_indices])
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
    """Keep the best detections of each image alone."""
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
    """Precision of one class at the 101 recalls 0, 0.01 … 1, for each IoU threshold.

    Parameters
    ----------
    ranking
        The class's detections.
    weights
        `(I,)` integers: how often each image is in the set; once each if None.

    Returns
    -------
    `(T, 101)` float64, falling along the recall: the greatest precision at this recall
    or a greater one, 0 where the recall is not reached. NaN throughout without ground truth.
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
        # Precision falls from one hit to the next, so that its maxima are at the hits.
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
    """AP of K classes; `weights` as in `precisions`."""
    by_class = np.full((len(rankings), len(THRESHOLDS)), np.nan)
    for k, ranking in enumerate(rankings):
        by_class[k] = precisions(limit_detections(ranking, max_detections), weights).mean(axis=1)
    class_ap, class_ap50, class_ap75 = by_class.mean(axis=1), by_class[:, 0], by_class[:, 5]
    return AveragePrecision(
        max_detections,
        nan_mean(class_ap),
        nan_mean(class_ap50),
        nan_mean(class_ap75),
        class_ap,
        class_ap50,
        class_ap75,
    )


def nan_mean(values: NDArray[np.float64]) -> float:
    """Mean of what is a number; NaN, in silence, if nothing is."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")

"""All metrics of a results file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cellseg.images import EvalImage, distinct_detections, without_masks
from cellseg.score import ap
from cellseg.score.aji import aji, aji_plus, mean_over_images
from cellseg.score.bootstrap import draw_weights, interval
from cellseg.score.centroid import RADIUS, centroid_f1, count_by_centroid
from cellseg.score.confusion import confusion_matrix
from cellseg.score.detection import (
    DetectionScores,
    MatchCounts,
    count_matches,
    detection_scores,
    ratio,
)
from cellseg.score.labelmap import Comparison, class_agnostic, compare_label_maps, select_class
from cellseg.score.match import MatchCandidates
from cellseg.score.panoptic import panoptic
from cellseg.text import name_of_total

MEAN = "mean of classes"
ANY = "any class"

Metrics = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class ImageScore:
    """Class-agnostic matches of one image, as indices in the image.

    Attributes
    ----------
    tp, misclassified
        `(…, 2)` int64 `(ground truth, detection)`: matches of the correct and of another class.
    fn, fp
        Ground-truth cells and detections without a match.
    """

    tp: NDArray[np.int64]
    misclassified: NDArray[np.int64]
    fn: NDArray[np.int64]
    fp: NDArray[np.int64]


@dataclass(frozen=True)
class SizeBin:
    """AP of ground-truth cells of `low` to `high` pixels, both inclusive, with all detections."""

    low: int
    high: int
    n_gt: int
    ap: ap.AveragePrecision


@dataclass(frozen=True)
class Scores:
    """All metrics of one results file. NaN means that a metric is not defined.

    Attributes
    ----------
    classes
        The K class names.
    rows
        K + 2: the classes, "mean of classes" (over those with ground truth) and "any class"
        (class-agnostic; not for AP).
    eval_images, comparisons, images
        I each, in one order: the cells of the detections, each once, perhaps without masks, and
        their label maps (for all but AP) and matches.
    n_detections
        Number of all detections of each image (for AP).
    metrics
        `(K + 2,)` float64 by name: "AP@100", "AP50@100", "AP75@100" for each maximum of
        detections, "AP@all" for all; "PQ", "DQ", "SQ" as in MoNuSAC; "pooled PQ", "pooled
        DQ", "pooled SQ"; "AJI", "AJI+", the mean over images with ground truth or detections;
        "F1", "precision", "recall" at IoU 0.5; "centroid F1", see `cellseg.score.centroid`. NaN for
        a class without ground truth.
    samples
        `(B, K + 2)` by name: the metrics of B bootstrap resamples of the images.
    low, high
        `(K + 2,)` by name: bounds of the 95 % interval; NaN if B is 0, for classes in one image,
        and for the SQ of true positives in one image.
    ap
        AP by maximum of detections.
    precisions
        `(K, 10, 101)` float64 by maximum of detections: precision by IoU threshold 0.5 … 0.95
        and recall 0 … 1, whose mean is AP.
    sizes
        AP by ground-truth area, in bins of a quarter of the cells each.
    thresholds, by_threshold
        `(10,)` IoUs, and precision, recall and F1 at each, `(10, K + 2)`.
    confusion_matrix
        `(K + 1, K + 1)` int64, see `cellseg.score.confusion`.
    gt_counts, counts
        `(I, K)` int64: ground-truth cells and detections of each image and class.
    match_counts, agnostic_counts
        `(I, K)` and `(I, 1)`: true positives, false negatives, false positives at IoU 0.5.
    aji, aji_plus
        `(I, K + 1)` float64 of each image: by class, and class-agnostic.
    score_threshold, overlap
        Parameters of the label maps.
    radius
        Largest distance of matching centroids, in pixels.
    """

    classes: list[str]
    rows: list[str]
    eval_images: list[EvalImage]
    n_detections: list[int]
    comparisons: list[Comparison]
    images: list[ImageScore]
    metrics: Metrics
    samples: Metrics
    low: Metrics
    high: Metrics
    ap: dict[int | None, ap.AveragePrecision]
    precisions: dict[int | None, NDArray[np.float64]]
    sizes: list[SizeBin]
    thresholds: NDArray[np.float64]
    by_threshold: DetectionScores
    confusion_matrix: NDArray[np.int64]
    gt_counts: NDArray[np.int64]
    counts: NDArray[np.int64]
    match_counts: MatchCounts
    agnostic_counts: MatchCounts
    aji: NDArray[np.float64]
    aji_plus: NDArray[np.float64]
    score_threshold: float
    overlap: str
    radius: float


def score(
    eval_images: Iterable[EvalImage],
    classes: Sequence[str],
    *,
    with_masks: bool = True,
    score_threshold: float = 0.5,
    overlap: str = "score",
    radius: float = RADIUS,
    max_detections: Sequence[int | None] = (100, None),
    n_resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Scores:
    """Compute all metrics: AP of all detections, the others of the cells that they are of.

    Parameters
    ----------
    eval_images
        All images of the ground truth, as of `cellseg.read.pairs.iter_pairs`; each is needed
        only until the next one.
    classes
        The K class names.
    with_masks
        Whether the images of the scores have masks, for pictures.
    score_threshold, overlap
        Parameters of `cellseg.score.labelmap.compare_label_maps`; AP uses all detections.
    radius
        Largest distance of the centroids of a pair, in pixels, for "centroid F1".
    max_detections
        Maxima of detections per image and class, for AP; None for all.
    n_resamples, seed
        Bootstrap resamples for the intervals, 0 for none; a single image has no intervals.
        The same ground truth, number and seed give the same resamples.
    progress
        Whether to show a progress bar of the resamples, if stderr is a terminal.
    """
    n_classes = len(classes)
    cells, n_detections, candidates, comparisons, by_centroid = [], [], [], [], []
    for eval_image in eval_images:
        n_detections.append(len(eval_image.scores))
        candidates += ap.find_match_candidates([eval_image], n_classes)
        distinct = distinct_detections(eval_image)
        comparison = compare_label_maps(distinct, score_threshold, overlap)
        comparisons.append(comparison)
        by_centroid.append(count_by_centroid(distinct, comparison, n_classes, radius))
        cells.append(distinct if with_masks else without_masks(distinct))
    rankings = ap.rank_detections(candidates, n_classes)
    by_cap = {cap: [ap.limit_detections(r, cap) for r in rankings] for cap in max_detections}
    agnostic = [class_agnostic(comparison) for comparison in comparisons]
    match_counts = count_matches(comparisons, n_classes)
    agnostic_counts = count_matches(agnostic, 1)
    gt_counts = _count([c.gt_classes for c in comparisons], n_classes)
    ajis = _aji_by_image(comparisons, n_classes)
    centroid_counts = np.reshape(by_centroid, (-1, n_classes + 1, n_classes + 1)).astype(np.int64)
    basis = _Basis(by_cap, gt_counts, match_counts, agnostic_counts, ajis, centroid_counts)
    unit_weights = np.ones((1, len(cells)), np.int64)
    n_sets = n_resamples if len(cells) > 1 else 0
    samples = _metrics(basis, draw_weights(len(cells), n_sets, seed), progress)
    low, high = _bounds(samples, gt_counts, _count_tp_images(match_counts, agnostic_counts))
    return Scores(
        classes=list(classes),
        rows=[*classes, name_of_total(MEAN, classes), name_of_total(ANY, classes)],
        eval_images=cells,
        n_detections=n_detections,
        comparisons=comparisons,
        images=[_image_score(comparison) for comparison in comparisons],
        metrics={name: values[0] for name, values in _metrics(basis, unit_weights).items()},
        samples=samples,
        low=low,
        high=high,
        ap={cap: ap.average_precision(rankings, cap) for cap in max_detections},
        precisions={
            cap: np.stack([ap.precisions(ranking) for ranking in of_cap])
            for cap, of_cap in by_cap.items()
        },
        sizes=_by_size(candidates, n_classes),
        thresholds=ap.THRESHOLDS,
        by_threshold=_by_threshold(comparisons, agnostic, n_classes),
        confusion_matrix=confusion_matrix(comparisons, n_classes),
        gt_counts=gt_counts,
        counts=_count([c.classes for c in comparisons], n_classes),
        match_counts=match_counts,
        agnostic_counts=agnostic_counts,
        aji=ajis[0],
        aji_plus=ajis[1],
        score_threshold=score_threshold,
        overlap=overlap,
        radius=radius,
    )


@dataclass(frozen=True)
class _Basis:
    """What the metrics are computed from, whatever the weights of the images.

    Attributes
    ----------
    by_cap
        The ranked detections of each class, by maximum of detections.
    gt_counts, match_counts, agnostic_counts
        As in `Scores`.
    ajis
        `(2, I, K + 1)`: `Scores.aji` and `Scores.aji_plus`.
    centroid_counts
        `(I, K + 1, K + 1)`, see `cellseg.score.centroid`.
    """

    by_cap: dict[int | None, list[ap.RankedDetections]]
    gt_counts: NDArray[np.int64]
    match_counts: MatchCounts
    agnostic_counts: MatchCounts
    ajis: NDArray[np.float64]
    centroid_counts: NDArray[np.int64]


def _metrics(basis: _Basis, weights: NDArray[np.int64], progress: bool = False) -> Metrics:
    """Return the metrics, `(B, K + 2)` by name, of B sets of images; `weights` are `(B, I)`."""
    hidden = None if progress else True  # None: unless stderr is a terminal
    sets = tqdm(weights, desc="intervals", unit="set", leave=False, disable=hidden)
    result = _ap_metrics(basis.by_cap, sets)
    each, one = panoptic(basis.match_counts, weights), panoptic(basis.agnostic_counts, weights)
    for name in ("pq", "dq", "sq", "pooled_pq", "pooled_dq", "pooled_sq"):
        metric_name = name.replace("_", " ").replace(name[-2:], name[-2:].upper())
        result[metric_name] = _with_mean(getattr(each, name), getattr(one, name))
    n_gt = weights @ basis.gt_counts
    has_gt = np.append(n_gt, n_gt.sum(axis=-1, keepdims=True), axis=-1) > 0
    for name, values in zip(("AJI", "AJI+"), basis.ajis, strict=True):
        # An image with false positives only counts as 0, but such a class has no score.
        mean = np.where(has_gt, mean_over_images(values, weights), np.nan)
        result[name] = _with_mean(mean[..., :-1], mean[..., -1:])
    f_each = detection_scores(basis.match_counts, weights)
    f_one = detection_scores(basis.agnostic_counts, weights)
    for name in ("F1", "precision", "recall"):
        attribute = name.lower()
        result[name] = _with_mean(getattr(f_each, attribute), getattr(f_one, attribute))
    by_centroid = centroid_f1(basis.centroid_counts, weights)
    result["centroid F1"] = _with_mean(by_centroid[..., :-1], by_centroid[..., -1:])
    return result


def _aji_by_image(comparisons: Sequence[Comparison], n_classes: int) -> NDArray[np.float64]:
    """Return AJI and AJI+ of each image, by class and class-agnostic, `(2, I, K + 1)`."""
    ajis = np.full((2, len(comparisons), n_classes + 1), np.nan)
    for i, comparison in enumerate(comparisons):
        parts = [*(select_class(comparison, k) for k in range(n_classes)), comparison]
        ajis[0, i] = [aji(part) for part in parts]
        ajis[1, i] = [aji_plus(part) for part in parts]
    return ajis


def count_without_pixels(scores: Scores) -> tuple[int, int]:
    """Return how many ground-truth cells and detections have no pixel in the label maps."""
    n_gt, n_detections = 0, 0
    for image, comparison in zip(scores.eval_images, scores.comparisons, strict=True):
        n_gt += int((~image.crowd).sum()) - len(comparison.gt_indices)
        n_detections += int((image.scores >= scores.score_threshold).sum())
        n_detections -= len(comparison.detection_indices)
    return n_gt, n_detections


@dataclass(frozen=True)
class Difference:
    """A, B, and B − A with its 95 % interval, `(K + 2,)` float64 by metric."""

    rows: list[str]
    a: Metrics
    b: Metrics
    value: Metrics
    low: Metrics
    high: Metrics


def difference(a: Scores, b: Scores) -> Difference:
    """Compare two results scored on the same ground truth with the same resamples.

    Resamples are paired, so the interval is far narrower than the two intervals suggest.
    """
    samples = {name: b.samples[name] - a.samples[name] for name in a.metrics}
    n_tp = [_count_tp_images(scores.match_counts, scores.agnostic_counts) for scores in (a, b)]
    low, high = _bounds(samples, a.gt_counts, np.minimum(*n_tp))
    return Difference(
        rows=a.rows,
        a=a.metrics,
        b=b.metrics,
        value={name: b.metrics[name] - a.metrics[name] for name in a.metrics},
        low=low,
        high=high,
    )


def _count_tp_images(of_class: MatchCounts, of_any: MatchCounts) -> NDArray[np.int64]:
    """Return the number of images with a true positive, `(K + 1,)`: of each class, and of any."""
    n_images: NDArray[np.int64] = (np.concatenate([of_class.tp, of_any.tp], axis=1) > 0).sum(axis=0)
    return n_images


def _bounds(
    samples: Metrics, gt_counts: NDArray[np.int64], n_tp_images: NDArray[np.int64]
) -> tuple[Metrics, Metrics]:
    """Return the bounds of the 95 % intervals, `(K + 2,)` by name.

    NaN for a class in one image, as a resample has all of its cells or none; for the mean of
    classes, where such a class is in some resamples only; and for any class in one image. SQ is
    that of the images with a true positive, `n_tp_images` of them, `(K + 1,)`.
    """
    has_cells = np.concatenate([gt_counts, gt_counts.sum(axis=1, keepdims=True)], axis=1) > 0

    def in_one(n_images: NDArray[np.int64]) -> NDArray[np.bool_]:
        *of_class, of_any = n_images
        return np.array([*(n < 2 for n in of_class), 1 in of_class, of_any < 2])

    no_interval = in_one(has_cells.sum(axis=0))
    no_sq = no_interval | in_one(n_tp_images)
    bounds = {
        name: np.where(no_sq if name in ("SQ", "pooled SQ") else no_interval, np.nan, interval(of))
        for name, of in samples.items()
    }
    low = {name: both[0] for name, both in bounds.items()}
    high = {name: both[1] for name, both in bounds.items()}
    return low, high


def _ap_metrics(by_cap: dict[int | None, list[ap.RankedDetections]], weights: Any) -> Metrics:
    columns: dict[str, list[NDArray[np.float64]]] = {
        f"{name}@{'all' if cap is None else cap}": [] for cap in by_cap for name in _AP_NAMES
    }
    for weight in weights:
        for cap, rankings in by_cap.items():
            scores = ap.average_precision(rankings, None, weight)
            for name, attribute in _AP_NAMES.items():
                row = [*getattr(scores, f"class_{attribute}"), getattr(scores, attribute), np.nan]
                columns[f"{name}@{'all' if cap is None else cap}"].append(np.array(row))
    n_rows = len(next(iter(by_cap.values()), [])) + 2
    return {name: np.reshape(rows, (-1, n_rows)) for name, rows in columns.items()}


_AP_NAMES = {"AP": "ap", "AP50": "ap50", "AP75": "ap75"}


def _with_mean(classes: NDArray[np.float64], one: NDArray[np.float64]) -> NDArray[np.float64]:
    """Concatenate `(…, K)`, their mean and `(…, 1)`."""
    known = ~np.isnan(classes)
    total = np.where(known, classes, 0).sum(axis=-1, keepdims=True)
    mean = ratio(total, known.sum(axis=-1, keepdims=True))
    return np.concatenate([classes, mean, one], axis=-1)


def _image_score(comparison: Comparison) -> ImageScore:
    pairs, _ = comparison.matches()
    gt, detection = pairs.T
    correct = comparison.gt_classes[gt] == comparison.classes[detection]
    fn, fp = comparison.unmatched(pairs)
    matches = np.stack([comparison.gt_indices[gt], comparison.detection_indices[detection]], axis=1)
    return ImageScore(
        tp=matches[correct],
        misclassified=matches[~correct],
        fn=comparison.gt_indices[fn],
        fp=comparison.detection_indices[fp],
    )


def _by_size(candidates: Sequence[Sequence[MatchCandidates]], n_classes: int) -> list[SizeBin]:
    counted = [each.gt_areas[~each.crowd] for of_image in candidates for each in of_image]
    areas = np.concatenate([np.zeros(0, np.int64), *counted])
    if not len(areas):
        return []
    ends = np.unique([*np.floor(np.quantile(areas, [0.25, 0.5, 0.75])), areas.max()]).astype(int)
    bins = []
    for low, high in zip([int(areas.min()), *(ends[:-1] + 1).tolist()], ends.tolist(), strict=True):
        rankings = ap.rank_detections(candidates, n_classes, (low, high))
        n_gt = sum(int(ranking.n_gt.sum()) for ranking in rankings)
        bins.append(SizeBin(low, high, n_gt, ap.average_precision(rankings)))
    return bins


def _by_threshold(
    comparisons: Sequence[Comparison], agnostic: Sequence[Comparison], n_classes: int
) -> DetectionScores:
    unit_weights = np.ones(len(comparisons), np.int64)
    parts = []
    # Some of COCO's are a little below, which matters where an IoU has to be above.
    for threshold in ap.THRESHOLDS.round(2).tolist():
        each = detection_scores(count_matches(comparisons, n_classes, threshold), unit_weights)
        one = detection_scores(count_matches(agnostic, 1, threshold), unit_weights)
        names = ("precision", "recall", "f1")
        parts.append([_with_mean(getattr(each, name), getattr(one, name)) for name in names])
    return DetectionScores(*np.array(parts).transpose(1, 0, 2))


def _count(classes: Sequence[NDArray[np.int64]], n_classes: int) -> NDArray[np.int64]:
    counts = [np.bincount(c, minlength=n_classes) for c in classes]
    return np.array(counts, np.int64).reshape(-1, n_classes)

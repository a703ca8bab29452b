"""Match detections with ground-truth cells as COCO does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from cellseg.images import EvalImage
from cellseg.rle import areas


@dataclass(frozen=True)
class MatchCandidates:
    """Ground-truth cells and detections of one class in one image, and their possible matches.

    Attributes
    ----------
    gt_indices
        `(G,)` int64 indices of the ground-truth cells in the image.
    detection_indices
        `(D,)` int64 indices of the detections in the image, best score first, equal scores in
        the order of the file.
    pairs
        `(detection, ground truth, IoU)` with indices of the two arrays above, for each pair of
        at least the minimum IoU, sorted.
    crowd
        `(G,)` bool: crowd regions.
    scores
        `(D,)` float64.
    gt_areas, areas
        `(G,)` and `(D,)` int64 areas of the masks in pixels.
    """

    gt_indices: NDArray[np.int64]
    detection_indices: NDArray[np.int64]
    pairs: list[tuple[int, int, float]]
    crowd: NDArray[np.bool_]
    scores: NDArray[np.float64]
    gt_areas: NDArray[np.int64]
    areas: NDArray[np.int64]


# IoUs computed at a time: 128 MB, which bounds memory on a slide with 100,000 cells.
_MAX_IOUS = 1 << 24


def class_candidates(eval_image: EvalImage, class_index: int, min_iou: float) -> MatchCandidates:
    """Return the detections and ground-truth cells of a class with an IoU of `min_iou` or more.

    For a crowd region, IoU is the fraction of the detection inside, as COCO defines it.
    """
    gt_indices = np.flatnonzero(eval_image.gt_classes == class_index)
    detection_indices = np.flatnonzero(eval_image.classes == class_index)
    detection_indices = detection_indices[
        np.argsort(-eval_image.scores[detection_indices], kind="stable")
    ]
    gt_masks = [eval_image.gt_masks[g] for g in gt_indices]
    crowd = eval_image.crowd[gt_indices]
    pairs: list[tuple[int, int, float]] = []
    n_rows = max(1, _MAX_IOUS // max(1, len(gt_indices)))
    for start in range(0, len(detection_indices) if gt_masks else 0, n_rows):
        masks = [eval_image.masks[d] for d in detection_indices[start : start + n_rows]]
        iou = pycocotools.mask.iou(masks, gt_masks, crowd.tolist())
        d, g = np.nonzero(iou >= min_iou)
        pairs += zip((start + d).tolist(), g.tolist(), iou[d, g].tolist(), strict=True)
    return MatchCandidates(
        gt_indices,
        detection_indices,
        pairs,
        crowd,
        eval_image.scores[detection_indices],
        areas(eval_image.gt_runs)[gt_indices],
        areas(eval_image.mask_runs)[detection_indices],
    )


def match_greedily(
    pairs: Sequence[tuple[int, int, float]],
    n_detections: int,
    ignored: Sequence[bool] | NDArray[np.bool_],
    crowd: Sequence[bool] | NDArray[np.bool_],
    thresholds: Sequence[float] | NDArray[np.float64],
) -> NDArray[np.int64]:
    """Match each detection, best score first, with the unmatched cell of highest IoU.

    The rule of `pycocotools.cocoeval.COCOeval.evaluateImg`: counted cells come before ignored
    ones; of equal IoUs the last cell; a crowd region matches any number of detections.

    Parameters
    ----------
    pairs
        As in `MatchCandidates`, with IoUs from the lowest threshold.
    n_detections
        D.
    ignored, crowd
        `(G,)`: ground-truth cells that are not counted; crowd regions.
    thresholds
        `(T,)` minimum IoUs of a match, increasing.

    Returns
    -------
    `(T, D)` int64: the matched ground-truth cell, −1 for none.
    """
    matched = np.full((len(thresholds), n_detections), -1, np.int64)
    # COCO tolerates rounding: an IoU of 1 − 1e-10 reaches a threshold of 1.
    floors = [min(float(t), 1 - 1e-10) for t in thresholds]
    taken = [bytearray(len(ignored)) for _ in floors]
    order = sorted(pairs, key=lambda pair: (pair[0], bool(ignored[pair[1]]), pair[1]))
    begin = 0
    while begin < len(order):
        detection = order[begin][0]
        end = begin
        while end < len(order) and order[end][0] == detection:
            end += 1
        for t, floor in enumerate(floors):
            best, best_iou = -1, floor
            for _, gt, iou in order[begin:end]:
                if taken[t][gt] and not crowd[gt]:
                    continue
                if best >= 0 and ignored[gt] and not ignored[best]:
                    break
                if iou >= best_iou:
                    best, best_iou = gt, iou
            if best >= 0:
                taken[t][best] = 1
                matched[t, detection] = best
        begin = end
    return matched

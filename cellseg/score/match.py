"""Which detection finds which true cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from cellseg.images import Scene


@dataclass(frozen=True)
class Candidates:
    """The true cells and the detections of one class in one image, and who could match whom.

    Attributes
    ----------
    truths
        `(G,)` int64: the true cells' places in the scene.
    detections
        `(D,)` int64: the detections' places in the scene, best score first, equal
        scores in the order of the file.
    pairs
        `(detection, truth, IoU)` with places in the two arrays above, for each pair of
        at least the least IoU asked for; by detection, then by truth.
    """

    truths: NDArray[np.int64]
    detections: NDArray[np.int64]
    pairs: list[tuple[int, int, float]]


# IoUs computed at a time: 128 MB, so that a slide with 100,000 cells doesn't fill the memory.
_MOST_IOUS = 1 << 24


def candidates(scene: Scene, class_index: int, least_iou: float) -> Candidates:
    """Compare each detection of a class with each true cell of it.

    IoU is of the masks as they are, also where they overlap one another; for a crowd
    region it is the part of the detection inside the region, as COCO defines it.
    """
    truths = np.flatnonzero(scene.truth_classes == class_index)
    detections = np.flatnonzero(scene.classes == class_index)
    detections = detections[np.argsort(-scene.scores[detections], kind="stable")]
    if not len(truths) or not len(detections):
        return Candidates(truths, detections, [])
    true_masks = [scene.truth_masks[g] for g in truths]
    crowd = scene.crowd[truths].tolist()
    pairs: list[tuple[int, int, float]] = []
    n_rows = max(1, _MOST_IOUS // len(truths))
    for start in range(0, len(detections), n_rows):
        masks = [scene.masks[d] for d in detections[start : start + n_rows]]
        iou = pycocotools.mask.iou(masks, true_masks, crowd)
        d, g = np.nonzero(iou >= least_iou)
        pairs += zip((start + d).tolist(), g.tolist(), iou[d, g].tolist(), strict=True)
    return Candidates(truths, detections, pairs)


def match_greedily(
    pairs: Sequence[tuple[int, int, float]],
    n_detections: int,
    ignored: Sequence[bool] | NDArray[np.bool_],
    crowd: Sequence[bool] | NDArray[np.bool_],
    thresholds: Sequence[float] | NDArray[np.float64],
) -> NDArray[np.int64]:
    """Give each detection, best score first, the free true cell of greatest IoU.

    The rule of `pycocotools.cocoeval.COCOeval.evaluateImg`: a cell that counts comes
    before one that is ignored; of equal IoUs the later cell; a crowd region can be
    given any number of times.

    Parameters
    ----------
    pairs
        As in `Candidates`, from the least threshold up.
    n_detections
        D.
    ignored, crowd
        `(G,)`: true cells that count neither as found nor as missed; crowd regions.
    thresholds
        `(T,)` least IoUs of a match, rising.

    Returns
    -------
    `(T, D)` int64: the matched true cell, −1 where there is none.
    """
    matched = np.full((len(thresholds), n_detections), -1, np.int64)
    # COCO lets rounding pass: an IoU of 1 − 1e-10 is enough for a threshold of 1.
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
            for _, truth, iou in order[begin:end]:
                if taken[t][truth] and not crowd[truth]:
                    continue
                if best >= 0 and ignored[truth] and not ignored[best]:
                    break
                if iou >= best_iou:
                    best, best_iou = truth, iou
            if best >= 0:
                taken[t][best] = 1
                matched[t, detection] = best
        begin = end
    return matched

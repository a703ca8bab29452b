"""Label maps of ground truth and detections, in which a pixel belongs to one cell.

PQ, AJI, F1, counts and the confusion matrix are defined on label maps. Detections may overlap,
so a rule assigns overlapping pixels; AP uses the masks as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cellseg import rle
from cellseg.images import EvalImage

# Which detection gets overlapping pixels: scores, areas -> order, first on top. Of equal ones the
# first gets them: `distinct_cells` sorts cells of equal scores.
OVERLAP_RULES: dict[str, Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.int64]]] = {
    "score": lambda scores, _: np.argsort(-scores, kind="stable"),
    "smaller": lambda _, areas: np.argsort(areas, kind="stable"),
    "larger": lambda _, areas: np.argsort(-areas, kind="stable"),
}

# IoU above which a pair matches. Above one half no cell can have two matches (Kirillov et al.,
# "Panoptic segmentation", CVPR 2019).
MATCH_IOU = 0.5


@dataclass(frozen=True)
class Comparison:
    """The N ground-truth cells and M detections of the label maps of an image.

    Attributes
    ----------
    gt_indices, detection_indices
        `(N,)`, `(M,)` int64 indices in the image, increasing.
    gt_classes, classes
        `(N,)`, `(M,)` int64, 0…K−1.
    gt_areas, areas
        `(N,)`, `(M,)` int64 areas in the label maps in pixels, at least 1.
    in_crowd
        `(M,)` bool: more than half of its pixels lie in crowd regions of its class, so that it
        is no false positive (as in COCO's panoptic task).
    pairs
        `(P, 2)` int64: pairs that share pixels, as indices of `gt_indices` and
        `detection_indices`.
    intersection
        `(P,)` int64 shared pixels.
    """

    gt_indices: NDArray[np.int64]
    detection_indices: NDArray[np.int64]
    gt_classes: NDArray[np.int64]
    classes: NDArray[np.int64]
    gt_areas: NDArray[np.int64]
    areas: NDArray[np.int64]
    in_crowd: NDArray[np.bool_]
    pairs: NDArray[np.int64]
    intersection: NDArray[np.int64]

    @property
    def union(self) -> NDArray[np.int64]:
        """`(P,)` int64 unions in pixels."""
        return self.gt_areas[self.pairs[:, 0]] + self.areas[self.pairs[:, 1]] - self.intersection

    @property
    def iou(self) -> NDArray[np.float64]:
        """`(P,)` float64, above 0, at most 1."""
        return self.intersection / self.union

    def matches(
        self, threshold: float = MATCH_IOU
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the `(Q, 2)` pairs with IoU above `threshold` (0.5 or more), and `(Q,)` IoU."""
        iou = self.iou
        return self.pairs[iou > threshold], iou[iou > threshold]

    def unmatched(self, pairs: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return false negatives, `(N,)`, and false positives, `(M,)` bool: those in no pair."""
        fn, fp = np.ones(len(self.gt_indices), bool), ~self.in_crowd
        fn[pairs[:, 0]] = fp[pairs[:, 1]] = False
        return fn, fp


def compare_label_maps(
    eval_image: EvalImage, score_threshold: float = 0.5, overlap: str = "score"
) -> Comparison:
    """Draw both label maps of an image and compare their cells.

    A cell without pixels is in no label map: a detection that others cover is no false positive, a
    ground-truth cell no false negative. Of overlapping ground-truth cells the smaller gets the
    pixels, of equal ones the one with the first pixel, column by column, as `distinct_cells` sorts
    detections of equal scores; only cells that those cover as a whole are without pixels.

    Parameters
    ----------
    eval_image
        Image with ground truth and detections.
    score_threshold
        Minimum score of detections.
    overlap
        Which of two detections gets overlapping pixels, regardless of class: the one of higher
        "score", the "smaller" or the "larger".
    """
    counted_gt = np.flatnonzero(~eval_image.crowd)
    kept_detections = np.flatnonzero(eval_image.scores >= score_threshold)
    all_gt_areas = rle.areas(eval_image.gt_runs)[counted_gt]
    kept_areas = rle.areas(eval_image.mask_runs)[kept_detections]
    first, last = (each[counted_gt] for each in rle.first_and_last(eval_image.gt_runs))
    gt_order = counted_gt[np.lexsort((last, first, all_gt_areas))]
    order = kept_detections[OVERLAP_RULES[overlap](eval_image.scores[kept_detections], kept_areas)]
    crowds = {
        k: np.flatnonzero(eval_image.crowd & (eval_image.gt_classes == k))
        for k in np.unique(eval_image.gt_classes[eval_image.crowd])
    }

    n_gt, n_detections = len(eval_image.gt_classes), len(eval_image.classes)
    gt_areas = np.zeros(n_gt, np.int64)
    areas = np.zeros(n_detections + 1, np.int64)  # the first is the background
    inside = {k: np.zeros_like(areas) for k in crowds}
    empty: NDArray[np.int64] = np.zeros(0, np.int64)
    pairs, sizes = [empty], [empty]
    for gt_runs, mask_runs in _bands(eval_image.gt_runs, eval_image.mask_runs):
        gt_positions, gt_owner, _ = _paint_label_map(gt_runs, gt_order)
        _, owner, label_map = _paint_label_map(mask_runs, order)
        gt_areas += np.bincount(gt_owner, minlength=n_gt)
        areas += np.bincount(owner + 1, minlength=n_detections + 1)
        # One number for each pixel of both maps, run-length encoded: neighbours mostly belong to
        # the same pair.
        other = label_map[gt_positions]
        key = (gt_owner * (n_detections + 1) + other)[other > 0]
        starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
        pairs.append(key[starts])
        sizes.append(np.diff(np.append(starts, len(key))))
        for k, crowd in crowds.items():
            in_crowds = label_map[np.unique(_mask_pixels(gt_runs, crowd)[0])]
            inside[k] += np.bincount(in_crowds, minlength=n_detections + 1)
    pair, owner_of_run = np.unique(np.concatenate(pairs), return_inverse=True)
    intersection = np.zeros(len(pair), np.int64)
    np.add.at(intersection, owner_of_run, np.concatenate(sizes))

    gt_indices, detection_indices = np.flatnonzero(gt_areas), np.flatnonzero(areas[1:])
    gt, detection = np.divmod(pair, n_detections + 1)
    gt = np.searchsorted(gt_indices, gt)
    detection = np.searchsorted(detection_indices, detection - 1)
    in_crowd = np.zeros(n_detections, bool)
    for k, pixels in inside.items():
        in_crowd |= (eval_image.classes == k) & (2 * pixels[1:] > areas[1:])
    return Comparison(
        gt_indices,
        detection_indices,
        eval_image.gt_classes[gt_indices],
        eval_image.classes[detection_indices],
        gt_areas[gt_indices],
        areas[1:][detection_indices],
        in_crowd[detection_indices],
        np.stack([gt, detection], axis=1),
        intersection,
    )


def select_class(comparison: Comparison, class_index: int) -> Comparison:
    """Return the comparison restricted to one class."""
    is_gt = comparison.gt_classes == class_index
    is_detection = comparison.classes == class_index
    both = is_gt[comparison.pairs[:, 0]] & is_detection[comparison.pairs[:, 1]]
    gt = (np.cumsum(is_gt) - 1)[comparison.pairs[both, 0]]
    detection = (np.cumsum(is_detection) - 1)[comparison.pairs[both, 1]]
    return Comparison(
        comparison.gt_indices[is_gt],
        comparison.detection_indices[is_detection],
        comparison.gt_classes[is_gt],
        comparison.classes[is_detection],
        comparison.gt_areas[is_gt],
        comparison.areas[is_detection],
        comparison.in_crowd[is_detection],
        np.stack([gt, detection], axis=1),
        comparison.intersection[both],
    )


def class_agnostic(comparison: Comparison) -> Comparison:
    """Return the comparison with all cells of class 0."""
    return replace(
        comparison,
        gt_classes=np.zeros_like(comparison.gt_classes),
        classes=np.zeros_like(comparison.classes),
    )


_BAND = 1 << 24  # pixels: as many as an image of 4096 x 4096


def _bands(*masks: rle.MaskRuns) -> Iterator[tuple[rle.MaskRuns, ...]]:
    """Cut masks of one image into bands of columns, so that the memory of a slide is limited.

    Each band is a picture of one column; an image of at most `_BAND` pixels is one band.
    """
    total = math.prod(masks[0].size)
    for begin in range(0, max(total, 1), _BAND):
        end = min(begin + _BAND, total)
        cut = []
        for runs in masks:
            inside = (runs.starts < end) & (runs.ends > begin)
            starts = np.maximum(runs.starts[inside], begin) - begin
            ends = np.minimum(runs.ends[inside], end) - begin
            offsets = np.append(0, np.cumsum(inside))[runs.offsets]
            cut.append(rle.MaskRuns((end - begin, 1), starts, ends, offsets))
        yield tuple(cut)


def _paint_label_map(
    mask_runs: rle.MaskRuns, order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Draw masks into a label map, the first in `order` on top.

    Returns
    -------
    positions, owners
        `(P,)` int64: column-major position of each pixel of a cell, and the index of its mask.
    label_map
        `(H * W,)` int32, column-major: that index plus 1, 0 for background.
    """
    positions, owners = _mask_pixels(mask_runs, order[::-1])
    label_map = np.zeros(mask_runs.size[0] * mask_runs.size[1], np.int32)
    label_map[positions] = owners + 1  # of repeated positions, numpy keeps the last
    keeps = label_map[positions] == owners + 1
    return positions[keeps], owners[keeps], label_map


def _mask_pixels(
    mask_runs: rle.MaskRuns, masks: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the column-major positions of the pixels of masks, and the mask index of each."""
    selected = rle.select_masks(mask_runs, masks)
    lengths = selected.ends - selected.starts
    owner = np.repeat(np.repeat(masks, np.diff(selected.offsets)), lengths)
    return rle.ranges(selected.starts, lengths), owner

"""One image as two label maps, the true and the found one, in which each pixel is one cell's.

PQ, AJI, F1, the counts and the confusion of classes are defined on label maps. Detections
may overlap, so that a rule must say who keeps a contested pixel; AP needs no such rule and
takes the masks as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cellseg import rle
from cellseg.images import Scene

# Who keeps the contested pixels: scores, areas -> the cells, those who give way last.
# Of equals the earlier one in the file keeps them.
OVERLAP_RULES: dict[str, Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.int64]]] = {
    "score": lambda scores, _: np.argsort(-scores, kind="stable"),
    "smaller": lambda _, areas: np.argsort(areas, kind="stable"),
    "larger": lambda _, areas: np.argsort(-areas, kind="stable"),
}

# A pair of greater IoU is a match. Above one half no cell can have two (Kirillov et al.,
# "Panoptic segmentation", CVPR 2019), so that the matches need no further rule.
MATCH_IOU = 0.5


@dataclass(frozen=True)
class Comparison:
    """The N cells of the true label map against the M of the found one.

    Attributes
    ----------
    truths, cells
        `(N,)`, `(M,)` int64: their places in the scene, rising.
    truth_classes, classes
        `(N,)`, `(M,)` int64, 0…K−1.
    truth_areas, areas
        `(N,)`, `(M,)` int64: their pixels in the label maps, at least 1.
    excused
        `(M,)` bool: lies with more than half of its pixels in crowd regions of its class,
        and is no false alarm if it finds nothing (as in COCO's panoptic task).
    at
        `(P, 2)` int64: the pairs that share pixels, as places in `truths` and `cells`.
    shared
        `(P,)` int64: how many pixels.
    """

    truths: NDArray[np.int64]
    cells: NDArray[np.int64]
    truth_classes: NDArray[np.int64]
    classes: NDArray[np.int64]
    truth_areas: NDArray[np.int64]
    areas: NDArray[np.int64]
    excused: NDArray[np.bool_]
    at: NDArray[np.int64]
    shared: NDArray[np.int64]

    @property
    def union(self) -> NDArray[np.int64]:
        """`(P,)` int64: the pixels that the two of a pair cover."""
        return self.truth_areas[self.at[:, 0]] + self.areas[self.at[:, 1]] - self.shared

    @property
    def iou(self) -> NDArray[np.float64]:
        """`(P,)` float64: above 0, at most 1."""
        return self.shared / self.union

    def matches(
        self, threshold: float = MATCH_IOU
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Pairs of any classes whose IoU is above `threshold` (0.5 or more).

        Returns
        -------
        `(Q, 2)` int64 places in `truths` and `cells`, and `(Q,)` float64 IoU.
        """
        iou = self.iou
        good = iou > threshold
        return self.at[good], iou[good]


def compare(scene: Scene, score_threshold: float = 0.5, overlap: str = "score") -> Comparison:
    """Draw both label maps of an image and see which cells meet.

    A cell that keeps no pixel is in no label map: a detection wholly covered by better
    ones is no false alarm. Where true cells overlap, the smaller one keeps the pixels, so
    that none vanishes under another.

    Parameters
    ----------
    scene
        The image.
    score_threshold
        Detections of a lower score are left out.
    overlap
        Which detection keeps contested pixels, whatever the classes: that with the higher
        "score", the "smaller" or the "larger".
    """
    counted = np.flatnonzero(~scene.crowd)
    kept = np.flatnonzero(scene.scores >= score_threshold)
    true_areas = rle.areas(scene.truth_runs)[counted]
    found_areas = rle.areas(scene.runs)[kept]
    first = np.argsort(true_areas, kind="stable")
    truth_at, truth_owner = _draw(scene.truth_runs, counted[first])[:2]
    first = OVERLAP_RULES[overlap](scene.scores[kept], found_areas)
    _, owner, label_map = _draw(scene.runs, kept[first])

    truth_areas = np.bincount(truth_owner, minlength=len(scene.truth_classes))
    areas = np.bincount(owner, minlength=len(scene.classes))
    # One number for each pixel that both maps fill, then the lengths of its repetitions:
    # neighbours along a run mostly belong to the same pair.
    other = label_map[truth_at]
    key = (truth_owner * (len(areas) + 1) + other)[other > 0]
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
    pair, place = np.unique(key[starts], return_inverse=True)
    shared = np.zeros(len(pair), np.int64)
    np.add.at(shared, place, np.diff(np.append(starts, len(key))))

    truths, cells = np.flatnonzero(truth_areas), np.flatnonzero(areas)
    truth, found = np.divmod(pair, len(areas) + 1)
    at = np.stack([np.searchsorted(truths, truth), np.searchsorted(cells, found - 1)], axis=1)
    excused = np.zeros(len(areas), bool)
    for k in np.unique(scene.truth_classes[scene.crowd]):
        crowd = np.flatnonzero(scene.crowd & (scene.truth_classes == k))
        inside = label_map[np.unique(_pixels(scene.truth_runs, crowd)[0])]
        excused |= (scene.classes == k) & (
            2 * np.bincount(inside, minlength=len(areas) + 1)[1:] > areas
        )
    return Comparison(
        truths,
        cells,
        scene.truth_classes[truths],
        scene.classes[cells],
        truth_areas[truths],
        areas[cells],
        excused[cells],
        at,
        shared,
    )


def of_class(comparison: Comparison, class_index: int) -> Comparison:
    """Keep the true and the found cells of one class."""
    truth = comparison.truth_classes == class_index
    cell = comparison.classes == class_index
    both = truth[comparison.at[:, 0]] & cell[comparison.at[:, 1]]
    place = np.stack(
        [
            (np.cumsum(truth) - 1)[comparison.at[both, 0]],
            (np.cumsum(cell) - 1)[comparison.at[both, 1]],
        ],
        axis=1,
    )
    return Comparison(
        comparison.truths[truth],
        comparison.cells[cell],
        comparison.truth_classes[truth],
        comparison.classes[cell],
        comparison.truth_areas[truth],
        comparison.areas[cell],
        comparison.excused[cell],
        place,
        comparison.shared[both],
    )


def any_class(comparison: Comparison) -> Comparison:
    """The same cells, all of class 0: how well cells are found, whatever they are called."""
    return replace(
        comparison,
        truth_classes=np.zeros_like(comparison.truth_classes),
        classes=np.zeros_like(comparison.classes),
    )


def _draw(
    runs: rle.Runs, order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Draw masks into a label map, the first in `order` on top.

    Returns
    -------
    positions, owners
        `(P,)` int64: each pixel of a cell, in column-major order of its cell's runs, and
        the index of the mask that keeps it.
    label_map
        `(H * W,)` int32, column-major: that index plus 1, 0 for background.
    """
    positions, owners = _pixels(runs, order[::-1])
    label_map = np.zeros(runs.size[0] * runs.size[1], np.int32)
    label_map[positions] = owners + 1  # of repeated positions, numpy keeps the last
    keeps = label_map[positions] == owners + 1
    return positions[keeps], owners[keeps], label_map


def _pixels(
    runs: rle.Runs, masks: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List the column-major positions of the pixels of some masks, and whose each one is."""
    n_runs = np.diff(runs.offsets)[masks]
    run = _ranges(runs.offsets[:-1][masks], n_runs)
    lengths = runs.ends[run] - runs.starts[run]
    owner = np.repeat(np.repeat(masks, n_runs), lengths)
    return _ranges(runs.starts[run], lengths), owner


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join the ranges `starts[i]` … `starts[i] + lengths[i]`."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    joined: NDArray[np.int64] = np.repeat(starts - (ends - lengths), lengths) + np.arange(total)
    return joined

"""The image record, alone and with cells: what lists, annotations, results and scores share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.rle import RLE, MaskRuns


@dataclass(frozen=True)
class ImageRecord:
    """An image that a list, an annotation file or a user names.

    Attributes
    ----------
    id
        Its id in annotations and results.
    file_name
        Its name there, as it stands in the file.
    path
        The image file, which need not be there.
    size
        Height and width in pixels of the level; None where they aren't listed.
    level
        Of a file with a pyramid, the level of it, 0 the finest.
    """

    id: int
    file_name: str
    path: Path
    size: tuple[int, int] | None
    level: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageCells(ImageRecord):
    """An image and its N cells, annotated or detected.

    Attributes
    ----------
    name
        What to call the image, or its outputs; no other image of the set is called so.
    masks
        N compressed RLEs of the image's size.
    classes
        `(N,)` int64, 0…K−1.
    boxes
        `(N, 4)` int64, XYXY in pixels, right and bottom exclusive: those of the masks.
    scores
        `(N,)` float64, or None for annotations.
    n_crowds
        How many regions of many cells (COCO's `iscrowd`) are left out.
    """

    size: tuple[int, int]
    name: str
    masks: list[RLE]
    classes: NDArray[np.int64]
    boxes: NDArray[np.int64]
    scores: NDArray[np.float64] | None = None
    n_crowds: int = 0


@dataclass(frozen=True, kw_only=True)
class EvalImage(ImageRecord):
    """An image, its N ground-truth cells and its M detections, both in the order of their files.

    Attributes
    ----------
    name
        What to call the image in tables and on pages.
    gt_masks, masks
        N and M compressed RLEs of the image's size.
    gt_runs, mask_runs
        The same masks as runs.
    gt_classes, classes
        `(N,)` and `(M,)` int64, 0…K−1: places in the ground truth's categories, by rising id.
    crowd
        `(N,)` bool: regions of many cells that are not told apart (COCO's `iscrowd`).
    scores
        `(M,)` float64.
    entries
        `(M,)` int64: the place of each detection in the results.
    """

    size: tuple[int, int]
    name: str
    gt_masks: list[RLE]
    gt_runs: MaskRuns
    gt_classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    masks: list[RLE]
    mask_runs: MaskRuns
    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    entries: NDArray[np.int64]

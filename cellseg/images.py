"""Image records: an image in a list, with its cells, or with ground truth and detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.overlap import distinct_cells
from cellseg.rle import RLE, MaskRuns, PackedMasks, decode, select_masks


@dataclass(frozen=True)
class ImageRecord:
    """An image in a list, an annotation file or a command line.

    Attributes
    ----------
    id
        Image id in annotations and results.
    file_name
        File name as written there.
    path
        The image file; it may be missing.
    size
        Height and width in pixels of the level; None if unknown.
    level
        Pyramid level in the file, 0 for full resolution.
    mpp
        Micrometres per pixel of the level, None if unknown.
    regions
        File of the regions to predict (`cellseg.read.regions`), None for the whole image.
    region_mask
        Compressed RLE of the regions that were predicted, None if all of the image was.
    tissue_px
        Area of the tissue that was searched for cells, in pixels of the level, None if unknown.
    """

    id: int
    file_name: str
    path: Path
    size: tuple[int, int] | None
    level: int = 0
    mpp: float | None = None
    regions: Path | None = None
    region_mask: RLE | None = None
    tissue_px: float | None = None


def searched_area(image: ImageCells | EvalImage) -> float:
    """Return the area of an image's tissue in pixels, or of all of it if that is unknown."""
    whole = float(image.size[0]) * image.size[1]
    return whole if image.tissue_px is None else image.tissue_px


@dataclass(frozen=True, kw_only=True)
class ImageCells(ImageRecord):
    """An image and its N cells, annotated or detected.

    Attributes
    ----------
    name
        Name of the image and its outputs, unique in the set.
    masks
        N compressed RLEs of the image's size.
    classes
        `(N,)` int64, 0…K−1.
    boxes
        `(N, 4)` int64, tight boxes, XYXY in pixels, right and bottom exclusive.
    scores
        `(N,)` float64, or None for annotations.
    n_crowds
        Number of crowd regions (COCO's `iscrowd`) that are excluded.
    hidden
        `(H,)` float64 scores of detected cells that are left out, as most of each is under others.
    """

    size: tuple[int, int]
    name: str
    masks: Sequence[RLE]
    classes: NDArray[np.int64]
    boxes: NDArray[np.int64]
    scores: NDArray[np.float64] | None = None
    n_crowds: int = 0
    hidden: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, kw_only=True)
class EvalImage(ImageRecord):
    """An image with N ground-truth cells and M detections, each in the order of its file.

    Attributes
    ----------
    name
        Name of the image in tables and on pages.
    gt_masks, masks
        N and M compressed RLEs of the image's size.
    gt_runs, mask_runs
        The same masks as runs.
    gt_classes, classes
        `(N,)` and `(M,)` int64, 0…K−1: indices into the ground truth's categories, by id.
    crowd
        `(N,)` bool: crowd regions of cells annotated as one (COCO's `iscrowd`).
    scores
        `(M,)` float64.
    entries
        `(M,)` int64: index of each detection in the results.
    hidden
        As of `ImageCells`.
    """

    size: tuple[int, int]
    name: str
    gt_masks: list[RLE]
    gt_runs: MaskRuns
    gt_classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    masks: Sequence[RLE]
    mask_runs: MaskRuns
    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    entries: NDArray[np.int64]
    hidden: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def distinct_detections(image: EvalImage) -> EvalImage:
    """Return an image with each detected cell once, as `distinct_cells` does, best score first."""
    index, scores, hidden = distinct_cells(image.mask_runs, image.classes, image.scores)
    return replace(take_detections(image, index), scores=scores, hidden=hidden)


def take_detections(image: EvalImage, index: NDArray[np.int64]) -> EvalImage:
    """Return an image with the detections of an `(m,)` index, in its order."""
    return replace(
        image,
        masks=PackedMasks([image.masks[n] for n in index], image.size),
        mask_runs=select_masks(image.mask_runs, index),
        classes=image.classes[index],
        scores=image.scores[index],
        entries=image.entries[index],
    )


def without_masks(image: EvalImage) -> EvalImage:
    """Return an image whose cells and detections have no masks, which take most of its memory."""
    none = decode([], image.size)
    return replace(image, gt_masks=[], gt_runs=none, masks=[], mask_runs=none)

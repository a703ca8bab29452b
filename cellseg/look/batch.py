"""Pictures of a training: an augmented batch, and validation images with detections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.cellmasks import CellMasks
from cellseg.images import ImageCells
from cellseg.look.overlay import draw_comparison, draw_overlay
from cellseg.predictions import Predictions
from cellseg.rle import (
    RLE,
    MaskRuns,
    areas,
    concatenate,
    crop_runs,
    decode,
    encode,
    label_map_to_runs,
    place_runs,
)

_GAP = 4  # px between the crops, before they are enlarged
_GREY = 160  # of the gaps; white would look like glass
_WINDOW = 512  # px, sides of the window in the middle of a validation image


def draw_batch(
    samples: Sequence[dict[str, Any]], names: Sequence[str], image_format: str
) -> NDArray[np.uint8]:
    """Draw the samples of a batch row by row, with outlined cells, above one legend.

    Parameters
    ----------
    samples
        One or more samples of `cellseg.learn.mapper.CellMapper`.
    names
        The K class names; the legend gives the number of cells of each.
    image_format
        Channel order of the samples, "RGB" or "BGR".

    Returns
    -------
    `(H, W, 3)` uint8 RGB.
    """
    n_columns = math.ceil(math.sqrt(len(samples)))
    n_rows = math.ceil(len(samples) / n_columns)
    height = max(sample["image"].shape[1] for sample in samples) + _GAP
    width = max(sample["image"].shape[2] for sample in samples) + _GAP
    size = (n_rows * height - _GAP, n_columns * width - _GAP)
    picture = np.full((*size, 3), _GREY, np.uint8)
    cells = []
    for number, sample in enumerate(samples):
        row, column = divmod(number, n_columns)
        corner = (column * width, row * height)
        pixels = sample["image"].numpy().transpose(1, 2, 0)
        if image_format == "BGR":
            pixels = pixels[:, :, ::-1]
        (left, top), (h, w) = corner, pixels.shape[:2]
        picture[top : top + h, left : left + w] = pixels
        cells.append(_shifted_runs(sample["masks"], corner, size))
    classes = np.concatenate([sample["classes"].numpy() for sample in samples])
    return draw_overlay(picture, encode(concatenate(size, cells)), classes, names)


def _shifted_runs(masks: CellMasks, corner: tuple[int, int], size: tuple[int, int]) -> MaskRuns:
    """Return masks, none empty, moved by `corner` (x, y) as runs in a picture of that size."""
    parts = []
    for index, (left, top, _, _) in enumerate(masks.boxes.long().tolist()):
        _, mask_runs = label_map_to_runs(masks.crop(index).numpy())
        parts.append(place_runs(mask_runs, size, (left + corner[0], top + corner[1])))
    return concatenate(size, parts)


def draw_middle(
    image: NDArray[np.uint8], sample: ImageCells, predictions: Predictions, names: Sequence[str]
) -> NDArray[np.uint8]:
    """Draw ground truth and detections side by side, of a large image only its middle.

    Only detections with a score of 0.5 or more are drawn.

    Parameters
    ----------
    image
        `(H, W, 3)` uint8 RGB.
    sample, predictions
        Its annotations and its predictions.
    names
        The K class names.

    Returns
    -------
    `(H', W', 3)` uint8 RGB.
    """
    height, width = image.shape[:2]
    left, top = max(0, (width - _WINDOW) // 2), max(0, (height - _WINDOW) // 2)
    box = (left, top, min(left + _WINDOW, width), min(top + _WINDOW, height))
    gt, gt_masks = _crop(sample.masks, (height, width), box)
    cells = predictions.distinct(0.5)
    inside, masks = _crop(cells.masks, (height, width), box)
    return draw_comparison(
        image[box[1] : box[3], box[0] : box[2]],
        gt_masks,
        sample.classes[gt],
        masks,
        cells.classes[inside],
        names,
        cells.scores[inside],
    )


def _crop(
    masks: Sequence[RLE], size: tuple[int, int], box: tuple[int, int, int, int]
) -> tuple[NDArray[np.int64], list[RLE]]:
    """Return the indices of the masks with pixels in a window, and these masks cropped to it."""
    runs = crop_runs(decode(masks, size), box)
    inside = np.flatnonzero(areas(runs))
    cropped = encode(runs)
    return inside, [cropped[n] for n in inside]

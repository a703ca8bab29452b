"""Pictures of a training: a batch as the network sees it, and validation images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
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
    join_runs,
)

_GAP = 4  # px between the crops, before they are enlarged
_GREY = 160  # between them, where white would pass for glass
_SHOWN = 512  # px, the side of the window in the middle of a validation image that is drawn


def draw_batch(
    samples: Sequence[dict[str, Any]], names: Sequence[str], image_format: str
) -> NDArray[np.uint8]:
    """Draw the samples of a batch side by side, their cells outlined, over one legend.

    Parameters
    ----------
    samples
        One or more, as `cellseg.learn.mapper.CellMapper` makes them. They fill the picture
        row by row.
    names
        The K classes' names. The legend gives each with its number of cells in all samples.
    image_format
        The order of their channels, "RGB" or "BGR".

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
        _paste(sample["image"], corner, image_format, picture)
        cells.append(_shifted_runs(sample["masks"], corner, size))
    classes = np.concatenate([sample["classes"].numpy() for sample in samples])
    return draw_overlay(picture, encode(concatenate(size, cells)), classes, names)


def _paste(
    image: torch.Tensor, corner: tuple[int, int], image_format: str, picture: NDArray[np.uint8]
) -> None:
    """Put an image of the network's into the picture, its left and top at `corner`."""
    pixels = image.numpy().transpose(1, 2, 0)
    if image_format == "BGR":
        pixels = pixels[:, :, ::-1]
    (left, top), (height, width) = corner, pixels.shape[:2]
    picture[top : top + height, left : left + width] = pixels


def _shifted_runs(masks: CellMasks, corner: tuple[int, int], size: tuple[int, int]) -> MaskRuns:
    """Return masks as runs in a picture of that size, moved by `corner`, x and y."""
    owners: list[NDArray[np.int64]] = []
    starts: list[NDArray[np.int64]] = []
    ends: list[NDArray[np.int64]] = []
    for index, box in enumerate(masks.boxes.long().tolist()):
        edges = np.diff(masks.crop(index).numpy().T.astype(np.int8), axis=1, prepend=0, append=0)
        first = (box[0] + corner[0]) * size[0] + box[1] + corner[1]
        for places, edge in ((starts, 1), (ends, -1)):
            column, row = np.nonzero(edges == edge)
            places.append(first + column * size[0] + row)
        owners.append(np.full(len(starts[-1]), index))
    empty = np.zeros(0, np.int64)
    owner, start, end = (np.concatenate([empty, *parts]) for parts in (owners, starts, ends))
    return join_runs(size, len(masks), owner, start, end)


def draw_middle(
    image: NDArray[np.uint8], sample: ImageCells, found: Predictions, names: Sequence[str]
) -> NDArray[np.uint8]:
    """Draw truth and prediction side by side, of a large image its middle alone.

    Of the predictions, those with a score of 0.5 or more are drawn: AP wants many more
    than are of use to look at.

    Parameters
    ----------
    image
        `(H, W, 3)` uint8 RGB.
    sample, found
        Its annotations, and the predictions for it.
    names
        The K classes' names.

    Returns
    -------
    `(H', W', 3)` uint8 RGB.
    """
    height, width = image.shape[:2]
    left, top = max(0, (width - _SHOWN) // 2), max(0, (height - _SHOWN) // 2)
    box = (left, top, min(left + _SHOWN, width), min(top + _SHOWN, height))
    of_truth, truth = _cut(sample.masks, (height, width), box)
    likely = np.flatnonzero(found.scores >= 0.5)
    inside, masks = _cut([found.masks[n] for n in likely], (height, width), box)
    shown = likely[inside]
    return draw_comparison(
        image[box[1] : box[3], box[0] : box[2]],
        truth,
        sample.classes[of_truth],
        masks,
        found.classes[shown],
        names,
        found.scores[shown],
    )


def _cut(
    masks: Sequence[RLE], size: tuple[int, int], box: tuple[int, int, int, int]
) -> tuple[NDArray[np.int64], list[RLE]]:
    """Cut masks to a window; return the numbers of those that reach into it, and what is left."""
    cut = crop_runs(decode(masks, size), box)
    inside = np.flatnonzero(areas(cut))
    left = encode(cut)
    return inside, [left[n] for n in inside]

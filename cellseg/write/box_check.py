"""Check the boxes and masks of results against each other.

Both say where a cell is. Where they disagree, another reading of the boxes or masks may make them
agree: then the file is encoded in that way and not in COCO's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.images import EvalImage
from cellseg.rle import areas, boxes_xyxy

Floats = NDArray[np.float64]

FITS = 0.5  # least IoU of a box and the tight box of its mask, for most cells
TOLERANCE = 1  # pixels, for boxes that were rounded

_BOX_RULE = "pycocotools' COCO.loadRes and COCO's results format expect x, y, width, height"
_RLE_RULE = "pycocotools' mask.decode expects RLEs that run down the columns"
_READINGS = {
    "bbox as x, y, right, bottom": _BOX_RULE,
    "bbox as y, x, height, width": _BOX_RULE,
    "bbox as top, left, bottom, right": _BOX_RULE,
    "the mask row by row": _RLE_RULE,
}


class BoxCheck:
    """Collects the detections of a results file; `problem` then says what is wrong with it."""

    def __init__(self) -> None:
        self._n_fitting = self._n_misfits = 0
        self._n_otherwise = np.zeros(len(_READINGS), np.int64)
        self._first_otherwise: list[str] = [""] * len(_READINGS)
        self._first_apart = self._first_outside = ""
        self._tight_area = np.zeros(2)  # of all masks, read by columns and by rows

    def add(self, image: EvalImage, boxes: Sequence[Sequence[float]], first: int) -> None:
        """Add the detections of an image.

        Parameters
        ----------
        image
            Their masks, and their index among the entries of `boxes`.
        boxes
            Four finite numbers for each entry, or empty if the file has no boxes.
        first
            Index of the first of these entries in the file.
        """
        height, width = image.size
        tight = boxes_xyxy(image.mask_runs).astype(float)
        # A mask's rows are the columns of the transposed image.
        by_rows = boxes_xyxy(replace(image.mask_runs, size=(width, height)))[:, [1, 0, 3, 2]]
        if height != width:
            self._tight_area += [_area(tight).sum(), _area(by_rows.astype(float)).sum()]
        if not boxes:
            return
        given: Floats = np.array([boxes[n] for n in image.entries], float).reshape(-1, 4)
        given = given.clip(-1e9, 1e9)

        def first_of(chosen: Any) -> str:
            if not chosen.any():
                return ""
            n = image.entries[chosen.argmax()]
            return f"entry {first + n}: bbox {list(boxes[n])}"

        a, b, c, d = given.T
        xywh = np.stack([a, b, a + c, b + d], axis=1)
        some = areas(image.mask_runs) > 0
        fits = _iou(xywh, tight) >= FITS
        readings = [
            (given, tight),
            (np.stack([b, a, b + d, a + c], axis=1), tight),
            (np.stack([b, a, d, c], axis=1), tight),
            (xywh, by_rows),
        ]
        self._n_fitting += int((some & fits).sum())
        self._n_misfits += int((some & ~fits).sum())
        for n, (box, mask) in enumerate(readings):
            otherwise = some & ~fits & (_iou(box, mask) >= FITS)
            self._n_otherwise[n] += otherwise.sum()
            self._first_otherwise[n] = self._first_otherwise[n] or first_of(otherwise)
        near = xywh + [-TOLERANCE, -TOLERANCE, TOLERANCE, TOLERANCE]
        self._first_apart = self._first_apart or first_of(some & (_iou(near, tight) == 0))
        limits = np.array([width, height] * 2, float)
        beyond = ((xywh < -TOLERANCE) | (xywh > limits + TOLERANCE)).any(axis=1)
        if not self._first_outside and (outside := first_of(beyond)):
            self._first_outside = f"{outside} in an image of {height} x {width} (height x width)"

    @property
    def problem(self) -> str:
        """What is wrong with the file, as the end of a message, or an empty text."""
        most = int(self._n_otherwise.argmax())
        # Single misfits are poor masks, of which few fit another reading.
        if self._n_otherwise[most] > max(self._n_fitting, self._n_misfits / 2):
            how, rule = list(_READINGS.items())[most]
            return (
                f"{self._first_otherwise[most]} does not fit its mask, but would with {how}, as in "
                f"{self._n_otherwise[most]} entries; {rule}: write them so"
            )
        by_columns, by_rows = self._tight_area
        if by_columns > 2 * by_rows:
            return (
                "the masks are scattered pixels, but cells if the RLEs run along the rows; "
                f"{_RLE_RULE}: encode them in Fortran order"
            )
        if self._first_apart:
            return f"{self._first_apart} does not touch its mask; {_BOX_RULE}, around the mask"
        if self._first_outside:
            return f"{self._first_outside} reaches beyond it; {_BOX_RULE}, within the image"
        return ""


def _area(boxes: Floats) -> Floats:
    widths, heights = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).T
    area: Floats = widths * heights
    return area


def _iou(boxes: Floats, others: Floats) -> Floats:
    """Return the IoU of each box, XYXY, with the other at its place."""
    corners = [np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])]
    common = _area(np.concatenate(corners, axis=1))
    union = _area(boxes) + _area(others) - common
    shares: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return shares

"""Detections that occur twice in results, and cells that ground truth has twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from cellseg.images import EvalImage
from cellseg.messages import in_images, warn
from cellseg.overlap import SAME_CELL, overlapping_boxes, same_cell
from cellseg.read.names import short_name
from cellseg.rle import areas, boxes_xyxy


class CopyCheck:
    """Counts the detections whose image, class, mask and score are those of an earlier one.

    They can be added in parts, of which a number of 64 bits is kept for each detection.
    """

    def __init__(self) -> None:
        self._keys: dict[str, list[NDArray[np.int64]]] = {}  # of each image, by file name

    def add(self, images: Iterable[EvalImage]) -> None:
        """Add detections of images."""
        for image in images:
            counts = [mask["counts"] for mask in image.masks]
            # As integers, since the hashes of -1.0 and -2.0 are equal.
            scores = image.scores.astype(np.float64).view(np.int64).tolist()
            keys = map(hash, zip(image.classes.tolist(), scores, counts, strict=True))
            of_image = self._keys.setdefault(image.file_name, [])
            of_image.append(np.fromiter(keys, np.int64, len(counts)))

    def warn(self, source: object) -> None:
        """Warn of copies, if there are any, in the results `source`."""
        copies = {
            file_name: len(keys) - len(np.unique(keys))
            for file_name, parts in self._keys.items()
            for keys in [np.concatenate(parts)]
        }
        if n_copies := sum(copies.values()):
            where = in_images([short_name(name) for name, n in copies.items() if n])
            warn(
                f"{source}: detections whose class, mask and score are those of an earlier one, "
                f"which AP counts as false positives: {n_copies}, {where}"
            )


def checked_for_copies(source: object, images: Iterable[EvalImage]) -> Iterator[EvalImage]:
    """Yield all images of the results `source`, then warn of detections that occur twice in it."""
    check = CopyCheck()
    for image in images:
        check.add([image])
        yield image
    check.warn(source)


def checked_for_repeated_cells(source: object, images: Iterable[EvalImage]) -> Iterator[EvalImage]:
    """Yield all images, then warn of cells of the ground truth `source` that are one cell twice.

    They are those that `distinct_cells` would join if they were detections.
    """
    n_repeated: dict[str, int] = {}
    for image in images:
        boxes = boxes_xyxy(image.gt_runs)
        pairs = overlapping_boxes(boxes)
        pairs = pairs[~image.crowd[pairs].any(1)]
        same = same_cell(image.gt_runs, boxes, areas(image.gt_runs), pairs, SAME_CELL)
        n_repeated[image.name] = len(np.unique(pairs[same]))
        yield image
    if n := sum(n_repeated.values()):
        where = in_images([short_name(name) for name, each in n_repeated.items() if each])
        warn(
            f"{source}: cells that overlap another with an IoU of {SAME_CELL} or more, as "
            f"detections of one cell do: {n}, {where}; PQ, AJI and F1 would be below 1 even for "
            "these cells as results; remove those that were annotated twice"
        )

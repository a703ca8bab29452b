"""Images with cells for the tests of training, without files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cellseg.images import ImageCells
from cellseg.rle import encode, join_runs


def image_of(boxes=(), classes=None, masks=None, *, name="x", size=(400, 600), path="x.png"):
    """Build an image of N cells from their XYXY boxes, by default of class 0 and rectangles."""
    n = len(boxes)
    return ImageCells(
        id=4,
        file_name=Path(path).name,
        path=Path(path),
        size=size,
        name=name,
        masks=_rectangles(boxes, size) if masks is None else list(masks),
        classes=np.array([0] * n if classes is None else classes, np.int64),
        boxes=np.array(boxes, np.int64).reshape(-1, 4),
    )


def _rectangles(boxes, size):
    """Return the RLEs of boxes, as far as they lie in the image."""
    height, width = size
    columns = [
        (n, x * height + min(top, height), x * height + min(bottom, height))
        for n, (left, top, right, bottom) in enumerate(boxes)
        for x in range(left, min(right, width))
        if top < height
    ]
    owner, starts, ends = np.array(columns, np.int64).reshape(-1, 3).T
    return encode(join_runs(size, len(boxes), owner, starts, ends))

"""Images with cells for the tests of training, without files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cellseg.images import ImageCells


def image_of(boxes=(), classes=None, masks=None, *, name="x", size=(400, 600), path="x.png"):
    """Build an image of N cells from their XYXY boxes, by default of class 0."""
    n = len(boxes)
    return ImageCells(
        id=4,
        file_name=Path(path).name,
        path=Path(path),
        size=size,
        name=name,
        masks=list(masks or [{}] * n),
        classes=np.array([0] * n if classes is None else classes, np.int64),
        boxes=np.array(boxes, np.int64).reshape(-1, 4),
    )

"""Cell masks from arrays of the whole image, for tests."""

from __future__ import annotations

import torch

from cellseg.cellmasks import CellMasks


def from_bitmasks(masks: torch.Tensor) -> CellMasks:
    """Build cell masks from `(N, H, W)` bool."""
    height, width = masks.shape[1:]
    return CellMasks.from_crops((height, width), [(0, 0)] * len(masks), list(masks))


def to_full(masks):
    full = torch.zeros((len(masks), *masks.size), dtype=torch.bool)
    for n, (left, top, right, bottom) in enumerate(masks.boxes.int().tolist()):
        full[n, top:bottom, left:right] = masks.crop(n)
    return full

"""Cell masks from arrays of the whole image, for tests."""

from __future__ import annotations

import torch

from cellseg.cellmasks import CellMasks


def from_bitmasks(masks: torch.Tensor) -> CellMasks:
    """Build cell masks from `(N, H, W)` bool."""
    height, width = masks.shape[1:]
    return CellMasks.from_crops((height, width), [(0, 0)] * len(masks), list(masks))

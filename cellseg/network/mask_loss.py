"""The loss of the mask head, the same for both engines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from operator import attrgetter

import torch
from torch.nn import functional

from cellseg.cellmasks import CellMasks


def mask_loss(
    logits: torch.Tensor,
    classes: torch.Tensor,
    masks: Sequence[CellMasks],
    boxes: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Return the mean binary cross entropy of R mask grids (He et al. 2017, arXiv:1703.06870).

    Parameters
    ----------
    logits
        `(R, K, M, M)` for each class, or `(R, 1, M, M)` for all classes.
    classes
        `(R,)` int64, 0…K−1.
    masks, boxes
        Of each image, the true masks and the `(n, 4)` XYXY boxes that the grids lie over; R in all.
    """
    if logits.shape[1] == 1:
        logits = logits[:, 0]
    else:
        logits = logits[torch.arange(len(classes), device=classes.device), classes]
    logits = logits.float()
    targets, end = [logits.new_zeros((0, *logits.shape[1:]), dtype=torch.bool)], 0
    for _, group in itertools.groupby(masks, attrgetter("size")):
        parts = list(group)
        begin, end = end, end + len(parts)
        cells = CellMasks.cat(parts)
        targets.append(cells.crop_and_resize(torch.cat([*boxes[begin:end]]), logits.shape[-1]))
    loss = functional.binary_cross_entropy_with_logits(
        logits, torch.cat(targets).float(), reduction="sum"
    )
    return loss / max(logits.numel(), 1)  # the mean, or 0 without cells

"""Copy-paste: cells of one sample laid over another (Ghiasi et al. 2021, arXiv:2012.07177)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cellseg.cellmasks import CellMasks

# Cells that are pasted into a sample, at most.
MOST_CELLS = 20
# Standard deviation in pixels of the Gaussian that softens their edges.
_SOFTNESS = 1.0


def paste(
    image: NDArray[np.uint8],
    masks: CellMasks,
    classes: NDArray[np.int64],
    donor_image: NDArray[np.uint8],
    donor_masks: CellMasks,
    donor_classes: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], CellMasks, NDArray[np.int64]]:
    """Paste some cells of a donor into a sample, each where it is in the donor.

    Up to `MOST_CELLS` are drawn among those that no edge of the two images cuts. One is
    passed over if it would lie on a cell pasted before it, or if a cell below would lose
    more than half of its pixels. So no cell vanishes.

    Parameters
    ----------
    image, masks, classes
        The sample: `(h, w, 3)` uint8, N masks of this size, `(N,)` int64.
    donor_image, donor_masks, donor_classes
        The donor in the same form; it may have another size.
    rng
        Where the draws come from.

    Returns
    -------
    image, masks, classes
        New ones. The N cells come first, without the pixels that are now hidden; the
        pasted ones follow.
    """
    covered = torch.zeros(masks.size, dtype=torch.bool)
    drawn = _draw(donor_masks, masks.size, rng)
    pasted = [n for n in drawn if _cover(covered, donor_masks, n, masks)]
    boxes = _boxes(donor_masks)
    corners = [(boxes[n][0], boxes[n][1]) for n in pasted]
    crops = [donor_masks.crop(n) for n in pasted]
    return (
        _blend(image, donor_image, covered.numpy()),
        CellMasks.cat([_visible(masks, covered), CellMasks.from_crops(masks.size, corners, crops)]),
        np.concatenate([classes, donor_classes[pasted]]),
    )


def _draw(donor: CellMasks, size: tuple[int, int], rng: np.random.Generator) -> list[int]:
    """Draw which cells of the donor are tried on a sample of that size."""
    height, width = np.minimum(donor.size, size).tolist()
    whole = [
        n
        for n, (left, top, right, bottom) in enumerate(_boxes(donor))
        if left > 0 and top > 0 and right < width and bottom < height
    ]
    drawn: list[int] = rng.permutation(whole)[: rng.integers(1, MOST_CELLS + 1)].tolist()
    return drawn


def _cover(covered: torch.Tensor, donor: CellMasks, n: int, masks: CellMasks) -> bool:
    """Mark the pixels of a donor's cell as covered, if the cells allow it; say if they do."""
    left, top, right, bottom = donor.boxes[n].long().tolist()
    window, cell = covered[top:bottom, left:right], donor.crop(n)
    if (window & cell).any():
        return False
    window |= cell
    boxes = masks.boxes
    meets_x = (boxes[:, 0] < right) & (boxes[:, 2] > left)
    meets_y = (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
    if _keep_half(masks[meets_x & meets_y], covered):
        return True
    window &= ~cell
    return False


def _keep_half(masks: CellMasks, covered: torch.Tensor) -> bool:
    """Say whether of each mask no more than half is covered."""
    crops = ((masks.crop(n), box) for n, box in enumerate(_boxes(masks)))
    return all(
        2 * (crop & covered[top:bottom, left:right]).sum() <= crop.sum()
        for crop, (left, top, right, bottom) in crops
    )


def _visible(masks: CellMasks, covered: torch.Tensor) -> CellMasks:
    """Take the covered pixels from all masks."""
    # Most cells lose nothing, and only the others are drawn anew.
    losing, corners, crops = [], [], []
    for n, (left, top, right, bottom) in enumerate(_boxes(masks)):
        window = covered[top:bottom, left:right]
        if window.any():
            losing.append(n)
            corners.append((left, top))
            crops.append(masks.crop(n) & ~window)
    redrawn = CellMasks.from_crops(masks.size, corners, crops)
    order = torch.arange(len(masks))
    order[losing] = len(masks) + torch.arange(len(losing))
    return CellMasks.cat([masks, redrawn])[order]


def _boxes(masks: CellMasks) -> list[list[int]]:
    boxes: list[list[int]] = masks.boxes.long().tolist()
    return boxes


def _blend(
    image: NDArray[np.uint8], donor: NDArray[np.uint8], covered: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Show the donor where it covers the image, with a soft edge."""
    height, width = np.minimum(image.shape[:2], donor.shape[:2])
    shared = np.s_[:height, :width]
    share = cv2.GaussianBlur(covered.astype(np.float32), (0, 0), _SOFTNESS)[shared]
    blended = image.copy()
    blended[shared] = cv2.blendLinear(donor[shared], image[shared], share, 1 - share)
    return blended

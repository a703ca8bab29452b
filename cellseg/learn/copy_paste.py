"""Copy-paste: cells of one sample laid over another (Ghiasi et al. 2021, arXiv:2012.07177)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cellseg.cellmasks import CellMasks

# Cells that are pasted into a sample, at most.
MAX_CELLS = 20
# Standard deviation in pixels of the Gaussian that softens their edges.
_EDGE_SIGMA = 1.0


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

    Up to `MAX_CELLS` are drawn among those that no edge of the two images cuts. One is
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
    candidates = _sample_cells(donor_masks, masks.size, rng)
    pasted = [n for n in candidates if _try_to_cover(covered, donor_masks, n, masks)]
    boxes = _boxes(donor_masks)
    corners = [(boxes[n][0], boxes[n][1]) for n in pasted]
    crops = [donor_masks.crop(n) for n in pasted]
    return (
        _blend(image, donor_image, covered.numpy()),
        CellMasks.cat(
            [_remove_covered(masks, covered), CellMasks.from_crops(masks.size, corners, crops)]
        ),
        np.concatenate([classes, donor_classes[pasted]]),
    )


def _sample_cells(donor: CellMasks, size: tuple[int, int], rng: np.random.Generator) -> list[int]:
    """Draw which cells of the donor are tried on a sample of that size."""
    height, width = np.minimum(donor.size, size).tolist()
    whole = [
        n
        for n, (left, top, right, bottom) in enumerate(_boxes(donor))
        if left > 0 and top > 0 and right < width and bottom < height
    ]
    candidates: list[int] = rng.permutation(whole)[: rng.integers(1, MAX_CELLS + 1)].tolist()
    return candidates


def _try_to_cover(covered: torch.Tensor, donor: CellMasks, n: int, masks: CellMasks) -> bool:
    """Mark the pixels of a donor's cell as covered, if the cells allow it; say if they do."""
    left, top, right, bottom = donor.boxes[n].long().tolist()
    window, cell = covered[top:bottom, left:right], donor.crop(n)
    if (window & cell).any():
        return False
    window |= cell
    boxes = masks.boxes
    overlaps_x = (boxes[:, 0] < right) & (boxes[:, 2] > left)
    overlaps_y = (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
    if _at_least_half_visible(masks[overlaps_x & overlaps_y], covered):
        return True
    window &= ~cell
    return False


def _at_least_half_visible(masks: CellMasks, covered: torch.Tensor) -> bool:
    """Return whether of each mask no more than half is covered."""
    crops = ((masks.crop(n), box) for n, box in enumerate(_boxes(masks)))
    return all(
        2 * (crop & covered[top:bottom, left:right]).sum() <= crop.sum()
        for crop, (left, top, right, bottom) in crops
    )


def _remove_covered(masks: CellMasks, covered: torch.Tensor) -> CellMasks:
    """Take the covered pixels from all masks."""
    # Most cells lose nothing, and only the others are drawn again.
    occluded, corners, crops = [], [], []
    for n, (left, top, right, bottom) in enumerate(_boxes(masks)):
        window = covered[top:bottom, left:right]
        if window.any():
            occluded.append(n)
            corners.append((left, top))
            crops.append(masks.crop(n) & ~window)
    redrawn = CellMasks.from_crops(masks.size, corners, crops)
    order = torch.arange(len(masks))
    order[occluded] = len(masks) + torch.arange(len(occluded))
    return CellMasks.cat([masks, redrawn])[order]


def _boxes(masks: CellMasks) -> list[list[int]]:
    boxes: list[list[int]] = masks.boxes.long().tolist()
    return boxes


def _blend(
    image: NDArray[np.uint8], donor: NDArray[np.uint8], covered: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Show the donor where it covers the image, with a soft edge."""
    height, width = np.minimum(image.shape[:2], donor.shape[:2])
    common = np.s_[:height, :width]
    alpha = cv2.GaussianBlur(covered.astype(np.float32), (0, 0), _EDGE_SIGMA)[common]
    blended = image.copy()
    blended[common] = cv2.blendLinear(donor[common], image[common], alpha, 1 - alpha)
    return blended

"""Copy-paste augmentation (Ghiasi et al. 2021, arXiv:2012.07177)."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cellseg.cellmasks import CellMasks

MAX_CELLS = 20  # pasted into a sample
_EDGE_SIGMA = 1.0  # pixels, of the Gaussian that softens the edges of pasted cells


class Drawn(NamedTuple):
    """A drawn view of a sample: `(h, w, 3)` uint8, N masks of this size, `(N,)` int64 classes."""

    image: NDArray[np.uint8]
    masks: CellMasks
    classes: NDArray[np.int64]


def paste(sample: Drawn, donor: Drawn, rng: np.random.Generator) -> Drawn:
    """Paste some cells of a donor, of any size, into a sample, at their positions in the donor.

    Up to `MAX_CELLS` are drawn among those not cut by a border of the two images. A cell is
    skipped if it would overlap a pasted one, or cover more than half of a cell of the sample.

    Returns a copy. The N cells of the sample come first, without the pixels that are now covered,
    then the pasted cells.
    """
    masks = sample.masks
    covered = torch.zeros(masks.size, dtype=torch.bool)
    candidates = _sample_cells(donor.masks, masks.size, rng)
    pasted = [n for n in candidates if _try_to_cover(covered, donor.masks, n, masks)]
    boxes = _boxes(donor.masks)
    corners = [(boxes[n][0], boxes[n][1]) for n in pasted]
    new = CellMasks.from_crops(masks.size, corners, [donor.masks.crop(n) for n in pasted])
    return Drawn(
        _blend(sample.image, donor.image, covered.numpy()),
        CellMasks.cat([_remove_covered(masks, covered), new]),
        np.concatenate([sample.classes, donor.classes[pasted]]),
    )


def _sample_cells(donor: CellMasks, size: tuple[int, int], rng: np.random.Generator) -> list[int]:
    """Draw the indices of donor cells to try on a sample of some size."""
    height, width = np.minimum(donor.size, size).tolist()
    whole = [
        n
        for n, (left, top, right, bottom) in enumerate(_boxes(donor))
        if left > 0 and top > 0 and right < width and bottom < height
    ]
    candidates: list[int] = rng.permutation(whole)[: rng.integers(1, MAX_CELLS + 1)].tolist()
    return candidates


def _try_to_cover(covered: torch.Tensor, donor: CellMasks, n: int, masks: CellMasks) -> bool:
    """Mark the pixels of a donor cell as covered if it can be pasted. Return whether it can."""
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
    crops = ((masks.crop(n), box) for n, box in enumerate(_boxes(masks)))
    return all(
        2 * (crop & covered[top:bottom, left:right]).sum() <= crop.sum()
        for crop, (left, top, right, bottom) in crops
    )


def _remove_covered(masks: CellMasks, covered: torch.Tensor) -> CellMasks:
    """Remove the covered pixels from all masks, and redraw only the masks that change."""
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
    """Return the image with the covered pixels of the donor, blended at the edges."""
    height, width = np.minimum(image.shape[:2], donor.shape[:2])
    common = np.s_[:height, :width]
    alpha = cv2.GaussianBlur(covered.astype(np.float32), (0, 0), _EDGE_SIGMA)[common]
    blended = image.copy()
    blended[common] = cv2.blendLinear(donor[common], image[common], alpha, 1 - alpha)
    return blended

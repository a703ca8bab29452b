"""Encode the mask head's small masks as run-length encoded masks of the image.

The head gives a probability for each cell of a 28 x 28 grid over a box. Detectron2 pastes
each grid into an array of the whole image and encodes that; here a mask is sampled and
encoded within its box only, with the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

from cellseg.rle import RLE, Ints, MaskRuns, encode, join_runs

# Pixels sampled at once, padding of smaller masks included: bounds memory.
_CHUNK = 1 << 17


def encode_masks(
    masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], threshold: float = 0.5
) -> list[RLE]:
    """Encode the masks of one image: `encode(sample_masks(...))`."""
    return encode(sample_masks(masks, boxes, size, threshold))


def sample_masks(
    masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], threshold: float = 0.5
) -> MaskRuns:
    """Sample the masks of one image at its pixels.

    Once encoded, they equal, bit for bit, `detectron2.layers.mask_ops.paste_masks_in_image` on the
    CPU followed by `pycocotools.mask.encode` of each mask.

    Parameters
    ----------
    masks
        `(N, M, M)` float, probabilities on a grid over each box.
    boxes
        `(N, 4)` float, XYXY in pixels of the image.
    size
        Height and width of the image in pixels.
    threshold
        Minimum sampled probability of a pixel in the mask.
    """
    masks = masks.detach().float().cpu()
    boxes = boxes.detach().float().cpu()
    windows = _windows(boxes, size)
    pieces = [
        _sample(masks[which], boxes[which], windows[which], which, size[0], threshold)
        for which in _chunks(windows)
    ]
    # (owner, start, end) of each run, sorted by mask.
    joined = np.concatenate([np.zeros((3, 0), np.int64), *pieces], axis=1)
    owner, starts, ends = joined[:, np.argsort(joined[0], kind="stable")]
    return join_runs(size, len(masks), owner, starts, ends)


def _windows(boxes: torch.Tensor, size: tuple[int, int]) -> Ints:
    """Return the `(N, 4)` XYXY pixels that Detectron2 samples: each box and a margin of one.

    Clipped to the image, so empty for a box outside.
    """
    edge = torch.tensor([size[1], size[0]], dtype=torch.float32)
    low = torch.clamp(boxes[:, :2].floor() - 1, min=torch.zeros(2), max=edge)
    high = torch.clamp(boxes[:, 2:].ceil() + 1, min=torch.zeros(2), max=edge)
    return torch.cat([low, high], 1).numpy().astype(np.int64)


def _chunks(windows: Ints) -> Iterator[Ints]:
    """Yield the indices of windows with pixels, in groups of similar size."""
    extent = windows[:, 2:] - windows[:, :2]
    longest = extent.max(1, initial=0)
    order = np.argsort(longest, kind="stable")
    order = order[extent[order].min(1, initial=1) > 0]
    begin = 0
    while begin < len(order):
        # Increasing, since each window of a chunk takes as many pixels as the largest.
        counts = np.arange(1, len(order) - begin + 1) * longest[order[begin:]] ** 2
        end = begin + max(1, int(np.searchsorted(counts, _CHUNK, side="right")))
        yield order[begin:end]
        begin = end


def _sample(
    masks: torch.Tensor,
    boxes: torch.Tensor,
    windows: Ints,
    owner: Ints,
    height: int,
    threshold: float,
) -> Ints:
    """Sample masks at the pixel centres of their windows, as `mask_ops._do_paste_mask` does.

    Returns
    -------
    `(3, R)` int64: owner, start and end of each run of a column, in column-major positions
    of an image of that height, increasing within a mask.
    """
    grids, inside = [], []
    for axis in (0, 1):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        extent = windows[:, axis + 2] - windows[:, axis]
        place = np.arange(extent.max())
        pixel = torch.from_numpy((windows[:, axis, None] + place).astype(np.float32))
        grids.append((pixel + 0.5 - low) / (high - low) * 2 - 1)
        inside.append(place < extent[:, None])
    grid_x, grid_y = grids
    shape = (len(masks), grid_y.shape[1], grid_x.shape[1])
    grid = torch.stack([grid_x[:, None, :].expand(shape), grid_y[:, :, None].expand(shape)], dim=3)
    values = functional.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    # Columns one after the other, a row of zeros above each, which separates their runs.
    n, rows, columns = values.shape
    line = np.zeros((n, columns, rows + 1), bool)
    line[:, :, 1:] = (values >= threshold).numpy().swapaxes(1, 2)
    line[:, :, 1:] &= inside[0][:, :, None] & inside[1][:, None, :]
    flat = np.append(line.reshape(-1), False)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    mask, column, row = np.unravel_index(starts, line.shape)
    position = (windows[mask, 0] + column) * height + windows[mask, 1] + row - 1
    return np.stack([owner[mask], position, position + ends - starts])

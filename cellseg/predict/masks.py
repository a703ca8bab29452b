"""From the mask head's small masks to run-length encoded masks of the image.

The head says how likely each cell of a 28 x 28 grid over a box belongs to the instance.
Detectron2 pastes each grid into an array of the whole image and encodes that; here a
mask is sampled and encoded within its box alone, with the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from cellseg.rle import RLE, encode, join_runs

# Pixels that are sampled before their runs are taken: bounds the memory where boxes
# are as large as the image.
_CHUNK = 1 << 22


def encode_masks(
    masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], threshold: float = 0.5
) -> list[RLE]:
    """Encode the masks of one image.

    Equal, bit for bit, to `detectron2.layers.mask_ops.paste_masks_in_image` on the CPU
    followed by `pycocotools.mask.encode` of each mask.

    Parameters
    ----------
    masks
        `(N, M, M)` float, the probability on a grid over each box.
    boxes
        `(N, 4)` float, XYXY in pixels of the image.
    size
        Height and width of the image in pixels.
    threshold
        A pixel is in the mask where its sampled probability is at least this.
    """
    masks = masks.detach().float().cpu()
    boxes = boxes.detach().float().cpu()
    owner, starts, ends = [], [], []
    for chunk_owner, chunk_starts, chunk_ends in _chunks(masks, boxes, size, threshold):
        owner.append(chunk_owner)
        starts.append(chunk_starts)
        ends.append(chunk_ends)
    if not owner:
        owner = starts = ends = [np.zeros(0, np.int64)]
    runs = join_runs(
        size, len(masks), np.concatenate(owner), np.concatenate(starts), np.concatenate(ends)
    )
    return encode(runs)


def _windows(boxes: torch.Tensor, size: tuple[int, int]) -> NDArray[np.int64]:
    """`(N, 4)` XYXY: the pixels that Detectron2 samples for each box: it and a margin of one.

    They are within the image; of a box that lies outside of it there are none.
    """
    edge = torch.tensor([size[1], size[0]], dtype=torch.float32)
    low = torch.clamp(boxes[:, :2].floor() - 1, min=torch.zeros(2), max=edge)
    high = torch.clamp(boxes[:, 2:].ceil() + 1, min=torch.zeros(2), max=edge)
    return torch.cat([low, high], 1).numpy().astype(np.int64)


def _chunks(
    masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], threshold: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (owner, start, end) of the pieces of runs, some masks at a time."""
    windows = _windows(boxes, size)
    extent = np.maximum(windows[:, 2:] - windows[:, :2], 0)
    index = np.flatnonzero(extent.prod(1))
    begin = 0
    while begin < len(index):
        # A row of zeros above each column keeps the runs of neighbouring columns apart.
        lengths = extent[index[begin:], 0] * (extent[index[begin:], 1] + 1)
        count = max(1, int(np.searchsorted(np.cumsum(lengths), _CHUNK)))
        which = index[begin : begin + count]
        yield _runs(masks, boxes, windows, which, lengths[:count], size[0], threshold)
        begin += count


def _runs(
    masks: torch.Tensor,
    boxes: torch.Tensor,
    windows: NDArray[np.int64],
    which: NDArray[np.int64],
    lengths: NDArray[np.int64],
    height: int,
    threshold: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sample the masks `which` and give the (owner, start, end) of their columns' runs."""
    begins = np.cumsum(lengths) - lengths
    line = np.zeros(int(lengths.sum()) + 1, bool)
    for mask, box, window, begin, length in zip(
        masks[which], boxes[which], windows[which], begins, lengths, strict=True
    ):
        x0, y0, x1, y1 = window.tolist()
        columns = line[begin : begin + length].reshape(x1 - x0, y1 - y0 + 1)
        columns[:, 1:] = (_sample(mask, box, (x0, y0, x1, y1)) >= threshold).numpy().T
    edges = np.flatnonzero(line[1:] != line[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    place = np.searchsorted(begins, starts, side="right") - 1
    owner = which[place]
    column, row = np.divmod(starts - begins[place], windows[owner, 3] - windows[owner, 1] + 1)
    position = (windows[owner, 0] + column) * height + windows[owner, 1] + row - 1
    return owner, position, position + ends - starts


def _sample(
    mask: torch.Tensor, box: torch.Tensor, window: tuple[int, int, int, int]
) -> torch.Tensor:
    """Sample a mask at the pixel centres of a window, as `mask_ops._do_paste_mask` does."""
    x0, y0, x1, y1 = window
    grid_y = (torch.arange(y0, y1, dtype=torch.float32) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid_x = (torch.arange(x0, x1, dtype=torch.float32) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(grid_x[None, :], grid_y[:, None]), dim=2)
    return functional.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]

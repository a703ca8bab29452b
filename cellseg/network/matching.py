"""Proposals and training samples of all images of a batch at once.

Detectron2 takes the images one by one. On a GPU, whose kernels for one image of cells take less
time than Python needs to start them, that is most of an iteration.

In these functions, N images have P boxes each, padded where they have fewer, and the C cells of all
images together are numbered image by image. Boxes are XYXY in network pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import nms

from cellseg.network.suppression import suppress

# Overlaps that are computed at once: limits the memory. On a CPU, those of an image stay in its
# cache, and its cells needn't be padded to the number of another image's.
_OVERLAPS, _OVERLAPS_ON_CPU = 1 << 24, 1 << 18

# Boxes in one non-maximum suppression on a GPU, whose time and memory grow with the square.
_SUPPRESSED = 1 << 12


def match_boxes(
    boxes: torch.Tensor,
    cells: Sequence[torch.Tensor],
    low: float,
    high: float,
    best_of_each: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Match boxes with the cells of their image, as Detectron2's `Matcher`.

    Parameters
    ----------
    boxes
        `(N, P, 4)`, or `(1, P, 4)` if all images have the same.
    cells
        `(n, 4)` boxes of the cells of each of N images.
    low, high
        A box is background if its highest IoU is below `low`, and a cell from `high` on.
    best_of_each
        Whether the boxes with the highest IoU with a cell are cells in any case (Ren et al. 2015,
        arXiv:1506.01497, 3.1.2 (i)), unless it is 0. For Detectron2, all boxes are cells then.

    Returns
    -------
    cell
        `(N, P)` int64: the cell with the highest IoU, 0…C; any if it is 0.
    labels
        `(N, P)` int64: 1 for a cell, 0 for background, -1 between.
    """
    counts = [len(of_image) for of_image in cells]
    n_boxes, n_images = boxes.shape[1], len(cells)
    most = _OVERLAPS_ON_CPU if boxes.device.type == "cpu" else _OVERLAPS
    together = max(1, most // max(1, n_boxes * max(counts)))
    found = []
    for begin in range(0, n_images, together):
        part = slice(begin, begin + together)
        overlaps = _iou(
            boxes if len(boxes) == 1 else boxes[part], pad_sequence([*cells[part]], True)
        )
        if not overlaps.shape[1]:  # no cell
            overlaps = overlaps.new_zeros((len(overlaps), 1, n_boxes))
        highest, nearest = overlaps.max(1)
        labels = (highest >= high).long() - ((highest >= low) & (highest < high)).long()
        if best_of_each:
            best = overlaps.amax(2, keepdim=True)
            labels = torch.where(((overlaps == best) & (best > 0)).any(1), 1, labels)
        found.append((nearest, labels))
    cell, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    # The padding has an IoU of 0, but may be taken.
    last = torch.tensor([[max(0, count - 1)] for count in counts]).to(cell.device)
    first = torch.tensor([*itertools.accumulate(counts, initial=0)][:-1]).to(cell.device)
    return torch.minimum(cell, last) + first[:, None], labels


def _iou(boxes: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Return the `(N, M, P)` IoU of `(N, P, 4)` boxes and `(N, M, 4)` cells; 0 for empty ones."""
    b, c = boxes[:, None].unbind(-1), cells[:, :, None].unbind(-1)
    width = torch.minimum(b[2], c[2]).sub_(torch.maximum(b[0], c[0])).clamp_(min=0)
    height = torch.minimum(b[3], c[3]).sub_(torch.maximum(b[1], c[1])).clamp_(min=0)
    shared = width.mul_(height)
    union = (b[2] - b[0]) * (b[3] - b[1]) + (c[2] - c[0]) * (c[3] - c[1]) - shared
    return torch.where(shared > 0, shared / union, 0)


def draw_samples(
    labels: torch.Tensor, count: int, positive_fraction: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw boxes of each image at random: cells up to a fraction, then background.

    Parameters
    ----------
    labels
        `(N, P)`: 1 for a cell, 0 for background, others are not drawn.
    count
        Boxes per image, if there are enough.
    positive_fraction
        Largest fraction of cells.

    Returns
    -------
    drawn
        `(N, S)` int64 indices of boxes, 0…P−1: first cells, then background, in random order.
    valid
        `(N, S)` bool: others fill up the rows.
    """
    keys = torch.rand(labels.shape, device=labels.device)
    n_boxes = labels.shape[1]
    most = min(int(count * positive_fraction), n_boxes)
    keys_of_cells, cells = keys.where(labels == 1, -1).topk(most, 1)
    keys_of_rest, rest = keys.where(labels == 0, -1).topk(min(count, n_boxes), 1)
    is_cell = keys_of_cells >= 0
    room = count - is_cell.sum(1, keepdim=True)
    is_rest = (keys_of_rest >= 0) & (torch.arange(rest.shape[1], device=rest.device) < room)
    return torch.cat([cells, rest], 1), torch.cat([is_cell, is_rest], 1)


def top_proposals(
    boxes: Sequence[torch.Tensor],
    logits: Sequence[torch.Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    iou: float,
    pre_nms: int,
    post_nms: int,
    min_size: float,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Select proposals for training: the best of each feature map, NMS, the best of all.

    Parameters
    ----------
    boxes, logits
        `(N, A, 4)` and `(N, A)` objectness before the sigmoid, for each feature map.
    sizes
        Height and width of each image in network pixels; boxes are clipped to them.
    iou
        Of boxes of one feature map with a higher IoU, only the best is kept.
    pre_nms, post_nms
        Maximum number of each feature map before NMS, and of an image after it.
    min_size
        Sides must be longer than this.

    Returns
    -------
    For each image, `(R, 4)` boxes and `(R,)` logits, best first.

    Raises
    ------
    FloatingPointError
        If a box or a logit is not finite.
    """
    best = [level.topk(min(pre_nms, level.shape[1]), 1) for level in logits]
    chosen = [
        level.gather(1, index[..., None].expand(-1, -1, 4))
        for level, (_, index) in zip(boxes, best, strict=True)
    ]
    all_boxes = torch.cat(chosen, 1).float()
    all_logits = torch.cat([level.values for level in best], 1).float()
    if not (all_boxes.isfinite().all() & all_logits.isfinite().all()):
        raise FloatingPointError("proposals are not finite: training has diverged")
    corners = torch.tensor([[width, height] * 2 for height, width in sizes], dtype=torch.float32)
    all_boxes = torch.minimum(all_boxes.clamp(min=0), corners.to(all_boxes.device)[:, None])
    usable = (all_boxes[..., 2:] - all_boxes[..., :2] > min_size).all(-1)
    level_of = torch.cat([torch.full((part.shape[1],), k) for k, part in enumerate(chosen)])
    kept = _suppress(all_boxes, all_logits, usable, level_of.to(all_boxes.device), iou)
    order = all_logits.where(kept, -torch.inf).topk(min(post_nms, len(level_of)), 1)
    counts = (order.values > -torch.inf).sum(1).tolist()
    best_boxes = all_boxes.gather(1, order.indices[..., None].expand(-1, -1, 4))
    return [(best_boxes[n, :count], order.values[n, :count]) for n, count in enumerate(counts)]


def _suppress(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    usable: torch.Tensor,
    level_of: torch.Tensor,
    iou: float,
) -> torch.Tensor:
    """Return which of the usable boxes, `(N, P)`, NMS keeps in each image and level."""
    if boxes.device.type != "cpu":
        return _suppress_together(boxes, scores, usable, level_of, iou)
    kept = torch.zeros_like(usable)
    for n in range(len(boxes)):
        index = usable[n].nonzero()[:, 0]
        best = suppress(boxes[n, index], scores[n, index], iou, level_of[index])
        kept[n, index[best]] = True
    return kept


def _suppress_together(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    usable: torch.Tensor,
    level_of: torch.Tensor,
    iou: float,
) -> torch.Tensor:
    """Do as `_suppress`, with several images and levels in one NMS."""
    n_images, n_boxes = scores.shape
    # Boxes of other images and levels are moved apart, and unusable ones made empty: they
    # suppress none. In float64, since float32 would round large coordinates.
    images = torch.arange(n_images, device=boxes.device)
    number = level_of + (level_of[-1] + 1) * images[:, None]
    apart = boxes.double().where(usable[..., None], 0) + (number * (boxes.amax() + 1))[..., None]
    kept = torch.zeros_like(usable)
    together = max(1, _SUPPRESSED // n_boxes)
    for begin in range(0, n_images, together):
        part = slice(begin, begin + together)
        best = nms(apart[part].flatten(0, 1), scores[part].flatten().double(), iou)
        kept[part].view(-1)[best] = True
    return kept & usable

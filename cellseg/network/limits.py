"""How many proposals and detections of an image the network keeps.

Fixed numbers would lose cells in a large or crowded image. So they grow with the area and with
the density of the training cells, but only for boxes that are probably cells: in a sparse image
the cost stays the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode
from torchvision.ops import clip_boxes_to_image

from cellseg.messages import listed, plural, warn
from cellseg.network.suppression import suppress

# Config keys; 0 is computed from the area and the density.
PRE_NMS = "MODEL.RPN.PRE_NMS_TOPK_TEST"
POST_NMS = "MODEL.RPN.POST_NMS_TOPK_TEST"
DETECTIONS = "TEST.DETECTIONS_PER_IMAGE"

# Objectness and score of boxes that are probably cells. The objectness is high even for
# background, since the RPN is trained on about as many cells as background.
PROBABLE_PROPOSAL, PROBABLE_DETECTION = 0.2, 0.1

# Cells per million image pixels, for runs that don't know theirs: 10 x 10 px each.
_DENSITY = 10_000.0

# Kept in any case: proposals of all feature maps before NMS, proposals, detections.
_LEAST_PRE_NMS, _LEAST_POST_NMS, _LEAST_DETECTIONS = 6000, 1000, 800
# Per cell that has room: a cell has several proposals, and a detection in several classes.
_PRE_NMS_PER_CELL, _POST_NMS_PER_CELL, _DETECTIONS_PER_CELL = 8, 4, 2

# Boxes that go through a head at once: limits the memory. On a CPU, the features of a few masks
# stay in its cache.
_BOXES, _MASKS_ON_CPU = 1000, 100


@dataclass(frozen=True)
class Limit:
    """The `least` best boxes of a list, and of those that are probably cells up to `most`."""

    least: int
    most: int

    def count(self, scores: torch.Tensor, probable: float) -> tuple[int, bool]:
        """Return how many of `(N,)` scores are kept, and whether probable cells are not."""
        n = int((scores >= probable).sum())
        return min(len(scores), max(self.least, min(n, self.most))), n > self.most


@dataclass(frozen=True)
class Limits:
    """The limits for one image.

    Attributes
    ----------
    pre_nms
        Proposals of each feature map before non-maximum suppression.
    post_nms
        Proposals of all feature maps after it.
    detections
        Detections.
    """

    pre_nms: Limit
    post_nms: Limit
    detections: Limit


def choose_limits(cfg: CfgNode, area: float) -> Limits:
    """Choose the limits for an image or a tile of `area` image pixels.

    A value in the config other than 0 is used as it is.
    """
    cells = area * (cfg.DATA.CELLS_PER_MEGAPIXEL or _DENSITY) / 1e6
    rpn = cfg.MODEL.RPN

    def limit(value: int, least: int, per_cell: int) -> Limit:
        return Limit(value or least, value or max(least, math.ceil(per_cell * cells)))

    return Limits(
        limit(rpn.PRE_NMS_TOPK_TEST, _LEAST_PRE_NMS // len(rpn.IN_FEATURES), _PRE_NMS_PER_CELL),
        limit(rpn.POST_NMS_TOPK_TEST, _LEAST_POST_NMS, _POST_NMS_PER_CELL),
        limit(cfg.TEST.DETECTIONS_PER_IMAGE, _LEAST_DETECTIONS, _DETECTIONS_PER_CELL),
    )


class Proposals(NamedTuple):
    """The proposals of one image, best first.

    Attributes
    ----------
    boxes
        `(P, 4)` XYXY in network pixels.
    logits
        `(P,)` objectness before the sigmoid.
    limited_by
        Config keys of the limits that left out boxes that are probably cells.
    """

    boxes: torch.Tensor
    logits: torch.Tensor
    limited_by: tuple[str, ...]


def select_proposals(
    boxes: Sequence[torch.Tensor],
    logits: Sequence[torch.Tensor],
    size: tuple[int, int],
    limits: Limits,
    iou: float,
    min_size: float,
) -> Proposals:
    """Select the proposals of one image: the best of each feature map, NMS, the best of all.

    Parameters
    ----------
    boxes, logits
        `(A, 4)` XYXY and `(A,)` objectness before the sigmoid, for each feature map.
    size
        Height and width of the image in network pixels.
    limits
        The limits for the image.
    iou
        Of boxes of one feature map with a higher IoU, only the best is kept.
    min_size
        Sides must be longer than this.
    """
    limited_by: list[str] = []
    kept = []
    for level_boxes, level_logits in zip(boxes, logits, strict=True):
        n, limited = limits.pre_nms.count(level_logits.sigmoid(), PROBABLE_PROPOSAL)
        best, index = level_logits.topk(n)
        best_boxes = clip_boxes_to_image(level_boxes[index], size)
        sides = best_boxes[:, 2:] - best_boxes[:, :2]
        usable = (sides > min_size).all(1) & torch.isfinite(best)  # NaN is never above
        best, best_boxes = best[usable], best_boxes[usable]
        keep = suppress(best_boxes, best, iou)
        # Else they are of fewer cells than have room: a large cell has many boxes.
        if limited and _PRE_NMS_PER_CELL * len(keep) >= n:
            limited_by.append(PRE_NMS)
        kept.append((best_boxes[keep], best[keep]))
    all_boxes, all_logits = (torch.cat(parts) for parts in zip(*kept, strict=True))
    all_logits, order = all_logits.sort(descending=True, stable=True)
    n, limited = limits.post_nms.count(all_logits.sigmoid(), PROBABLE_PROPOSAL)
    if limited:
        limited_by.append(POST_NMS)
    return Proposals(all_boxes[order[:n]], all_logits[:n], tuple(dict.fromkeys(limited_by)))


class BoxDetections(NamedTuple):
    """The N detections of one image without masks, best first.

    Attributes
    ----------
    boxes
        `(N, 4)` XYXY in network pixels, inside the image.
    scores
        `(N,)`, 0 to 1.
    classes
        `(N,)` int64, 0…K−1.
    limited_by
        Config keys of the limits that left out boxes that are probably cells.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    limited_by: tuple[str, ...]


def select_detections(
    boxes: torch.Tensor,
    probs: torch.Tensor,
    logits: torch.Tensor,
    size: tuple[int, int],
    limits: Limits,
    *,
    threshold: float,
    iou: float,
    objectness_power: float = 0.0,
    foreground_power: float = 0.0,
    min_size: float = 0.0,
) -> BoxDetections:
    """Select the detections of one image: scores above a threshold, NMS per class, the best.

    The score is p^(1 − w) · f^w · o^c, of the class probability p, the probability f of all classes
    together (foreground), and the objectness o. With w = 0 and c = 1 it is the probability of a
    cell of the class if they are independent, and the order of CenterNet2's scores (Zhou et al.
    2021, arXiv:2103.07461), their square root; with c = 0 the class probability. With w = 0.5, an
    uncertain class lowers the score less than doubt that there is a cell.

    Parameters
    ----------
    boxes
        `(P, K, 4)`, refined for each class, or `(P, 1, 4)` for all classes; XYXY in network
        pixels. They are clipped to the image. Rows that are not finite are dropped.
    probs
        `(P, K)` class probabilities, without the background's.
    logits
        `(P,)` objectness before the sigmoid.
    size
        Height and width of the image in network pixels.
    limits
        The limits for the image.
    threshold
        Scores must be above this.
    iou
        Of boxes of one class with a higher IoU, only the best is kept.
    objectness_power
        The power c, 0 or more.
    foreground_power
        The power w, 0 to 1.
    min_size
        Sides must be longer than this. Smaller boxes are dropped before NMS and the limit, so
        that they take no other's place.
    """
    finite = boxes.isfinite().flatten(1).all(1) & probs.isfinite().all(1)
    boxes, scores = boxes[finite], probs[finite]
    if foreground_power:
        foreground = scores.sum(1, keepdim=True).clamp(max=1)  # more with USE_SIGMOID_CE
        scores = scores ** (1 - foreground_power) * foreground**foreground_power
    if objectness_power:
        objectness = logits[finite, None].float().sigmoid()
        scores = scores * objectness**objectness_power
    boxes = clip_boxes_to_image(boxes, size).expand(-1, scores.shape[1], 4)
    large = (boxes[..., 2:] - boxes[..., :2] > min_size).all(-1)
    usable = (scores > threshold) & large  # NaN is never above
    boxes, scores, classes = boxes[usable], scores[usable], usable.nonzero()[:, 1]
    best = suppress(boxes, scores, iou, classes)
    n, key = count_detections(scores[best], limits)
    best = best[:n]
    return BoxDetections(boxes[best], scores[best], classes[best], key)


def detection_selection(cfg: CfgNode, min_size: float = 0.0) -> partial[BoxDetections]:
    """Return `select_detections` with the values of a config."""
    keys = cfg.MODEL.ROI_HEADS
    return partial(
        select_detections,
        threshold=keys.SCORE_THRESH_TEST,
        iou=keys.NMS_THRESH_TEST,
        objectness_power=keys.OBJECTNESS_POWER,
        foreground_power=keys.FOREGROUND_POWER,
        min_size=min_size,
    )


def count_detections(scores: torch.Tensor, limits: Limits) -> tuple[int, tuple[str, ...]]:
    """Return how many of `(N,)` detections are kept, and the key of the limit if it was reached."""
    n, limited = limits.detections.count(scores, PROBABLE_DETECTION)
    return n, (DETECTIONS,) if limited else ()


def limited_by(proposals: Proposals, cells: BoxDetections) -> tuple[str, ...]:
    """Return the config keys of the limits that left out boxes that are probably cells.

    Where none of the best proposals becomes a probable cell, those left out would not either:
    an empty image may have many.
    """
    if proposals.limited_by and (cells.scores >= PROBABLE_DETECTION).any():
        return proposals.limited_by + cells.limited_by
    return cells.limited_by


def warn_of_limits(
    limited: Mapping[str, Sequence[tuple[str, ...]]], of_training: bool = False
) -> None:
    """Warn if limits left out boxes that are probably cells.

    `limited` are the keys of these limits for each tile, by the name of the image; a tile without
    such keys is not counted. `of_training`: the command is not one that has flags for them.
    """
    tiles = {name: [keys for keys in each if keys] for name, each in limited.items()}
    names = [name for name, each in tiles.items() if each]
    if names:
        n_tiles = sum(map(len, tiles.values()))
        keys = sorted({key for each in tiles.values() for of_tile in each for key in of_tile})
        larger, tile = " and ".join(keys), "TEST.TILE"
        if not of_training:
            larger = larger.replace(DETECTIONS, f"--max_detections ({DETECTIONS})")
            tile = "--tile"
        warn(
            "probably more cells than are kept (or the network has learnt little), in "
            f"{plural(n_tiles, 'tile')} of {plural(len(names), 'image')}: {listed(names)}; those "
            f"with the lowest scores are left out; use smaller tiles ({tile}) or a larger {larger}"
        )


def box_chunks(lists: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield the boxes of several images in parts of limited size, for the box head.

    Each part has a slice of the list of each image, in their order. There is at least one part.
    """
    return _chunks(lists, _BOXES)


def mask_chunks(lists: Sequence[Any], device: torch.device) -> Iterator[list[Any]]:
    """Yield parts as `box_chunks` does, for the mask head on a device."""
    return _chunks(lists, _MASKS_ON_CPU if device.type == "cpu" else _BOXES)


def _chunks(lists: Sequence[Any], count: int) -> Iterator[list[Any]]:
    starts = [0, *itertools.accumulate(map(len, lists))]
    for begin in range(0, max(1, starts[-1]), count):
        yield [
            each[max(0, begin - start) : max(0, begin + count - start)]
            for each, start in zip(lists, starts, strict=False)
        ]

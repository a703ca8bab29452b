"""What the config takes from the training data: the zoom, the anchors, the longest cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from fvcore.common.config import CfgNode

from cellseg.errors import InputError
from cellseg.images import ImageCells
from cellseg.learn.augment import build_augmentations

# The longest side of the median cell that suits fine and coarse features, in the network's
# pixels. Longer, and the cost grows with the square; but coarse features need it.
_LENGTH_FINE, _LENGTH_COARSE = 30, 56
_COARSE_STRIDE = 16
_SCALE_RANGE = (0.5, 4.0)  # beyond, cells vanish or only the blur grows

_N_SIZES = 5  # on a single level; Detectron2's number, so that its weights fit
_MIN_STEP = 1.2  # between anchors of one level: nearer ones tell no cells apart
_LEVEL_STEP = 2.0  # between levels, at least


@dataclass(frozen=True)
class CellSizes:
    """The sizes of the boxes of some cells, in pixels of their images.

    Attributes
    ----------
    length
        Median of the longest side.
    small, large
        5th and 95th percentile of the square root of the area.
    longest
        99.9th percentile of the longest side: outlines in error may be longer.
    """

    length: float
    small: float
    large: float
    longest: float


class Scale(NamedTuple):
    """The network's pixels for each pixel of the image, and a line that says why."""

    value: float
    reason: str


class Anchors(NamedTuple):
    """The sides of the square anchors of each level, and a line that says why.

    `sizes` are `MODEL.ANCHOR_GENERATOR.SIZES`: a rising list for each level, in the
    network's pixels.
    """

    sizes: list[list[float]]
    reason: str


def measure_cells(samples: Sequence[ImageCells]) -> CellSizes:
    """Measure the boxes of all annotated cells.

    Raises
    ------
    InputError
        If there is no cell.
    """
    boxes = np.concatenate([np.zeros((0, 4)), *(sample.boxes for sample in samples)])
    if not len(boxes):
        raise InputError(
            f"no cell in the {len(samples)} training images, so there is nothing to learn; hold "
            "out less (--val_fraction), or outline some cells"
        )
    sides = boxes[:, 2:] - boxes[:, :2]
    small, large = np.percentile(np.sqrt(sides.prod(axis=1)), [5, 95])
    length, longest = np.percentile(sides.max(axis=1), [50, 99.9])
    return CellSizes(float(length), float(small), float(large), float(longest))


def choose_scale(sizes: CellSizes, finest_stride: int) -> Scale:
    """Choose the zoom at which the median cell is as long as suits the network's features.

    Parameters
    ----------
    sizes
        The cells' sizes.
    finest_stride
        The smallest stride of the feature maps, in the network's pixels: 4 of a feature
        pyramid, 16 of a dilated res5.
    """
    length = _LENGTH_COARSE if finest_stride >= _COARSE_STRIDE else _LENGTH_FINE
    wanted = length / sizes.length
    value = round(min(max(wanted, _SCALE_RANGE[0]), _SCALE_RANGE[1]), 2)
    reason = (
        f"zoom {value:g}: the median cell is {sizes.length:g} px long, {length} px suit features "
        f"of stride {finest_stride}"
    )
    if not _SCALE_RANGE[0] <= wanted <= _SCALE_RANGE[1]:
        reason += f", but zooms go from {_SCALE_RANGE[0]:g} to {_SCALE_RANGE[1]:g}"
    return Scale(value, reason)


def choose_anchors(sizes: CellSizes, scale: float, strides: Sequence[int]) -> Anchors:
    """Choose anchors that cover the sizes of nine in ten cells, in geometric steps.

    Of several levels each gets one size, at least twice that of the level before, as its
    stride is (Lin et al., Feature pyramid networks, CVPR 2017): larger anchors may stand
    further apart. A single level gets all sizes.

    Parameters
    ----------
    sizes
        The cells' sizes.
    scale
        The network's pixels for each pixel of the image.
    strides
        The rising strides of the feature maps with anchors, in the network's pixels.
    """
    multi_level = len(strides) > 1
    count = len(strides) if multi_level else _N_SIZES
    # Anchors smaller than the stride would leave gaps between them.
    smallest = max(sizes.small * scale, strides[0])
    covering_step = (sizes.large * scale / smallest) ** (1 / (count - 1))
    step = max(covering_step, _LEVEL_STEP if multi_level else _MIN_STEP)
    sides = [float(round(smallest * step**n)) for n in range(count)]
    reason = (
        f"anchors of {', '.join(f'{side:g}' for side in sides)} px: nine in ten cells measure "
        f"{sizes.small:.1f} to {sizes.large:.1f} px (root of the box's area), zoomed by {scale:g}"
    )
    return Anchors([[side] for side in sides] if multi_level else [sides], reason)


def set_keys_from_data(cfg: CfgNode, samples: Sequence[ImageCells]) -> list[str]:
    """Set the longest cell, and the zoom and the anchors where they are left to the data.

    Returns
    -------
    A line for each that says what was chosen and why.
    """
    sizes = measure_cells(samples)
    cfg.DATA.LONGEST_CELL = sizes.longest
    reasons = []
    if cfg.INPUT.ZOOM_FROM_DATA or cfg.MODEL.ANCHOR_GENERATOR.FROM_DATA:
        strides = [_feature_stride(name, cfg) for name in cfg.MODEL.RPN.IN_FEATURES]
        if cfg.INPUT.ZOOM_FROM_DATA:
            scale = choose_scale(sizes, min(strides))
            cfg.INPUT.ZOOM = scale.value
            reasons.append(scale.reason)
        if cfg.MODEL.ANCHOR_GENERATOR.FROM_DATA:
            anchors = choose_anchors(sizes, _typical_scale(cfg, samples), strides)
            cfg.MODEL.ANCHOR_GENERATOR.SIZES = anchors.sizes
            reasons.append(anchors.reason)
    return reasons


def _typical_scale(cfg: CfgNode, samples: Sequence[ImageCells]) -> float:
    """Return the zoom of the training; without a fixed one, the median of its crops'."""
    if cfg.INPUT.ZOOM:
        return float(cfg.INPUT.ZOOM)
    augmentations, rng = build_augmentations(cfg), np.random.default_rng(0)
    views = [augmentations.sample_view(sample.size, rng, None) for sample in samples]
    scales = [
        math.sqrt(math.prod(view.size) / ((right - left) * (bottom - top)))
        for view in views
        for left, top, right, bottom in [view.window]
    ]
    return round(float(np.median(scales)), 2)


def _feature_stride(feature: str, cfg: CfgNode) -> int:
    """Return the stride of a feature map by its name, such as p2 or res5."""
    stride: int = 2 ** int(feature[-1])
    return stride // cfg.MODEL.RESNETS.RES5_DILATION if feature == "res5" else stride

"""How large the network should see cells, and its anchors, from the sizes of the cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cellseg.errors import InputError
from cellseg.learn.samples import Sample

# The longest side of the median cell that suits fine and coarse features, in the network's
# pixels. Longer, and the cost grows with the square; but coarse features need it.
_LENGTH_FINE, _LENGTH_COARSE = 30, 56
_COARSE_STRIDE = 16
_ZOOMS = (0.5, 4.0)  # beyond, cells vanish or only the blur grows

_N_SIZES = 5  # on a single level; Detectron2's number, so that its weights fit
_LEAST_STEP = 1.2  # between anchors of one level: nearer ones tell no cells apart
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


class Zoom(NamedTuple):
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


def measure_cells(samples: Sequence[Sample]) -> CellSizes:
    """Measure the boxes of all annotated cells.

    Raises
    ------
    InputError
        If there is no cell.
    """
    boxes = [annotation["bbox"] for sample in samples for annotation in sample["annotations"]]
    if not boxes:
        raise InputError(
            f"no cell in the {len(samples)} training images, so there is nothing to learn; hold "
            "out less (--val_fraction), or outline some cells"
        )
    sides = np.array(boxes, np.float64)[:, 2:]
    small, large = np.percentile(np.sqrt(sides.prod(axis=1)), [5, 95])
    length, longest = np.percentile(sides.max(axis=1), [50, 99.9])
    return CellSizes(float(length), float(small), float(large), float(longest))


def choose_zoom(sizes: CellSizes, finest_stride: int) -> Zoom:
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
    value = round(min(max(wanted, _ZOOMS[0]), _ZOOMS[1]), 2)
    reason = (
        f"zoom {value:g}: the median cell is {sizes.length:g} px long, {length} px suit features "
        f"of stride {finest_stride}"
    )
    if not _ZOOMS[0] <= wanted <= _ZOOMS[1]:
        reason += f", but zooms go from {_ZOOMS[0]:g} to {_ZOOMS[1]:g}"
    return Zoom(value, reason)


def choose_anchors(sizes: CellSizes, zoom: float, strides: Sequence[int]) -> Anchors:
    """Choose anchors that cover the sizes of nine in ten cells, in geometric steps.

    Of several levels each gets one size, at least twice that of the level before, as its
    stride is (Lin et al., Feature pyramid networks, CVPR 2017): larger anchors may stand
    further apart. A single level gets all sizes.

    Parameters
    ----------
    sizes
        The cells' sizes.
    zoom
        The network's pixels for each pixel of the image.
    strides
        The rising strides of the feature maps with anchors, in the network's pixels.
    """
    several = len(strides) > 1
    count = len(strides) if several else _N_SIZES
    # Anchors smaller than the stride would leave gaps between them.
    smallest = max(sizes.small * zoom, strides[0])
    covering = (sizes.large * zoom / smallest) ** (1 / (count - 1))
    step = max(covering, _LEVEL_STEP if several else _LEAST_STEP)
    sides = [float(round(smallest * step**n)) for n in range(count)]
    reason = (
        f"anchors of {', '.join(f'{side:g}' for side in sides)} px: nine in ten cells measure "
        f"{sizes.small:.1f} to {sizes.large:.1f} px (root of the box's area), zoomed by {zoom:g}"
    )
    return Anchors([[side] for side in sides] if several else [sides], reason)

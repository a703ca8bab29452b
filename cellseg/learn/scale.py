"""Config values that depend on the training data: scale, anchors, longest cell, density."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fvcore.common.config import CfgNode
from numpy.typing import NDArray

from cellseg.config import load_config
from cellseg.errors import InputError
from cellseg.images import ImageCells
from cellseg.learn.augment import build_augmentations
from cellseg.messages import listed, plural, warn
from cellseg.read.resolution import magnification
from cellseg.rle import areas, decode
from cellseg.runs import CONFIG

# Suitable length of the median cell in network pixels, for fine and for coarse features. The cost
# grows with its square.
_LENGTH_FINE, _LENGTH_COARSE = 30, 56
_COARSE_STRIDE = 16
_SAME_SCALE = 1.25  # weights trained at a scale are kept at it up to this factor
_SCALE_RANGE = (0.5, 4.0)  # below, cells vanish; above, only the blur grows
# The scale is lowered until this percentile of the cells is whole in a training window, if the
# median cell still has this length.
_WHOLE, _LEAST_LENGTH = 99, 15

_N_SIZES = 5  # on a single level; Detectron2's number, so that its weights fit
_MIN_STEP = 1.2  # between anchors of one level: closer ones match the same cells
_LEVEL_STEP = 2.0  # minimum between levels


@dataclass(frozen=True)
class CellSizes:
    """Sizes of the boxes of all training cells, in pixels of the run's resolution.

    Attributes
    ----------
    length
        Median of the longest side.
    small, large
        5th and 95th percentile of the square root of the area.
    longest
        99.9th percentile of the longest side, to exclude wrong outlines.
    """

    length: float
    small: float
    large: float
    longest: float


class Scale(NamedTuple):
    """Network pixels per image pixel, and the reason in one line."""

    value: float
    reason: str


class Anchors(NamedTuple):
    """Sides of the square anchors, and the reason in one line.

    `sizes` is the value of `MODEL.ANCHOR_GENERATOR.SIZES`: an increasing list for each level, in
    network pixels.
    """

    sizes: list[list[float]]
    reason: str


def measure_cells(samples: Sequence[ImageCells], mpp: float = 0.0) -> CellSizes:
    """Measure the boxes of all annotated cells. Raise InputError if there are none.

    Pixels are those of images of `mpp` micrometres per pixel, 0 for each image's own.
    """
    sides = _cell_sides(samples, mpp)
    if not len(sides):
        raise InputError(
            f"no cells in {plural(len(samples), 'training image')}, nothing to train on; lower "
            "--val_fraction or annotate cells"
        )
    small, large = np.percentile(np.sqrt(sides.prod(axis=1)), [5, 95])
    length, longest = np.percentile(sides.max(axis=1), [50, 99.9])
    return CellSizes(float(length), float(small), float(large), float(longest))


def _cell_sides(samples: Sequence[ImageCells], mpp: float) -> NDArray[np.float64]:
    """Return width and height of the boxes of all cells, `(N, 2)`, in pixels of `mpp`."""
    sides = [
        (sample.boxes[:, 2:] - sample.boxes[:, :2]) * magnification(sample.mpp, mpp)
        for sample in samples
    ]
    return np.concatenate([np.zeros((0, 2)), *sides])


def measure_density(samples: Sequence[ImageCells], mpp: float = 0.0) -> float:
    """Return how many cells have room side by side in a million pixels, as in `measure_cells`.

    With the 25th percentile of the masks' areas: the cells of an image may be all of the smaller
    of two common types.
    """
    masks = [
        areas(decode(sample.masks, sample.size)) * magnification(sample.mpp, mpp) ** 2
        for sample in samples
        if sample.masks
    ]
    return 1e6 / max(1.0, float(np.percentile(np.concatenate(masks), 25)))


def choose_scale(sizes: CellSizes, finest_stride: int, largest: float = math.inf) -> Scale:
    """Choose the scale at which the median cell has a suitable length for the network's features.

    `finest_stride` is the smallest stride of the feature maps in network pixels: 4 with a feature
    pyramid, 16 with a dilated res5. At the scale `largest`, nearly all cells are whole in a
    training window; a lower scale than suitable is chosen if the median cell is not too small then.
    """
    low, high = _SCALE_RANGE
    length = _LENGTH_COARSE if finest_stride >= _COARSE_STRIDE else _LENGTH_FINE
    ideal = length / sizes.length
    value = suitable = round(min(max(ideal, low), high), 2)
    if max(low, _LEAST_LENGTH / sizes.length) <= largest < suitable:
        value = math.floor(100 * largest) / 100
    reason = (
        f"scale {value:g}: the median cell is {sizes.length:g} px long, {length} px suit features "
        f"of stride {finest_stride}"
    )
    if not low <= ideal <= high:
        reason += f", limited to {low:g} to {high:g}"
    if value < suitable:
        reason += f"; lower than {suitable:g}, so that {_WHOLE} % of the cells fit in INPUT.WINDOW"
    return Scale(value, reason)


def choose_anchors(sizes: CellSizes, scale: float, strides: Sequence[int]) -> Anchors:
    """Choose anchors for the sizes of nine in ten cells, in geometric steps.

    Each of several levels gets one size, at least twice that of the level before, like its stride
    (Lin et al., Feature pyramid networks, CVPR 2017). A single level gets all sizes.

    Parameters
    ----------
    sizes
        The cells' sizes.
    scale
        Network pixels per image pixel.
    strides
        Increasing strides of the feature maps with anchors, in network pixels.
    """
    multi_level = len(strides) > 1
    count = len(strides) if multi_level else _N_SIZES
    # Anchors smaller than the stride would leave gaps.
    smallest = max(sizes.small * scale, strides[0])
    covering_step = (sizes.large * scale / smallest) ** (1 / (count - 1))
    step = max(covering_step, _LEVEL_STEP if multi_level else _MIN_STEP)
    sides = [float(round(smallest * step**n)) for n in range(count)]
    reason = (
        f"anchors of {', '.join(f'{side:g}' for side in sides)} px: nine in ten cells measure "
        f"{sizes.small:.1f} to {sizes.large:.1f} px (square root of the box area), at scale "
        f"{scale:g}"
    )
    return Anchors([[side] for side in sides] if multi_level else [sides], reason)


def set_keys_from_data(cfg: CfgNode, samples: Sequence[ImageCells]) -> list[str]:
    """Set the longest cell, density, resolution, and scale and anchors if chosen from the data.

    Returns a line for each chosen value, with the reason.
    """
    reasons = _set_resolution(cfg, samples)
    sizes = measure_cells(samples, cfg.DATA.MPP)
    cfg.DATA.LONGEST_CELL = sizes.longest
    cfg.DATA.CELLS_PER_MEGAPIXEL = measure_density(samples, cfg.DATA.MPP)
    if not (cfg.INPUT.ZOOM_FROM_DATA or cfg.MODEL.ANCHOR_GENERATOR.FROM_DATA):
        return reasons
    strides = [_feature_stride(name, cfg) for name in cfg.MODEL.RPN.IN_FEATURES]
    if cfg.INPUT.ZOOM_FROM_DATA:
        lengths = _cell_sides(samples, cfg.DATA.MPP).max(axis=1)
        largest = cfg.INPUT.WINDOW / float(np.percentile(lengths, _WHOLE))
        scale = choose_scale(sizes, min(strides), largest)
        cfg.INPUT.ZOOM = scale.value
        reasons.append(scale.reason + _keep_former_scale(cfg, scale.value))
    if cfg.MODEL.ANCHOR_GENERATOR.FROM_DATA:
        # Without a fixed scale, each image is resized whatever its resolution.
        sizes = sizes if cfg.INPUT.ZOOM else measure_cells(samples)
        anchors = choose_anchors(sizes, _typical_scale(cfg, samples), strides)
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = anchors.sizes
        reasons.append(anchors.reason)
    return reasons


def _set_resolution(cfg: CfgNode, samples: Sequence[ImageCells]) -> list[str]:
    """Set the resolution, unless it is given, to one that images have: the median, or below it.

    Returns a line with the reason, none if it is unknown.
    """
    mpps = [sample.mpp for sample in samples if sample.mpp]
    if cfg.DATA.MPP:
        reason = f"{cfg.DATA.MPP:g} µm per pixel (DATA.MPP)"
        reason += "" if mpps else ": the annotation file has none"
    elif mpps:
        cfg.DATA.MPP = median_resolution(samples)
        reason = f"{cfg.DATA.MPP:g} µm per pixel: from the annotation file"
    else:
        return []
    n_scaled = sum(magnification(mpp, cfg.DATA.MPP) != 1 for mpp in mpps)
    if n_scaled and (cfg.INPUT.ZOOM or cfg.INPUT.ZOOM_FROM_DATA):
        reason += f"; {n_scaled} of {plural(len(samples), 'training image')} are scaled to it"
    return [reason]


def median_resolution(samples: Sequence[ImageCells]) -> float:
    """Return the resolution of images, as `DATA.MPP` is chosen; 0 if none is known."""
    mpps = [sample.mpp for sample in samples if sample.mpp]
    return float(f"{statistics.median_low(mpps or [0.0]):.6g}")


def _keep_former_scale(cfg: CfgNode, chosen: float) -> str:
    """Set the scale and the anchors of the run that the initial weights are of, if they fit.

    They do if the scale `chosen` from the data is about the same. Returns what was done, "" without
    such a run. The config then no longer follows the data, also when the run is resumed.
    """
    path = Path(cfg.MODEL.WEIGHTS).parent / CONFIG
    if not (cfg.MODEL.WEIGHTS and path.is_file()):
        return ""
    try:
        former = load_config(path, cfg.ENGINE)
    except InputError:  # of another engine or a later version
        return ""
    kept = former.INPUT.ZOOM
    if not kept:
        return ""
    if not 1 / _SAME_SCALE <= chosen / kept <= _SAME_SCALE:
        return f"; not {kept:g}, that of the initial weights, as these cells differ too much"
    cfg.INPUT.ZOOM, cfg.INPUT.ZOOM_FROM_DATA = kept, False
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    if anchors.FROM_DATA and former.MODEL.RPN.IN_FEATURES == cfg.MODEL.RPN.IN_FEATURES:
        anchors.SIZES, anchors.FROM_DATA = former.MODEL.ANCHOR_GENERATOR.SIZES, False
    return f"; the initial weights' {kept:g} is kept, with their anchors"


def warn_of_resolutions(samples: Sequence[ImageCells], mpp: float, scaled: bool = False) -> None:
    """Warn of images of another resolution than `mpp`, the run's, or of an unknown one.

    `scaled` says that images are scaled to the run's resolution, as with a fixed scale.
    """
    n = plural(len(samples), "image")
    known = [sample for sample in samples if sample.mpp]
    different = [sample for sample in known if magnification(sample.mpp, mpp) != 1]
    if different and not scaled:
        warn(
            f"{len(different)} of {n} of another resolution than the run's {mpp:g} µm per pixel, "
            "which the recipe resizes whatever their resolution (INPUT.ZOOM_FROM_DATA True scales "
            "them to one): " + listed([f"{sample.name} ({sample.mpp:g})" for sample in different])
        )
    if known and mpp and (unknown := [sample.name for sample in samples if not sample.mpp]):
        warn(
            f"{len(unknown)} of {n} don't say their resolution, assumed to be the run's {mpp:g} µm "
            f"per pixel: {listed(unknown)}"
        )


def warn_of_unsuitable_scale(cfg: CfgNode, samples: Sequence[ImageCells]) -> None:
    """Warn of cells that are longer than the training windows, or small for the anchors."""
    inputs = cfg.INPUT
    lengths = _cell_sides(samples, cfg.DATA.MPP if inputs.ZOOM else 0.0).max(axis=1)
    n = int((lengths * inputs.ZOOM > inputs.WINDOW).sum())
    if inputs.ZOOM and 100 * n > (100 - _WHOLE) * len(lengths):
        warn(
            f"{n} of {plural(len(lengths), 'training cell')} ({100 * n / len(lengths):.2g} %) are "
            f"longer than the training window of {inputs.WINDOW / inputs.ZOOM:.0f} pixels "
            f"(INPUT.WINDOW {inputs.WINDOW:g} / INPUT.ZOOM {inputs.ZOOM:g}), so never whole in "
            "training; set a larger INPUT.WINDOW or a lower INPUT.ZOOM"
        )
    length = float(np.median(lengths)) * _typical_scale(cfg, samples)
    smallest = np.hstack(cfg.MODEL.ANCHOR_GENERATOR.SIZES).min()  # of lists, or a single one
    if not inputs.ZOOM and length < smallest / 2:
        warn(
            f"the median cell is {length:.3g} network pixels long in training, less than half of "
            f"the smallest anchor ({smallest:g}), so most cells may be missed; end the command "
            "with INPUT.ZOOM_FROM_DATA True, or use --model lite_fpn"
        )


def _typical_scale(cfg: CfgNode, samples: Sequence[ImageCells]) -> float:
    """Return the scale of the training, or the median scale of its crops if it is not fixed."""
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

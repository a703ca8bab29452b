"""Find the tissue of an image, so that empty background need not be predicted.

What counts is that no cell is left out: a pixel is background only if it has the colour of the
glass, or was not scanned. Everything else is tissue, also ink and dust. An image without bright,
colourless, even areas (a dark background, or tissue all over) has no background, unless large areas
around bright tissue are black.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cellseg.coarse import CoarseMask, reduce_pixels
from cellseg.read.window import WindowedImage, open_file_or_array

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_STEP_UM = 2.0
_STEP = 8
"""Side of a pixel of the mask, in micrometres and, if their size is unknown, in pixels. Several in
a cell, so that it differs from the background, and few enough in a tile to cost nothing."""

_MAX_PIXELS = 40_000_000
"""Of a mask: above, its pixels are larger."""

_ROWS = 512  # read at once, whole segments of most files

_BRIGHT = 140
"""Of 255: least green value of a background."""

_COLOURLESS, _PINK = 32, 12
"""Most difference between the channels of a background, which may be yellow, and how much darker
its green may be than both others: more is pale tissue."""

_MIN_BACKGROUND = 0.01
"""Least part of the image that a background has."""

_DARK, _FIELD = 60, 256
"""Without glass, black is what was not scanned only around bright tissue: least value that three
quarters of it have in all channels, and least pixels of a piece of it, more than of a cell. Black
between fluorescent cells has a dim rim around each."""

_WEAK, _STRONG = 5, 10
"""Of 255, and twice that for noisy images: how much darker or more coloured than the background
tissue is, several pixels of it and a single one."""


@dataclass(frozen=True)
class Tissue:
    """The tissue of an image.

    Attributes
    ----------
    mask
        Where tissue, or something else than background, is.
    background
        Red, green and blue of the background, 0 to 255; None if there is none, so that all of
        the image is tissue. Black if only what was not scanned is background.
    """

    mask: CoarseMask
    background: tuple[int, int, int] | None


def find_tissue(image: Path | NDArray[Any], level: int = 0, mpp: float | None = None) -> Tissue:
    """Find the tissue of an image, on a small level of its pyramid if it has one.

    Parameters
    ----------
    image
        File, or array as for `cellseg.read.window.from_array`.
    level
        Level of the file whose pixels the mask refers to.
    mpp
        Micrometres per pixel of that level, None if unknown.

    Raises
    ------
    InputError
        If the file can't be read.
    """
    with open_file_or_array(image, level) as opened:
        size = opened.size
        step = choose_step(size, mpp)
        scales = [_scale(size, each) for each in opened.levels]
        small = max(n for n, scale in enumerate(scales) if n <= level or scale <= step)
        if small <= level:
            return _find(opened, size, mpp)
    with open_file_or_array(image, small) as opened:
        return _find(opened, size, mpp)


def _scale(size: tuple[int, int], level: tuple[int, int]) -> float:
    """Return how many pixels of an image a pixel of a coarser level has on its longer side."""
    return 0.99 * max(size[0] / level[0], size[1] / level[1])  # levels are rounded


def choose_step(size: tuple[int, int], mpp: float | None) -> int:
    """Return the side of a mask's pixels in pixels of an image of that size, a power of two."""
    step = 2 ** round(math.log2(_STEP_UM / mpp)) if mpp else _STEP
    step = max(1, step)
    while math.prod(size) > _MAX_PIXELS * step**2:
        step *= 2
    return int(step)


def _find(opened: WindowedImage, size: tuple[int, int], mpp: float | None) -> Tissue:
    """Find the tissue of an image of that size on one of its levels."""
    scales = size[0] / opened.size[0], size[1] / opened.size[1]
    step = choose_step(size, mpp)
    factor = max(1, 2 ** round(math.log2(step / max(scales))))
    mask, background = tissue_mask(_read_reduced(opened, factor))
    return Tissue(CoarseMask(size, (factor * scales[0], factor * scales[1]), mask), background)


def _read_reduced(opened: WindowedImage, factor: int) -> Image:
    """Read an image reduced by a whole factor, by the mean of the pixels."""
    height, width = opened.size
    rows = max(_ROWS, factor) // factor * factor
    reduced = np.empty((math.ceil(height / factor), math.ceil(width / factor), 3), np.uint8)
    starts = range(0, height, rows)
    for top in tqdm(starts, "finding tissue", leave=False, disable=len(starts) < 8 or None):
        block = opened.read((0, top, width, min(top + rows, height)))
        reduced[top // factor : (top + rows) // factor] = reduce_pixels(block, factor)
    return reduced


def tissue_mask(rgb: Image) -> tuple[Mask, tuple[int, int, int] | None]:
    """Return where a small image has something else than background, and the background's colour.

    Without a background, that is everywhere.

    Parameters
    ----------
    rgb
        `(h, w, 3)` uint8.

    Returns
    -------
    `(h, w)` bool, and the colour or None.
    """
    lightest, darkest = rgb.max(axis=2), rgb.min(axis=2)
    window = np.ones((3, 3), np.uint8)
    spread = (cv2.dilate(rgb, window) - cv2.erode(rgb, window)).max(axis=2)
    red, green, blue = cv2.split(rgb)
    bright = (green >= _BRIGHT) & (lightest - darkest <= _COLOURLESS)
    bright &= cv2.subtract(cv2.min(red, blue), green) <= _PINK
    # Not scanned: filled with black or white.
    filled = spread <= 1
    black, white = filled & (lightest <= 8), filled & (darkest >= 253)

    n_scanned = int((~black).sum())
    background, noise = _find_background(rgb, bright & ~white, spread, n_scanned)
    if background is None:  # perhaps as white as what was not scanned
        background, noise = _find_background(rgb, bright, spread, n_scanned)
    if background is None:
        unscanned = _find_unscanned(black, lightest, darkest)
        return ~unscanned, (0, 0, 0) if unscanned.any() else None
    weak = np.clip(4 * noise, _WEAK, 2 * _WEAK)
    strong = np.clip(8 * noise, _STRONG, 2 * _STRONG)
    mask = _hysteresis(_difference(rgb, background), float(weak), float(strong))
    mask &= ~white & ~(cv2.dilate(black.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)
    # Gaps within a cell's distance belong to the tissue.
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, window) > 0
    colour = int(background[0]), int(background[1]), int(background[2])
    return closed, colour


def _find_unscanned(black: Mask, lightest: NDArray[np.uint8], darkest: NDArray[np.uint8]) -> Mask:
    """Return the large black areas around bright tissue, in an image without glass.

    `black` are even areas, which end a pixel before anything else; `lightest` and `darkest` are of
    the channels of each pixel. All are `(h, w)`.
    """
    # Up to the tissue, but not onto pixels that are partly tissue.
    ends = cv2.dilate(black.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    black = _large(black | (ends & (lightest == 0)), _MIN_BACKGROUND * black.size)
    scanned = _large(~black, _FIELD)
    if not scanned.any() or np.percentile(darkest[scanned], 25) < _DARK:
        return np.zeros_like(black)
    return black


def _large(mask: Mask, least: float) -> Mask:
    """Return the connected parts of a mask that have at least so many pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] >= least
    keep[0] = False
    large: Mask = keep[labels]
    return large


def _find_background(
    rgb: Image, candidates: Mask, spread: NDArray[np.uint8], n_scanned: int
) -> tuple[NDArray[np.int64] | None, float]:
    """Return the brightest frequent colour of even areas, and its noise.

    `spread` is the range of the values around each pixel. The noise is a standard deviation.
    """
    values = spread[candidates]
    if not len(values):
        return None, 0.0
    most_spread = 4 + 2 * float(np.percentile(values, 10))
    even = candidates & (spread <= min(16.0, most_spread))
    counts = np.bincount(rgb[:, :, 1][even], minlength=256)
    near = np.convolve(counts, np.ones(7, np.int64), "same")
    frequent = np.flatnonzero(near >= _MIN_BACKGROUND * n_scanned)
    if not len(frequent):
        return None, 0.0
    brightest = int(frequent[-1])
    first = max(0, brightest - 8)
    peak = first + int(near[first : brightest + 1].argmax())
    green = rgb[:, :, 1].astype(np.int16)
    near_peak = even & (np.abs(green - peak) <= 6)
    medians, deviations = [], []
    for channel in cv2.split(rgb):  # one at a time, as there are many pixels
        levels = channel[near_peak].astype(np.int16)
        medians.append(round(float(np.median(levels))))
        deviations.append(float(np.median(np.abs(levels - np.int16(medians[-1])))))
    return np.array(medians, np.int64), 1.4826 * max(deviations)


def _difference(rgb: Image, background: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return how much darker, or of how different a colour, than the background each pixel is."""
    lack = background.astype(np.int16) - rgb
    darker = lack.max(axis=2)
    mean = (lack.sum(axis=2, dtype=np.int16) + 1) // 3
    lack -= mean[:, :, None]
    coloured = np.abs(lack, out=lack).max(axis=2)
    difference: NDArray[np.int16] = np.maximum(darker, coloured)
    return difference.clip(0, 255).astype(np.uint8)


def _hysteresis(difference: NDArray[np.uint8], weak: float, strong: float) -> Mask:
    """Return the pixels above `strong`, and connected ones above `weak` if several."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        (difference > weak).astype(np.uint8), connectivity=8
    )
    keep = stats[:, cv2.CC_STAT_AREA] >= 3
    keep[np.unique(labels[difference > strong])] = True
    keep[0] = False
    mask: Mask = keep[labels]
    return mask

"""Convert stored pixels to 8-bit RGB: grey, 16 bits and alpha channels."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellseg.read.brightness import STRAY

_BITS = (8, 10, 12, 14, 16)  # of a camera's values in 16-bit files

_MARKS = 0.1
"""Share of 65535 that may be marks, such as a scale bar; more is a white background."""

_ENOUGH, _PARTS = 48 * 2**20, 64
"""Values that are looked at to find the bits in use, and in how many parts at least; all values of
an image of 16 megapixels."""

_STRAY_IN_PART, _FEW = 0.01, 1000
"""Share of the values of a part of an image that may be above its range, and number in any part."""


def bits_in_use(parts: Iterable[NDArray[np.uint16]]) -> int:
    """Return the bits of the camera that wrote an image.

    Many have 12, and their values are in 16-bit files without scaling. Slides and crops that
    are so dark with 16 bits do not occur: the background is bright.

    Parameters
    ----------
    parts
        All parts of the image, from all over it first, `(H, W)` or `(H, W, C)` as for `to_rgb`.
        Of large ones, no more are taken than needed.

    Returns
    -------
    8, 10, 12, 14 or 16: the fewest that hold all values but 0.1 %, such as of hot pixels, and
    except 65535, if at most a tenth has it. Neither 0, as where nothing was scanned, counts, nor
    alpha.
    """
    counts, looked_at = np.zeros(len(_BITS) + 1, np.int64), 0
    for part in parts:
        n_above = _count_above(part, (*_BITS[:-1], 0))
        counts += [*n_above, _count_largest(part)]
        looked_at += min(n_above[-1], _ENOUGH // _PARTS)
        if looked_at >= _ENOUGH:
            break
    *above, n_values, n_largest = counts.tolist()
    n_marks = n_largest if n_largest <= _MARKS * n_values else 0
    allowed = n_marks + STRAY * (n_values - n_marks)
    return next((bits for bits, n in zip(_BITS, above, strict=False) if n <= allowed), 16)


def exceeds_range(pixels: NDArray[np.uint16], bits: int) -> bool:
    """Return whether so many values of a part of an image need more bits that it is another range.

    Then they are cells, or background, and neither hot pixels nor marks.
    """
    if bits == 16:
        return False
    n = _count_above(pixels, [bits])[0] - _count_largest(pixels)
    return n > max(_FEW, _STRAY_IN_PART * pixels.size)


def _count_above(pixels: NDArray[np.uint16], limits: Sequence[int]) -> list[int]:
    """Return how many values of the colours need more than each number of bits."""
    colours = _colours(pixels)
    return [int(np.count_nonzero(colours >= 1 << bits)) for bits in limits]


def _count_largest(pixels: NDArray[np.uint16]) -> int:
    return int(np.count_nonzero(_colours(pixels) == 65535))


def _colours(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return pixels if pixels.ndim == 2 else pixels[..., : 3 if pixels.shape[2] >= 3 else 1]


class Alpha(NamedTuple):
    """The channel that says how opaque pixels are, with which bits, and if colours contain it."""

    channel: int
    bits: int
    is_premultiplied: bool = False


def is_opaque(alpha: NDArray[Any]) -> bool:
    """Return whether all values of an alpha channel are the largest of their type."""
    return bool(alpha.min() == np.iinfo(alpha.dtype).max)


def find_alpha(
    pixels: Iterable[NDArray[Any]], channel: int, is_premultiplied: bool = False
) -> Alpha | None:
    """Return the alpha channel of an image, of which `pixels` are all parts.

    It counts only if it is opaque somewhere. Some programs write an alpha of 0 or 1 for pixels that
    are to be seen: then it is None.
    """
    largest = 0
    for part in pixels:
        largest = max(largest, int(part[..., channel].max()))
        if largest == np.iinfo(part.dtype).max:
            break
    bits = next((bits for bits in _BITS if largest == (1 << bits) - 1), None)
    return None if bits is None else Alpha(channel, bits, is_premultiplied)


def is_transparency(channel: NDArray[Any]) -> bool:
    """Return whether values are those of an alpha channel: opaque or transparent, rarely between.

    Those of another channel, such as a fluorescent dye's, are mostly between. 0 and 1 are
    transparent.
    """
    shown = channel[channel > 1]
    return shown.size == 0 or 2 * int(np.count_nonzero(shown == shown.max())) > shown.size


@functools.cache
def _to_8_bit(bits: int) -> NDArray[np.uint8]:
    """Return the 8-bit value of each 16-bit one, `round(255 v / (2^bits - 1))`, at most 255."""
    largest = (1 << bits) - 1
    values = np.minimum(np.arange(1 << 16), largest)
    rounded: NDArray[np.uint8] = ((510 * values + largest) // (2 * largest)).astype(np.uint8)
    return rounded


def to_rgb(
    pixels: NDArray[Any],
    white_is_zero: bool = False,
    bits: int | None = 16,
    alpha: Alpha | None = None,
) -> NDArray[np.uint8]:
    """Convert stored pixels to 8-bit RGB.

    Parameters
    ----------
    pixels
        `(H, W)` or `(H, W, C)` array, uint8 or uint16: grey, grey and alpha, or RGB and any
        further channels.
    white_is_zero
        Whether values rise from white to black.
    bits
        Of uint16, the bits in use: `bits_in_use`.
    alpha
        The alpha channel, from `find_alpha`. What is transparent becomes white, as glass is.

    Returns
    -------
    `(H, W, 3)` uint8, without a copy if nothing changes.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    opacity = None if alpha is None else pixels[:, :, alpha.channel]
    if pixels.dtype == np.uint16:
        pixels = _to_8_bit(bits or 16)[pixels]
    interleaved = pixels.shape[2] == 3 and pixels.strides[1:] == (3, 1)
    if interleaved and not white_is_zero:
        return pixels  # a slide of 1.2 GB isn't copied
    source = (0, 1, 2) if pixels.shape[2] >= 3 else (0, 0, 0)
    rgb = np.empty((*pixels.shape[:2], 3), np.uint8)
    for channel in range(3):  # four times as fast as one copy of [:, :, :3]
        rgb[:, :, channel] = pixels[:, :, source[channel]]
    if white_is_zero:
        np.invert(rgb, out=rgb)
    if alpha is not None and opacity is not None:
        _put_on_white(rgb, opacity, alpha)
    return rgb


def _put_on_white(rgb: NDArray[np.uint8], opacity: NDArray[Any], alpha: Alpha) -> None:
    if opacity.dtype == np.uint16:
        opacity = _to_8_bit(alpha.bits)[opacity]
    for top in range(0, len(rgb), _ROWS):  # bounds the memory
        rows = slice(top, top + _ROWS)
        if opacity[rows].min() == 255:
            continue
        opaque = opacity[rows, :, None].astype(np.uint32)
        colours = (
            255 * rgb[rows].astype(np.uint32) if alpha.is_premultiplied else rgb[rows] * opaque
        )
        rgb[rows] = np.minimum((colours + 255 * (255 - opaque) + 127) // 255, 255)


_ROWS = 64

"""Convert stored pixels to 8-bit RGB: grey, 16 bits and alpha channels."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_BITS = (8, 10, 12, 14, 16)  # of a camera's values in 16-bit files


def bits_in_use(pixels: NDArray[Any]) -> int | None:
    """Return the bits of the camera that wrote an image, or a sample of its pixels.

    Many have 12, and their values are in 16-bit files without scaling. Slides and crops that
    are so dark with 16 bits do not occur: the background is bright.

    Parameters
    ----------
    pixels
        `(H, W)` or `(H, W, C)`, uint8 or uint16, as for `to_rgb`.

    Returns
    -------
    8, 10, 12, 14 or 16 for uint16, by the largest value except alpha; None for uint8.
    """
    if pixels.dtype != np.uint16:
        return None
    colours = pixels if pixels.ndim == 2 else pixels[..., : 3 if pixels.shape[2] >= 3 else 1]
    largest = int(colours.max())
    return next(bits for bits in _BITS if largest < 1 << bits)


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
    """Return the alpha channel of an image, or of samples of its pixels.

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

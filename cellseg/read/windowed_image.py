"""An image that is read window by window: the interface of all readers, and arrays."""

from __future__ import annotations

import abc
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.limits import check_image_memory
from cellseg.read.resolution import Resolution
from cellseg.read.rgb import Alpha, bits_in_use, find_alpha, to_rgb


class WindowedImage(abc.ABC):
    """An image that is read window by window; a context manager that closes its file.

    Attributes
    ----------
    path
        The file, or what else it is.
    size
        Height and width in pixels of the opened level.
    levels
        Heights and widths of the levels of its pyramid, from full resolution.
    resolution
        Size of the pixels at full resolution, None if the file doesn't say.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        levels: Sequence[tuple[int, int]] = (),
        resolution: Resolution | None = None,
    ) -> None:
        self.path = path
        self.size = size
        self.levels = tuple(levels) or (size,)
        self.resolution = resolution

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel of the opened level, None if the file doesn't say."""
        if self.resolution is None:
            return None
        return self.resolution.mpp * math.sqrt(math.prod(self.levels[0]) / math.prod(self.size))

    @property
    def bits(self) -> int | None:
        """Bits in use of 16-bit values, which are scaled to 8; None if they are stored in 8."""
        return None

    @property
    def notes(self) -> list[str]:
        """What is unusual about the file and had to be decided, each as a kind of images."""
        notes = []
        if self.bits and self.bits < 16:
            notes.append(f"images with {self.bits}-bit values in 16 bits, scaled to that range")
        if self.resolution and not self.resolution.is_square:
            notes.append("images whose pixels are not square, used as if they were")
        return notes

    def read(self, window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Read a window; safe to call from several threads.

        Parameters
        ----------
        window
            XYXY in pixels, right and bottom edge exclusive, within the image and not empty.

        Returns
        -------
        A writable `(y1 - y0, x1 - x0, 3)` uint8 RGB array, C-contiguous, with the pixels of
        `cellseg.read.window.read_image`.

        Raises
        ------
        InputError
            If the stored pixels are damaged, or too many for the memory of an image.
        ValueError
            If the window is empty or not within the image.
        """
        x0, y0, x1, y1 = window
        height, width = self.size
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"{window=} is empty or not within {height} x {width} pixels")
        check_image_memory(self.path, y1 - y0, x1 - x0, 3)
        rgb = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        self._fill(rgb, x0, y0)
        return rgb

    def read_all(self) -> NDArray[np.uint8]:
        """Read the whole level. Raises InputError if `read` does."""
        height, width = self.size
        return self.read((0, 0, width, height))

    def windows(self, side: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield windows of that many pixels a side, smaller at the right and bottom edge.

        They cover the level without overlap, row by row.
        """
        height, width = self.size
        for top, left in itertools.product(range(0, height, side), range(0, width, side)):
            yield left, top, min(left + side, width), min(top + side, height)

    @abc.abstractmethod
    def close(self) -> None:
        """Release file and memory; nothing can be read afterwards."""

    @abc.abstractmethod
    def _fill(self, rgb: NDArray[np.uint8], x0: int, y0: int) -> None:
        """Fill an uninitialised window whose first pixel is at `x0`, `y0`."""

    def __enter__(self) -> WindowedImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def from_array(array: NDArray[Any]) -> WindowedImage:
    """Return an image that reads windows of an array.

    Parameters
    ----------
    array
        `(H, W)`, `(H, W, 3)` or `(H, W, 4)` uint8 or uint16: grey, RGB, RGB and alpha, on white.
        It is not copied if its bytes are in this machine's order.

    Raises
    ------
    ValueError
        If it has another shape or type, or no pixels.
    """
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not shaped or array.size == 0 or array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"array is {array.dtype} {array.shape}, expected uint8 or uint16 "
            "(H, W), (H, W, 3) or (H, W, 4)"
        )
    return ArrayImage(array)


class ArrayImage(WindowedImage):
    """An array of one of the shapes that `to_rgb` takes."""

    def __init__(self, pixels: NDArray[Any], path: Path = Path("array")) -> None:
        super().__init__(path, (pixels.shape[0], pixels.shape[1]))
        self._pixels = pixels

    @functools.cached_property
    def bits(self) -> int | None:
        return bits_in_use([self._pixels]) if self._pixels.dtype == np.uint16 else None

    @functools.cached_property
    def _alpha(self) -> Alpha | None:
        has_alpha = self._pixels.ndim == 3 and self._pixels.shape[2] in (2, 4)
        return find_alpha([self._pixels], -1) if has_alpha else None

    def close(self) -> None:
        self._pixels = self._pixels[:0].copy()

    def _fill(self, rgb: NDArray[np.uint8], x0: int, y0: int) -> None:
        height, width, _ = rgb.shape
        stored = self._pixels[y0 : y0 + height, x0 : x0 + width]
        rgb[:] = to_rgb(stored, bits=self.bits, alpha=self._alpha)


def check_level(path: Path | str, level: int, count: int) -> None:
    """Raise InputError unless the file, which has `count` levels, has that one."""
    if not 0 <= level < count:
        levels = "1 level, 0" if count == 1 else f"{count} levels, 0 to {count - 1}"
        raise InputError(f"{path}: has {levels}, but level {level} was requested; choose another")

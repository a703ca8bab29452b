"""Read images window by window, so that slides never have to be in memory as a whole.

A TIFF stores its pixels in *segments*, tiles or strips, each compressed separately. Only
those that a window needs are decoded, and some are cached for overlapping windows.
Uncompressed pixels are memory-mapped.
"""

from __future__ import annotations

import abc
import contextlib
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.limits import check_image_memory
from cellseg.read.tiff import (
    WHITE_IS_ZERO,
    check_directory,
    check_image,
    check_segment,
    decode_errors,
    is_tiff,
    main_page,
    pixel_bytes,
    read_image,
    segment_size,
    to_rgb,
)

# Enough for a window and the segments that the next row of windows needs too: two rows of
# 512 x 512 pixels across a slide 20,000 wide.
CACHE_BYTES = 64 * 2**20


class WindowedImage(abc.ABC):
    """An image that is read window by window; a context manager that closes its file.

    Attributes
    ----------
    size
        Height and width in pixels of the opened level.
    levels
        Heights and widths of the levels of its pyramid, from full resolution.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.levels: tuple[tuple[int, int], ...] = (size,)

    def read(self, window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Read a window; safe to call from several threads.

        Parameters
        ----------
        window
            XYXY in pixels, right and bottom edge exclusive, within the image and not empty.

        Returns
        -------
        A writable `(y1 - y0, x1 - x0, 3)` uint8 RGB array, C-contiguous, with the pixels of
        `cellseg.read.tiff.read_image`.

        Raises
        ------
        InputError
            If the stored pixels are damaged.
        ValueError
            If the window is empty or not within the image.
        """
        x0, y0, x1, y1 = window
        height, width = self.size
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"{window=} is empty or not within {height} x {width} pixels")
        rgb = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        self._fill(rgb, x0, y0)
        return rgb

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


def open_image_of_size(path: Path, size: tuple[int, int], level: int = 0) -> WindowedImage:
    """Open an image as `open_image` does, and check its height and width in pixels.

    Raises InputError if `open_image` does or the image has another size.
    """
    opened = open_image(path, level)
    if opened.size != size:
        opened.close()
        raise InputError(
            f"{path}: {opened.size[0]} x {opened.size[1]} pixels (height x width), expected "
            f"{size[0]} x {size[1]} as in its annotations or results; set the data folder with "
            "--data"
        )
    return opened


def open_image(
    path: str | os.PathLike[str], level: int = 0, cache_bytes: int = CACHE_BYTES
) -> WindowedImage:
    """Open an image for reading window by window.

    Supports the files of `cellseg.read.tiff.read_image`, and checks headers as that does.
    Memory depends on the storage: tiles are best; windows of strips take the image's whole
    width; one compressed strip, PNG, JPEG and BMP are decoded once and kept as a whole.

    Parameters
    ----------
    path
        The file.
    level
        Level of a TIFF pyramid, 0 for full resolution. Levels are sub-images (SubIFDs, as in
        OME-TIFF) or further pages that are flagged as reduced or tiled as the first page is
        (as in Aperio's SVS), with its proportions.
    cache_bytes
        Size of the cache of decoded 8-bit RGB; at least one segment is cached.

    Raises
    ------
    InputError
        If the file can't be read, is damaged or not supported, or has no such level.
    """
    path = Path(path)
    if not is_tiff(path):
        _check_level(path, level, 1)
        return from_array(read_image(path))
    with contextlib.ExitStack() as files, decode_errors(path):
        tiff = files.enter_context(tifffile.TiffFile(path))
        pyramid = _pyramid(main_page(path, tiff), tiff)
        _check_level(path, level, len(pyramid))
        page = pyramid[level]
        check_directory(tiff, page)
        check_image(path, page)
        image: WindowedImage
        if page.is_final:  # stored as numpy would
            image = _StoredImage(path, tiff, page)
        else:
            high, wide = segment_size(page)
            check_image_memory(path, high, wide, pixel_bytes(page) + 3)
            image = _SegmentedImage(path, tiff, page, cache_bytes)
        image.levels = tuple((each.imagelength, each.imagewidth) for each in pyramid)
        files.pop_all()  # now the image closes the file
        return image


def from_array(array: NDArray[Any]) -> WindowedImage:
    """Return an image that reads windows of an array.

    Parameters
    ----------
    array
        `(H, W)`, `(H, W, 3)` or `(H, W, 4)` uint8 or uint16: grey, RGB, RGB and alpha. It is
        not copied.

    Raises
    ------
    ValueError
        If it has another shape or type, or no pixels.
    """
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not shaped or array.size == 0 or array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"array is {array.dtype} {array.shape}, expected uint8 or uint16 "
            "(H, W), (H, W, 3) or (H, W, 4)"
        )
    return _ArrayImage(array)


class _ArrayImage(WindowedImage):
    def __init__(self, pixels: NDArray[Any]) -> None:
        super().__init__((pixels.shape[0], pixels.shape[1]))
        self._pixels = pixels

    def close(self) -> None:
        self._pixels = self._pixels[:0].copy()

    def _fill(self, rgb: NDArray[np.uint8], x0: int, y0: int) -> None:
        height, width, _ = rgb.shape
        rgb[:] = to_rgb(self._pixels[y0 : y0 + height, x0 : x0 + width])


class _TiffImage(WindowedImage):
    """A page of a TIFF, read plane by plane."""

    def __init__(self, path: Path, tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> None:
        super().__init__((page.imagelength, page.imagewidth))
        self._path = path
        self._tiff = tiff
        self._page = page
        # Separate planes are read without the alpha.
        colours = 3 if page.samplesperpixel >= 3 else 1
        self._planes = range(colours if page.planarconfig == 2 else 1)

    def close(self) -> None:
        self._tiff.close()

    def _to_rgb(self, planes: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
        return to_rgb(np.concatenate(planes, axis=2), self._page.photometric == WHITE_IS_ZERO)


class _StoredImage(_TiffImage):
    """Pixels that are stored uncompressed and in one piece."""

    def _fill(self, rgb: NDArray[np.uint8], x0: int, y0: int) -> None:
        y1, x1 = y0 + rgb.shape[0], x0 + rgb.shape[1]
        dtype = self._page.dtype.newbyteorder(self._tiff.byteorder)
        with decode_errors(self._path):
            # Mapped again for each window, so that pages read don't stay in memory.
            stored = self._tiff.filehandle.memmap_array(
                dtype, self._page.shaped, self._page.dataoffsets[0]
            )
            rgb[:] = self._to_rgb([stored[plane, 0, y0:y1, x0:x1] for plane in self._planes])


class _SegmentedImage(_TiffImage):
    """Pixels in tiles or strips that have to be decoded; some are cached.

    Windows mostly come row by row, from the top left. The first cached segment that no later
    window needs is then the topmost, and of these the leftmost, which is removed first. A
    window further up clears the cache.
    """

    def __init__(
        self, path: Path, tiff: tifffile.TiffFile, page: tifffile.TiffPage, cache_bytes: int
    ) -> None:
        super().__init__(path, tiff, page)
        height, width = self.size
        high, wide = self._segment_size = segment_size(page)
        self._grid = math.ceil(height / high), math.ceil(width / wide)
        self._cache: dict[tuple[int, int], NDArray[np.uint8]] = {}
        self._max_cached = max(1, cache_bytes // (3 * high * wide))
        self._top = 0  # row of segments in which the last window began
        self._cache_lock = threading.Lock()
        self._file_lock = threading.Lock()  # for the position in the file

    def close(self) -> None:
        super().close()
        self._cache.clear()

    def _fill(self, rgb: NDArray[np.uint8], x0: int, y0: int) -> None:
        high, wide = self._segment_size
        y1, x1 = y0 + rgb.shape[0], x0 + rgb.shape[1]
        with self._cache_lock:
            if y0 // high < self._top:
                self._cache.clear()
            self._top = y0 // high
        with decode_errors(self._path):
            for top in range(y0 // high * high, y1, high):
                for left in range(x0 // wide * wide, x1, wide):
                    segment = self._segment(top // high, left // wide)
                    a, b = max(y0, top), min(y1, top + high)
                    c, d = max(x0, left), min(x1, left + wide)
                    rgb[a - y0 : b - y0, c - x0 : d - x0] = segment[
                        a - top : b - top, c - left : d - left
                    ]

    def _segment(self, row: int, column: int) -> NDArray[np.uint8]:
        with self._cache_lock:
            segment = self._cache.get((row, column))
        if segment is None:
            segment = self._decode(row, column)
            with self._cache_lock:
                self._cache[row, column] = segment
                if len(self._cache) > self._max_cached:
                    del self._cache[min(self._cache)]
        return segment

    def _decode(self, row: int, column: int) -> NDArray[np.uint8]:
        down, across = self._grid
        return self._to_rgb(
            [self._decode_plane((plane * down + row) * across + column) for plane in self._planes]
        )

    def _decode_plane(self, index: int) -> NDArray[Any]:
        page = self._page
        with self._file_lock:
            self._tiff.filehandle.seek(page.dataoffsets[index])
            data = self._tiff.filehandle.read(page.databytecounts[index])
        check_segment(page, data)
        segment, _, _ = page.decode(
            data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader
        )
        plane: NDArray[Any] = segment[0]  # depth 1
        return plane


def _pyramid(page: tifffile.TiffPage, tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Return the levels of an image, from full resolution."""
    others = [*tiff.pages[1:], *(page.pages or ())]
    coarser = [other for other in others if _is_coarser(other, page)]
    return [page, *sorted(coarser, key=lambda level: -level.imagelength * level.imagewidth)]


def _is_coarser(other: tifffile.TiffPage, page: tifffile.TiffPage) -> bool:
    """Return whether a page is a reduced level of another, not a label, macro or thumbnail."""
    h, w, height, width = other.imagelength, other.imagewidth, page.imagelength, page.imagewidth
    # Each side can be rounded up or down.
    in_proportion = (h - 1) * width < (w + 1) * height and (w - 1) * height < (h + 1) * width
    return bool(
        h * w < height * width
        and in_proportion
        and other.samplesperpixel == page.samplesperpixel
        and (other.is_reduced or (page.is_tiled and other.is_tiled))
    )


def _check_level(path: Path, level: int, count: int) -> None:
    if not 0 <= level < count:
        levels = "1 level, 0" if count == 1 else f"{count} levels, 0 to {count - 1}"
        raise InputError(f"{path}: has {levels}, but level {level} was requested; choose another")

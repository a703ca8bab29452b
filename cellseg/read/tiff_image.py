"""Read TIFFs window by window.

A TIFF stores its pixels in *segments*, tiles or strips, each compressed separately. Only
those that a window needs are decoded, and some are cached for overlapping windows.
Uncompressed pixels are memory-mapped.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import math
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from cellseg.limits import check_image_memory
from cellseg.messages import warn
from cellseg.read.image_formats import decode_errors
from cellseg.read.orientation import AS_STORED, TAG
from cellseg.read.resolution import tiff_resolution
from cellseg.read.rgb import (
    Alpha,
    bits_in_use,
    exceeds_range,
    find_alpha,
    is_opaque,
    is_transparency,
    to_rgb,
)
from cellseg.read.slide import SlideImage, slide_format
from cellseg.read.tiff import (
    WHITE_IS_ZERO,
    check_directory,
    check_image,
    check_segment,
    has_other_images,
    main_pages,
    other_ome_images,
    pixel_bytes,
    segment_size,
)
from cellseg.read.windowed_image import WindowedImage, check_level

# Enough for a window and the segments that the next row of windows needs too: two rows of
# 512 x 512 pixels across a slide 20,000 wide.
CACHE_BYTES = 64 * 2**20

Pyramid = list[list[tifffile.TiffPage]]
"""The pages of each level, from full resolution: one, or one for each channel."""

_ASSOCIATED, _UNASSOCIATED = 1, 2  # kinds of alpha channels: colours contain it or not

_PART = 2**16  # pixels that are read at once to find the bits in use, and what alpha means


def open_tiff(path: Path, level: int = 0, cache_bytes: int = CACHE_BYTES) -> WindowedImage:
    """Open a TIFF as `cellseg.read.window.open_image` does."""
    with contextlib.ExitStack() as files, decode_errors(path):
        tiff = files.enter_context(tifffile.TiffFile(path))
        if _is_scanners(path, tiff):
            return SlideImage(path, level)
        pages = main_pages(path, tiff)
        pyramid = _find_pyramid(pages, tiff)
        check_level(path, level, len(pyramid))
        for page in pyramid[level]:
            check_directory(tiff, page)
            check_image(path, page)
        image: _TiffImage
        if all(page.is_final for page in pyramid[level]):  # stored as numpy would
            image = _StoredImage(path, tiff, pyramid, level)
        else:
            high, wide = segment_size(pages[0])
            check_image_memory(path, high, wide, len(pages) * pixel_bytes(pages[0]) + 3)
            image = _SegmentedImage(path, tiff, pyramid, level, cache_bytes)
        files.pop_all()  # now the image closes the file
        return image


def _is_scanners(path: Path, tiff: tifffile.TiffFile) -> bool:
    """Return whether a TIFF is of a scanner whose tiles have to be arranged by OpenSlide."""
    # A strip is arranged as it is, except in NDPI. So OpenSlide is loaded for few files.
    may_be = tiff.pages[0].is_tiled or tiff.is_ndpi
    return may_be and slide_format(path) not in (None, "aperio", "generic-tiff")


class _TiffImage(WindowedImage):
    """A page of a TIFF, or a page for each channel, read plane by plane."""

    def __init__(self, path: Path, tiff: tifffile.TiffFile, pyramid: Pyramid, level: int) -> None:
        levels = [(page.imagelength, page.imagewidth) for page, *_ in pyramid]
        full, pages = pyramid[0][0], pyramid[level]
        super().__init__(path, levels[level], levels, tiff_resolution(tiff, full))
        page = pages[0]
        self._has_other_images = has_other_images(tiff, full)
        self._tiff = tiff
        self._page = page
        self._may_exceed = True  # whether not all values were looked at to find the bits
        self._n_colours = colours = 3 if page.samplesperpixel >= 3 else 1
        self._alpha_channel = next(
            (
                (channel, kind == _ASSOCIATED)
                for channel, kind in enumerate(page.extrasamples, colours)
                if kind in (_ASSOCIATED, _UNASSOCIATED) and channel < page.samplesperpixel
            ),
            None,
        )
        planes = [0]
        if page.planarconfig == 2:  # of separate planes, only colours and alpha are read
            planes = [*range(colours)]
            if self._alpha_channel:
                channel, is_premultiplied = self._alpha_channel
                planes.append(channel)
                self._alpha_channel = colours, is_premultiplied
        self._planes = [(page, plane) for page in pages for plane in planes]

    @functools.cached_property
    def bits(self) -> int | None:
        if self._page.dtype != np.uint16:
            return None
        if self._page.photometric == WHITE_IS_ZERO:
            return 16  # small values are bright
        if self.size != self.levels[0]:
            with open_tiff(self.path) as full:
                return full.bits
        with decode_errors(self.path):
            parts = iter(self._parts())
            bits = bits_in_use(parts)
            self._may_exceed = next(parts, None) is not None
            return bits

    @functools.cached_property
    def _alpha(self) -> Alpha | None:
        if self._alpha_channel is None:
            return None
        if self.size != self.levels[0]:
            with open_tiff(self.path) as full:
                return full._alpha if isinstance(full, _TiffImage) else None
        with decode_errors(self.path):
            return find_alpha(self._parts(), *self._alpha_channel)

    @property
    def notes(self) -> list[str]:
        other = "files of several images, of which one is read; save each as a file of its own"
        further = "images with channels besides grey or RGB, not used or taken as transparency"
        notes = super().notes + [other] * self._has_other_images
        notes += [AS_STORED] * (self._page.tags.valueof(TAG, 1) in range(2, 9))
        return notes + [further] * self._has_further_channels()

    def _has_further_channels(self) -> bool:
        """Return whether there are other channels than colours and alpha, by a part's values."""
        if self._page.samplesperpixel <= self._n_colours:
            return False
        with decode_errors(self.path):
            part = next(iter(self._parts()))
        unread = self._page.planarconfig == 2 and self._page.samplesperpixel > len(self._planes)
        return unread or not all(
            is_transparency(part[..., n]) for n in range(self._n_colours, part.shape[2])
        )

    def close(self) -> None:
        self._tiff.close()

    @abc.abstractmethod
    def _parts(self) -> Iterable[NDArray[Any]]:
        """Return all values, from all over the image first, `(H, W, C)` arrays as stored."""

    def _to_rgb(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        alpha = None
        if self._alpha_channel and not is_opaque(stored[..., self._alpha_channel[0]]):
            alpha = self._alpha
        if self.bits and self._may_exceed and exceeds_range(stored, self.bits):
            _warn_of_range(self.path, self.bits)
        return to_rgb(stored, self._page.photometric == WHITE_IS_ZERO, self.bits, alpha)


class _StoredImage(_TiffImage):
    """Pixels that are stored uncompressed and in one piece."""

    def _fill(self, rgb: NDArray[np.uint8], x0: int, y0: int) -> None:
        rows, columns = slice(y0, y0 + rgb.shape[0]), slice(x0, x0 + rgb.shape[1])
        with decode_errors(self.path):
            rgb[:] = self._to_rgb(self._stored(rows, columns))

    def _parts(self) -> Iterable[NDArray[Any]]:
        height, width = self.size
        rows = max(1, _PART // width)
        return (
            self._stored(slice(rows * n, rows * (n + 1)), slice(None))
            for n in _shuffled(math.ceil(height / rows))
        )

    def _stored(self, rows: Any, columns: slice) -> NDArray[Any]:
        """Return a part of the planes, `(h, w, C)`."""
        parts = []
        for page, plane in self._planes:
            # Mapped again for each window, so that pages read don't stay in memory.
            dtype = page.dtype.newbyteorder(self._tiff.byteorder)
            stored = self._tiff.filehandle.memmap_array(dtype, page.shaped, page.dataoffsets[0])
            parts.append(stored[plane, 0, rows, columns].astype(page.dtype, copy=False))
        return _join(parts)


class _SegmentedImage(_TiffImage):
    """Pixels in tiles or strips that have to be decoded; some are cached.

    Windows mostly come row by row, from the top left. The first cached segment that no later
    window needs is then the topmost, and of these the leftmost, which is removed first. A
    window further up clears the cache.
    """

    def __init__(
        self,
        path: Path,
        tiff: tifffile.TiffFile,
        pyramid: Pyramid,
        level: int,
        cache_bytes: int,
    ) -> None:
        super().__init__(path, tiff, pyramid, level)
        height, width = self.size
        high, wide = self._segment_size = segment_size(self._page)
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
        with decode_errors(self.path):
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
        return self._to_rgb(self._stored(row * self._grid[1] + column))

    def _parts(self) -> Iterable[NDArray[Any]]:
        return map(self._stored, _shuffled(math.prod(self._grid)))

    def _stored(self, index: int) -> NDArray[Any]:
        """Return a segment of the planes, `(h, w, C)`, by its index in a plane."""
        count = math.prod(self._grid)  # of segments in a plane
        stored = _join([self._decode_segment(page, p * count + index) for page, p in self._planes])
        row, column = divmod(index, self._grid[1])
        high, wide = self._segment_size  # the last ones may be filled up
        return stored[: self.size[0] - row * high, : self.size[1] - column * wide]

    def _decode_segment(self, page: tifffile.TiffPage, index: int) -> NDArray[Any]:
        with self._file_lock:
            self._tiff.filehandle.seek(page.dataoffsets[index])
            data = self._tiff.filehandle.read(page.databytecounts[index])
        check_segment(page, data)
        segment, _, _ = page.decode(
            data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader
        )
        pixels: NDArray[Any] = segment[0]  # depth 1
        return pixels


def _join(planes: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)


def _shuffled(count: int) -> list[int]:
    """Return the indices below `count`, in the same order in every process."""
    indices: list[int] = np.random.default_rng(0).permutation(count).tolist()
    return indices


@functools.cache
def _warn_of_range(path: Path, bits: int) -> None:
    """Warn, once for each file, of values that the pixels that `bits_in_use` took don't have."""
    warn(
        f"{path}: parts with larger values than the {bits}-bit range of most of the image, shown "
        "white, so cells may be missing there; scale the image to 8 bits"
    )


def _find_pyramid(pages: Sequence[tifffile.TiffPage], tiff: tifffile.TiffFile) -> Pyramid:
    """Return the levels of an image of one page, or of a page for each channel."""
    levels = []
    for page in pages:
        others = list(page.pages or ())
        if len(pages) == 1:
            unrelated = other_ome_images(tiff, page)
            others = [*(other for other in tiff.pages if other.offset not in unrelated), *others]
        coarser = [other for other in others if _is_coarser(other, page)]
        levels.append([page, *sorted(coarser, key=lambda p: -p.imagelength * p.imagewidth)])
    return list(map(list, zip(*levels, strict=False)))


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

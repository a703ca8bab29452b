"""Read images window by window, so that slides never have to be in memory as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.read.image_formats import file_kind
from cellseg.read.orientation import turn_note
from cellseg.read.picture import PictureImage
from cellseg.read.slide import SlideImage
from cellseg.read.tiff_image import CACHE_BYTES, open_tiff
from cellseg.read.windowed_image import WindowedImage, check_level, from_array

__all__ = [
    "WindowedImage",
    "from_array",
    "image_size",
    "open_image",
    "open_image_of_size",
    "read_image",
]


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an image as 8-bit RGB, `(H, W, 3)` uint8, C-contiguous, the top row first.

    The file formats, pixels and errors are those of `open_image`.
    """
    with open_image(path) as image:
        return image.read_all()


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return height and width in pixels of the image that `read_image` reads, from the header.

    Raises InputError if the header can't be read, or `read_image` would reject the file by it.
    """
    with open_image(path) as image:
        return image.size


def open_image_of_size(path: Path, size: tuple[int, int], level: int) -> WindowedImage:
    """Open an image as `open_image` does, and check its height and width in pixels.

    Raises InputError if `open_image` does or the image has another size.
    """
    opened = open_image(path, level)
    if opened.size != size:
        opened.close()
        turned = turn_note(path, opened.size, size)
        rest = f" as in its annotations or results{turned}; set the data folder with --data"
        raise wrong_size(path, opened.size, size, rest)
    return opened


def wrong_size(
    path: Path, size: tuple[int, ...], expected: tuple[int, int], rest: str
) -> InputError:
    """Return the error for an image of another height and width; `rest` ends the message."""
    return InputError(
        f"{path}: {size[0]} x {size[1]} pixels (height x width), expected "
        f"{expected[0]} x {expected[1]}{rest}"
    )


def open_image(
    path: str | os.PathLike[str], level: int = 0, cache_bytes: int = CACHE_BYTES
) -> WindowedImage:
    """Open an image for reading window by window.

    TIFF, PNG, JPEG and BMP are identified by content, and what else OpenSlide reads: NDPI,
    MRXS, SCN, BIF, DICOM and others, cropped to the area that the scanner says it covered.
    What an alpha channel, or a colour that a PNG names, makes transparent is white, grey is
    repeated in three channels, pages for three channels are combined, 16 bits become 8 by the
    range in use. JPEGs are oriented by EXIF; other files are read as stored. Memory depends on
    the storage: tiles are best; windows of strips take the image's whole width; one compressed
    strip, PNG, JPEG and BMP are decoded once and kept as a whole.

    Parameters
    ----------
    path
        The file.
    level
        Level of the pyramid, 0 for full resolution. In a TIFF, levels are sub-images (SubIFDs,
        as in OME-TIFF) or further pages that are flagged as reduced or tiled as the first page is
        (as in Aperio's SVS), with its proportions. Other images of OME-XML are no levels.
    cache_bytes
        Size of the cache of decoded 8-bit RGB; at least one segment is cached.

    Raises
    ------
    InputError
        If the file can't be read, is damaged or has no such level, has several images of one
        size, or is neither 8- nor 16-bit grey or RGB.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind == "picture":
        check_level(path, level, 1)
        return PictureImage(path)
    if kind != "TIFF":
        return SlideImage(path, level)
    return open_tiff(path, level, cache_bytes)


def open_file_or_array(image: Path | NDArray[Any], level: int = 0) -> WindowedImage:
    """Open a level of a file, or an array, as `open_image` and `from_array` do.

    Raises InputError also if another level than 0 of an array is requested.
    """
    if not isinstance(image, np.ndarray):
        return open_image(image, level)
    check_level("array", level, 1)
    return from_array(image)

"""Reading microscope images and label maps from files, whole or not at all.

What comes out depends on the file alone: the same pixels for training and for
prediction, whatever the format they were stored in. A file that is damaged is refused,
also where its decoder would fill the gap with zeros.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageOps
import tifffile
from numpy.typing import NDArray

from cellseg.errors import InputError

# Slides are large; where the memory can't hold one, `decode_errors` says so.
PIL.Image.MAX_IMAGE_PIXELS = None

# The value of a TIFF's PhotometricInterpretation where the numbers rise from white to black.
WHITE_IS_ZERO = 0

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")

# tifffile writes what it finds odd to its log and goes on. What matters of it is checked
# here and raised, so its lines are kept off the user's screen.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_MAGIC = b"\x89PNG"
_JPEG_MAGIC = b"\xff\xd8"
_BMP_MAGIC = b"BM"

# 65535 -> 255, v -> round(v / 257): a rule that knows nothing of the image, so that two
# windows of one image, or two images of one slide, keep their brightness to each other.
_TO_8_BIT = ((np.arange(65536) + 128) // 257).astype(np.uint8)


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an image as 8-bit RGB.

    TIFF, PNG, JPEG and BMP, told apart by their content. An alpha channel is dropped,
    grey is repeated in the three channels. 16 bits become 8 by a fixed rule,
    `round(v / 257)`, never by the image's own range. JPEGs are turned as their EXIF
    orientation says; TIFFs are taken as they are stored.

    Returns
    -------
    `(H, W, 3)` uint8, C-contiguous, the top row first.

    Raises
    ------
    InputError
        If the file can't be read, is damaged, holds several images of one size, or
        pixels that are neither 8- nor 16-bit grey or RGB.
    """
    path = Path(path)
    magic = _magic(path)
    if magic in _TIFF_MAGIC:
        with _tiff_page(path) as page:
            check_image(path, page)
            if page.compression in _WITH_END_MARKER:
                file, counts = page.parent.filehandle, page.databytecounts
                for data, _ in file.read_segments(page.dataoffsets, counts):
                    check_segment(page, data)
            pixels = page.asarray(maxworkers=1)
            if page.planarconfig == 2 and page.samplesperpixel > 1:
                pixels = np.moveaxis(pixels, 0, -1)
            pixels = to_rgb(pixels, page.photometric == WHITE_IS_ZERO)
    elif magic == _PNG_MAGIC:
        # Pillow would cut colour of 16 bits to the high byte.
        with decode_errors(path):
            pixels = to_rgb(imagecodecs.png_decode(path.read_bytes()))
    else:
        with _pillow(path, magic) as picture, decode_errors(path):
            pixels = np.array(PIL.ImageOps.exif_transpose(picture).convert("RGB"))
    return np.ascontiguousarray(pixels)


def to_rgb(pixels: NDArray[Any], white_is_zero: bool = False) -> NDArray[np.uint8]:
    """Turn pixels as they are stored into 8-bit RGB.

    Parameters
    ----------
    pixels
        `(H, W)` or `(H, W, C)` array, uint8 or uint16: grey, grey and alpha, RGB, or RGB
        and what follows it.
    white_is_zero
        Whether the numbers rise from white to black.

    Returns
    -------
    `(H, W, 3)` uint8: the same memory where nothing is to be changed.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.dtype == np.uint16:
        pixels = _TO_8_BIT[pixels]
    interleaved = pixels.shape[2] == 3 and pixels.strides[1:] == (3, 1)
    if interleaved and not white_is_zero:
        return pixels  # a slide of 1.2 GB needn't be held twice
    source = (0, 1, 2) if pixels.shape[2] >= 3 else (0, 0, 0)
    rgb = np.empty((*pixels.shape[:2], 3), np.uint8)
    for channel in range(3):  # four times as fast as one copy of the window [:, :, :3]
        rgb[:, :, channel] = pixels[:, :, source[channel]]
    return np.invert(rgb, out=rgb) if white_is_zero else rgb


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read the height and the width of an image, in pixels, from its header alone.

    They are those of what `read_image` returns.

    Raises
    ------
    InputError
        If the header can't be read, or says that `read_image` would refuse the file.
    """
    path = Path(path)
    magic = _magic(path)
    if magic in _TIFF_MAGIC:
        with _tiff_page(path) as page:
            check_image(path, page)
            return page.imagelength, page.imagewidth
    if magic == _PNG_MAGIC:
        # Pillow would look at more than the header, and refuse what `read_image` takes.
        with decode_errors(path), open(path, "rb") as file:
            chunk, width, height = struct.unpack(">12x4sII", file.read(24))
            if chunk != b"IHDR" or not (width and height):
                raise ValueError("it doesn't begin with its size")
        return height, width
    with _pillow(path, magic) as picture, decode_errors(path):
        width, height = picture.size
        # EXIF orientations 5 to 8 lie on their side; there are no others beyond 4.
        sideways = magic == _JPEG_MAGIC and picture.getexif().get(274) in (5, 6, 7, 8)
    return (width, height) if sideways else (height, width)


# The codecs of pictures, as JPEG in its many forms, may change numbers a little; PNG (34933)
# doesn't. So may LERC (34887).
_LOSSY = (tifffile.TIFF.IMAGE_COMPRESSIONS - {34933}) | {34887}


def read_labels(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read a label map from a TIFF.

    Returns
    -------
    `(H, W)` array with the values and the type that the file has: any integer or float
    type. 0 is background, each other value one instance. The values are not checked.

    Raises
    ------
    InputError
        If the file can't be read, is damaged, or doesn't hold one number a pixel.
    """
    path = Path(path)
    if not is_tiff(path):
        raise InputError(f"{path}: not a TIFF; save the label map as a TIFF, one number a pixel")
    with _tiff_page(path) as page:
        if page.samplesperpixel != 1:
            raise InputError(
                f"{path}: {page.samplesperpixel} channels, but a label map has one number a "
                "pixel (0 for background, one value a cell); save it so"
            )
        if page.dtype.kind == "c":
            raise InputError(f"{path}: complex numbers, but labels are whole numbers; save it so")
        if page.compression in _LOSSY:
            raise InputError(
                f"{path}: compressed as {tifffile.COMPRESSION(page.compression).name}, which may "
                "change the labels; save it anew without compression or with LZW or Deflate, "
                "from what it was made of"
            )
        labels: NDArray[Any] = page.asarray(maxworkers=1)
    return labels.view(np.uint8) if labels.dtype == bool else labels


def is_tiff(path: Path) -> bool:
    """Return by its content whether a file is a TIFF; raise `InputError` if it's no image."""
    return _magic(path) in _TIFF_MAGIC


def _magic(path: Path) -> bytes:
    """Tell the format by the file's first bytes, cut to what they are compared with."""
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, but an image file should be there") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); check its rights") from None
    except ValueError:  # what no system takes
        raise InputError(f"{str(path)!r}: not the name of a file; mend it") from None
    if not head:
        raise InputError(f"{path}: an empty file; copy or export it again")
    for magic in (*_TIFF_MAGIC, _PNG_MAGIC, _JPEG_MAGIC, _BMP_MAGIC):
        if head.startswith(magic):
            return magic
    raise InputError(f"{path}: not a TIFF, PNG, JPEG or BMP image; save it as one of them")


@contextlib.contextmanager
def decode_errors(path: Path) -> Iterator[None]:
    """Turn whatever a decoder trips over into one line."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: too large for the memory; cut it into smaller images") from None
    except Exception as error:  # noqa: BLE001 (a damaged file can trip a decoder anywhere)
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path}: damaged or of an unknown kind ({reason}); copy or export it again"
        ) from None


@contextlib.contextmanager
def _pillow(path: Path, magic: bytes) -> Iterator[PIL.Image.Image]:
    kind = {_JPEG_MAGIC: "JPEG", _BMP_MAGIC: "BMP"}[magic]
    with decode_errors(path):
        picture = PIL.Image.open(io.BytesIO(path.read_bytes()), formats=[kind])
    with picture:
        yield picture


@contextlib.contextmanager
def _tiff_page(path: Path) -> Iterator[tifffile.TiffPage]:
    """Open the one image of a TIFF, with all of its pixels surely in the file."""
    with decode_errors(path), tifffile.TiffFile(path) as tiff:
        yield main_page(path, tiff)


def main_page(path: Path, tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    """Find the one image of a TIFF, at its finest; raise if its pixels are not all there.

    What is raised becomes one line within `decode_errors`.
    """
    page = tiff.pages[0]
    last = tiff.pages[-1]
    _, following = _read_directory(tiff, page)
    for other in tiff.pages[1:]:
        # Thumbnails and the coarser levels of a pyramid are fine.
        if not other.is_reduced and other.shape == page.shape:
            raise InputError(
                f"{path}: a stack of {len(tiff.pages)} images, but one is expected; "
                "save the one you mean as a file of its own"
            )
    check_directory(tiff, page)
    if last is not page:
        _, following = _read_directory(tiff, last)
    if following:
        raise ValueError("the list of its pages is cut off")
    return page


def _read_directory(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> tuple[set[int], int]:
    """Read a page's list of tags: their codes, and where the next page's list begins."""
    form, file = tiff.tiff, tiff.filehandle
    file.seek(page.offset)
    (n_tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    table = file.read(n_tags * form.tagsize)
    codes = {
        struct.unpack_from(form.byteorder + "H", table, at)[0]
        for at in range(0, n_tags * form.tagsize, form.tagsize)
    }
    (following,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))
    return codes, following


# The tags that say how the pixels are stored.
_PIXEL_TAGS = frozenset(
    [256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339]
)


def segment_size(page: tifffile.TiffPage) -> tuple[int, int]:
    """Return height and width, in pixels, of the tiles or strips that a page is stored in."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return page.rowsperstrip, page.imagewidth


def check_directory(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> None:
    """Raise if a page's description is broken or its pixels are not all in the file.

    tifffile logs such damage, if that, and fills what is missing with zeros.
    """
    codes, _ = _read_directory(tiff, page)
    missing = sorted(code for code in codes & _PIXEL_TAGS if code not in page.tags)
    if missing:
        raise ValueError(f"the tag {missing[0]} can't be read")
    if page.dtype is None:
        raise ValueError(f"{page.bitspersample}-bit numbers of format {page.sampleformat}")
    if page.imagelength < 1 or page.imagewidth < 1 or page.samplesperpixel < 1:
        raise ValueError(f"no pixels: {page.imagewidth} x {page.imagelength}")
    if page.imagedepth != 1:
        raise ValueError("a volume, but a flat image is expected")
    if page.planarconfig not in (1, 2) and page.samplesperpixel > 1:
        raise ValueError(f"channels laid out in the way {page.planarconfig}, not 1 or 2")
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    height, width = segment_size(page)
    segments = planes * math.ceil(page.imagelength / height) * math.ceil(page.imagewidth / width)
    if not segments == len(page.dataoffsets) == len(page.databytecounts):
        raise ValueError(f"{len(page.dataoffsets)} pieces of pixels in place of {segments}")
    end = tiff.filehandle.size
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if offset < 1 or count < 1:
            raise ValueError("a piece of its pixels was never written")
        if offset + count > end:
            raise ValueError(f"cut off: {end} bytes of at least {offset + count}")


# JPEG and JPEG 2000, also as Aperio's: each segment ends in the marker FF D9.
_WITH_END_MARKER = (7, 33003, 33004, 33005, 34712)


def check_segment(page: tifffile.TiffPage, data: bytes | None) -> None:
    """Raise if a segment of a page ends in a hole, as a copy may leave it.

    The decoders of JPEG and JPEG 2000 make something up in its place. A segment that lacks
    the marker alone is taken, and so are the pieces of NDPI's one large JPEG, which have none.
    """
    if page.compression not in _WITH_END_MARKER or page.jpegheader is not None or not data:
        return
    if data.endswith(bytes(16)) and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("a piece of its pixels ends in zeros")


def check_image(path: Path, page: tifffile.TiffPage) -> None:
    """Raise if the pixels are not 8- or 16-bit grey or RGB."""
    photometric, samples = page.photometric, page.samplesperpixel
    grey = photometric in (0, 1) and samples in (1, 2)
    # Of the grey ones with three channels the writer forgot to say that they are colours.
    # YCbCr comes out of the decoder of JPEG, and of its like, as RGB; elsewhere it stays.
    decoded = photometric == 6 and page.compression in tifffile.TIFF.IMAGE_COMPRESSIONS
    colour = (photometric == 2 and samples >= 3) or ((photometric == 1 or decoded) and samples == 3)
    if not (grey or colour):
        name = getattr(photometric, "name", photometric)
        raise InputError(
            f"{path}: colours of the kind {name} with {samples} channels, but RGB or grey is "
            "expected; save it as RGB"
        )
    if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16):
        raise InputError(
            f"{path}: {page.bitspersample}-bit {page.dtype} pixels, but unsigned numbers of 8 "
            "or 16 bits are expected; save it as 8-bit RGB"
        )

"""The pages of TIFFs: which is the image, and whether they are complete; label maps.

Damaged files are errors, also where the decoder would fill gaps with zeros.
"""

from __future__ import annotations

import logging
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.limits import check_image_memory
from cellseg.read.coded_size import JXL, JXR, WEBP, coded_size
from cellseg.read.image_formats import decode_errors, file_kind
from cellseg.read.ome import OmeImage, ome_images

# tifffile logs problems and goes on. What matters is checked here.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# The value of a TIFF's PhotometricInterpretation for values that rise from white to black.
WHITE_IS_ZERO = 0

_LERC = 34887

# Image codecs, such as all types of JPEG, can change values, except PNG (34933); so can LERC.
_LOSSY = (tifffile.TIFF.IMAGE_COMPRESSIONS - {34933}) | {_LERC}


def read_labels(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read a label map from a TIFF.

    Returns
    -------
    `(H, W)` array of the file's integer, float or bool type. 0 is background, each other value one
    instance. Values are not checked.

    Raises
    ------
    InputError
        If the file can't be read, is damaged, or doesn't have one value per pixel.
    """
    path = Path(path)
    if file_kind(path) != "TIFF":
        raise InputError(f"{path}: not a TIFF; save the label map as a TIFF, one value per pixel")
    with decode_errors(path), tifffile.TiffFile(path) as tiff:
        page, *others = main_pages(path, tiff)
        if (channels := page.samplesperpixel + len(others)) != 1:
            raise InputError(
                f"{path}: {channels} channels, expected one value per pixel (0 for "
                "background, one value per cell); save it again"
            )
        if has_other_images(tiff, page):
            raise InputError(
                f"{path}: several images of different sizes, expected one label map; save it as a "
                "separate file"
            )
        if page.dtype.kind == "c":
            raise InputError(f"{path}: complex numbers, expected integers; save it again")
        if page.compression in _LOSSY:
            raise InputError(
                f"{path}: compressed as {tifffile.COMPRESSION(page.compression).name}, which may "
                "change the labels; save the original again without compression or with LZW or "
                "Deflate"
            )
        # One byte more, as the cells' borders are marked.
        check_image_memory(path, page.imagelength, page.imagewidth, page.dtype.itemsize + 1)
        return _decode_page(path, page)


def _decode_page(path: Path, page: tifffile.TiffPage) -> NDArray[Any]:
    """Return all pixels of a page, after checking its segments."""
    high, wide = segment_size(page)
    check_image_memory(path, high, wide, pixel_bytes(page))  # they may exceed the image
    if page.compression in tifffile.TIFF.IMAGE_COMPRESSIONS:
        file, counts = page.parent.filehandle, page.databytecounts
        for data, _ in file.read_segments(page.dataoffsets, counts):
            check_segment(page, data)
    pixels: NDArray[Any] = page.asarray(maxworkers=1)
    return pixels


def pixel_bytes(page: tifffile.TiffPage) -> float:
    """Return the bytes of a decoded pixel of a page, as it is stored."""
    return float(page.samplesperpixel * page.dtype.itemsize)


def main_pages(path: Path, tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Return the page of the one image of a TIFF, at full resolution, or a page for each channel.

    Pages of one size are the red, green and blue channel if OME or ImageJ say that there are
    three channels. Raises errors for `decode_errors` if there are several images or pixels are
    missing.
    """
    last = tiff.pages[-1]
    # Thumbnails and reduced levels of a pyramid are allowed, also as the first page.
    page = next((page for page in tiff.pages if not page.is_reduced), tiff.pages[0])
    page = max((p for p in tiff.pages if _is_enlarged(p, page)), key=_area, default=page)
    pages = [p for p in tiff.pages if p is page or (not p.is_reduced and p.shape == page.shape)]
    if tiff.is_svs:  # the thumbnail of a small slide may have its size, but no tiles
        pages = [p for p in pages if p.is_tiled == page.is_tiled]
    imagej = tiff.imagej_metadata or {}
    count = max(len(pages), int(imagej.get("images", 1)))
    if count > 1 and not (count == len(pages) == 3 == _count_channels(tiff)):
        advice = "convert these channels to RGB (in ImageJ, Image > Type > RGB Color), or "
        raise InputError(
            f"{path}: a stack of {count} images, expected one; "
            f"{advice if _count_channels(tiff) > 1 else ''}save it as a separate file"
        )
    for page in pages:
        check_directory(tiff, page)
    _, following = _read_directory(tiff, last)
    if following:
        raise ValueError("the list of its pages is cut off")
    return pages


def _area(page: tifffile.TiffPage) -> int:
    return int(page.imagelength * page.imagewidth)


def _is_enlarged(page: tifffile.TiffPage, other: tifffile.TiffPage) -> bool:
    """Return whether a page shows what another shows, with more pixels: then that is a thumbnail.

    As far as sizes tell; labels and macro images of slides have other proportions.
    """
    high, wide = (
        getattr(page, side) / max(1, getattr(other, side)) for side in ("imagelength", "imagewidth")
    )
    # Each side of a thumbnail is rounded.
    tolerance = 1 / max(1, min(other.imagelength, other.imagewidth))
    return bool(high > _REDUCED and wide > _REDUCED and abs(high / wide - 1) <= tolerance)


_REDUCED = 1.5  # factor of the sides from which a page may be a thumbnail or a level


def has_other_images(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> bool:
    """Return whether pages show something else than the one that is read, as sizes tell.

    Pages that are flagged as reduced or as a mask belong to it, and so, probably, do those whose
    height and width are both 1.5 times smaller or more: levels, thumbnails, a slide's photos.
    Images of their own in OME-XML don't, except photos.
    """
    return any(not image.is_photo for image in other_ome_images(tiff, page).values()) or any(
        not (other.is_reduced or other.is_mask or other.shape == page.shape)
        and min(page.imagelength / other.imagelength, page.imagewidth / other.imagewidth) < _REDUCED
        for other in (p.keyframe for p in tiff.pages)
        if other.imagelength and other.imagewidth
    )


def other_ome_images(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> dict[int, OmeImage]:
    """Return the other images that OME says a file has than that of a page, as sizes tell.

    The keys are the offsets of their pages. Pages that are flagged as reduced are not among them.
    """
    images = {image.size: image for image in ome_images(tiff.ome_metadata or "")}
    if images.pop((page.imagelength, page.imagewidth), None) is None:
        return {}
    return {
        other.offset: images[size]
        for other in (p.keyframe for p in tiff.pages)
        if not other.is_reduced and (size := (other.imagelength, other.imagewidth)) in images
    }


def _count_channels(tiff: tifffile.TiffFile) -> int:
    """Return how many channels OME or ImageJ say that the first image has, if no other axis."""
    if tiff.is_ome or tiff.is_imagej:
        series = tiff.series[0]
        if series.axes == "CYX":
            return int(series.shape[0])
    return 1


def _read_directory(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> tuple[set[int], int]:
    """Return the tag codes of a page, and the offset of the next page's directory."""
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


# The tags that describe the storage of pixels.
_PIXEL_TAGS = frozenset(
    [256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339]
)


def segment_size(page: tifffile.TiffPage) -> tuple[int, int]:
    """Return height and width, in pixels, of the tiles or strips of a page."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return page.rowsperstrip, page.imagewidth


def check_directory(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> None:
    """Raise ValueError if a page's tags are broken or its pixels are not all in the file.

    tifffile at best logs such damage, and fills gaps with zeros.
    """
    codes, _ = _read_directory(tiff, page)
    missing = sorted(code for code in codes & _PIXEL_TAGS if code not in page.tags)
    if missing:
        raise ValueError(f"the tag {missing[0]} can't be read")
    if page.dtype is None:
        raise ValueError(f"{page.bitspersample}-bit values of format {page.sampleformat}")
    if page.imagelength < 1 or page.imagewidth < 1 or page.samplesperpixel < 1:
        raise ValueError(f"no pixels: {page.imagelength} x {page.imagewidth}")
    if page.imagedepth != 1:
        raise ValueError("a volume, expected a flat image")
    if page.planarconfig not in (1, 2) and page.samplesperpixel > 1:
        raise ValueError(f"planar configuration {page.planarconfig}, expected 1 or 2")
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    height, width = segment_size(page)
    segments = planes * math.ceil(page.imagelength / height) * math.ceil(page.imagewidth / width)
    if not segments == len(page.dataoffsets) == len(page.databytecounts):
        raise ValueError(f"{len(page.dataoffsets)} pieces of pixels, expected {segments}")
    end = tiff.filehandle.size
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if offset < 1 or count < 1:
            raise ValueError("a piece of its pixels is missing")
        if offset + count > end:
            raise ValueError(f"cut off: {end} bytes of at least {offset + count}")


# JPEG and JPEG 2000, including Aperio's: each segment ends in the marker FF D9.
_WITH_END_MARKER = (7, 33003, 33004, 33005, 34712)


def check_segment(page: tifffile.TiffPage, data: bytes | None) -> None:
    """Raise ValueError if a segment of a page is larger than it should be, or ends in zeros.

    Zeros are those of an incomplete copy, for which the decoders of JPEG and JPEG 2000 would
    invent pixels. Segments that only lack the marker are valid, and so are the pieces of NDPI's
    one large JPEG, which have none.
    """
    if page.compression not in tifffile.TIFF.IMAGE_COMPRESSIONS or not data:
        return
    if page.jpegheader is not None:
        return
    high, wide = segment_size(page)
    height, width = coded_size(data)
    if not height and page.compression in (*JXL, *WEBP, *JXR):
        raise ValueError("a piece of its pixels without a size")
    if height > high + 64 or width > wide + 64:  # blocks can exceed it
        raise ValueError(f"a piece of {height} x {width} pixels, expected {high} x {wide}")
    if page.compression not in _WITH_END_MARKER:
        return
    if data.endswith(bytes(16)) and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("a piece of its pixels ends in zeros")


def check_image(path: Path, page: tifffile.TiffPage) -> None:
    """Raise InputError if the pixels are not 8- or 16-bit grey or RGB, or compressed with LERC.

    LERC is for maps of heights, and takes as much memory as a small piece asks for.
    """
    if page.compression == _LERC:
        raise InputError(f"{path}: compressed with LERC, expected a codec of images; save it again")
    photometric, samples = page.photometric, page.samplesperpixel
    grey = photometric in (0, 1) and samples in (1, 2)
    # Grey with three channels is RGB with a wrong tag. JPEG and similar decoders convert YCbCr
    # to RGB, others don't.
    decoded = photometric == 6 and page.compression in tifffile.TIFF.IMAGE_COMPRESSIONS
    colour = (photometric == 2 and samples >= 3) or ((photometric == 1 or decoded) and samples == 3)
    if not (grey or colour):
        name = getattr(photometric, "name", photometric)
        raise InputError(
            f"{path}: colours of type {name} with {samples} channels, expected RGB or grey; save "
            "it as RGB"
        )
    if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16):
        raise InputError(
            f"{path}: {page.bitspersample}-bit {page.dtype} pixels, expected unsigned integers of "
            "8 or 16 bits; save it as 8-bit RGB"
        )

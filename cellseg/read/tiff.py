"""Read label maps and pictures, and check the pages of TIFFs for `cellseg.read.window`.

Damaged files are errors, also where the decoder would fill gaps with zeros.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageOps
import tifffile
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.files import check_ordinary, find_in_another_case
from cellseg.limits import check_image_memory
from cellseg.read.coded_size import JPEG_MAGIC, JXL, JXR, PNG_MAGIC, WEBP, coded_size
from cellseg.read.orientation import TURNED, exif_orientation
from cellseg.read.resolution import Resolution, picture_resolution

try:
    import simplejpeg
except ImportError:  # then only JPEGs that end early are refused
    simplejpeg = None

PIL.Image.MAX_IMAGE_PIXELS = None  # `check_image_memory` is used instead

# The value of a TIFF's PhotometricInterpretation for values that rise from white to black.
WHITE_IS_ZERO = 0

# Endings of image files: TIFFs, pictures, and slides that OpenSlide reads.
SUFFIXES = (
    *(".tif", ".tiff", ".btf", ".tf8", ".svs", ".qptiff"),
    *(".png", ".jpg", ".jpeg", ".bmp"),
    *(".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"),
)

# tifffile logs problems, Pillow warns of them, and both go on. What matters is checked here.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
warnings.filterwarnings("ignore", module=r"PIL\.")

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour
_PNG_METHODS = ([0, 0, 0], [0, 0, 1])  # the only ones; the last is the interlacing
_PICTURES = {PNG_MAGIC: "PNG", JPEG_MAGIC: "JPEG", b"BM": "BMP"}

MRXS = ".mrxs"  # a JPEG beside a folder with the slide

_BITS = (8, 10, 12, 14, 16)  # of a camera's values in 16-bit files


class PictureHeader(NamedTuple):
    """Height and width, whether values have 16 bits, and the size of pixels, if it is known."""

    size: tuple[int, int]
    is_deep: bool
    resolution: Resolution | None


def read_picture(path: Path) -> NDArray[Any]:
    """Read a PNG, JPEG or BMP, identified by content, as an array for `to_rgb`.

    JPEGs are oriented by EXIF. Raises InputError if the file can't be read or is damaged.
    """
    magic = _magic(path)
    if magic == PNG_MAGIC:
        # Pillow would cut 16-bit colour to the high byte.
        with decode_errors(path):
            data = pixel_chunks(path.read_bytes(), with_transparency=True)
            return np.asarray(imagecodecs.png_decode(data))
    if magic == JPEG_MAGIC:
        _check_jpeg(path)
    with _pillow(path, magic) as picture, decode_errors(path):
        PIL.ImageOps.exif_transpose(picture, in_place=True)
        return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _check_jpeg(path: Path) -> None:
    """Raise InputError for a JPEG with damaged or missing pixels, for which decoders invent others.

    Some cameras leave a few bytes between the pixels and the end.
    """
    if simplejpeg is None:
        return
    with _pillow(path, JPEG_MAGIC) as picture:  # checks the memory
        colours = {"L": "GRAY", "CMYK": "CMYK"}.get(picture.mode, "RGB")
    try:
        simplejpeg.decode_jpeg(path.read_bytes(), colours)
    except ValueError as error:
        surplus = re.search(r"(\d+) extraneous bytes before marker 0xd9", str(error))
        if "Corrupt JPEG data" in str(error) and not (surplus and int(surplus[1]) <= 64):
            raise InputError(
                f"{path}: damaged, its pixels are not complete ({error}); copy or export it again"
            ) from None


def picture_header(path: Path) -> PictureHeader:
    """Read the header of a PNG, JPEG or BMP. Raises InputError if it can't be read."""
    magic = _magic(path)
    if magic == PNG_MAGIC:
        # Pillow reads more than the header, and rejects files that `read_picture` reads.
        with decode_errors(path), open(path, "rb") as file:
            header = file.read(26)
            if header[12:16] != b"IHDR" or len(header) < 26:
                raise ValueError("it doesn't begin with its size")
            width, height, bits, colour = struct.unpack_from(">IIBB", header, 16)
            if not (width and height):
                raise ValueError("no pixels")
            # Palettes and transparent colours become an alpha channel; the result is RGB.
            channels = 2 if colour in (0, 4) else 4
            check_image_memory(path, height, width, channels * max(bits, 8) / 8 + 3)
        resolution = None
        with contextlib.suppress(InputError), _pillow(path, magic) as picture:
            resolution = picture_resolution(picture.info)
        return PictureHeader((height, width), bits == 16, resolution)
    with _pillow(path, magic) as picture, decode_errors(path):
        width, height = picture.size
        sideways = magic == JPEG_MAGIC and exif_orientation(picture) in TURNED
        size = (width, height) if sideways else (height, width)
        return PictureHeader(size, False, picture_resolution(picture.info))


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


def pixel_chunks(data: bytes, with_transparency: bool = False) -> bytes:
    """Return a PNG with only what defines its colours, as libpng prints warnings about the rest.

    With transparency, also which colours are transparent, if that is valid: libpng decodes it as an
    alpha channel. Raises ValueError if header or palette are broken, or if there is more data than
    pixels.
    """
    width, height, bits, colour, *methods = struct.unpack_from(">IIBBBBB", data, 16)
    has_size = all(0 < side <= 1_000_000 for side in (width, height))  # libpng's limit
    if not has_size or bits not in _PNG_BITS.get(colour, ()) or methods not in _PNG_METHODS:
        raise ValueError("its header is broken")
    names = (b"IHDR", b"PLTE", b"IDAT", b"IEND") if colour == 3 else (b"IHDR", b"IDAT", b"IEND")
    compressed: list[bytes] = []
    is_transparent, n_colours = False, 0
    kept, at = [data[:8]], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at) if at + 8 <= len(data) else (len(data),)
        end, name = at + 12 + length, data[at + 4 : at + 8]
        if name == b"PLTE" and colour == 3 and (length % 3 or not 3 <= length <= 3 * 2**bits):
            raise ValueError("its palette is broken")
        n_colours = length // 3 if name == b"PLTE" else n_colours
        if name == b"IDAT":
            compressed.append(data[at + 8 : at + 8 + length])
        if name == b"tRNS" and with_transparency and not (is_transparent or compressed):
            is_transparent = _is_transparency(data[at:end], bits, colour, n_colours)
            kept += [data[at:end]] * is_transparent
        elif name in names or end > len(data):
            kept.append(data[at:end])
        at = end
    channels = {0: 1, 2: 3, 3: 1, 4: 2}.get(colour, 4)
    row = 1 + math.ceil(width * channels * bits / 8)
    # Interlaced, some pixels are in rows of their own.
    n_bytes = height * row if not methods[2] else 2 * height * (row + 8)
    inflate, total = zlib.decompressobj(), 0
    for piece in compressed:
        while piece and total <= n_bytes:
            try:
                total += len(inflate.decompress(piece, 1 << 20))
            except zlib.error as error:
                raise ValueError(f"damaged pixels, {error}") from None
            piece = inflate.unconsumed_tail
    if total > n_bytes or inflate.unused_data:
        raise ValueError(f"more data than {height} x {width} pixels")
    return b"".join(kept)


def _is_transparency(chunk: bytes, bits: int, colour: int, n_colours: int) -> bool:
    """Return whether a tRNS chunk is valid: a colour, or an opacity each for those of a palette."""
    content, checksum = chunk[8:-4], chunk[-4:]
    if zlib.crc32(chunk[4:-4]).to_bytes(4, "big") != checksum:
        return False
    if colour == 3:
        return 1 <= len(content) <= n_colours
    values = struct.unpack(f">{len(content) // 2}H", content[: len(content) // 2 * 2])
    return len(content) == {0: 2, 2: 6}.get(colour) and max(values) < 1 << bits


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


def file_kind(path: Path) -> str:
    """Return what a file is by content: "TIFF", "picture" (PNG, JPEG, BMP), or "" if else.

    Raises InputError if it can't be read.
    """
    magic = _magic(path)
    if magic in _TIFF_MAGIC:
        return "TIFF"
    return "picture" if magic in _PICTURES and path.suffix.lower() != MRXS else ""  # JPEG in front


def _magic(path: Path) -> bytes:
    """Return the first bytes of a file, cut to those that identify the format, or none."""
    try:
        check_ordinary(path)
        with open(path, "rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        other = find_in_another_case(path)
        advice = (
            f"{other} differs from it only in case; use one name" if other else "check the name"
        )
        raise InputError(f"{path}: no such file; {advice}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, expected an image file") from None
    except OSError as error:
        raise InputError(
            f"{path}: can't be read ({error.strerror}); check its permissions"
        ) from None
    except ValueError:  # such as a null character in the name
        raise InputError(f"{str(path)!r}: not the name of a file; fix it") from None
    if not head:
        raise InputError(f"{path}: an empty file; copy or export it again")
    known = (*_TIFF_MAGIC, *_PICTURES)
    return next((magic for magic in known if head.startswith(magic)), b"")


@contextlib.contextmanager
def decode_errors(path: Path) -> Iterator[None]:
    """Raise InputError for all errors of decoders in the block."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: too large for the memory; cut it into smaller images") from None
    except Exception as error:  # noqa: BLE001 (damaged files can cause any error)
        raise InputError(
            f"{path}: damaged or of an unknown type ({_reason(error)}); copy or export it again"
        ) from None


def _reason(error: Exception) -> str:
    """Return what a decoder says to people, else that the file's structure is broken."""
    explained = isinstance(error, ValueError | OSError | RuntimeError) and not isinstance(
        error, UnicodeError
    )
    text = re.sub(r"<[^<>]*>", "the file", str(error)) if explained else ""  # Python objects
    return text or "its structure is broken"


@contextlib.contextmanager
def _pillow(path: Path, magic: bytes) -> Iterator[PIL.Image.Image]:
    with open(path, "rb") as file:
        with decode_errors(path):
            picture = PIL.Image.open(file, formats=[_PICTURES[magic]])
            width, height = picture.size
            # Pillow's own pixels, the same as RGB, and the result.
            needed = {"RGB": 4 + 3, "CMYK": 4 + 4 + 3}.get(picture.mode, 1 + 4 + 3)
            check_image_memory(path, height, width, needed)
        with picture:
            yield picture


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
    imagej = tiff.imagej_metadata or {}
    count = max(len(pages), int(imagej.get("images", 1)))
    if count > 1 and not (count == len(pages) == 3 == _count_channels(tiff)):
        raise InputError(
            f"{path}: a stack of {count} images, expected one; save it as a separate file"
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
    """
    return any(
        not (other.is_reduced or other.is_mask or other.shape == page.shape)
        and min(page.imagelength / other.imagelength, page.imagewidth / other.imagewidth) < _REDUCED
        for other in (p.keyframe for p in tiff.pages)
        if other.imagelength and other.imagewidth
    )


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

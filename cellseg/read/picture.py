"""PNG, JPEG and BMP, which are decoded as a whole.

Damaged files are errors, also where the decoder would fill gaps.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.limits import check_image_memory
from cellseg.read.image_formats import (
    JPEG_MAGIC,
    PICTURES,
    PNG_MAGIC,
    decode_errors,
    file_magic,
)
from cellseg.read.orientation import TURNED, exif_orientation, orientation_notes
from cellseg.read.resolution import Resolution, picture_resolution
from cellseg.read.windowed_image import ArrayImage, WindowedImage

try:
    import simplejpeg
except ImportError:  # then only JPEGs that end early are refused
    simplejpeg = None

PIL.Image.MAX_IMAGE_PIXELS = None  # `check_image_memory` is used instead
warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters is checked here

_PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour
_PNG_METHODS = ([0, 0, 0], [0, 0, 1])  # the only ones; the last is the interlacing


class _Header(NamedTuple):
    """Height and width, whether values have 16 bits, and the size of pixels, if it is known."""

    size: tuple[int, int]
    is_deep: bool
    resolution: Resolution | None


class PictureImage(WindowedImage):
    """A PNG, JPEG or BMP, decoded when its pixels are read first."""

    def __init__(self, path: Path) -> None:
        self._header = _read_header(path)
        super().__init__(path, self._header.size, resolution=self._header.resolution)

    @functools.cached_property
    def _pixels(self) -> ArrayImage:
        pixels = _read_pixels(self.path)
        if pixels.shape[:2] != self.size:
            raise InputError(f"{self.path}: damaged (two sizes in it); copy or export it again")
        return ArrayImage(pixels, self.path)

    @property
    def bits(self) -> int | None:
        return self._pixels.bits if self._header.is_deep else None

    @property
    def notes(self) -> list[str]:
        return super().notes + orientation_notes(self.path)

    def close(self) -> None:
        self.__dict__.pop("_pixels", None)

    def read(self, window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        return self._pixels.read(window)  # before memory is allocated for a size in the header

    def _fill(self, rgb: NDArray[np.uint8], x0: int, y0: int) -> None:
        self._pixels._fill(rgb, x0, y0)


def _read_header(path: Path) -> _Header:
    """Read the header of a PNG, JPEG or BMP. Raises InputError if it can't be read."""
    magic = file_magic(path)
    if magic == PNG_MAGIC:
        # Pillow reads more than the header, and rejects files that `_read_pixels` reads.
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
        return _Header((height, width), bits == 16, resolution)
    with _pillow(path, magic) as picture, decode_errors(path):
        width, height = picture.size
        sideways = magic == JPEG_MAGIC and exif_orientation(picture) in TURNED
        size = (width, height) if sideways else (height, width)
        return _Header(size, False, picture_resolution(picture.info))


def _read_pixels(path: Path) -> NDArray[Any]:
    """Read a PNG, JPEG or BMP, identified by content, as an array for `to_rgb`.

    JPEGs are oriented by EXIF. Raises InputError if the file can't be read or is damaged.
    """
    magic = file_magic(path)
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

    Some cameras fill a few bytes between the pixels and the end. What a changed byte leaves there
    differs.
    """
    if simplejpeg is None:
        return
    with _pillow(path, JPEG_MAGIC) as picture:  # checks the memory
        colours = {"L": "GRAY", "CMYK": "CMYK"}.get(picture.mode, "RGB")
    data = path.read_bytes()
    try:
        simplejpeg.decode_jpeg(data, colours)
    except ValueError as error:
        surplus = re.search(r"(\d+) extraneous bytes before marker 0xd9", str(error))
        n = int(surplus[1]) if surplus else 0
        # Other pictures may follow, each with its end.
        is_filled = 0 < n <= 64 and re.search(rb"(.)\1{%d}\xff\xd9" % (n - 1), data, re.DOTALL)
        if "Corrupt JPEG data" in str(error) and not is_filled:
            raise InputError(
                f"{path}: damaged, its pixels are not complete ({error}); copy or export it again"
            ) from None


@contextlib.contextmanager
def _pillow(path: Path, magic: bytes) -> Iterator[PIL.Image.Image]:
    with open(path, "rb") as file:
        with decode_errors(path):
            picture = PIL.Image.open(file, formats=[PICTURES[magic]])
            width, height = picture.size
            # Pillow's own pixels, the same as RGB, and the result.
            needed = {"RGB": 4 + 3, "CMYK": 4 + 4 + 3}.get(picture.mode, 1 + 4 + 3)
            check_image_memory(path, height, width, needed)
        with picture:
            yield picture


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

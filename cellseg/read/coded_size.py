"""The size that a compressed piece of an image states in its header.

Decoders of images allocate memory for that size, whatever the file around the piece says.
"""

from __future__ import annotations

import re
import struct

from cellseg.read.image_formats import JPEG_MAGIC, PNG_MAGIC

JXL, WEBP, JXR = (50002, 52546), (50001,), (22610, 34934)  # TIFF's codes of the compressions


def coded_size(data: bytes) -> tuple[int, int]:
    """Return height and width in the header of a JPEG, JPEG 2000, XL or XR, PNG or WebP.

    Returns 0, 0 if there is none. Sources: ITU-T T.81, T.800, T.832; ISO/IEC 18181-1; the PNG
    specification; RFC 9649.
    """
    try:
        if data.startswith(PNG_MAGIC):
            width, height = struct.unpack_from(">II", data, 16)
            return height, width
        if data.startswith(JPEG_MAGIC):
            return _jpeg(data)
        if data.startswith(b"RIFF"):
            return _webp(data)
        if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
            return _jpeg_xl(data)
        if data.startswith((b"II\xbc", b"WMPHOTO\0")):
            return _jpeg_xr(data)
        if (at := data.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0:  # JPEG 2000
            width, height, left, top = struct.unpack_from(">IIII", data, at + 8)
            return height - top, width - left
    except (struct.error, IndexError):  # cut off
        pass
    return 0, 0


def _jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, at + 1)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        at += 2 + length if marker != 0xFF else 1
    return 0, 0


def _webp(data: bytes) -> tuple[int, int]:
    match data[12:16]:
        case b"VP8X":  # the canvas, less 1, of 24 bits each
            width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        case _:
            return 0, 0
    return height, width


_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def _jpeg_xl(data: bytes) -> tuple[int, int]:
    box = re.search(rb"jxlc|jxlp....", data, re.DOTALL) if data[0] == 0 else None
    if data[0] == 0 and not box:
        return 0, 0
    start = box.end() if box else 0
    bits, position = int.from_bytes(data[start + 2 : start + 18], "little"), 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        return bits >> (position - count) & ((1 << count) - 1)

    def take_side() -> int:
        if is_small:
            return 8 * (take(5) + 1)
        return take((9, 13, 18, 30)[take(2)]) + 1

    is_small = take(1)
    height = take_side()
    ratio = take(3)
    if ratio == 0:
        return height, take_side()
    across, down = _JXL_RATIOS[ratio - 1]
    return height, height * across // down


def _jpeg_xr(data: bytes) -> tuple[int, int]:
    """Return the largest size: where the pixels begin is in a tag of the file around them."""
    sizes = []
    for found in re.finditer(rb"WMPHOTO\0", data):
        at = found.start()
        form = ">HH" if data[at + 10] & 0x80 else ">II"
        width, height = struct.unpack_from(form, data, at + 12)
        sizes.append((height + 1, width + 1))
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))

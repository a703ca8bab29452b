"""Write small slides as scanners do, which few libraries can: SCN, DICOM, NDPI and MRXS."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tifffile
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""`(H, W, 3)` RGB."""

CORNER = 1000, 2000
"""x and y of the scanned area on the glass, in an SCN."""

_SCN = """\
<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:0">
<collection name="c" uuid="urn:uuid:1" sizeX="{glass_x}" sizeY="{glass_y}"><image name="main"
uuid="urn:uuid:2"><creationDate>2020-01-01T00:00:00Z</creationDate>
<device model="Leica SCN400" version="1"/><pixels sizeX="{width}" sizeY="{height}">
<dimension sizeX="{width}" sizeY="{height}" r="0" ifd="0"/>
<dimension sizeX="{half_width}" sizeY="{half_height}" r="1" ifd="1"/></pixels>
<view sizeX="{size_x}" sizeY="{size_y}" offsetX="{x}" offsetY="{y}" spacingZ="200"/>
<scanSettings><objectiveSettings><objective>40</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.65</numericalAperture>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>
</collection></scn>
"""


def write_scn(path: Path, pixels: Pixels, nanometres: int = 250, **options: Any) -> None:
    """Write a slide of Leica's scanner: an area of the glass, in two levels.

    `options` are those of tifffile, such as `compression`.
    """
    (height, width), half = pixels.shape[:2], pixels[::2, ::2]
    (x, y), n = CORNER, nanometres
    xml = _SCN.format(
        width=width, height=height, half_width=half.shape[1], half_height=half.shape[0],
        size_x=width * n, size_y=height * n, x=x * n, y=y * n, glass_x=4000 * n, glass_y=6000 * n,
    )  # fmt: skip
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"} | options
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(pixels, description=xml, metadata=None, **options)
        tiff.write(half, subfiletype=1, metadata=None, **options)


def _element(group: int, number: int, kind: str, value: str | int | bytes) -> bytes:
    """Return an element of a DICOM file."""
    if isinstance(value, str):
        value = value.encode()
        value += (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
    elif isinstance(value, int):
        value = struct.pack({"US": "<H", "UL": "<I"}[kind], value)
    length = struct.pack("<2xI" if kind in ("OB", "SQ") else "<H", len(value))
    return struct.pack("<HH", group, number) + kind.encode() + length + value


def _item(data: bytes) -> bytes:
    """Return an item of a DICOM sequence."""
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(data)) + data


def write_dicom(
    path: Path, pixels: Pixels, instance: str, micrometres: float, tile: int = 64
) -> None:
    """Write a level of a DICOM slide, uncompressed; `instance` is the UID of the level."""
    height, width = pixels.shape[:2]
    down, across = -(-height // tile), -(-width // tile)
    padded = np.zeros((down * tile, across * tile, 3), np.uint8)
    padded[:height, :width] = pixels
    frames = padded.reshape(down, tile, across, tile, 3).swapaxes(1, 2).tobytes()
    kind = "1.2.840.10008.5.1.4.1.1.77.1.6"  # whole slide microscopy
    meta: list[tuple[int, int, str, Any]]
    meta = [(2, 1, "OB", b"\0\1"), (2, 2, "UI", kind), (2, 3, "UI", instance)]
    meta += [(2, 0x10, "UI", "1.2.840.10008.1.2.1"), (2, 0x12, "UI", "1.2.3")]
    spacing = _element(0x28, 0x30, "DS", "\\".join([f"{micrometres / 1000:g}"] * 2))
    measures = _element(0x28, 0x9110, "SQ", _item(spacing))
    tags: list[tuple[int, int, str, Any]] = [
        (8, 8, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"), (8, 0x16, "UI", kind),
        (8, 0x18, "UI", instance), (8, 0x60, "CS", "SM"), (0x20, 0xD, "UI", "1.2.9"),
        (0x20, 0xE, "UI", "1.2.3.4"), (0x20, 0x13, "IS", "1"), (0x20, 0x9311, "CS", "TILED_FULL"),
        (0x28, 2, "US", 3), (0x28, 4, "CS", "RGB"), (0x28, 6, "US", 0),
        (0x28, 8, "IS", str(down * across)), (0x28, 0x10, "US", tile), (0x28, 0x11, "US", tile),
        (0x28, 0x100, "US", 8), (0x28, 0x101, "US", 8), (0x28, 0x102, "US", 7),
        (0x28, 0x103, "US", 0), (0x48, 6, "UL", width), (0x48, 7, "UL", height),
        (0x48, 0x303, "UL", 1), (0x5200, 0x9229, "SQ", _item(measures)),
        (0x7FE0, 0x10, "OB", frames + bytes(len(frames) % 2)),
    ]  # fmt: skip
    head, data = (b"".join(_element(*tag) for tag in each) for each in (meta, tags))
    length = _element(2, 0, "UL", len(head))
    path.write_bytes(bytes(128) + b"DICM" + length + head + data)


def _jpeg(pixels: Pixels, **options: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0, **options)
    return file.getvalue()


def write_ndpi(path: Path, pixels: Pixels, micrometres: float = 0.25) -> None:
    """Write a slide of Hamamatsu's scanner in two levels, each one JPEG in pieces of 64 pixels.

    A TIFF with offsets of 64 bits: of directories in their place, of values after the entries.
    """
    file = bytearray(struct.pack("<2sHQ", b"II", 42, 0))
    link = 4  # where the offset of the next directory is written
    for level, shown in enumerate((pixels, pixels[::2, ::2])):
        height, width = shown.shape[:2]
        jpeg_at, jpeg = len(file), _jpeg(np.ascontiguousarray(shown), restart_marker_blocks=8)
        file += jpeg
        values_at, per_cm = len(file), round(10_000 / micrometres) >> level
        file += struct.pack("<4I", per_cm, 1, per_cm, 1) + b"Hamamatsu\0NDP.scan\0"
        (lens,) = struct.unpack("<I", struct.pack("<f", 40 / 2**level))
        entries = [
            (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 6),
            (271, 2, 10, values_at + 16), (273, 4, 1, jpeg_at), (277, 3, 1, 3), (278, 4, 1, height),
            (279, 4, 1, len(jpeg)), (282, 5, 1, values_at), (283, 5, 1, values_at + 8),
            (284, 3, 1, 1), (296, 3, 1, 3), (305, 2, 9, values_at + 26), (65420, 4, 1, 1),
            (65421, 11, 1, lens), (65424, 9, 1, 0),
        ]  # fmt: skip
        file += bytes(len(file) % 2)
        struct.pack_into("<Q", file, link, len(file))
        file += struct.pack("<H", len(entries))
        file += b"".join(struct.pack("<HHII", *entry) for entry in entries)
        link = len(file)
        file += bytes(8 + 4 * len(entries))
    path.write_bytes(file)


_SLIDEDAT = """\
[GENERAL]
SLIDE_VERSION = 01.02
CURRENT_SLIDE_VERSION = 1.9
SLIDE_ID = {slide}
IMAGENUMBER_X = {across}
IMAGENUMBER_Y = {down}
CameraImageDivisionsPerSide = 1
OBJECTIVE_MAGNIFICATION = 40
[HIERARCHICAL]
INDEXFILE = Index.dat
HIER_COUNT = 1
NONHIER_COUNT = 0
HIER_0_NAME = Slide zoom level
HIER_0_COUNT = 1
HIER_0_SECTION = LAYER_0_SECTION
HIER_0_VAL_0 = ZoomLevel_0
HIER_0_VAL_0_SECTION = LAYER_0_LEVEL_0_SECTION
[DATAFILE]
FILE_COUNT = 1
FILE_0 = Data0000.dat
[LAYER_0_LEVEL_0_SECTION]
OVERLAP_X = 0.0
OVERLAP_Y = 0.0
MICROMETER_PER_PIXEL_X = {micrometres}
MICROMETER_PER_PIXEL_Y = {micrometres}
IMAGE_FILL_COLOR_BGR = 16777215
DIGITIZER_WIDTH = {tile}
DIGITIZER_HEIGHT = {tile}
IMAGE_FORMAT = JPEG
IMAGE_CONCAT_FACTOR = 0
"""


def write_mrxs(path: Path, pixels: Pixels, micrometres: float = 0.25, tile: int = 64) -> None:
    """Write a slide of 3DHISTECH's scanner: a picture, and a folder with the slide."""
    slide = "0" * 32
    height, width = pixels.shape[:2]
    down, across = height // tile, width // tile
    data, entries = bytearray(b"01.02" + slide.encode()), []
    for row in range(down):
        for column in range(across):
            y, x = row * tile, column * tile
            jpeg = _jpeg(np.ascontiguousarray(pixels[y : y + tile, x : x + tile]))
            entries.append((row * across + column, len(data), len(jpeg), 0))
            data += jpeg
    head = len(b"01.02" + slide.encode()) + 8
    # The roots of levels and of others; the levels; the first page; the page.
    index = struct.pack("<II", head, 0) + struct.pack("<I", head + 4)
    index += struct.pack("<II", 0, head + 12) + struct.pack("<II", len(entries), 0)
    index += b"".join(struct.pack("<4I", *entry) for entry in entries)
    folder = path.with_suffix("")
    folder.mkdir()
    (folder / "Slidedat.ini").write_text(
        _SLIDEDAT.format(slide=slide, across=across, down=down, tile=tile, micrometres=micrometres)
    )
    (folder / "Index.dat").write_bytes(b"01.02" + slide.encode() + index)
    (folder / "Data0000.dat").write_bytes(data)
    path.write_bytes(_jpeg(pixels[:16, :16]))

"""Slides of scanners: OpenSlide's pixels, cropped to the scanned area, and who reads what."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import openslide
import PIL.Image
import pytest
import tifffile

from cellseg.read import slide as slide_module
from cellseg.read.images import list_image_files
from cellseg.read.slide import SlideImage
from cellseg.read.window import open_image, read_image
from tests.read.refusal import refusal

SLIDES = Path(
    os.environ.get("CELLSEG_SLIDES", Path(__file__).resolve().parents[3] / "shared/data/slides")
)
RGB = np.random.default_rng(6).integers(0, 256, (190, 250, 3), np.uint8)
CORNER = 1000, 2000  # x and y of the scanned area on the glass

SCN = """\
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


def write_scn(path, pixels=RGB, nanometres=250, **options):
    """Write a slide of Leica's scanner: an area of the glass, in two levels."""
    (height, width), half = pixels.shape[:2], pixels[::2, ::2]
    (x, y), n = CORNER, nanometres
    xml = SCN.format(
        width=width, height=height, half_width=half.shape[1], half_height=half.shape[0],
        size_x=width * n, size_y=height * n, x=x * n, y=y * n, glass_x=4000 * n, glass_y=6000 * n,
    )  # fmt: skip
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"} | options
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(pixels, description=xml, metadata=None, **options)
        tiff.write(half, subfiletype=1, metadata=None, **options)


@pytest.fixture
def scn(tmp_path):
    write_scn(tmp_path / "slide.scn")
    return tmp_path / "slide.scn"


def test_the_scanned_area_is_the_image(scn):
    """As in QuPath, whose origin is the corner of the bounds."""
    whole = openslide.OpenSlide(scn)
    assert whole.dimensions == (4000, 6000)
    with open_image(scn) as image:
        assert isinstance(image, SlideImage)
        assert image.levels == ((190, 250), (95, 125))
        assert image.size == (190, 250)
        assert np.array_equal(image.read_all(), RGB)
        window = image.read((30, 40, 200, 180))
    assert np.array_equal(window, RGB[40:180, 30:200])
    assert window.flags.c_contiguous
    assert window.flags.writeable
    at_corner = np.asarray(whole.read_region((1030, 2040), 0, (170, 140)))
    assert np.array_equal(at_corner[:, :, :3], window)


def test_levels(scn):
    with open_image(scn, 1) as image:
        assert image.size == (95, 125)
        assert np.array_equal(image.read((3, 5, 70, 80)), RGB[::2, ::2][5:80, 3:70])
    for level in (2, -1):
        assert f"2 levels, 0 to 1, but level {level}" in refusal(open_image, scn, level)


def test_the_resolution_is_read(tmp_path, scn):
    with open_image(scn) as image:  # from its magnification, 40
        assert image.mpp == 0.25
    tags = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    write_scn(tmp_path / "other.scn", **tags)
    with open_image(tmp_path / "other.scn", 1) as image:
        assert image.mpp == pytest.approx(1.0)


def test_a_window_beside_the_pixels_has_the_background(tmp_path):
    """Where a slide has no pixels, OpenSlide's are transparent."""
    write_scn(tmp_path / "slide.scn")
    image = SlideImage(tmp_path / "slide.scn", 0)
    image.size = (300, 300)
    with image:
        window = image.read((240, 180, 300, 300))
    assert np.array_equal(window[:10, :10], RGB[180:, 240:])
    assert (window[11:] == 255).all()


def test_a_slide_that_is_cut_short(tmp_path, scn):
    data = scn.read_bytes()
    cut = tmp_path / "cut.scn"
    n_errors = 0
    for length in range(0, len(data), len(data) // 12):
        cut.write_bytes(data[:length])
        n_errors += bool(refusal(read_image, cut).startswith(f"{cut}: "))
    assert n_errors == 13


def test_who_reads_what(tmp_path, scn):
    plain = tmp_path / "tiled.tif"
    tifffile.imwrite(plain, RGB, photometric="rgb", tile=(64, 64))
    for path, is_slide in ((scn, True), (plain, False)):
        with open_image(path) as image:
            assert isinstance(image, SlideImage) == is_slide


@pytest.mark.parametrize("compression", ["zlib", "jpeg"])
@pytest.mark.parametrize("description", ["", "Aperio Image Library v12\r\n250x190|MPP = 0.25"])
def test_both_readers_agree(tmp_path, compression, description):
    path = tmp_path / "slide.tif"
    smooth = np.kron(RGB[:24, :32], np.ones((8, 8, 1), np.uint8))
    with tifffile.TiffWriter(path) as tiff:
        for pixels in (smooth, smooth[::2, ::2]):
            tiff.write(
                pixels, photometric="rgb", tile=(64, 64), compression=compression,
                description=description, metadata=None, subfiletype=int(pixels is not smooth),
            )  # fmt: skip
    for level in (0, 1):
        with open_image(path, level) as ours, SlideImage(path, level) as theirs:
            assert not isinstance(ours, SlideImage)
            assert ours.levels == theirs.levels
            assert ours.mpp == theirs.mpp
            window = (5, 3, 100, 90)
            assert np.array_equal(ours.read(window), theirs.read(window))


def test_both_readers_agree_on_a_real_slide():
    path = SLIDES / "A9K0_1.svs"
    if not path.exists():
        pytest.skip(f"no real slide in {SLIDES}; set CELLSEG_SLIDES")
    with open_image(path) as ours, SlideImage(path, 0) as theirs:
        assert ours.mpp == pytest.approx(theirs.mpp) == 0.19448
        assert ours.levels == theirs.levels == ((1153, 1307),)
        assert np.array_equal(ours.read_all(), theirs.read_all())


def dicom_element(group, number, kind, value):
    if isinstance(value, str):
        value = value.encode()
        value += (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
    elif isinstance(value, int):
        value = struct.pack({"US": "<H", "UL": "<I"}[kind], value)
    length = struct.pack("<2xI" if kind in ("OB", "SQ") else "<H", len(value))
    return struct.pack("<HH", group, number) + kind.encode() + length + value


def dicom_item(data):
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(data)) + data


def write_dicom(path, pixels, instance, micrometres, tile=64):
    """Write a level of a slide, uncompressed."""
    height, width = pixels.shape[:2]
    down, across = -(-height // tile), -(-width // tile)
    padded = np.zeros((down * tile, across * tile, 3), np.uint8)
    padded[:height, :width] = pixels
    frames = padded.reshape(down, tile, across, tile, 3).swapaxes(1, 2).tobytes()
    kind = "1.2.840.10008.5.1.4.1.1.77.1.6"  # whole slide microscopy
    meta = [(2, 1, "OB", b"\0\1"), (2, 2, "UI", kind), (2, 3, "UI", instance)]
    meta += [(2, 0x10, "UI", "1.2.840.10008.1.2.1"), (2, 0x12, "UI", "1.2.3")]
    spacing = dicom_element(0x28, 0x30, "DS", "\\".join([f"{micrometres / 1000:g}"] * 2))
    measures = dicom_element(0x28, 0x9110, "SQ", dicom_item(spacing))
    tags = [
        (8, 8, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"), (8, 0x16, "UI", kind),
        (8, 0x18, "UI", instance), (8, 0x60, "CS", "SM"), (0x20, 0xD, "UI", "1.2.9"),
        (0x20, 0xE, "UI", "1.2.3.4"), (0x20, 0x13, "IS", "1"), (0x20, 0x9311, "CS", "TILED_FULL"),
        (0x28, 2, "US", 3), (0x28, 4, "CS", "RGB"), (0x28, 6, "US", 0),
        (0x28, 8, "IS", str(down * across)), (0x28, 0x10, "US", tile), (0x28, 0x11, "US", tile),
        (0x28, 0x100, "US", 8), (0x28, 0x101, "US", 8), (0x28, 0x102, "US", 7),
        (0x28, 0x103, "US", 0), (0x48, 6, "UL", width), (0x48, 7, "UL", height),
        (0x48, 0x303, "UL", 1), (0x5200, 0x9229, "SQ", dicom_item(measures)),
        (0x7FE0, 0x10, "OB", frames + bytes(len(frames) % 2)),
    ]  # fmt: skip
    head, data = (b"".join(dicom_element(*tag) for tag in each) for each in (meta, tags))
    length = dicom_element(2, 0, "UL", len(head))
    path.write_bytes(bytes(128) + b"DICM" + length + head + data)


def test_a_dicom_series_is_one_slide(tmp_path):
    for n, pixels in enumerate([RGB, RGB[::2, ::2]]):
        write_dicom(tmp_path / f"{n}.dcm", pixels, f"1.2.5.{n + 1}", 0.25 * (n + 1))
    (tmp_path / "other.dcm").write_bytes(b"not DICOM")
    listed = list_image_files([tmp_path, tmp_path / "1.dcm"])
    assert [image.path.name for image in listed] == ["0.dcm", "other.dcm"]
    for name in ("0.dcm", "1.dcm"):
        with open_image(tmp_path / name) as image:
            assert image.levels == ((190, 250), (95, 125))
            assert image.mpp == pytest.approx(0.25)
            assert np.array_equal(image.read_all(), RGB)
    assert "not a TIFF" in refusal(open_image, tmp_path / "other.dcm")


def test_mrxs_without_its_folder(tmp_path):
    """The file itself is a picture of the label or of the slide."""
    path = tmp_path / "slide.mrxs"
    PIL.Image.fromarray(RGB).save(path, format="JPEG")
    assert "slide/" in refusal(open_image, path)


def test_without_openslide(tmp_path, monkeypatch):
    monkeypatch.setattr(slide_module, "_openslide", lambda: None)
    path = tmp_path / "slide.vms"
    path.write_text("[Virtual Microscope Specimen]\n")
    assert "pip install openslide" in refusal(open_image, path)
    plain = tmp_path / "tiled.tif"
    tifffile.imwrite(plain, RGB, photometric="rgb", tile=(64, 64))
    assert np.array_equal(read_image(plain), RGB)

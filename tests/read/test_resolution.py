"""Micrometres per pixel of files of different programs."""

from __future__ import annotations

import math

import numpy as np
import PIL.Image
import pytest
import tifffile

from cellseg.read.resolution import resolution_text
from cellseg.read.window import open_image

RGB = np.random.default_rng(4).integers(0, 256, (40, 60, 3), np.uint8)


def mpp_of(path, level=0):
    with open_image(path, level) as image:
        assert image.read_all().shape == (*image.size, 3)
        return image.mpp


def write_tags(path, x, unit, y=None):
    tifffile.imwrite(path, RGB, photometric="rgb", resolution=(x, y or x), resolutionunit=unit)


@pytest.mark.parametrize(
    ("x", "unit", "mpp"),
    [
        (40_000, "CENTIMETER", 0.25),
        (101_600, "INCH", 0.25),
        (20_000, "CENTIMETER", 0.5),
        (40_000, "NONE", None),
        (72, "INCH", None),
        (96, "INCH", None),
        (300, "INCH", None),
        (4800, "INCH", None),  # a scanner's
        (28, "CENTIMETER", None),
        (1, "CENTIMETER", None),
        (2_000_000, "CENTIMETER", None),  # 5 nm
    ],
)
def test_tags_of_a_tiff(tmp_path, x, unit, mpp):
    path = tmp_path / "image.tif"
    write_tags(path, x, unit)
    assert mpp_of(path) == (mpp and pytest.approx(mpp))


@pytest.mark.parametrize(
    ("description", "mpp"),
    [
        ("Aperio Image Library v12\r\n60x40|AppMag = 40|MPP = 0.2498", 0.2498),
        ("Aperio Image Library v12\r\n60x40|MPP = 0,2498|AppMag = 40", 0.2498),
        ("Aperio Image Library v12\r\n60x40|AppMag = 20", 0.5),  # the objective's usual one
        ("Aperio Image Library v12\r\n60x40|MPP = 0|AppMag = 40", 0.25),
        ("Aperio Image Library v12\r\n60x40|MPP = unknown", None),
        ("MPP = 0.25", None),  # of no known program
    ],
)
def test_aperio(tmp_path, description, mpp):
    path = tmp_path / "slide.svs"
    tifffile.imwrite(
        path, RGB, photometric="rgb", tile=(32, 32), description=description, metadata=None
    )
    assert mpp_of(path) == mpp


@pytest.mark.parametrize(
    ("metadata", "mpp"),
    [
        ({"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}, 0.25),
        ({"PhysicalSizeX": 0.25}, 0.25),
        ({"PhysicalSizeX": 0.2, "PhysicalSizeY": 0.45}, 0.3),
        ({"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm"}, 0.25),
        ({"PhysicalSizeX": 2.5e-4, "PhysicalSizeXUnit": "mm"}, 0.25),
        ({"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "pixel"}, None),
        ({"PhysicalSizeX": 264.6}, None),
        ({}, None),
    ],
)
def test_ome(tmp_path, metadata, mpp):
    path = tmp_path / "image.ome.tif"
    if unit := metadata.get("PhysicalSizeXUnit"):
        metadata |= {"PhysicalSizeY": metadata["PhysicalSizeX"], "PhysicalSizeYUnit": unit}
    tifffile.imwrite(path, RGB, photometric="rgb", metadata={"axes": "YXS"} | metadata)
    assert mpp_of(path) == (mpp and pytest.approx(mpp))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(("sizes", "mpp"), [((0.25, 0.5), 0.25), ((None, 0.5), None)])
def test_of_several_images_of_ome_it_is_that_of_the_one_that_is_read(tmp_path, order, sizes, mpp):
    """The larger one, wherever it is in the file."""
    path = tmp_path / "images.ome.tif"
    images = [(RGB, sizes[0]), (RGB[::2, ::2], sizes[1])]
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for pixels, size in (images[n] for n in order):
            physical = {"PhysicalSizeX": size, "PhysicalSizeY": size} if size else {}
            tiff.write(pixels, photometric="rgb", metadata={"axes": "YXS"} | physical)
    assert mpp_of(path) == mpp


def test_ome_of_another_size_than_the_image(tmp_path):
    """Such as of a crop that kept the slide's text: the first one counts."""
    path = tmp_path / "image.ome.tif"
    xml = "<OME><Image><Pixels SizeX='9' SizeY='60' PhysicalSizeX='0.5'></Pixels></Image>"
    xml += "<Image><Pixels SizeX='60' SizeY='41' PhysicalSizeX='0.25'/></Image></OME>"
    tifffile.imwrite(path, RGB, photometric="rgb", description=xml, metadata=None)
    assert mpp_of(path) == 0.5


@pytest.mark.parametrize(
    ("unit", "per_unit", "mpp"),
    [
        ("micron", 4, 0.25),
        ("um", 4, 0.25),
        ("\\u00B5m", 4, 0.25),
        ("mm", 4000, 0.25),
        ("inch", 72, None),
        ("pixel", 1, None),
        (None, 4, None),
    ],
)
def test_imagej(tmp_path, unit, per_unit, mpp):
    path = tmp_path / "image.tif"
    tifffile.imwrite(
        path, RGB, imagej=True, resolution=(per_unit, per_unit),
        metadata={"axes": "YXS"} | ({"unit": unit} if unit else {}),
    )  # fmt: skip
    assert mpp_of(path) == (mpp and pytest.approx(mpp))


@pytest.mark.parametrize("ending", ["png", "bmp"])
@pytest.mark.parametrize(("dpi", "mpp"), [(101_600, 0.25), (72, None), (300, None)])
def test_pictures(tmp_path, ending, dpi, mpp):
    path = tmp_path / f"image.{ending}"
    PIL.Image.fromarray(RGB).save(path, dpi=(dpi, dpi))
    assert mpp_of(path) == (mpp and pytest.approx(mpp, rel=1e-3))


def test_photos_rarely_know(tmp_path):
    PIL.Image.fromarray(RGB).save(tmp_path / "photo.jpg", dpi=(96, 96))
    assert mpp_of(tmp_path / "photo.jpg") is None


def test_a_level_has_larger_pixels(tmp_path):
    path = tmp_path / "image.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        physical = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
        tiff.write(RGB, photometric="rgb", subifds=1, metadata=physical)
        tiff.write(RGB[::4, ::4], photometric="rgb", subfiletype=1)
    assert mpp_of(path) == 0.25
    assert mpp_of(path, 1) == pytest.approx(1.0)


def test_pixels_that_are_not_square_are_noted(tmp_path):
    path = tmp_path / "image.tif"
    for y, noted in ((40_200, False), (20_000, True)):
        write_tags(path, 40_000, "CENTIMETER", y)
        with open_image(path) as image:
            assert image.mpp == pytest.approx(math.sqrt(0.25 * 10_000 / y))
            assert any("not square" in note for note in image.notes) == noted


def test_damaged_metadata_leave_the_image_readable(tmp_path):
    path = tmp_path / "image.ome.tif"
    for bad in (b'PhysicalSizeX="nan"', b'PhysicalSizeX="1e9"', b"PhysicalSizeX=0.25 "):
        xml = b'<?xml version="1.0"?><OME><Image><Pixels ' + bad + b"></Image"
        tifffile.imwrite(path, RGB, photometric="rgb", description=xml, metadata=None)
        assert mpp_of(path) is None


def test_several_in_words():
    assert resolution_text([0.2503, 0.25], 2) == "0.25"
    assert resolution_text([0.25, 0.5], 3) == "0.25 to 0.5, unknown for 1 of 3"

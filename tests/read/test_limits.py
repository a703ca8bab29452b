"""Small files that ask for much memory or time are refused at once."""

from __future__ import annotations

import io
import json
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile

import annotation
from bench.scanners import write_dicom
from cellseg import limits
from cellseg.read.coco import load_coco
from cellseg.read.coded_size import coded_size
from cellseg.read.fill import fill_polygons
from cellseg.read.geojson import read_geojson
from cellseg.read.imagescope import read_imagescope
from cellseg.read.label_maps import count_labels
from cellseg.read.outlines import fill_outlines
from cellseg.read.results import iter_results
from cellseg.read.tiff import read_labels
from cellseg.read.window import image_size, open_image, read_image
from tests.read.refusal import refusal


def chunk(name, data):
    crc = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png(side, more=b""):
    """Return the beginning of a grey PNG."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(4 * 5))
    data = chunk(b"IHDR", header) + more + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def jpeg(side):
    """Return a JPEG of 16 x 16 pixels whose header says that its sides are another."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (16, 16)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def one_strip(side):
    """Return a grey TIFF whose only strip is compressed and cut off."""
    data = zlib.compress(bytes(1000))
    tags = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (273, 200), (277, 1)]
    tags += [(278, side), (279, len(data))]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + bytes(4)
    return head.ljust(200, b"\0") + data


def test_small_files_of_huge_images(tmp_path):
    for name, data in {
        "a.jpg": jpeg(65_500),
        "a.png": png(45_000),
        "a.tif": one_strip(45_000),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        for read in (read_image, open_image):
            message = refusal(read, path)
            assert message.startswith(f"{path}: ")
            assert "--max_image_gb" in message
    assert "--max_image_gb" in refusal(read_labels, tmp_path / "a.tif")


def test_a_huge_tile_in_a_small_image(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), tile=(64, 64), compression="jpeg")
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    path.write_bytes(data)
    assert "65500 x 65500" in refusal(read_image, path)
    with open_image(path) as image:
        assert "65500 x 65500" in refusal(image.read, (0, 0, 9, 9))


ENCODERS: dict[str, Callable[..., Any]] = {
    "webp": imagecodecs.webp_encode,
    "jpegxl": imagecodecs.jpegxl_encode,
    "jpegxr": imagecodecs.jpegxr_encode,
    "jpeg2000": imagecodecs.jpeg2k_encode,
    "png": imagecodecs.png_encode,
}


@pytest.mark.parametrize("codec", ENCODERS)
def test_a_tile_of_another_size(tmp_path, codec):
    """Decoders allocate what the header of a tile asks for."""
    path, pixels = (
        tmp_path / "a.tif",
        np.random.default_rng(1).integers(0, 9, (300, 200, 3), np.uint8),
    )
    form = {"shape": (64, 64, 3), "dtype": np.uint8, "tile": (64, 64), "photometric": "rgb"}
    tifffile.imwrite(path, iter([ENCODERS[codec](pixels)]), compression=codec, **form)
    assert "300 x 200" in refusal(read_image, path)
    tifffile.imwrite(
        path, iter([ENCODERS[codec](pixels[:64, :64].copy())]), compression=codec, **form
    )
    assert read_image(path).shape == (64, 64, 3)
    tifffile.imwrite(path, iter([b"RIFF" + bytes(9)]), compression=codec, **form)
    assert str(path) in refusal(read_image, path)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"usecontainer": True}])
@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 70), (16, 300), (64, 128)])
def test_coded_sizes(size, options):
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)
    made: list[Any] = [imagecodecs.jpeg8_encode(pixels)]
    if "usecontainer" not in options:
        made.append(imagecodecs.webp_encode(pixels, **options))
        made.append(imagecodecs.webp_encode(np.dstack([pixels, pixels[:, :, :1]]), **options))
    made.append(imagecodecs.jpegxl_encode(pixels, **options))
    if not options:
        made += [encode(pixels) for encode in ENCODERS.values()]
    assert {coded_size(data) for data in made} == {size}
    for data in made:
        for length in range(0, min(64, len(data))):
            coded_size(data[:length])  # raises no error


def test_a_codec_of_height_maps(tmp_path):
    path = tmp_path / "a.tif"
    pixels = np.zeros((64, 64, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="lerc", photometric="rgb")
    assert "LERC" in refusal(read_image, path)


def test_a_slide_that_states_an_impossible_size(tmp_path):
    path = tmp_path / "slide.dcm"
    write_dicom(path, np.zeros((70, 90, 3), np.uint8), "1.2.3", 0.25)
    data = path.read_bytes()
    width = struct.pack("<HH2sHI", 0x48, 6, b"UL", 4, 90)
    for claimed in (10**9, 10**6):
        path.write_bytes(data.replace(width, width[:-4] + struct.pack("<I", claimed)))
        if claimed == 10**9:
            assert f"{path}: " in refusal(open_image, path)
            continue
        with open_image(path) as image:
            assert image.size == (70, claimed)
            image.size = (10**6, claimed)
            assert "--max_image_gb" in refusal(image.read_all)


def test_slides_are_read_window_by_window(tmp_path):
    path, side = tmp_path / "slide.tif", 30_000
    tile = zlib.compress(bytes([200]) * (3 * 1024 * 1024))
    tiles = (tile for _ in range(30 * 30))
    tifffile.imwrite(
        path, tiles, shape=(side, side, 3), dtype=np.uint8, tile=(1024, 1024), compression="zlib"
    )
    assert image_size(path) == (side, side)
    with open_image(path) as image:
        assert (image.read((29_000, 29_500, 29_010, 29_510)) == 200).all()
    assert "--max_image_gb" in refusal(read_image, path)


def test_the_flag_changes_the_limit(make_cells, tmp_path, monkeypatch):
    data = make_cells(tmp_path / "data", 1, 1)
    monkeypatch.setenv("CELLSEG_MAX_IMAGE_GB", "2")
    argv = ["--data", str(data), "--max_image_gb"]
    assert "--max_image_gb" in refusal(annotation.main, [*argv, "1e-6"])
    assert annotation.main([*argv, "0.1"]) == 0
    for value in ("0", "-1", "inf", "nan", "much"):
        assert "--max_image_gb" in refusal(annotation.main, [*argv, value])


def test_libraries_print_nothing(tmp_path, capfd):
    path = tmp_path / "a.png"
    path.write_bytes(png(4, chunk(b"iCCP", b"x\0\0abc") + chunk(b"tEXt", b"a\0b")[:-1] + b"x"))
    assert read_image(path).shape == (4, 4, 3)
    path.write_bytes(png(4, chunk(b"tRNS", bytes(9)) + chunk(b"PLTE", bytes(4))))
    assert read_image(path).shape == (4, 4, 3)
    path.write_bytes(png(1).replace(zlib.compress(bytes(20)), bytes(2000)))
    assert str(path) in refusal(read_image, path)
    path.write_bytes(png(4, chunk(b"gAMA", b"\0\0"))[:-30])
    assert str(path) in refusal(read_image, path)
    path.write_bytes(png(4).replace(zlib.compress(bytes(20)), zlib.compress(bytes(20)) + bytes(99)))
    assert str(path) in refusal(read_image, path)
    data = bytearray(png(4))
    data[28] = 7  # its way of interlacing
    path.write_bytes(data)
    assert str(path) in refusal(read_image, path)
    for side in (0, 1_000_001):
        path.write_bytes(png(side))
        assert str(path) in refusal(count_labels, path)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<u2", "fortran_order": False, "shape": (2**31, 2**31)}
        )
    assert str(path) in refusal(count_labels, path)
    assert capfd.readouterr() == ("", "")


def zigzag(n_points, height):
    return [[4 * n, height * (n % 2)] for n in range(n_points)]


def test_a_zigzag_polygon_in_a_coco_file(tmp_path):
    path = tmp_path / "coco.json"
    points = np.ravel(zigzag(4000, 65_000)).tolist()
    coco = {
        "images": [{"id": 1, "file_name": "a.tif", "height": 65_000, "width": 65_000}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [points]}],
    }
    path.write_text(json.dumps(coco))
    assert "outlines of" in refusal(load_coco, path)
    n_cells = 100  # each of them is harmless
    coco["annotations"] = [
        {"id": n, "image_id": 1, "category_id": 1, "segmentation": [points[:80]]}
        for n in range(n_cells)
    ]
    path.write_text(json.dumps(coco))
    assert "outlines of" in refusal(load_coco, path)


def test_a_zigzag_outline(tmp_path):
    path = tmp_path / "a.geojson"
    geometry = {"type": "Polygon", "coordinates": [zigzag(4000, 20_000)]}
    path.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {}}))
    outlines = read_geojson(path)
    message = refusal(fill_outlines, path, outlines, (20_000, 20_000), ["cell"])
    assert "outlines of" in message
    cells, _ = fill_outlines(path, outlines, (200, 200), ["cell"])  # most is outside
    assert len(cells[1]) == 1


def test_large_outlines_cost_little():
    began = time.monotonic()
    angle = np.linspace(0, 2 * np.pi, 2000)
    ring = 10_000 + 9_000 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    (area,) = np.diff(fill_polygons([[[ring]]], (20_000, 20_000)).ends).shape
    assert area > 10_000  # runs
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("content", [b" ", b"a"], ids=["spaces", "a string"])
def test_a_zip_that_unpacks_to_much(tmp_path, content):
    path = tmp_path / "results.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("test-results.json", "w") as file,
    ):
        file.write(b'["')
        for _ in range(101):
            file.write(1_000_000 * content)
        file.write(b'"]')
    assert str(path) in refusal(list, iter_results(path))


def test_much_space_in_results(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[" + 20_000_000 * " " + "{}" + 20_000_000 * "\n" + "]")
    assert list(iter_results(path)) == [{}]


def test_xml_that_costs_much(tmp_path):
    path = tmp_path / "a.xml"
    for text in (
        "<Annotations>" + 100_000 * "<a>",
        f'<Annotations><Annotation Name="{20_000_000 * "x"}"/></Annotations>',
        '<!DOCTYPE a [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><Annotations>&b;</Annotations>',
    ):
        path.write_text(text)
        assert refusal(read_imagescope, path).startswith(f"{path}: ")


def test_devices_are_no_files():
    assert "device" in refusal(read_image, "/dev/zero")
    assert "device" in refusal(load_coco, "/dev/zero")
    assert "device" in refusal(list, iter_results(Path("/dev/zero")))


def test_limits_are_above_real_files():
    """A label map and outlines of the largest images in the benchmarks."""
    limits.check_image_memory(Path("a.tif"), 20_000, 20_000, 4 + 1)
    limits.check_outline_length("a.geojson", 200_000 * 100, 200_000 * 4)
    limits.check_outline_length("a.geojson", 9e6, 4)  # one outline of a slide
    assert refusal(lambda path: limits.check_outline_length(path, 15e6, 4), "a.geojson")

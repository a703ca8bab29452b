"""Slides of scanners: OpenSlide's pixels, cropped to the scanned area, and who reads what."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import PIL.Image
import pytest
import tifffile

from bench.scanners import write_dicom, write_mrxs, write_ndpi, write_scn
from cellseg.read import slide as slide_module
from cellseg.read.image_lists import list_image_files
from cellseg.read.slide import SlideImage
from cellseg.read.window import open_image, read_image
from tests.read.refusal import refusal

SLIDES = Path(
    os.environ.get("CELLSEG_SLIDES", Path(__file__).resolve().parents[3] / "shared/data/slides")
)
RGB = np.random.default_rng(6).integers(0, 256, (190, 250, 3), np.uint8)


@pytest.fixture
def scn(tmp_path):
    write_scn(tmp_path / "slide.scn", RGB)
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
    tags: dict[str, Any] = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    write_scn(tmp_path / "other.scn", RGB, **tags)
    with open_image(tmp_path / "other.scn", 1) as image:
        assert image.mpp == pytest.approx(1.0)


def test_a_window_beside_the_pixels_has_the_background(tmp_path):
    """Where a slide has no pixels, OpenSlide's are transparent."""
    write_scn(tmp_path / "slide.scn", RGB)
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


@pytest.mark.parametrize(("write", "name"), [(write_ndpi, "s.ndpi"), (write_mrxs, "s.mrxs")])
def test_slides_of_jpegs(tmp_path, write, name):
    """NDPI, which is a TIFF too, and MRXS, whose pixels are in a folder beside it."""
    smooth = np.kron(RGB[:24, :32], np.ones((8, 8, 1), np.uint8))
    write(tmp_path / name, smooth, micrometres=0.5)
    with open_image(tmp_path / name) as image:
        assert isinstance(image, SlideImage)
        assert image.levels[0] == (192, 256)
        assert image.mpp == pytest.approx(0.5)
        assert np.abs(image.read_all().astype(int) - smooth).max() <= 2
        window = image.read((70, 5, 200, 80)).astype(int)
        assert np.abs(window - smooth[5:80, 70:200]).max() <= 2


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

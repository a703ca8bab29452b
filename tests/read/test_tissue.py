"""Finding tissue: by hand, on backgrounds and images of many kinds, on levels of a pyramid."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.tissue import VARIANTS, compressed, measure, place, press, read_pieces, stained
from cellseg.read.tissue import choose_step, find_tissue, tissue_mask
from cellseg.read.window import WindowedImage

WHITE, PINK = (255, 255, 255), (200, 140, 180)
TISSUE = os.environ.get("CELLSEG_TISSUE", "")


def canvas(size=(800, 960), background=WHITE, *places, colour=PINK):
    """Return an image with rectangles XYXY of one colour."""
    image = np.full((*size, 3), background, np.uint8)
    for left, top, right, bottom in places or [(160, 240, 400, 480)]:
        image[top:bottom, left:right] = colour
    return image


@pytest.mark.parametrize(
    "background", [WHITE, (243, 243, 243), (200, 200, 200), (240, 236, 222), (252, 240, 245)]
)
def test_a_rectangle_by_hand(background):
    tissue = find_tissue(canvas(background=background))
    assert tissue.background == background
    assert tissue.mask.step == (8, 8)
    assert tissue.mask.area == 240 * 240
    assert tissue.mask.pixels[30:60, 20:50].all()
    assert tissue.mask.boxes((0, 0, 960, 800), 0) == [(160, 240, 400, 480)]


@pytest.mark.parametrize("colour", [(0, 0, 0), (238, 225, 232), (228, 228, 250), (20, 120, 60)])
def test_black_pale_blue_and_green_count(colour):
    """A spot of a cell's size, of black only if it isn't a large area that wasn't scanned."""
    image = canvas((800, 960), (244, 244, 244), (400, 400, 424, 424), colour=colour)
    image = cv2.GaussianBlur(image, (0, 0), 2)
    assert find_tissue(image).mask.pixels[51, 51]


@pytest.mark.parametrize("noise", [0, 1, 4])
@pytest.mark.parametrize("background", [WHITE, (235, 233, 230), (180, 180, 180)])
def test_no_tissue(background, noise):
    image = canvas((640, 640), background, (0, 0, 0, 0))
    image = image + np.random.default_rng(0).normal(0, noise, image.shape)
    tissue = find_tissue(image.clip(0, 255).astype(np.uint8))
    assert tissue.mask.area == 0
    assert tissue.background is not None


@pytest.mark.parametrize(
    "colour", [(0, 0, 0), (30, 30, 34), (220, 150, 190), (240, 215, 232), (120, 120, 120)]
)
def test_without_a_bright_background_all_is_tissue(colour):
    rng = np.random.default_rng(0)
    image = canvas((640, 640), colour, (100, 100, 140, 140), colour=(90, 200, 90))
    for noise in (0, 3):
        noisy = (image + rng.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)
        tissue = find_tissue(noisy)
        assert tissue.background is None
        assert tissue.mask.area == 640 * 640


def test_what_was_not_scanned():
    """Black and white filling around a grey background, tissue at its edge."""
    image = canvas((800, 1600), (228, 228, 228), (700, 300, 900, 500))
    image[:, :400] = 0
    image[:, 1200:] = 255
    tissue = find_tissue(image)
    assert tissue.background == (228, 228, 228)
    assert 200**2 <= tissue.mask.area < 1.1 * 200**2
    assert tissue.mask.pixels[38:62, 88:112].all()


def tissue_on_black(size, box, seed=0):
    """Return tissue without any glass in a box, XYXY, of a black image, and where its nuclei are.

    Some of the nuclei, which are nearly black, are cut by the edge of the box.
    """
    rng = np.random.default_rng(seed)
    image, nuclei = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    left, top, right, bottom = box
    part, nucleus = image[top:bottom, left:right], nuclei[top:bottom, left:right]
    part[:] = rng.normal(PINK, 12, part.shape).clip(0, 255)
    for _ in range(part[:, :, 0].size // 1000):
        middle = rng.integers(0, (right - left, bottom - top)).tolist()
        cv2.ellipse(nucleus, middle, rng.integers(4, 12, 2).tolist(), 0, 0, 360, 1, -1)
    part[nucleus > 0] = (45, 25, 60)
    return image, nuclei > 0


def covered(mask):
    """Return a coarse mask at each pixel of the image."""
    rows, columns = (np.arange(n) for n in mask.size)
    step = mask.step
    return mask.pixels[(rows / step[0]).astype(int)][:, (columns / step[1]).astype(int)]


@settings(max_examples=30)
@given(st.integers(0, 500), st.integers(0, 400), st.integers(200, 500), st.integers(200, 500),
       st.sampled_from([None, 0.5, 2.0]), st.integers(0, 99))  # fmt: skip
def test_black_is_not_scanned_also_without_glass(left, top, width, height, mpp, seed):
    box = (left, top, left + width, top + height)
    image, nuclei = tissue_on_black((900, 1000), box, seed)
    tissue = find_tissue(image, mpp=mpp)
    assert tissue.background == (0, 0, 0)
    assert covered(tissue.mask)[nuclei].all()
    step = int(tissue.mask.step[0])
    assert width * height <= tissue.mask.area <= (width + 2 * step) * (height + 2 * step)


@pytest.mark.parametrize("quality", [95, 75, 30])
def test_black_of_jpeg(quality):
    """It rings in blocks that are partly tissue, of 16 pixels at most."""
    image, nuclei = tissue_on_black((900, 1000), (203, 305, 703, 705))
    tissue = find_tissue(compressed(quality)(image))
    assert covered(tissue.mask)[nuclei].all()
    assert 500 * 400 <= tissue.mask.area <= 540 * 440


def test_several_pieces_and_black_in_them():
    """Nuclei, pens, bars and letters in the tissue aren't what was not scanned."""
    image, _ = tissue_on_black((1200, 1600), (0, 0, 500, 500))
    image[600:1100, 900:1500], _ = tissue_on_black((500, 600), (0, 0, 600, 500), 1)
    cv2.line(image, (40, 60), (460, 300), (0, 0, 0), 40)
    cv2.rectangle(image, (920, 1040), (1120, 1060), (0, 0, 0), -1)
    cv2.putText(image, "100 um", (920, 1020), 0, 2, (0, 0, 0), 8)
    tissue = find_tissue(image)
    kept = covered(tissue.mask)
    assert kept[:500, :500].all()
    assert kept[600:1100, 900:1500].all()
    assert tissue.mask.area <= 510 * 510 + 620 * 520


def fluorescent(size=(900, 1000), colour=(255, 255, 255), blur=2.0):
    """Return bright, even saturated, cells on black."""
    rng = np.random.default_rng(0)
    image = np.zeros((*size, 3), np.uint8)
    for _ in range(300):
        middle = rng.integers(300, 700, 2).tolist()
        bright = (np.array(colour) * rng.uniform(0.3, 1.0)).tolist()
        cv2.ellipse(image, middle, rng.integers(8, 20, 2).tolist(), 0, 0, 360, bright, -1)
    return cv2.GaussianBlur(image, (0, 0), blur)


@pytest.mark.parametrize(
    "image",
    [
        *(fluorescent(colour=colour) for colour in [(40, 90, 255), (90, 220, 60), (255, 40, 30)]),
        fluorescent(colour=(160, 160, 160)),
        fluorescent(),
        255 - canvas((900, 1000), WHITE, (200, 200, 700, 700)),
        canvas((900, 1000), (0, 0, 0), (200, 200, 700, 700), colour=(70, 30, 45)),
        canvas((900, 1000), (0, 0, 0), (200, 200, 300, 220), colour=PINK),
    ],
    ids=[
        "blue",
        "green",
        "red",
        "grey",
        "white",
        "inverted",
        "dark tissue",
        "no larger than cells",
    ],
)
def test_a_dark_image_has_no_background(image):
    tissue = find_tissue(image)
    assert tissue.background is None
    assert tissue.mask.pixels.all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 9), (33, 8)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_tiny_images(size, value):
    mask, background = tissue_mask(np.full((*size, 3), value, np.uint8))
    assert mask.shape == size
    assert mask.all() == (background is None)
    assert find_tissue(np.full(size, value, np.uint8)).mask.size == size


def test_mask_pixels_have_about_two_micrometres():
    assert choose_step((1000, 1000), None) == 8
    assert [choose_step((9, 9), mpp) for mpp in (0.1, 0.25, 0.3, 0.5, 1, 2, 9)] == [
        16,
        8,
        8,
        4,
        2,
        1,
        1,
    ]
    assert choose_step((100_000, 100_000), 0.25) == 16  # so that it has not too many


def write_pyramid(path, image, *factors):
    options = {"photometric": "rgb", "tile": (128, 128), "compression": "zlib"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(image, subifds=len(factors), **options)
        for factor in factors:
            height, width = (round(side / factor) for side in image.shape[:2])
            small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            tiff.write(small, subfiletype=1, **options)


@pytest.mark.parametrize("factors", [(), (4,), (4, 16), (2, 8, 32), (3.01, 9.05)])
@pytest.mark.parametrize("level", [0, 1])
def test_levels_of_a_pyramid(tmp_path, factors, level):
    if level > len(factors):
        return
    path = tmp_path / "slide.tif"
    write_pyramid(path, canvas((1300, 1702), (243, 243, 243), (800, 600, 1200, 1000)), *factors)
    tissue = find_tissue(path, level)
    scale = (1, *factors)[level]
    assert tissue.mask.size == (round(1300 / scale), round(1702 / scale))
    (box,) = tissue.mask.boxes((0, 0, *tissue.mask.size[::-1]), 0)
    assert np.abs(np.array(box) * scale - (800, 600, 1200, 1000)).max() <= 16 * scale
    assert abs(tissue.mask.area * scale**2 / 400**2 - 1) < 0.1 * scale
    middle = tissue.mask.pixels[tuple(int(800 / scale / step) for step in tissue.mask.step)]
    assert middle or scale > 1


def test_only_a_small_level_is_read(tmp_path, monkeypatch):
    path = tmp_path / "slide.tif"
    write_pyramid(path, canvas((2000, 2000), (243, 243, 243)), 2, 8)
    opened = []
    read = WindowedImage.read

    def note(self, window):
        opened.append(self.size)
        return read(self, window)

    monkeypatch.setattr(WindowedImage, "read", note)
    find_tissue(path)
    assert set(opened) == {(250, 250)}


def test_memory_of_a_large_mask():
    """The mask of a slide of 100,000 x 100,000 pixels has 40 million pixels."""
    image = canvas((1000, 1000), (240, 240, 240))
    image ^= np.random.default_rng(0).integers(0, 2, image.shape, np.uint8)
    tracemalloc.start()
    try:
        tissue_mask(image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * image.shape[0] * image.shape[1]


@pytest.mark.skipif(not TISSUE, reason="needs annotated tissue: CELLSEG_TISSUE=DIR")
def test_annotated_cells_are_kept(capsys):
    pieces = list(read_pieces(Path(TISSUE), 4))
    kept = total = 0
    for cells in (place(pieces, 3600, 255), place(pieces, 3600, 240), press(pieces)):
        for change in [*VARIANTS.values(), stained(0.1)]:
            counts = measure("", change(cells[0]), cells[1])
            kept, total = kept + counts[0], total + counts[1]
    assert kept >= 0.999 * total > 0
    capsys.readouterr()

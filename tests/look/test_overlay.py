"""Overlays: outlines worked out by hand, legends, and pictures of any size."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from cellseg.colours import CLASS_COLOURS, class_colour
from cellseg.errors import InputError
from cellseg.look.overlay import (
    draw_comparison,
    draw_outlines,
    draw_overlay,
    draw_reduced,
)
from cellseg.png import write_png
from cellseg.read.window import from_array

NAMES = ["epithelial", "lymphocyte", "neutrophil", "macrophage"]
GREY = 100


def plain(height, width):
    return np.full((height, width, 3), GREY, np.uint8)


def rle(mask):
    return coco.encode(np.asfortranarray(np.asarray(mask, np.uint8)))


def box_rle(height, width, top, left, bottom, right):
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 1
    return rle(mask)


def where(picture, colour):
    return (picture == colour).all(axis=2)


def test_outline_of_a_square_is_its_border_pixels():
    image = plain(9, 9)
    drawn = draw_outlines(image, [box_rle(9, 9, 2, 2, 7, 7)], np.array([1]))
    expected = np.zeros((9, 9), bool)
    expected[2:7, 2:7] = True
    expected[3:6, 3:6] = False
    assert np.array_equal(where(drawn, CLASS_COLOURS[1]), expected)
    assert np.array_equal(where(drawn, GREY), ~expected)
    assert (image == GREY).all()


def test_outline_of_holes_and_pieces():
    mask = np.zeros((7, 9), bool)
    mask[0:5, 0:5] = True
    mask[2, 2] = False
    mask[5:7, 7:9] = True
    drawn = where(draw_outlines(plain(7, 9), [rle(mask)], np.array([0])), CLASS_COLOURS[0])
    # A border pixel has a 4-neighbour outside; those at the hole's corners have none.
    expected = mask.copy()
    for y, x in ((1, 1), (1, 3), (3, 1), (3, 3)):
        expected[y, x] = False
    assert np.array_equal(drawn, expected)


def test_outline_at_the_edge_of_the_image():
    whole = draw_outlines(plain(4, 5), [box_rle(4, 5, 0, 0, 4, 5)], np.array([2]))
    inner = np.zeros((4, 5), bool)
    inner[1:3, 1:4] = True
    assert np.array_equal(where(whole, GREY), inner)


def test_a_reduced_picture_is_that_of_the_means_with_outlines_on_their_place(monkeypatch):
    """Read in windows; odd sides; the outline of a rectangle from pixel 10 to 30, 20 to 42."""
    monkeypatch.setattr("cellseg.look.overlay.WINDOW", 24)
    rng = np.random.default_rng(0)
    image = rng.integers(90, 110, (61, 83, 3), np.uint8)
    masks = [box_rle(61, 83, 10, 20, 30, 42)]
    drawn = draw_reduced(from_array(image), masks, np.array([1]), NAMES, 42)[:31, :42]
    even = np.pad(image, ((0, 1), (0, 1), (0, 0)), mode="edge").astype(float)
    means = even.reshape(31, 2, 42, 2, 3).mean(axis=(1, 3))
    differs = np.abs(drawn - means).max(axis=2) > 1
    ys, xs = np.nonzero(differs)
    # Reduced, it has its edges at 5 and 15, 10 and 21: between two pixels each, and smoothed.
    assert np.abs(np.subtract((ys.min(), ys.max(), xs.min(), xs.max()), (4, 15, 9, 21))).max() <= 1
    assert not differs[7:13, 12:19].any()
    assert differs[5:15, 9:11].any(axis=1).all()


def test_outline_of_one_pixel():
    drawn = draw_outlines(plain(3, 3), [box_rle(3, 3, 1, 2, 2, 3)], np.array([0]))
    assert np.argwhere(where(drawn, CLASS_COLOURS[0])).tolist() == [[1, 2]]


def test_touching_cells_have_separate_outlines():
    masks = [box_rle(6, 12, 0, 0, 6, 6), box_rle(6, 12, 0, 6, 6, 12)]
    drawn = draw_outlines(plain(6, 12), masks, np.array([0, 3]))
    assert where(drawn, CLASS_COLOURS[0])[:, 5].all()
    assert where(drawn, CLASS_COLOURS[3])[:, 6].all()
    assert where(drawn, GREY).sum() == 2 * 4 * 4


@pytest.mark.parametrize(("zoom", "thickness"), [(1, 1), (2, 2), (3, 2), (5, 2), (8, 4)])
def test_outline_of_an_enlarged_image(zoom, thickness):
    drawn = draw_outlines(plain(12, 14), [box_rle(12, 14, 1, 2, 11, 12)], np.array([0]), None, zoom)
    assert drawn.shape == (12 * zoom, 14 * zoom, 3)
    expected = np.zeros(drawn.shape[:2], bool)
    top, left, bottom, right = zoom, 2 * zoom, 11 * zoom, 12 * zoom
    expected[top:bottom, left:right] = True
    t = thickness
    expected[top + t : bottom - t, left + t : right - t] = False
    assert np.array_equal(where(drawn, CLASS_COLOURS[0]), expected)


def test_the_higher_score_is_on_top():
    masks = [box_rle(5, 5, 0, 0, 5, 5)] * 2
    for scores, top in (([0.9, 0.2], 0), ([0.2, 0.9], 1), ([0.5, 0.5], 0)):
        drawn = draw_outlines(plain(5, 5), masks, np.array([0, 1]), np.array(scores, np.float32))
        assert where(drawn, CLASS_COLOURS[top]).sum() == 16


def test_empty_mask_draws_nothing():
    drawn = draw_outlines(plain(5, 5), [rle(np.zeros((5, 5)))], np.array([0]))
    assert (drawn == GREY).all()


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_only_pixels_of_the_cell_are_coloured(data):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits).reshape(height, width)
    drawn = draw_outlines(plain(height, width), [rle(mask)], np.array([0]))
    padded = np.pad(mask, 1)
    around = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    assert np.array_equal(where(drawn, CLASS_COLOURS[0]), mask & ~around)


def test_overlay_is_the_picture_above_a_legend():
    image = plain(300, 400)
    masks = [box_rle(300, 400, 10, 10, 40, 50), box_rle(300, 400, 100, 100, 140, 150)]
    picture = draw_overlay(image, masks, np.array([0, 2]), NAMES, zoom=1)
    assert np.array_equal(
        picture[:300, :400], draw_outlines(image, masks, np.array([0, 2]), None, 1)
    )
    legend = picture[300:]
    assert legend.shape[0] >= 24
    for colour in CLASS_COLOURS[:4]:
        assert where(legend, colour).sum() == 16 * 16
    assert where(legend, 0).sum() > 50  # letters


@pytest.mark.parametrize(
    ("size", "zoom"),
    [((1, 1), 8), ((99, 60), 8), ((160, 192), 5), ((400, 399), 2), ((801, 10), 1), ((900, 950), 1)],
)
def test_small_images_are_enlarged(size, zoom):
    picture = draw_overlay(plain(*size), [], np.zeros(0, np.int64), NAMES)
    assert (picture[: size[0] * zoom, : size[1] * zoom] == GREY).all()
    assert picture.shape[1] == max(size[1] * zoom, 240)
    assert (picture[size[0] * zoom, :] == 255).all()


def test_legend_shows_counts():
    masks = [box_rle(50, 500, 0, 0, 2, 2)] * 3
    legends = [
        draw_overlay(plain(50, 500), masks, np.array(classes), NAMES, zoom=1)[50:]
        for classes in ([0, 0, 1], [0, 1, 1], [0, 0, 1])
    ]
    assert not np.array_equal(legends[0], legends[1])
    assert np.array_equal(legends[0], legends[2])


@pytest.mark.parametrize(
    "names",
    [
        ["a"],
        ["淋巴球", "ядро", "κύτταρο", "🙂"],
        ["a very long name " * 40] * 4,
        ["line\nbreak\tand\ttab", "", " ", "x" * 300],
        [f"class {k}" for k in range(30)],
    ],
)
def test_any_names(names):
    for size in ((1, 1), (20, 700)):
        picture = draw_overlay(plain(*size), [], np.zeros(0, np.int64), names, zoom=1)
        assert picture.dtype == np.uint8
        assert picture.shape[1] == max(size[1], 240)
        for k in range(len(names)):
            assert where(picture[size[0] :], class_colour(k)).sum() >= 16 * 16


def test_long_name_keeps_its_count():
    one = [box_rle(5, 300, 0, 0, 5, 5)]
    long = ["n" * 500]
    with_one = draw_overlay(plain(5, 300), one, np.array([0]), long, zoom=1)[5:]
    with_none = draw_overlay(plain(5, 300), [], np.zeros(0, np.int64), long, zoom=1)[5:]
    assert with_one.shape == with_none.shape
    assert not np.array_equal(with_one, with_none)


def test_colours_are_different_for_any_number_of_classes():
    colours = [class_colour(k) for k in range(60)]
    assert len(set(colours)) == 60
    assert all(0 <= value <= 255 for colour in colours for value in colour)


def test_comparison_has_ground_truth_left_and_detections_right():
    image = plain(200, 300)
    gt, detection = box_rle(200, 300, 10, 10, 60, 60), box_rle(200, 300, 90, 90, 150, 150)
    picture = draw_comparison(
        image, [gt], np.array([0]), [detection], np.array([3]), NAMES, np.array([0.5]), zoom=1
    )
    left = draw_outlines(image, [gt], np.array([0]))
    right = draw_outlines(image, [detection], np.array([3]))
    top = int(np.flatnonzero(where(picture, GREY)[:, 299])[0])
    assert top >= 24  # room for the titles
    assert np.array_equal(picture[top : top + 200, :300], left)
    assert np.array_equal(picture[top : top + 200, -300:], right)
    assert (picture[top : top + 200, 300:-300] == 255).all()
    assert where(picture[:top, :300], 0).any()
    assert where(picture[:top, -300:], 0).any()
    assert not np.array_equal(picture[:top, :300], picture[:top, -300:])


def test_comparison_of_nothing_in_one_pixel():
    none = np.zeros(0, np.int64)
    picture = draw_comparison(plain(1, 1), [], none, [], none, NAMES)
    top = int(np.flatnonzero(where(picture, GREY)[:, 0])[0])
    for left in (0, 128):
        assert (picture[top : top + 8, left : left + 8] == GREY).all()
        assert (picture[top : top + 8, left + 8 : left + 120] == 255).all()


def test_hundreds_of_cells():
    masks, classes = [], []
    for k in range(900):
        y, x = divmod(k, 30)
        masks.append(box_rle(600, 600, 20 * y, 20 * x, 20 * y + 20, 20 * x + 20))
        classes.append(k % 4)
    picture = draw_outlines(plain(600, 600), masks, np.array(classes))
    assert where(picture, GREY).sum() == 900 * 18 * 18


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 4), np.uint8), ((4, 4, 4), np.uint8), ((4, 4, 3), np.float32), ((0, 4, 3), np.uint8)],
)
def test_image_of_another_type(shape, dtype):
    with pytest.raises(ValueError, match="expected uint8"):
        draw_overlay(np.zeros(shape, dtype), [], np.zeros(0, np.int64), NAMES)


def test_arguments_that_do_not_match():
    mask = box_rle(4, 4, 0, 0, 2, 2)
    for classes, scores in (([0, 1], None), ([0], np.zeros(0, np.float32))):
        with pytest.raises(ValueError, match="1 masks"):
            draw_outlines(plain(4, 4), [mask], np.array(classes), scores)
    with pytest.raises(ValueError, match="size"):
        draw_outlines(plain(5, 4), [mask], np.array([0]))
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match="4 names"):
            draw_overlay(plain(4, 4), [mask], np.array([wrong]), NAMES)


def test_png_contains_the_picture(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    write_png(tmp_path / "new" / "a.png", picture)
    read = cv2.imread(os.fspath(tmp_path / "new" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(read[..., ::-1], picture)  # type: ignore[index]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_picture_of_another_program_is_not_replaced(tmp_path):
    path = tmp_path / "a.png"
    write_png(path, plain(2, 2))
    write_png(path, plain(3, 2))
    assert np.shape(np.asarray(cv2.imread(os.fspath(path)))) == (3, 2, 3)
    cv2.imwrite(os.fspath(path), plain(4, 4))
    with pytest.raises(InputError, match="isn't replaced"):
        write_png(path, plain(2, 2))
    assert np.shape(np.asarray(cv2.imread(os.fspath(path)))) == (4, 4, 3)


def test_png_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        write_png(tmp_path / "file" / "a.png", plain(2, 2))

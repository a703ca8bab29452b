"""The views of a tile: each scale in each symmetry, and what makes no sense."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg.errors import InputError
from cellseg.learn import config
from cellseg.predict.tiles import Tile
from cellseg.predict.views import SYMMETRIES, check_looks, plan_views
from cellseg.view import shortest_edge

TILE = Tile((10, 20, 70, 60), (True,) * 4)  # 40 high, 60 wide


def cfg_of(**keys):
    cfg = config.default_config("torchvision")
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def test_the_eight_symmetries_are_all_there_are():
    """Of a square without any symmetry of its own, no two look alike, and turns are among them."""
    image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
    tile = Tile((0, 0, 3, 3), (False,) * 4)
    views = plan_views(tile, (3, 3), cfg_of(INPUT__ZOOM=1.0, TEST__SYMMETRIES=8))
    seen = {view.apply_image(image).tobytes() for view in views}
    expected = [np.rot90(flipped, turns) for flipped in (image, image[::-1]) for turns in range(4)]
    assert seen == {np.ascontiguousarray(each).tobytes() for each in expected}
    assert len(views) == len(seen) == 8


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_scales_times_symmetries(n):
    cfg = cfg_of(INPUT__ZOOM=2.0, TEST__SCALES=(0.5, 1.0, 1.25), TEST__SYMMETRIES=n)
    views = plan_views(TILE, (500, 600), cfg)
    assert [view.size for view in views[::n]] == [(40, 60), (80, 120), (100, 150)]
    for start in range(0, 3 * n, n):
        group = views[start : start + n]
        assert {view.size for view in group} == {group[0].size}
        assert tuple((v.flip_x, v.flip_y, v.transpose) for v in group) == SYMMETRIES[:n]
    assert {view.window for view in views} == {(0, 0, 60, 40)}  # in the tile's own pixels


@pytest.mark.parametrize("size", [(33, 35), (400, 500), (2500, 1987), (10, 2000)])
def test_without_a_zoom_the_whole_image_decides(size):
    """As one tile it has Detectron2's size; a part of it the same zoom."""
    cfg = cfg_of(INPUT__MIN_SIZE_TEST=1000, INPUT__MAX_SIZE_TEST=1333)
    whole = Tile((0, 0, size[1], size[0]), (False,) * 4)
    (view,) = plan_views(whole, size, cfg)
    assert view.size == shortest_edge(size, 1000, 1333)
    half = Tile((0, 0, size[1] // 2, size[0]), (False, False, True, False))
    (view_of_half,) = plan_views(half, size, cfg)
    assert view_of_half.size[0] == view.size[0]
    zoom = view.size[1] / size[1]
    assert abs(view_of_half.size[1] - size[1] // 2 * zoom) <= 0.5


def test_no_view_is_empty():
    tile = Tile((0, 0, 1, 1), (False,) * 4)
    (view,) = plan_views(tile, (1, 1), cfg_of(INPUT__ZOOM=0.2, TEST__SCALES=(0.1,)))
    assert view.size == (1, 1)


@pytest.mark.parametrize("n", [0, 3, 16, -1])
def test_symmetries_that_there_are_not(n):
    with pytest.raises(InputError, match=f"TEST.SYMMETRIES {n}: 1 .none., 2 "):
        check_looks(cfg_of(TEST__SYMMETRIES=n))


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (11,), (float("nan"),), ("1",)])
def test_scales_that_make_no_sense(scales):
    with pytest.raises(InputError, match=r"numbers from 0\.1 to 10, times the run's own zoom"):
        check_looks(cfg_of(TEST__SCALES=scales))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("TEST__BATCH", 0, r"--batch \(TEST.BATCH\) 0: 1 or more"),
        ("TEST__TILE", -1, "TEST.TILE -1: 1 or more"),
        ("TEST__OVERLAP", -5, "TEST.OVERLAP -5: 1 or more"),
        ("INPUT__ZOOM", -1.0, "INPUT.ZOOM -1.0: a number from 0 to 100 is expected"),
        ("INPUT__ZOOM", float("nan"), "INPUT.ZOOM nan"),
        ("INPUT__ZOOM", 1e9, "INPUT.ZOOM 1000000000.0"),
        ("INPUT__MIN_SIZE_TEST", -3, "INPUT.MIN_SIZE_TEST -3: a number from 0 to 100000"),
        ("INPUT__MAX_SIZE_TEST", 0, "INPUT.MAX_SIZE_TEST 0: a number from 1 to 100000"),
        ("MODEL__ROI_HEADS__SCORE_THRESH_TEST", float("nan"), "SCORE_THRESH_TEST nan: a number"),
        ("MODEL__ROI_HEADS__NMS_THRESH_TEST", -0.5, "NMS_THRESH_TEST -0.5: a number from 0 to 1"),
        ("TEST__DETECTIONS_PER_IMAGE", -1, "TEST.DETECTIONS_PER_IMAGE -1: 1 or more is"),
        ("TEST__MASK_IOU", 0.0, "TEST.MASK_IOU 0.0: a number above 0"),
        ("TEST__MASK_IOU", 1.5, "TEST.MASK_IOU 1.5: a number above 0"),
    ],
)
def test_numbers_out_of_range(key, value, expected):
    with pytest.raises(InputError, match=expected):
        check_looks(cfg_of(**{key: value}))


def test_sensible_keys_pass():
    check_looks(cfg_of(TEST__SCALES=(0.1, 1, 10), TEST__SYMMETRIES=8))

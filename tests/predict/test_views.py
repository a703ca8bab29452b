"""The views of a tile: each scale in each orientation."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg import config
from cellseg.predict.tiles import Tile
from cellseg.predict.views import ORIENTATIONS, plan_views
from cellseg.view import resize_shortest_edge

TILE = Tile((10, 20, 70, 60), (True,) * 4)  # 40 high, 60 wide


def cfg_of(**keys):
    cfg = config.default_config("torchvision")
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def test_the_eight_orientations_are_all_there_are():
    """All eight images of an asymmetric square, rotations included."""
    image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
    tile = Tile((0, 0, 3, 3), (False,) * 4)
    views = plan_views(tile, (3, 3), cfg_of(INPUT__ZOOM=1.0, TEST__SYMMETRIES=8))
    seen = {view.apply_image(image).tobytes() for view in views}
    expected = [np.rot90(flipped, turns) for flipped in (image, image[::-1]) for turns in range(4)]
    assert seen == {np.ascontiguousarray(each).tobytes() for each in expected}
    assert len(views) == len(seen) == 8


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_scales_times_orientations(n):
    cfg = cfg_of(INPUT__ZOOM=2.0, TEST__SCALES=(0.5, 1.0, 1.25), TEST__SYMMETRIES=n)
    views = plan_views(TILE, (500, 600), cfg)
    assert [view.size for view in views[::n]] == [(40, 60), (80, 120), (100, 150)]
    for start in range(0, 3 * n, n):
        group = views[start : start + n]
        assert {view.size for view in group} == {group[0].size}
        assert tuple((v.flip_x, v.flip_y, v.transpose) for v in group) == ORIENTATIONS[:n]
    assert {view.window for view in views} == {(0, 0, 60, 40)}  # in the tile's own pixels


@pytest.mark.parametrize("size", [(33, 35), (400, 500), (2500, 1987), (10, 2000)])
def test_without_a_fixed_scale_the_whole_image_decides(size):
    """One tile has Detectron2's size, and a part of the image the same scale."""
    cfg = cfg_of(INPUT__MIN_SIZE_TEST=1000, INPUT__MAX_SIZE_TEST=1333)
    whole = Tile((0, 0, size[1], size[0]), (False,) * 4)
    (view,) = plan_views(whole, size, cfg)
    assert view.size == resize_shortest_edge(size, 1000, 1333)
    half = Tile((0, 0, size[1] // 2, size[0]), (False, False, True, False))
    (view_of_half,) = plan_views(half, size, cfg)
    assert view_of_half.size[0] == view.size[0]
    scale = view.size[1] / size[1]
    assert abs(view_of_half.size[1] - size[1] // 2 * scale) <= 0.5


def test_no_view_is_empty():
    tile = Tile((0, 0, 1, 1), (False,) * 4)
    (view,) = plan_views(tile, (1, 1), cfg_of(INPUT__ZOOM=0.2, TEST__SCALES=(0.1,)))
    assert view.size == (1, 1)

"""Tiles: they cover the image, overlap enough and know what they cut and what comes later."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellseg.errors import InputError
from cellseg.predict.tiles import EDGE, choose_tile, plan_tiles

SIDES = st.integers(1, 120)
TILES = st.integers(2, 60).flatmap(lambda tile: st.tuples(st.just(tile), st.integers(1, tile - 1)))


def test_by_hand():
    plan = plan_tiles((10, 25), tile=10, overlap=3)
    # 25 px need 4 tiles of 10 that overlap by 3 or more: 15 px in three gaps of 5.
    assert [tile.window for tile in plan] == [
        (0, 0, 10, 10),
        (5, 0, 15, 10),
        (10, 0, 20, 10),
        (15, 0, 25, 10),
    ]
    assert [tile.inner for tile in plan] == [
        (False, False, True, False),
        (True, False, True, False),
        (True, False, True, False),
        (True, False, False, False),
    ]


def test_row_by_row():
    windows = [tile.window for tile in plan_tiles((7, 8), tile=5, overlap=1)]
    assert windows == [(0, 0, 5, 5), (3, 0, 8, 5), (0, 2, 5, 7), (3, 2, 8, 7)]


@pytest.mark.parametrize("size", [(1, 1), (33, 35), (100, 100), (7, 100)])
def test_an_image_no_larger_than_a_tile_is_one(size):
    (tile,) = plan_tiles(size, tile=100, overlap=99)
    assert tile.window == (0, 0, size[1], size[0])
    assert tile.size == size
    assert tile.inner == (False, False, False, False)
    assert not tile.cuts(np.array([[0, 0, size[1], size[0]]])).any()


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, TILES)
@example(120, 1, (2, 1))
def test_tiles_cover_the_image_evenly(height, width, numbers):
    tile, overlap = numbers
    plan = plan_tiles((height, width), tile, overlap)
    tiles = list(plan)
    assert len(tiles) == len(plan)
    assert {one.size for one in tiles} == {(min(tile, height), min(tile, width))}
    for low, length in ((0, width), (1, height)):
        spans = sorted({(one.window[low], one.window[low + 2]) for one in tiles})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        overlaps = [end - start for (_, end), (start, _) in itertools.pairwise(spans)]
        assert all(one >= overlap for one in overlaps)
        # Even, and not one tile too many.
        assert not overlaps or max(overlaps) - min(overlaps) <= 1
        n_fewer = len(spans) - 1
        assert len(spans) == 1 or n_fewer * tile - (n_fewer - 1) * overlap < length
        for one in tiles:
            assert one.inner[low] == (one.window[low] > 0)
            assert one.inner[low + 2] == (one.window[low + 2] < length)


def test_tens_of_thousands_of_pixels():
    plan = plan_tiles((20_000, 20_000), tile=512, overlap=85)
    assert len(plan) == 47**2
    assert plan[47 * 47 - 1].window == (19_488, 19_488, 20_000, 20_000)
    with pytest.raises(IndexError):
        plan[47 * 47]


@pytest.mark.parametrize(("tile", "overlap"), [(64, 64), (64, 65), (64, 0), (64, -1), (1, 0)])
def test_tiles_must_overlap_and_get_on(tile, overlap):
    with pytest.raises(InputError, match=rf"tiles of {tile} px that overlap by {overlap} px"):
        plan_tiles((100, 100), tile, overlap)


def test_cuts_near_inner_edges_alone():
    plan = plan_tiles((100, 100), tile=60, overlap=20)
    tile = plan[0]  # its right and bottom edge are inner
    near = 60 - EDGE
    boxes = [[0, 0, near, near], [0, 0, near + 1, 9], [0, 0, 9, near + 0.5], [0, 0, 60, 60]]
    assert tile.cuts(np.array(boxes)).tolist() == [False, True, True, True]
    tile = plan[3]  # its left and top edge are
    boxes = [[EDGE, EDGE, 60, 60], [EDGE - 1, 9, 20, 20], [9, EDGE - 0.5, 20, 20]]
    assert tile.cuts(np.array(boxes)).tolist() == [False, True, True]
    assert tile.cuts(np.zeros((0, 4))).shape == (0,)


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, TILES, st.data())
def test_shows_again_is_what_later_windows_meet(height, width, numbers, data):
    plan = plan_tiles((height, width), *numbers)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    low = rng.integers(0, (width, height), (8, 2))
    boxes = np.concatenate([low, rng.integers(low + 1, (width + 1, height + 1))], axis=1)
    index = data.draw(st.integers(0, len(plan) - 1))
    expected = np.zeros(8, bool)
    for later in range(index + 1, len(plan)):
        left, top, right, bottom = plan[later].window
        low, high = np.maximum(boxes[:, :2], (left, top)), np.minimum(boxes[:, 2:], (right, bottom))
        expected |= (low < high).all(1)
    assert plan.shows_again(index, boxes).tolist() == expected.tolist()


@settings(max_examples=200, deadline=None)
@given(st.floats(1, 300), st.integers(1, 3000), st.data())
def test_the_largest_cells_are_whole_in_some_tile(longest, side, data):
    tile, overlap = choose_tile(longest)
    assert (tile / (tile - overlap)) ** 2 < 2  # less than half of what the network sees
    plan = plan_tiles((side, side), tile, overlap)
    length = min(int(longest), side)
    x, y = (data.draw(st.integers(0, side - length)) for _ in range(2))
    box = np.array([[x, y, x + length, y + length]])
    whole = [
        not one.cuts(box - np.tile(one.window[:2], 2))[0]
        for one in plan
        if x >= one.window[0] and y >= one.window[1]
    ]
    assert any(whole)

"""Tiles cover the image, overlap enough, and report cut cells and later tiles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellseg.coarse import CoarseMask
from cellseg.errors import InputError
from cellseg.predict.tiles import EDGE_MARGIN, choose_tile_size, plan_tiles

SIDES = st.integers(1, 100)
TILES = st.integers(4, 60).flatmap(lambda tile: st.tuples(st.just(tile), st.integers(1, tile - 1)))


def random_boxes(height, width, rng):
    low = rng.integers(0, (width, height), (8, 2))
    return np.concatenate([low, rng.integers(low + 1, (width + 1, height + 1))], axis=1)


def test_by_hand():
    plan = plan_tiles((10, 31), tile=10, overlap=3)
    # 4 tiles of 10 px that overlap by 3 are 31 px.
    assert [tile.window for tile in plan] == [(x, 0, x + 10, 10) for x in (0, 7, 14, 21)]
    first, middle, last = (0, 0, 1, 0), (1, 0, 1, 0), (1, 0, 0, 0)
    assert [tile.inner_edges for tile in plan] == [first, middle, middle, last]


def test_tiles_are_no_larger_than_they_need_to_be():
    plan = plan_tiles((10, 25), tile=10, overlap=3)
    # 25 px need 4 tiles of 10, but 4 tiles of 9 that overlap by 3 or 4 are enough.
    assert [tile.window for tile in plan] == [(x, 0, x + 9, 10) for x in (0, 5, 10, 16)]
    # One pixel more than a tile: two that share the overlap and the pixel of rounding.
    spans = [(tile.window[1], tile.window[3]) for tile in plan_tiles((101, 9), 100, 20)]
    assert spans == [(0, 61), (40, 101)]
    # Square if there are several in both directions: 61 px for 101, and 70 px for 120.
    assert plan_tiles((101, 120), 100, 20).tile_size == (70, 70)


def test_row_by_row():
    windows = [tile.window for tile in plan_tiles((7, 8), tile=5, overlap=1)]
    assert windows == [(0, 0, 5, 5), (3, 0, 8, 5), (0, 2, 5, 7), (3, 2, 8, 7)]


@pytest.mark.parametrize("size", [(1, 1), (33, 35), (100, 100), (7, 100)])
def test_an_image_no_larger_than_a_tile_is_one(size):
    (tile,) = plan_tiles(size, tile=100, overlap=99)
    assert tile.window == (0, 0, size[1], size[0])
    assert tile.size == size
    assert tile.inner_edges == (False, False, False, False)
    assert not tile.may_cut(np.array([[0, 0, size[1], size[0]]])).any()


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, TILES)
@example(100, 1, (2, 1))
def test_tiles_cover_the_image_evenly(height, width, numbers):
    tile, overlap = numbers
    plan = plan_tiles((height, width), tile, overlap)
    tiles = list(plan)
    assert len(tiles) == len(plan)
    assert {one.size for one in tiles} == {plan.tile_size}
    assert max(plan.tile_size) <= tile
    larger = []  # than needed
    for low, length in ((0, width), (1, height)):
        spans = sorted({(one.window[low], one.window[low + 2]) for one in tiles})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        overlaps = [end - start for (_, end), (start, _) in itertools.pairwise(spans)]
        assert all(one >= overlap for one in overlaps)
        # Evenly spaced, and no tile too many.
        assert not overlaps or max(overlaps) - min(overlaps) <= 1
        n_fewer = len(spans) - 1
        assert len(spans) == 1 or n_fewer * tile - (n_fewer - 1) * overlap < length
        shorter = spans[0][1] - 1
        larger.append(len(spans) * shorter - n_fewer * overlap >= length)
        for one in tiles:
            assert one.inner_edges[low] == (one.window[low] > 0)
            assert one.inner_edges[low + 2] == (one.window[low + 2] < length)
    # Nor a pixel: shorter ones don't cover the image in one direction.
    assert larger.count(True) <= (plan.tile_size[0] == plan.tile_size[1])


def test_tens_of_thousands_of_pixels():
    plan = plan_tiles((20_000, 20_000), tile=512, overlap=85)
    assert len(plan) == 47**2
    # 47 tiles that overlap by 85 px 46 times: (20,000 + 3,910) / 47 = 508.7
    assert plan[47 * 47 - 1].window == (19_491, 19_491, 20_000, 20_000)
    with pytest.raises(IndexError):
        plan[47 * 47]


@pytest.mark.parametrize(("tile", "overlap"), [(64, 64), (64, 65), (64, 0), (64, -1), (1, 0)])
def test_impossible_overlaps(tile, overlap):
    with pytest.raises(InputError, match=rf"tiles of {tile} px .*overlap of {overlap} px"):
        plan_tiles((100, 100), tile, overlap)


def test_cuts_only_near_inner_edges():
    plan = plan_tiles((100, 100), tile=60, overlap=20)
    tile = plan[0]  # its right and bottom edge are inner
    near = 60 - EDGE_MARGIN
    boxes = [[0, 0, near, near], [0, 0, near + 1, 9], [0, 0, 9, near + 0.5], [0, 0, 60, 60]]
    assert tile.may_cut(np.array(boxes)).tolist() == [False, True, True, True]
    tile = plan[3]  # its left and top edge are
    assert tile.window == (40, 40, 100, 100)
    boxes = [
        [EDGE_MARGIN, EDGE_MARGIN, 60, 60],
        [EDGE_MARGIN - 1, 9, 20, 20],
        [9, EDGE_MARGIN - 0.5, 20, 20],
    ]
    assert tile.may_cut(np.array(boxes) + 40).tolist() == [False, True, True]
    assert tile.may_cut(np.zeros((0, 4))).shape == (0,)


def test_pieces_of_less_than_half_a_cell():
    first, *_, last = plan_tiles((100, 100), tile=60, overlap=20)
    # At the right edge: 20 px along it; at the bottom; not quite at the edge; at both.
    boxes: list[list[float]] = [[51, 9, 60, 29], [50, 9, 60, 29], [9, 51, 29, 60]]
    boxes += [[50, 9, 60 - EDGE_MARGIN + 0.5, 30.5], [51, 30, 60, 60]]
    boxes += [[60 - EDGE_MARGIN - 9, 9, 60 - EDGE_MARGIN, 40]]
    expected = [True, False, True, True, True, False]
    assert first.shows_less_than_half(np.array(boxes)).tolist() == expected
    # The left and the top edge are those of the image.
    assert not first.shows_less_than_half(np.array([[0, 9, 2, 30], [9, 0, 30, 2]])).any()
    boxes = [[40, 60, 49, 80], [40, 60, 50, 80], [60, 40, 80, 49], [91, 60, 100, 80]]
    expected = [True, False, True, False]
    assert last.shows_less_than_half(np.array(boxes)).tolist() == expected


def test_short_slivers_are_less_than_half_a_cell():
    tile = plan_tiles((100, 100), tile=60, overlap=20)[0]
    far = 60 - 2 * EDGE_MARGIN
    boxes = [[far, 9, 60, 11], [far - 1, 9, 60, 11], [far, 9, 60 - EDGE_MARGIN, 11]]
    assert tile.shows_less_than_half(np.array(boxes)).tolist() == [True, False, False]


@pytest.mark.parametrize("vertical", [False, True])
@given(radius=st.floats(9, 30), fraction=st.floats(0, 0.95))
def test_less_than_half_of_a_disc(vertical, radius, fraction):
    """A disc with this fraction of its diameter within the tile, whose edge is at 120."""
    tile = plan_tiles((220, 220), tile=120, overlap=20)[0]
    shown = 2 * radius * fraction
    half_chord = np.sqrt(radius**2 - max(radius - shown, 0) ** 2)
    box = [120 - shown, 60 - half_chord, 120, 60 + half_chord]
    if vertical:
        box = [box[1], box[0], box[3], box[2]]
    expected = shown <= 2 * EDGE_MARGIN or fraction < 0.5
    if abs(fraction - 0.5) > 1e-6:
        assert tile.shows_less_than_half(np.array([box])).tolist() == [expected]


def part_of(size, seed):
    """Return a coarse mask with a few random pixels, or none."""
    rng = np.random.default_rng(seed)
    step = rng.uniform(1, 9)
    pixels = rng.random([int(np.ceil(side / step)) for side in size]) < rng.choice([0, 0.02, 0.2])
    return CoarseMask(size, (step, step), pixels)


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, TILES, st.integers(0, 99))
def test_a_part_of_the_tiles_has_what_is_near_the_part(height, width, numbers, seed):
    plan = plan_tiles((height, width), *numbers)
    mask = part_of((height, width), seed)
    part = plan.restricted_to(mask, numbers[1])
    assert part.parts is not None
    assert len(part) == len(list(part)) == len(part.parts)
    assert (len(part) == 0) == (not mask.pixels.any())
    assert part.area <= plan.area
    for (index, window), other in itertools.combinations(part.parts, 2):
        if index == other[0]:  # pieces of a tile don't overlap
            low, high = np.maximum(window[:2], other[1][:2]), np.minimum(window[2:], other[1][2:])
            assert (low >= high).any()
    for index, window in part.parts:
        whole = plan[index].window
        assert whole[0] <= window[0] < window[2] <= whole[2]
        assert whole[1] <= window[1] < window[3] <= whole[3]
    boxes = random_boxes(height, width, np.random.default_rng(seed))
    small = (boxes[:, 2:] - boxes[:, :2] <= numbers[1] - EDGE_MARGIN).all(1)
    touches = np.array([bool(mask.boxes(tuple(box), 0)) for box in boxes.tolist()])
    kept = part.some_tile_contains(boxes)
    assert (kept <= plan.some_tile_contains(boxes)).all()
    assert (
        kept[small & touches].tolist() == plan.some_tile_contains(boxes)[small & touches].tolist()
    )


def test_trimmed_tiles_by_hand():
    """Of two tiles of 64 px, the first has a spot of 8 px; the other lies 24 px away from it."""
    plan = plan_tiles((64, 112), tile=64, overlap=16)
    pixels = np.zeros((8, 14), bool)
    pixels[2, 2] = True  # 16 to 24
    (tile,) = plan.restricted_to(CoarseMask((64, 112), (8, 8), pixels), margin=16)
    assert tile.window == (0, 0, 40, 40)
    assert tile.inner_edges == (False, False, True, True)
    pixels[6, 0] = True  # 48 to 56, whose margin ends at 32
    tiles = [tile.window for tile in plan.restricted_to(CoarseMask((64, 112), (8, 8), pixels), 4)]
    assert tiles == [(0, 40, 16, 64), (8, 8, 32, 32)]


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, TILES, st.data())
def test_is_in_later_tiles_equals_a_loop(height, width, numbers, data):
    plan = plan_tiles((height, width), *numbers)
    seed = data.draw(st.integers(0, 99))
    boxes = random_boxes(height, width, np.random.default_rng(seed))
    if part := plan.restricted_to(part_of((height, width), seed), numbers[1]):
        assert not part.is_in_later_tiles(len(part) - 1, boxes).any()
        index = data.draw(st.integers(0, len(part) - 1))
        assert (part.is_in_later_tiles(index, boxes) >= is_in(part, index + 1, boxes)).all()
    index = data.draw(st.integers(0, len(plan) - 1))
    assert plan.is_in_later_tiles(index, boxes).tolist() == is_in(plan, index + 1, boxes).tolist()


def is_in(plan, first, boxes):
    """Return which boxes share a pixel with a tile from index `first` on."""
    inside = np.zeros(len(boxes), bool)
    for later in range(first, len(plan)):
        left, top, right, bottom = plan[later].window
        low, high = np.maximum(boxes[:, :2], (left, top)), np.minimum(boxes[:, 2:], (right, bottom))
        inside |= (low < high).all(1)
    return inside


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, TILES, st.integers(0, 99))
def test_some_tile_contains_equals_a_loop(height, width, numbers, seed):
    plan = plan_tiles((height, width), *numbers)
    if seed % 2:
        plan = plan.restricted_to(part_of((height, width), seed), numbers[1])
    boxes = random_boxes(height, width, np.random.default_rng(seed))
    expected = np.zeros(len(boxes), bool)
    for tile in plan:
        left, top, right, bottom = tile.window
        within = (boxes >= (left, top, 0, 0)) & (boxes <= (width, height, right, bottom))
        expected |= within.all(1) & ~tile.may_cut(boxes)
    assert plan.some_tile_contains(boxes).tolist() == expected.tolist()


@settings(max_examples=100, deadline=None)
@given(st.floats(1, 300), st.floats(0.5, 4), st.integers(1, 3000), st.data())
def test_the_largest_cells_are_whole_in_some_tile(longest, scale, side, data):
    tile, overlap = choose_tile_size(longest, scale)
    assert (tile / (tile - overlap)) ** 2 < 2  # less than half of the network's pixels repeat
    plan = plan_tiles((side, side), tile, overlap)
    length = min(int(longest), side)
    x, y = (data.draw(st.integers(0, side - length)) for _ in range(2))
    box = np.array([[x, y, x + length, y + length]])
    assert plan.some_tile_contains(box).all()


def test_a_tile_has_the_same_network_pixels_at_any_scale():
    assert choose_tile_size(20) == (1536, 31)
    assert choose_tile_size(20, scale=2.0) == (768, 31)
    assert choose_tile_size(300, scale=2.0) == (1524, 381)  # but at least four overlaps

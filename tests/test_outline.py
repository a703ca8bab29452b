"""Outlines: by hand, against shapely, and as properties of any mask."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cellseg.outline import trace
from cellseg.rle import MaskRuns, encode, label_map_to_runs


def outline(rows):
    """The polygons of one mask, given as rows of 0 and 1, as plain lists."""
    _, runs = label_map_to_runs(np.array(rows, np.uint8))
    return [[ring.tolist() for ring in polygon] for polygon in trace(runs)[0]]


def shape_of(polygons):
    return shapely.MultiPolygon([(polygon[0], polygon[1:]) for polygon in polygons])


def squares(mask):
    """The mask as the union of its pixels' squares, made by shapely alone."""
    rows, columns = np.nonzero(mask)
    return shapely.union_all(shapely.box(columns, rows, columns + 1, rows + 1))


def test_one_pixel_is_a_unit_square():
    assert outline([[0, 0, 0], [0, 0, 1]]) == [[[[2, 1], [3, 1], [3, 2], [2, 2], [2, 1]]]]


def test_straight_edges_have_no_points_between():
    assert outline([[1, 1, 1], [1, 1, 1]]) == [[[[0, 0], [3, 0], [3, 2], [0, 2], [0, 0]]]]


def test_steps_are_followed():
    assert outline([[1, 0], [1, 1]]) == [[[[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [0, 2], [0, 0]]]]


def test_a_hole_is_a_ring_the_other_way_round():
    assert outline([[1, 1, 1], [1, 0, 1], [1, 1, 1]]) == [
        [
            [[0, 0], [3, 0], [3, 3], [0, 3], [0, 0]],
            [[2, 1], [1, 1], [1, 2], [2, 2], [2, 1]],
        ]
    ]


def test_pixels_that_meet_in_a_corner_are_two_pieces():
    assert outline([[1, 0], [0, 1]]) == [
        [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]],
        [[[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]],
    ]
    assert outline([[0, 1], [1, 0]]) == [
        [[[1, 0], [2, 0], [2, 1], [1, 1], [1, 0]]],
        [[[0, 1], [1, 1], [1, 2], [0, 2], [0, 1]]],
    ]


def test_a_piece_that_meets_itself_in_a_corner_gets_a_hole():
    # The outline passes (2, 2) twice; one ring through it would be no valid polygon.
    polygons = outline([[1, 1, 1], [1, 0, 1], [1, 1, 0]])
    assert [len(polygon) for polygon in polygons] == [2]
    assert shape_of(polygons).is_valid
    assert shape_of(polygons).area == 7
    assert polygons[0][1] == [[2, 1], [1, 1], [1, 2], [2, 2], [2, 1]]


def test_an_island_in_a_hole_is_a_piece_of_its_own():
    mask = np.ones((5, 5), int)
    mask[1:4, 1:4] = 0
    mask[2, 2] = 1
    assert [len(polygon) for polygon in outline(mask)] == [2, 1]


def test_holes_go_to_their_own_piece():
    ring = np.ones((3, 3), int)
    ring[1, 1] = 0
    pair_by_image = np.hstack([ring, np.zeros((3, 1), int), ring])
    polygons = outline(pair_by_image)
    assert [len(polygon) for polygon in polygons] == [2, 2]
    for polygon in polygons:
        assert shapely.Polygon(polygon[0]).contains(shapely.Polygon(polygon[1]))


def test_a_hole_below_another_finds_the_outer_ring_through_it():
    mask = np.ones((7, 3), int)
    mask[[1, 3, 5], 1] = 0
    assert [len(polygon) for polygon in outline(mask)] == [4]


def test_a_mask_with_no_pixel_has_no_piece():
    runs = MaskRuns((4, 5), np.array([6, 7]), np.array([7, 9]), np.array([0, 0, 1, 1, 2, 2]))
    assert [len(polygons) for polygons in trace(runs)] == [
        0,
        1,
        0,
        2,
        0,
    ]  # 7 and 8: a column's foot, the next one's head
    empty = np.zeros(0, np.int64)
    assert trace(MaskRuns((4, 5), empty, empty, np.zeros(1, np.int64))) == []
    assert trace(MaskRuns((4, 5), empty, empty, np.zeros(4, np.int64))) == [[], [], []]


def test_a_run_over_many_columns_is_the_whole_image():
    runs = MaskRuns((3, 1000), np.array([0]), np.array([3000]), np.array([0, 1]))
    assert [ring.tolist() for ring in trace(runs)[0][0]] == [
        [[0, 0], [1000, 0], [1000, 3], [0, 3], [0, 0]]
    ]


def test_a_long_winding_outline_is_one_ring():
    # A comb whose teeth make one ring of thousands of corners.
    mask = np.ones((40, 2001), int)
    mask[1:, 1::2] = 0
    polygons = outline(mask)
    assert [len(polygon) for polygon in polygons] == [1]
    assert len(polygons[0][0]) == 4 * 1001 + 1
    assert shape_of(polygons).area == mask.sum()


def test_positions_of_a_huge_image_fit():
    # The last pixel of 300,000 x 300,000, in the last of 1,000 masks.
    side = 300_000
    empty_before = np.zeros(1000, np.int64)
    last = np.array([side * side - 1])
    runs = MaskRuns((side, side), last, last + 1, np.append(empty_before, 1))
    assert trace(runs)[-1][0][0].tolist() == [
        [side - 1, side - 1],
        [side, side - 1],
        [side, side],
        [side - 1, side],
        [side - 1, side - 1],
    ]


masks = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 1)
)
label_maps = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 4)
)


@given(masks)
def test_any_mask_is_its_pixels_squares(mask):
    _, runs = label_map_to_runs(mask)
    if not len(runs):
        return
    polygons = trace(runs)[0]
    shape = shape_of(polygons)
    assert shapely.is_valid_reason(shape) == "Valid Geometry"
    assert shape.area == mask.sum()
    assert shape.equals(squares(mask))


@given(masks)
def test_rings_turn_as_geojson_wants_and_pieces_are_connected(mask):
    _, runs = label_map_to_runs(mask)
    pieces = trace(runs)[0] if len(runs) else []
    for piece in pieces:
        assert shapely.is_ccw(shapely.LinearRing(piece[0]))
        assert not any(shapely.is_ccw(shapely.LinearRing(hole)) for hole in piece[1:])
    # shapely merges squares into pieces that share an edge, as wanted here.
    if pieces:
        assert len(pieces) == shapely.get_num_geometries(squares(mask))


@given(label_maps)
def test_many_masks_at_once_are_as_one_at_a_time(labels):
    values, runs = label_map_to_runs(labels)
    together = trace(runs)
    assert len(together) == len(values) == len(encode(runs))
    for value, polygons in zip(values, together, strict=True):
        alone = outline(labels == value)
        assert [[ring.tolist() for ring in polygon] for polygon in polygons] == alone


@pytest.mark.parametrize("turns", range(4))
def test_the_pinch_is_found_in_every_direction(turns):
    mask = np.rot90(np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1], [1, 1, 0, 0]]), turns)
    polygons = outline(mask)
    assert [len(polygon) for polygon in polygons] == [2]
    assert shape_of(polygons).is_valid
    assert shape_of(polygons).equals(squares(mask))

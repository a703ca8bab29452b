"""Outlines: by hand, against shapely, and properties of random masks."""

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
    """Return the polygons of one mask of 0 and 1 as lists."""
    _, runs = label_map_to_runs(np.array(rows, np.uint8))
    return [[ring.tolist() for ring in polygon] for polygon in trace(runs)[0]]


def shape_of(polygons):
    return shapely.MultiPolygon([(polygon[0], polygon[1:]) for polygon in polygons])


def squares(mask):
    """Return the union of a mask's pixels, computed by shapely."""
    rows, columns = np.nonzero(mask)
    return shapely.union_all(shapely.box(columns, rows, columns + 1, rows + 1))


def test_one_pixel_is_a_unit_square():
    assert outline([[0, 0, 0], [0, 0, 1]]) == [[[[2, 1], [3, 1], [3, 2], [2, 2], [2, 1]]]]


def test_straight_edges_have_no_inner_points():
    assert outline([[1, 1, 1], [1, 1, 1]]) == [[[[0, 0], [3, 0], [3, 2], [0, 2], [0, 0]]]]


def test_steps():
    assert outline([[1, 0], [1, 1]]) == [[[[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [0, 2], [0, 0]]]]


def test_hole_has_the_opposite_orientation():
    assert outline([[1, 1, 1], [1, 0, 1], [1, 1, 1]]) == [
        [
            [[0, 0], [3, 0], [3, 3], [0, 3], [0, 0]],
            [[2, 1], [1, 1], [1, 2], [2, 2], [2, 1]],
        ]
    ]


def test_pixels_that_share_a_corner_are_two_pieces():
    assert outline([[1, 0], [0, 1]]) == [
        [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]],
        [[[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]],
    ]
    assert outline([[0, 1], [1, 0]]) == [
        [[[1, 0], [2, 0], [2, 1], [1, 1], [1, 0]]],
        [[[0, 1], [1, 1], [1, 2], [0, 2], [0, 1]]],
    ]


def test_piece_that_touches_itself_in_a_corner_has_a_hole():
    # The outline passes (2, 2) twice; as one ring it would be invalid.
    polygons = outline([[1, 1, 1], [1, 0, 1], [1, 1, 0]])
    assert [len(polygon) for polygon in polygons] == [2]
    assert shape_of(polygons).is_valid
    assert shape_of(polygons).area == 7
    assert polygons[0][1] == [[2, 1], [1, 1], [1, 2], [2, 2], [2, 1]]


def test_island_in_a_hole_is_a_separate_piece():
    mask = np.ones((5, 5), int)
    mask[1:4, 1:4] = 0
    mask[2, 2] = 1
    assert [len(polygon) for polygon in outline(mask)] == [2, 1]


def test_holes_belong_to_their_piece():
    ring = np.ones((3, 3), int)
    ring[1, 1] = 0
    pair = np.hstack([ring, np.zeros((3, 1), int), ring])
    polygons = outline(pair)
    assert [len(polygon) for polygon in polygons] == [2, 2]
    for polygon in polygons:
        assert shapely.Polygon(polygon[0]).contains(shapely.Polygon(polygon[1]))


def test_hole_below_another():
    mask = np.ones((7, 3), int)
    mask[[1, 3, 5], 1] = 0
    assert [len(polygon) for polygon in outline(mask)] == [4]


def test_masks_without_pixels():
    runs = MaskRuns((4, 5), np.array([6, 7]), np.array([7, 9]), np.array([0, 0, 1, 1, 2, 2]))
    # Pixels 7 and 8 are the end of a column and the begin of the next.
    assert list(map(len, trace(runs))) == [0, 1, 0, 2, 0]
    empty = np.zeros(0, np.int64)
    assert trace(MaskRuns((4, 5), empty, empty, np.zeros(1, np.int64))) == []
    assert trace(MaskRuns((4, 5), empty, empty, np.zeros(4, np.int64))) == [[], [], []]


def test_run_over_all_columns():
    runs = MaskRuns((3, 1000), np.array([0]), np.array([3000]), np.array([0, 1]))
    assert [ring.tolist() for ring in trace(runs)[0][0]] == [
        [[0, 0], [1000, 0], [1000, 3], [0, 3], [0, 0]]
    ]


def test_long_outline_is_one_ring():
    # A comb, with thousands of corners.
    mask = np.ones((40, 2001), int)
    mask[1:, 1::2] = 0
    polygons = outline(mask)
    assert [len(polygon) for polygon in polygons] == [1]
    assert len(polygons[0][0]) == 4 * 1001 + 1
    assert shape_of(polygons).area == mask.sum()


def test_huge_image():
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
def test_outline_equals_the_union_of_pixels(mask):
    _, runs = label_map_to_runs(mask)
    if not len(runs):
        return
    polygons = trace(runs)[0]
    shape = shape_of(polygons)
    assert shapely.is_valid_reason(shape) == "Valid Geometry"
    assert shape.area == mask.sum()
    assert shape.equals(squares(mask))


@given(masks)
def test_orientation_of_rings_and_connected_pieces(mask):
    _, runs = label_map_to_runs(mask)
    pieces = trace(runs)[0] if len(runs) else []
    for piece in pieces:
        assert shapely.is_ccw(shapely.LinearRing(piece[0]))
        assert not any(shapely.is_ccw(shapely.LinearRing(hole)) for hole in piece[1:])
    # shapely merges squares that share an edge.
    if pieces:
        assert len(pieces) == shapely.get_num_geometries(squares(mask))


@given(label_maps)
def test_many_masks_equal_one_at_a_time(labels):
    values, runs = label_map_to_runs(labels)
    at_once = trace(runs)
    assert len(at_once) == len(values) == len(encode(runs))
    for value, polygons in zip(values, at_once, strict=True):
        expected = outline(labels == value)
        assert [[ring.tolist() for ring in polygon] for polygon in polygons] == expected


@pytest.mark.parametrize("rotations", range(4))
def test_touching_corner_in_every_direction(rotations):
    mask = np.rot90(np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1], [1, 1, 0, 0]]), rotations)
    polygons = outline(mask)
    assert [len(polygon) for polygon in polygons] == [2]
    assert shape_of(polygons).is_valid
    assert shape_of(polygons).equals(squares(mask))

"""Measures of cells against geometry worked out by hand and against other implementations."""

import numpy as np
import pytest
import scipy.ndimage
import shapely.geometry
import skimage.draw
import skimage.measure
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import cellseg.score.measures
from cellseg.outline import trace
from cellseg.rle import MaskRuns, concatenate, label_map_to_runs
from cellseg.score.measures import neighbour_measures, shape_measures, sum_within


def shapes_of(labels):
    _, mask_runs = label_map_to_runs(np.asarray(labels))
    return shape_measures(mask_runs)


def test_a_rectangle_by_hand():
    labels = np.zeros((20, 30), int)
    labels[4:8, 10:20] = 1  # 10 wide, 4 high
    found = {name: value[0] for name, value in shapes_of(labels).items()}
    assert (found["x"], found["y"], found["area"]) == (15, 6, 40)
    # Through the centres of the border's pixels: 2 (9 + 3).
    assert found["perimeter"] == 24
    assert found["solidity"] == 1
    # The ellipse of the same second moments: 4 standard deviations of the pixels' centres.
    assert found["major_axis"] == pytest.approx(4 * np.sqrt((10**2 - 1) / 12))
    assert found["minor_axis"] == pytest.approx(4 * np.sqrt((4**2 - 1) / 12))
    assert found["eccentricity"] == pytest.approx(np.sqrt(1 - 15 / 99))
    assert found["circularity"] == pytest.approx(4 * np.pi * 40 / 24**2)


@pytest.mark.parametrize("radius", [8, 15, 30])
def test_a_disk_by_hand(radius):
    labels = np.zeros((80, 80), int)
    labels[skimage.draw.disk((40, 35), radius)] = 1
    found = {name: value[0] for name, value in shapes_of(labels).items()}
    assert (found["x"], found["y"]) == pytest.approx((35.5, 40.5))
    # Of the pixels whose centres are inside; the perimeter runs through those of the border.
    rough = 0.4 / radius
    assert found["area"] == pytest.approx(np.pi * radius**2, rel=rough)
    assert found["perimeter"] == pytest.approx(2 * np.pi * (radius - 0.5), rel=0.06)
    assert found["major_axis"] == pytest.approx(2 * radius, rel=rough)
    assert found["minor_axis"] == pytest.approx(2 * radius, rel=rough)
    assert found["eccentricity"] < 0.1
    assert found["solidity"] > 0.93
    assert 0.9 < found["circularity"] <= 1


def test_an_l_is_not_convex():
    # Three of four squares: the hull cuts a corner off, half a square.
    found = shapes_of(np.kron([[1, 0], [1, 1]], np.ones((10, 10), int)))
    assert found["solidity"] == pytest.approx(300 / 350)


def test_one_pixel():
    found = {name: value[0] for name, value in shapes_of([[0, 0], [0, 1]]).items()}
    assert (found["x"], found["y"], found["area"], found["solidity"]) == (1.5, 1.5, 1, 1)
    assert (found["major_axis"], found["perimeter"], found["eccentricity"]) == (0, 0, 0)
    assert np.isnan(found["circularity"])


def test_masks_without_pixels_and_no_masks():
    empty = np.zeros(0, np.int64)
    for n in (0, 2):
        found = shape_measures(MaskRuns((3, 4), empty, empty, np.zeros(n + 1, np.int64)))
        assert all(values.shape == (n,) for values in found.values())
        assert (found["area"] == 0).all()
        assert np.isnan(found["x"]).all()
        assert np.isnan(found["solidity"]).all()


def test_overlapping_cells_are_measured_each_by_itself():
    _, one = label_map_to_runs(np.pad(np.ones((5, 5), int), 2))
    _, other = label_map_to_runs(np.pad(np.ones((7, 7), int), 1))
    both = shape_measures(concatenate((9, 9), [one, other, one]))
    for name, values in shape_measures(one).items():
        assert both[name][0] == both[name][2] == values[0]
    assert both["area"].tolist() == [25, 49, 25]


def test_a_huge_box_has_area_and_centroid_only(monkeypatch):
    monkeypatch.setattr(cellseg.score.measures, "_LARGEST", 8)
    found = shapes_of([[1, 1, 1, 0, 2], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]])
    assert found["area"].tolist() == [9, 1]
    assert np.isnan(found["perimeter"]).tolist() == [True, False]


@settings(deadline=None)
@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)),
    st.sampled_from([1, 20, 1 << 22]),
)
def test_shapes_are_those_of_skimage_and_shapely(labels, canvas):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cellseg.score.measures, "_CANVAS", canvas)
        found = shapes_of(labels)
    _, mask_runs = label_map_to_runs(labels)
    for n, cell in enumerate(skimage.measure.regionprops(labels)):
        y, x = cell.centroid
        assert (found["x"][n], found["y"][n]) == pytest.approx((x + 0.5, y + 0.5))
        assert found["area"][n] == cell.area
        assert found["perimeter"][n] == pytest.approx(cell.perimeter)
        assert found["major_axis"][n] == pytest.approx(cell.axis_major_length, abs=1e-6)
        assert found["minor_axis"][n] == pytest.approx(cell.axis_minor_length, abs=1e-6)
        assert found["eccentricity"][n] == pytest.approx(cell.eccentricity)
        pieces = [shapely.Polygon(rings[0], rings[1:]) for rings in trace(mask_runs)[n]]
        shape = shapely.geometry.MultiPolygon(pieces)
        assert found["solidity"][n] == pytest.approx(shape.area / shape.convex_hull.area)


@settings(deadline=None)
@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3))
)
def test_sums_are_those_of_scipy(labels):
    values = np.random.default_rng(0).normal(size=(*labels.shape, 2)).astype(np.float32)
    present, mask_runs = label_map_to_runs(labels)
    sums, squares = sum_within(mask_runs, values)
    for c in range(2):
        of_scipy = scipy.ndimage.sum(values[..., c].astype(float), labels, present)
        np.testing.assert_allclose(sums[:, c], of_scipy, atol=1e-9)
        of_scipy = scipy.ndimage.sum(values[..., c].astype(float) ** 2, labels, present)
        np.testing.assert_allclose(squares[:, c], of_scipy, atol=1e-9)


def test_neighbours_by_hand():
    # On a line at 0, 3, 4 and far away; classes 0, 1, 1, 0.
    points = np.array([[0.0, 0], [3, 0], [4, 0], [100, 0]])
    nearest, counts = neighbour_measures(points, np.array([0, 1, 1, 0]), 3, [3.0, 4.0])
    assert nearest.tolist() == [3, 1, 1, 96]
    assert counts[0].tolist() == [[0, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert counts[1].tolist() == [[0, 2, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("points", [[], [[1.0, 2.0]], [[1.0, 2.0], [np.nan, np.nan]]])
def test_no_neighbours(points):
    points = np.array(points, float).reshape(-1, 2)
    nearest, counts = neighbour_measures(points, np.zeros(len(points), int), 2, [50.0])
    assert np.isnan(nearest).all()
    assert not counts.any()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 2)), min_size=2))
def test_neighbours_are_those_of_all_pairs(cells):
    points = np.array([cell[:2] for cell in cells], float)
    classes = np.array([cell[2] for cell in cells])
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest, counts = neighbour_measures(points, classes, 3, [2.0, 5.5])
    np.testing.assert_allclose(nearest, distances.min(axis=1))
    for n, radius in enumerate((2.0, 5.5)):
        for k in range(3):
            expected = ((distances <= radius) & (classes == k)).sum(axis=1)
            assert counts[n, :, k].tolist() == expected.tolist()

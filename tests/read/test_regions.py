"""Regions of an image to predict: their pixels, points in them, and bad region files."""

from __future__ import annotations

import gzip
import itertools
import json
import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.coarse import CoarseMask
from cellseg.errors import InputError
from cellseg.read.regions import read_regions

SIZE = (40, 60)


def rectangle(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(*rings, shape="Polygon", kind="annotation"):
    geometry = {"type": shape, "coordinates": list(rings)}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": kind}}


@pytest.fixture
def write(tmp_path):
    def go(*features, name="regions.geojson"):
        path = tmp_path / name
        text = json.dumps({"type": "FeatureCollection", "features": list(features)}).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
        return path

    return go


def points(*pairs):
    return np.array(pairs, float)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 8, 64]))
def test_area_in_a_part_of_the_image(tmp_path_factory, seed, step):
    """The pixels of both, counted one by one; mask pixels may extend beyond the image."""
    rng = np.random.default_rng(seed)
    left, top = rng.integers(0, [50, 35])
    box = left, top, *(int(n) for n in rng.integers([left + 1, top + 1], [61, 41]))
    path = tmp_path_factory.mktemp("regions") / "r.geojson"
    path.write_text(json.dumps(feature(rectangle(*map(int, box)))))
    regions = read_regions(path, SIZE)
    pixels = rng.random([-(-side // step) for side in SIZE]) < 0.6
    part = CoarseMask(SIZE, (step, step), pixels)
    whole = np.kron(pixels, np.ones((step, step), bool))[: SIZE[0], : SIZE[1]]
    assert regions.area_in(part) == whole[box[1] : box[3], box[0] : box[2]].sum()
    everything = CoarseMask(SIZE, (step * 1.01, step * 1.01), np.ones_like(pixels))
    assert regions.area_in(everything) == pytest.approx(regions.area)


@pytest.mark.parametrize("name", ["r.geojson", "r.json", "r.geojson.gz"])
def test_by_hand(write, name):
    """Two overlapping squares, one with a hole; a point on their left edge is in them."""
    square = feature(rectangle(10, 10, 20, 20), rectangle(14, 14, 16, 16))
    regions = read_regions(write(square, feature(rectangle(18, 10, 30, 20)), name=name), SIZE)
    assert regions.count == 2
    assert regions.area == 20 * 10 - 4
    inside = points((10, 10), (15, 13.9), (29.9, 19.9), (19, 12))
    outside = points(
        (9.9, 10), (15, 15), (30, 15), (15, 20), (-5, 12), (15, 99), (99, 15), (np.nan, np.nan)
    )
    assert regions.contain(inside).all()
    assert not regions.contain(outside).any()
    assert regions.contain(np.zeros((0, 2))).shape == (0,)


def test_of_a_coarser_level(write):
    path = write(feature(rectangle(20, 8, 40, 24)))
    regions = read_regions(path, (20, 30), SIZE)
    assert regions.area == 10 * 8
    assert regions.contain(points((10, 4), (19.9, 11.9))).all()
    assert not regions.contain(points((9.9, 4), (20, 11))).any()


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(-9, 70), st.integers(-9, 50)), min_size=3, max_size=6),
    st.floats(1.5, 9),
)
def test_polygons_as_shapely(tmp_path_factory, corners, step):
    polygon = shapely.convex_hull(shapely.MultiPoint(corners))
    path = tmp_path_factory.mktemp("r") / "r.geojson"
    path.write_text(json.dumps(feature([list(p) for p in corners])))
    if polygon.geom_type != "Polygon":
        return
    path.write_text(json.dumps(feature([list(p) for p in polygon.exterior.coords])))
    y, x = np.indices(SIZE).reshape(2, -1) + 0.5
    expected = shapely.intersects_xy(polygon, x, y)
    try:
        regions = read_regions(path, SIZE)
    except InputError:
        assert not expected.any()
        return
    assert regions.area == expected.sum()
    assert (regions.contain(np.stack([x, y], 1)) == expected).all()
    # Each pixel in it is in the coarse mask, and each pixel of that has one.
    coarse = regions.coarse((step, step))
    cells = np.stack([y, x], 1)[expected].astype(int) / step
    assert {tuple(c) for c in cells.astype(int)} == {*zip(*coarse.pixels.nonzero(), strict=True)}


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_the_shape_of_a_mask_of_a_coarser_level(write, factor):
    """Its sides are those of the level, divided and rounded, not those of the image."""
    n_other = 0
    for coarse, remainder in itertools.product(range(300, 420), range(4)):
        height = 4 * coarse + remainder
        size = (height, 40)
        path = write(feature(rectangle(0, height - 1, 40, height)))
        step = (factor * (height / coarse), 4.0 * factor)
        shape = (math.ceil(coarse / factor), math.ceil(10 / factor))
        mask = read_regions(path, size).coarse(step, shape)
        assert mask.pixels.shape == shape
        assert mask.pixels[-1].all()
        assert not mask.pixels[:-2].any()
        n_other += math.ceil(height / step[0]) != shape[0]
    assert n_other  # rounding alone would give another shape


def test_detections_and_points_are_ignored(write, caplog):
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}
    cell = feature(rectangle(1, 1, 5, 5), kind="detection")
    regions = read_regions(write(feature(rectangle(10, 10, 20, 20)), point, cell), SIZE)
    assert regions.area == 100
    (warning,) = caplog.messages
    assert "regions.geojson" in warning
    assert "2 " in warning


def test_cut_off_at_the_edge(write, caplog):
    assert read_regions(write(feature(rectangle(50, 30, 99, 99))), SIZE).area == 10 * 10
    assert "1 region cut off" in caplog.text


POINT = {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[1, 2], [3, 4]]}}
INSIDE = feature(rectangle(10, 10, 20, 20))


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ([], "no outlines"),
        ([POINT, POINT], "only 2 "),
        ([feature(rectangle(1, 1, 5, 5), kind="cell")], "only 1 "),
        # Of another slide: to the right, below, at negative coordinates, touching the edge.
        ([INSIDE, feature(rectangle(60, 1, 70, 9))], "1 of 2 regions outside .* 40 x 60"),
        ([feature(rectangle(1, 40, 9, 50))], "1 of 1 region outside .* y 40 to 50"),
        ([feature(rectangle(-9, -9, 0, 5))], "outside"),
        ([feature(rectangle(5.1, 5.1, 5.2, 5.2))], "no pixel"),
        ([feature([[1, 1], [2, "x"], [3, 3]])], "point"),
        ([{"type": "Feature", "geometry": {"type": "Circle"}}], "Circle"),
        ([feature(rectangle(0, 0, 4e9, 9), rectangle(0, 0, 1, 1))] * 1, None),
    ],
)
def test_bad_regions(write, features, expected):
    path = write(*features)
    if expected is None:
        assert read_regions(path, SIZE).area
        return
    with pytest.raises(InputError, match=expected) as error:
        read_regions(path, SIZE)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.geojson", b"{"),
        ("r.geojson", b"\x00\xff"),
        ("r.geojson", b"[1, 2]"),
        ("r.geojson", b'{"type": "FeatureCollection", "features": 1}'),
        ("r.geojson", b'{"type": "Feature", "geometry": {"type": "Polygon"}}'),
        ("r.geojson", b'{"annotations": []}'),
        ("r.geojson.gz", b"{}"),
        ("r.geojson.gz", gzip.compress(b"{}", mtime=0)[:-3]),
        ("r.geojson", None),
    ],
)
def test_damaged_files(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_regions(path, SIZE)
    assert str(path) in str(error.value)
    assert "--regions" in str(error.value)
    assert "cells" not in str(error.value)
    assert "\n" not in str(error.value)

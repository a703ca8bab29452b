"""Masks of drawn outlines: QuPath's GeoJSON and ImageScope's XML."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.ndimage
import shapely
import shapely.geometry
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cellseg.images import ImageCells
from cellseg.read.fill import fill_polygons
from cellseg.read.geojson import read_geojson
from cellseg.read.imagescope import read_imagescope
from cellseg.read.layout import CLASS_NAMES
from cellseg.read.outlines import AROUND, REGIONS, Outline, fill_outlines, to_ring
from cellseg.rle import areas, boxes_xyxy, encode, label_map_to_runs
from cellseg.write.geojson import cell_features, write_geojson
from tests.read.refusal import refusal


def masks_of(mask_runs):
    masks = np.zeros((len(mask_runs), mask_runs.size[1], mask_runs.size[0]), int)
    for n, mask in enumerate(masks):
        for r in range(mask_runs.offsets[n], mask_runs.offsets[n + 1]):
            mask.reshape(-1)[mask_runs.starts[r] : mask_runs.ends[r]] = 1
    return masks.transpose(0, 2, 1).tolist()


def square(left, top, right, bottom):
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return [list(corner) for corner in corners]


def feature(coordinates, name="class1", shape="Polygon", **classification):
    return {
        "type": "Feature",
        "geometry": {"type": shape, "coordinates": coordinates},
        "properties": {"classification": {"name": name, **classification}},
    }


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def geojson_cells(path, value, size=(4, 6), class_names=CLASS_NAMES):
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return fill_outlines(path, read_geojson(path), size, class_names)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image.geojson"


# ------------------------------------------------------------------ filling


def test_integers_are_pixel_centres_and_the_outline_is_inside():
    ring = np.array([[1, 0], [3, 0], [3, 2], [1, 2]], np.float64)
    assert masks_of(fill_polygons([[[ring]]], (4, 5))) == [
        [[0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    ]


def test_holes_are_cut_out_and_pieces_joined():
    ring = np.array(square(-0.5, -0.5, 3.5, 2.5), np.float64)
    hole = np.array(square(0.5, 0.5, 2.5, 1.5), np.float64)
    other = np.array(square(4.5, 0.5, 5.5, 1.5), np.float64)
    assert masks_of(fill_polygons([[[ring, hole], [other]]], (3, 6))) == [
        [[1, 1, 1, 1, 0, 0], [1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 0, 0]]
    ]


def test_parts_outside_the_image_are_cut_off():
    ring = np.array(square(-7.5, -7.5, 0.5, 0.5), np.float64)
    assert masks_of(fill_polygons([[[ring]]], (3, 3))) == [[[1, 0, 0], [0, 0, 0], [0, 0, 0]]]


def test_no_cells():
    assert len(fill_polygons([], (3, 3))) == 0


# In steps of 1/16 px, which shapely handles exactly.
sixteenths = st.integers(-48, 192).map(lambda n: n / 16)
points = st.tuples(sixteenths, sixteenths)


@settings(deadline=None)
@given(st.lists(points, min_size=3, max_size=8))
def test_masks_are_those_of_shapely(corners):
    shape = shapely.Polygon(corners)
    if not shape.is_valid:
        return
    rows, columns = np.mgrid[:9, :10]
    centres = shapely.points(columns, rows)
    # For centres on the outline, up to rounding, either is right.
    clear = shapely.distance(shape.exterior, centres) > 1e-6
    (mask,) = masks_of(fill_polygons([[[np.array(corners)]]], (9, 10)))
    expected = shapely.contains(shape, centres)
    np.testing.assert_array_equal(np.array(mask, bool)[clear], expected[clear])


@settings(deadline=None)
@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 2)),
    st.sampled_from([cv2.CHAIN_APPROX_NONE, cv2.CHAIN_APPROX_SIMPLE]),
)
def test_contours_of_opencv_give_the_mask_back(values, chain):
    """Its contours run through the cell's own pixels, also those of holes, and back on lines."""
    mask = (values > 0).astype(np.uint8)
    contours, parents = cv2.findContours(mask, cv2.RETR_CCOMP, chain)
    rings = [contour[:, 0].astype(np.float64) for contour in contours]
    holes_of: dict[int, list] = {n: [] for n in range(-1, len(rings))}
    for ring, (*_, parent) in zip(rings, parents[0] if len(rings) else [], strict=True):
        holes_of[parent].append(ring)
    polygons = [[ring, *holes_of[n]] for n, ring in enumerate(rings) if parents[0][n][3] < 0]
    filled = masks_of(fill_polygons([polygons] if polygons else [], mask.shape))
    assert filled == ([mask.tolist()] if polygons else [])


def test_the_outline_of_a_hole_belongs_to_the_cell():
    ring, hole = (np.array(square(a, a, b, b), np.float64) for a, b in ((0, 6), (2, 4)))
    (mask,) = masks_of(fill_polygons([[[ring, hole]]], (7, 7)))
    expected = np.ones((7, 7), int)
    expected[3, 3] = 0
    assert mask == expected.tolist()


# ------------------------------------------------------------------ GeoJSON


@settings(deadline=None)
@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 4))
)
def test_exported_masks_are_read_back_exactly(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("round") / "image.geojson"
    values, mask_runs = label_map_to_runs(labels)
    masks = encode(mask_runs)
    classes = values.astype(np.int64) - 1
    image = ImageCells(
        id=1, file_name="a", path=path, size=labels.shape, name="a", masks=masks, classes=classes,
        boxes=boxes_xyxy(mask_runs),
    )  # fmt: skip
    write_geojson(path, cell_features(image, CLASS_NAMES))
    cells, warnings = fill_outlines(path, read_geojson(path), labels.shape, CLASS_NAMES)
    assert sorted(cells) == values.tolist()
    assert [rle for number in sorted(cells) for rle in encode(cells[number])] == masks
    # Told are cells of several pieces of more than 10 pixels, holes included.
    pieces = [connected_pieces(labels == value) for value in values]
    several = [sum(piece.sum() > 10 for piece in of_cell) > 1 for of_cell in pieces]
    assert sum((+warnings).values()) == sum(several)


def connected_pieces(mask):
    """Return the pieces of a mask, joined along edges, without holes."""
    labelled, n = scipy.ndimage.label(mask)
    corners = np.ones((3, 3))
    return [scipy.ndimage.binary_fill_holes(labelled == k + 1, corners) for k in range(n)]


def test_a_polygon_covers_the_pixels_with_centres_inside(path):
    cells, _ = geojson_cells(path, collection(feature([square(0.6, 0.4, 3.6, 1.4)])))
    assert masks_of(cells[1]) == [[[0, 1, 1, 1, 0, 0]] + [[0] * 6] * 3]


@pytest.mark.parametrize("form", ["collection", "list", "feature"])
def test_forms_of_the_file(path, form):
    one = feature([square(0, 0, 2, 2)])
    value = {"collection": collection(one), "list": [one], "feature": one}[form]
    assert len(geojson_cells(path, value)[0][1]) == 1


@pytest.mark.parametrize("value", [collection(), []])
def test_a_file_without_cells(path, value):
    assert geojson_cells(path, value)[0] == {}


def test_pieces_holes_and_a_third_coordinate(path):
    ring = [[*point, 0.0] for point in square(0, 0, 3, 3)]
    parts = [[ring, square(1, 1, 2, 2)], [square(5, 3, 6, 4)]]
    cells, _ = geojson_cells(path, collection(feature(parts, shape="MultiPolygon")))
    assert masks_of(cells[1]) == [
        [[1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    ]


def test_classes_and_their_order(path):
    features = [
        feature([square(0, 0, 1, 1)], "Macrophage"),
        feature([square(1, 0, 2, 1)], "EPITHELIAL "),
        feature([square(2, 0, 3, 1)], "class1"),
    ]
    cells, _ = geojson_cells(path, collection(*features))
    assert {number: len(mask_runs) for number, mask_runs in cells.items()} == {1: 2, 4: 1}
    assert [mask[0].index(1) for mask in masks_of(cells[1])] == [1, 2]


def test_names_of_derived_classes(path):
    one = feature([square(0, 0, 1, 1)], None, names=["Immune", "Positive"])
    cells, _ = geojson_cells(path, one, class_names=["other", "immune: positive"])
    assert list(cells) == [2]


def test_a_single_class_needs_no_name(path):
    one = feature([square(0, 0, 1, 1)])
    one["properties"] = {}
    other = {**one, "properties": None}
    assert list(geojson_cells(path, [one, other], class_names=["nucleus"])[0]) == [1]
    assert "feature 1 has no class" in refusal(geojson_cells, path, [one])


def test_ignored_outlines_are_counted(path):
    features = [
        feature([square(0, 0, 1, 1)], "Ignore*"),
        feature([square(90, 0, 91, 1)], "ambiguous"),
        feature([square(0.6, 0.6, 0.9, 0.9)]),
        feature([square(2, 2, 3, 3)]),
    ]
    cells, warnings = geojson_cells(path, features)
    assert [len(mask_runs) for mask_runs in cells.values()] == [1]
    assert +warnings == {
        "cells of ambiguous or ignored classes": 2,
        "outlines that contain no pixel centre, ignored": 1,
    }
    # Unless it is the name of a class.
    assert list(geojson_cells(path, features[:1], class_names=["ignore*"])[0]) == [1]


def test_an_unknown_class_is_named(path):
    text = refusal(geojson_cells, path, feature([square(0, 0, 1, 1)], "Tumour"))
    assert text.startswith(f"{path}: feature 1 has class 'Tumour', expected one of class1, class2")
    assert "--class_names" in text


@pytest.mark.parametrize(
    "box", [(6, 0, 7, 1), (0, 4, 1, 5), (-2, 0, 0, 1), (0, -2, 1, 0), (900, 900, 999, 999)]
)
def test_outlines_outside_the_image(path, box):
    text = refusal(geojson_cells, path, feature([square(*box)]))
    assert "feature 1 is outside the image of 4 x 6 pixels (height x width)" in text


@pytest.mark.parametrize("box", [(5, 0, 7, 1), (0, 3, 1, 5), (-2, 0, 1, 1), (0, -2, 1, 1)])
def test_outlines_across_the_edge(path, box):
    assert len(geojson_cells(path, feature([square(*box)]))[0][1].starts) == 1


RING = square(0, 0, 1, 1)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "{",
        "3",
        "null",
        '"text"',
        "{}",
        {"type": "FeatureCollection"},
        {"type": "FeatureCollection", "features": {}},
        [3],
        [{}],
        [[]],
        [{"type": "Feature"}],
        [{"type": "Feature", "geometry": None}],
        [{"type": "Feature", "geometry": [], "properties": {}}],
        [feature([0, 0], shape="Point")],
        [feature(RING, shape="LineString")],
        [feature([], shape="GeometryCollection")],
        [feature(None, shape=["Polygon"])],
        [feature(None)],
        [feature({})],
        [feature([])],
        [feature([[]])],
        [feature([RING[:2]])],
        [feature(RING)],
        [feature([[RING]])],
        [feature([RING], shape="MultiPolygon")],
        [feature([[]], shape="MultiPolygon")],
        [feature([[[0, 0], [1, 0], [1, "1"]]])],
        [feature([[[0, 0], [1, 0], [1, None]]])],
        [feature([[[0, 0], [1, 0], [1, True]]])],
        [feature([[[0, 0], [1, 0], [1]]])],
        [feature([[[0, 0], [1, 0], 1]])],
        [feature([[[0, 0], [1, 0], {"x": 1, "y": 1}]])],
        [feature([[[0, 0], [1, 0], [1, float("nan")]]])],
        [feature([[[0, 0], [1, 0], [1, float("inf")]]])],
        [feature([[[0, 0], [1, 0], [1, 1e300]]])],
        [feature([[[0, 0], [1, 0], [1, 10**400]]])],
        [feature([RING], 3)],
        [feature([RING], None)],
        [feature([RING], None, names=[3])],
        [{**feature([RING]), "properties": {"classification": 3}}],
        [{**feature([RING]), "properties": {"classification": ["class1"]}}],
    ],
)
def test_damaged_geojson(path, value):
    text = refusal(geojson_cells, path, value)
    assert text.startswith(f"{path}: ")
    assert "; " in text


@pytest.mark.parametrize(
    "properties",
    [
        {"classification": "class2"},
        {"Class": "class2", "label": 17},
        {"class_name": "class2"},
        {"cell_type": {"name": "class2"}},
        {"type": "class2", "name": "Annotation 5"},
        {"classification": None, "className": "class2"},
    ],
)
def test_classes_of_other_programs(path, properties):
    one = {**feature([RING]), "properties": properties}
    cells, _ = geojson_cells(path, collection(one))
    assert list(cells) == [2]


def test_ids_and_types_are_kept(path):
    ids = ["90332142-bc29-489c-9dd6-2abc981526f2", 7, None, "PathDetectionObject", ["?"]]
    path.write_text(json.dumps(collection(*({**feature([RING]), "id": id_} for id_ in ids))))
    outlines = read_geojson(path)
    assert [outline.id for outline in outlines] == [ids[0], "7", None, None, None]
    assert [outline.kind for outline in outlines] == ["", "", "", "detection", ""]


def test_all_cells_of_a_class_in_one_feature_as_cellvit_writes_them(path):
    squares = [[square(x, y, x + 5, y + 5)] for x, y in ((2, 2), (60, 10), (30, 80))]
    near = [[square(40, 40, 44, 44)], [square(44, 44, 47, 47)]]  # one cell in two pieces
    one, two = feature(squares, shape="MultiPolygon"), feature(near, "class2", "MultiPolygon")
    cells, warnings = large_cells(path, one, two)
    assert cells == {1: 3, 2: 1}
    assert list(warnings.values()) == [1]
    far = feature(squares[:2], "class2", "MultiPolygon")
    assert large_cells(path, one, far)[0] == {1: 3, 2: 2}


@pytest.mark.parametrize(("n", "n_cells"), [(2, 1), (4, 1), (5, 5), (9, 9)])
def test_many_cells_in_one_feature_that_are_dense(path, n, n_cells):
    """No cell has so many large pieces; fewer may be one, which is said, too."""
    dense = [[square(x, y, x + 5, y + 5)] for x in (10, 16, 22) for y in (10, 16, 22)][:n]
    specks = [[square(40 + 3 * x, 10, 41 + 3 * x, 11)] for x in range(9)]
    one, two = feature(dense, shape="MultiPolygon"), feature(specks, "class2", "MultiPolygon")
    drawn = feature([square(60, 60, 65, 65)])
    cells, warnings = large_cells(path, one, two, drawn)
    assert cells == {1: n_cells + 1, 2: 1}
    assert list(warnings.values()) == [1]
    (kind,) = warnings
    assert ("several cells" in kind) == (n_cells > 1)


def test_cells_with_a_nucleus_are_counted(path):
    cell = feature([square(10, 10, 20, 20)])
    nucleus = {"nucleusGeometry": {"type": "Polygon", "coordinates": [square(12, 12, 16, 16)]}}
    cells, warnings = large_cells(path, cell | nucleus, cell)
    assert cells == {1: 2}
    assert list(warnings.values()) == [1]


def test_geojson_of_hoverfast():
    shared = Path(__file__).resolve().parents[3] / "shared/data/slides"
    path = Path(os.environ.get("CELLSEG_SLIDES", shared), "tcga_tile.geojson")
    if not path.is_file():
        pytest.skip(f"{path} not found; set CELLSEG_SLIDES")
    outlines = read_geojson(path)
    assert [outline.class_name for outline in outlines] == [None] * 4
    assert outlines[0].id == "90332142-bc29-489c-9dd6-2abc981526f2"
    cells, warnings = fill_outlines(path, outlines, (512, 512), ["nucleus"])
    shapes = [shapely.Polygon(outline.polygons[0][0]) for outline in outlines]
    np.testing.assert_allclose(areas(cells[1]), [shape.area for shape in shapes], rtol=0.03)
    assert not +warnings


UNUSABLE = [
    3,
    {"type": "Feature", "geometry": None},
    feature([RING], shape="Circle"),
    feature([[[0, 0], [1, 0], [float("nan"), 1]]]),
    feature([RING], 3),
]


@pytest.mark.parametrize("bad", UNUSABLE)
def test_skip_bad_leaves_out_an_outline_not_its_image(path, bad):
    good = [feature([square(0, 0, 2, 2)]), feature([square(2, 0, 4, 2)])]
    path.write_text(json.dumps(collection(good[0], bad, good[1])))
    arguments = (path, read_geojson(path), (4, 6), CLASS_NAMES)
    assert f"{path}: feature 2" in refusal(fill_outlines, *arguments)
    cells, warnings = fill_outlines(*arguments, skip_bad=True)
    assert len(cells[1]) == 2
    assert +warnings == {"outlines that can't be read, ignored": 1}
    path.write_text(json.dumps(collection(bad, bad)))
    line = refusal(fill_outlines, path, read_geojson(path), (4, 6), CLASS_NAMES, skip_bad=True)
    assert "1 more of 2 outlines" in line


def test_a_missing_geojson_or_a_folder(tmp_path):
    assert "no such file" in refusal(read_geojson, tmp_path / "a.geojson")
    assert "can't be read" in refusal(read_geojson, tmp_path)


def test_geojson_cut_off_anywhere(path):
    whole = json.dumps(collection(feature([RING]), feature([RING])))
    for end in range(len(whole)):
        refusal(geojson_cells, path, whole[:end])


def large_cells(path, *features, class_names=CLASS_NAMES, **how):
    """Return the number of cells by class in an image of 100 x 100, and the warnings."""
    path.write_text(json.dumps(collection(*features)))
    cells, warnings = fill_outlines(path, read_geojson(path), (100, 100), class_names, **how)
    return {number: len(mask_runs) for number, mask_runs in cells.items()}, +warnings


def drawn(left, top, side, name=None, kind="detection"):
    one = feature([square(left, top, left + side, top + side)])
    one["properties"] = {"objectType": kind}
    if name:
        one["properties"]["classification"] = {"name": name}
    return one


GRID = [(10 + 20 * (n % 4), 10 + 20 * (n // 4)) for n in range(12)]


@pytest.mark.parametrize(
    ("region", "cell"),
    [
        ({"kind": "annotation"}, {"name": "class1"}),
        ({"kind": "annotation"}, {"name": "class1", "kind": "annotation"}),
        ({"kind": "annotation", "name": "class1"}, {"name": "class1"}),
        ({"kind": "annotation", "name": "Tissue"}, {"name": "class1"}),
    ],
)
def test_a_region_around_the_cells_is_no_cell(path, region, cell):
    cells = [drawn(*corner, 8, **cell) for corner in GRID]
    for features in ([drawn(5, 5, 90, **region), *cells], [*cells, drawn(0, 0, 100, **region)]):
        n_cells, warnings = large_cells(path, *features)
        assert n_cells == {1: 12}
        assert warnings == {REGIONS: 1}


def test_a_region_around_one_cell_or_cells_of_one_class(path):
    one = drawn(40, 40, 8, "class1", "annotation")
    assert large_cells(path, drawn(5, 5, 90, kind="annotation"), one)[0] == {1: 1}
    cells = [drawn(*corner, 8, kind="annotation") for corner in GRID]
    n_cells, warnings = large_cells(
        path, drawn(5, 5, 90, kind="annotation"), *cells, class_names=["cell"]
    )
    assert n_cells == {1: 12}
    assert warnings == {REGIONS: 1}


def test_large_cells_and_cells_in_cells_are_no_regions(path):
    around = [drawn(5, 5, 20, "class2"), drawn(10, 10, 5, "class1")]
    assert large_cells(path, *around)[0] == {1: 1, 2: 1}
    giant = drawn(5, 5, 90, "class2", "annotation")  # drawn as the others are
    cells = [drawn(*corner, 8, "class1", "annotation") for corner in GRID]
    n_cells, warnings = large_cells(path, giant, *cells)
    assert n_cells == {1: 12, 2: 1}
    assert warnings == {AROUND: 1}  # it may be meant as a region
    assert not large_cells(path, giant, cells[0])[1]
    assert not large_cells(path, giant, cells[0], cells[0])[1]  # one cell, twice
    ignored = drawn(5, 5, 90, "Ignore*", "annotation")
    n_cells, warnings = large_cells(path, ignored, *cells)
    assert n_cells == {1: 12}
    assert AROUND not in warnings
    beside = [drawn(5, 50, 45, "class2"), *[drawn(*corner, 8, "class1") for corner in GRID[:4]]]
    assert large_cells(path, *beside)[0] == {1: 4, 2: 1}


def test_detections_are_never_regions(path):
    """Also without a class, if they are large and around others."""
    giant = drawn(5, 5, 90)
    cells = [drawn(*corner, 8) for corner in GRID]
    n_cells, warnings = large_cells(path, giant, *cells, class_names=["nucleus"])
    assert n_cells == {1: 13}
    assert not warnings


def test_a_region_without_cells(path):
    assert "no class" in refusal(large_cells, path, drawn(5, 5, 90, kind="annotation"))


def test_points_lines_and_collections_among_cells(path):
    cell = drawn(10, 10, 8, "class1")
    features = [
        cell,
        feature([5, 5], None, shape="Point"),
        feature([[5, 5], [6, 6]], "class2", shape="MultiPoint"),
        feature([[5, 5], [6, 6]], shape="LineString"),
        feature([[[5, 5], [6, 6]]]),  # a polygon of two points
    ]
    features[1]["properties"] = {}
    collected = drawn(40, 40, 8, "class3")
    collected["geometry"] = {
        "type": "GeometryCollection",
        "geometries": [{"type": "Point", "coordinates": [1, 1]}, collected["geometry"]],
    }
    n_cells, warnings = large_cells(path, *features, collected)
    assert n_cells == {1: 1, 3: 1}
    assert list(warnings.values()) == [4]
    assert str(path) in refusal(large_cells, path, *features[1:])


def test_all_unknown_classes_are_named_at_once(path):
    features = [
        drawn(*corner, 8, name)
        for corner, name in zip(GRID, ["class1", "Fat", None, "Gland"], strict=False)
    ]
    text = refusal(large_cells, path, *features)
    assert all(part in text for part in ("feature 2 has class 'Fat'", "'Gland'", "no class"))


def test_skip_bad_leaves_out_single_outlines(path):
    bad = [drawn(10, 10, 8, "Fat"), drawn(10, 10, 8), drawn(400, 10, 8, "class1")]
    n_cells, warnings = large_cells(path, *bad, drawn(50, 50, 8, "class1"), skip_bad=True)
    assert n_cells == {1: 1}
    assert sum(warnings.values()) == 3
    for features in (bad[:2], bad[2:], bad):  # all of them
        assert str(path) in refusal(large_cells, path, *features, skip_bad=True)


def test_gzipped_geojson(path):
    text = json.dumps(collection(feature([RING]))).encode()
    packed = path.with_suffix(".geojson.gz")
    packed.write_bytes(gzip.compress(text))
    (outline,) = read_geojson(packed)
    assert outline.class_name == "class1"
    path.write_bytes(packed.read_bytes())  # without the ending
    assert [o.class_name for o in read_geojson(path)] == ["class1"]
    whole = packed.read_bytes()
    for end in range(len(whole)):
        packed.write_bytes(whole[:end])
        assert refusal(read_geojson, packed).startswith(f"{packed}: ")
    packed.write_bytes(gzip.compress(b"{"))
    assert "not JSON" in refusal(read_geojson, packed)


def test_class_names_with_accents_of_one_or_two_letters(path):
    cell = drawn(5, 5, 9, "Ke\u0301tzin \u00fc")
    for names in (["K\u00e9tzin u\u0308", "x"], ["x", "KE\u0301TZIN \u00dc"]):
        assert sum(large_cells(path, cell, class_names=names)[0].values()) == 1


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"images": [], "annotations": []}, "--coco"),
        ({"version": "5", "shapes": []}, "LabelMe"),
        ({"mag": 40, "nuc": {}}, "HoVer-Net"),
        ({"scale": 1}, "not a GeoJSON Feature"),
    ],
)
def test_json_of_other_programs(path, value, found):
    text = refusal(geojson_cells, path, value)
    assert text.startswith(f"{path}: ")
    assert found in text


# ------------------------------------------------------------------ ImageScope


def scope(*annotations, head='<?xml version="1.0" encoding="UTF-8"?>\n'):
    return f'{head}<Annotations MicronsPerPixel="0.25">{"".join(annotations)}</Annotations>'


def annotation(class_name, *regions, name="", value=""):
    return (
        f'<Annotation Id="1" Name="{name}" ReadOnly="0"><Attributes>'
        f'<Attribute Name="{class_name}" Id="0" Value="{value}"/></Attributes>'
        f"<Regions><RegionAttributeHeaders/>{''.join(regions)}</Regions><Plots/></Annotation>"
    )


def region(points, more=""):
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return (
        f'<Region Id="1" Area="1.0" {more}><Attributes><Attribute Name="Macrophage"/></Attributes>'
        f"<Vertices>{vertices}</Vertices></Region>"
    )


def scope_cells(path, text, size=(4, 6), class_names=CLASS_NAMES):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return fill_outlines(path, read_imagescope(path), size, class_names)


BOX = [(1, 0), (3, 0), (3, 2), (1, 2)]


def test_masks_of_regions(path):
    text = scope(annotation("Neutrophil", region(BOX)), annotation("Epithelial", region(BOX[:3])))
    cells, warnings = scope_cells(path, text)
    assert masks_of(cells[3]) == [[[0, 1, 1, 1, 0, 0]] * 3 + [[0] * 6]]
    assert masks_of(cells[1]) == [
        [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0], [0] * 6]
    ]
    assert not +warnings


def test_several_regions_and_several_annotations_of_a_class(path):
    text = scope(
        annotation("Lymphocyte", region(BOX), region([(5, 3), (5, 3.2), (4.9, 3)])),
        annotation("lymphocyte", region(BOX)),
    )
    assert {k: len(mask_runs) for k, mask_runs in scope_cells(path, text)[0].items()} == {2: 3}


def test_the_class_can_be_the_annotation_s_name(path):
    plain = f'<Annotation Name="class2"><Regions>{region(BOX)}</Regions></Annotation>'
    described = annotation("Description", region(BOX), name="class3")
    valued = annotation("Description", region(BOX), name="", value="class4")
    assert list(scope_cells(path, scope(plain, described, valued))[0]) == [2, 3, 4]


def test_a_single_class_needs_no_name_in_xml(path):
    text = scope(annotation("Description", region(BOX)))
    assert list(scope_cells(path, text, class_names=["nucleus"])[0]) == [1]
    assert "region 1 has no class" in refusal(scope_cells, path, text)


def test_rectangles_and_ellipses_by_two_corners(path):
    """Pixel centres within x 1…9, y 2…6; of an ellipse, those of its equation."""
    corners = [(9, 2), (1, 6)]
    text = scope(
        annotation("class1", region(corners, 'Type="1"')),
        annotation("class2", region(corners, 'Type="2"')),
        annotation("class3", region([(1, 2), (9, 2), (9, 6), (1, 6)], 'Type="2"')),
        annotation("class4", region([(1, 2), (9, 2), (9, 6), (1, 6)], 'Type="1"')),
    )
    cells, warnings = scope_cells(path, text, (8, 12))
    y, x = np.mgrid[:8, :12]
    box = (x >= 1) & (x <= 9) & (y >= 2) & (y <= 6)
    assert masks_of(cells[1]) == masks_of(cells[4]) == [box.astype(int).tolist()]
    ellipse = ((x - 5) / 4) ** 2 + ((y - 4) / 2) ** 2
    mask = np.array(masks_of(cells[2])[0], bool)
    assert mask[ellipse < 0.99].all()
    assert not mask[ellipse > 1.01].any()
    assert masks_of(cells[3]) == masks_of(cells[2])
    assert not +warnings


def test_arrows_and_rulers_are_no_cells(path):
    text = scope(
        annotation("class1", region(BOX, 'Type="0"')),
        annotation("class1", region([(0, 0), (3, 3)], 'Type="3"')),
        annotation("", region([(0, 0), (3, 3), (5, 1)], 'Type="4"')),
    )
    cells, warnings = scope_cells(path, text)
    assert {k: len(mask_runs) for k, mask_runs in cells.items()} == {1: 1}
    assert +warnings == {"arrows and rulers, ignored": 2}


def test_regions_that_are_no_cells_are_counted(path):
    text = scope(
        annotation("Ambiguous", region(BOX)),
        annotation("Epithelial", region(BOX, 'NegativeROA="1"'), region(BOX[:2]), region([])),
        annotation("Epithelial", region(BOX, 'NegativeROA="0"')),
    )
    cells, warnings = scope_cells(path, text)
    assert [len(mask_runs) for mask_runs in cells.values()] == [1]
    assert +warnings == {
        "cells of ambiguous or ignored classes": 1,
        "negative regions, ignored": 1,
        "points, lines and outlines of fewer than 3 points, ignored": 2,
    }


@pytest.mark.parametrize("text", [scope(), "<Annotations/>", scope(annotation("Epithelial"))])
def test_xml_without_regions(path, text):
    assert scope_cells(path, text)[0] == {}


def test_other_encodings(path):
    head = '<?xml version="1.0" encoding="utf-16"?>'
    text = scope(annotation("Zelle ä", region(BOX)), head=head).encode("utf-16")
    assert list(scope_cells(path, text, class_names=["zelle Ä"])[0]) == [1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "<Annotations>",
        "<html></html>",
        "<Annotations></Annotation>",
        scope() + "<more/>",
        scope(annotation("Epithelial", region([(1, 1), (2, "x"), (2, 2)]))),
        scope(annotation("Epithelial", region([(1, 1), (2, ""), (2, 2)]))),
        scope(annotation("Epithelial", region([(1, 1), (2, "nan"), (2, 2)]))),
        scope(annotation("Epithelial", region([(1, 1), (2, "inf"), (2, 2)]))),
        scope(annotation("Epithelial", region([(1, 1), (2, "1e99"), (2, 2)]))),
        scope(annotation("Epithelial", '<Region><Vertices><Vertex X="1"/></Vertices></Region>')),
        scope(annotation("Stroma", region(BOX))),
        scope(annotation("", region(BOX))),
        scope(annotation("Epithelial", region([(90, 90), (99, 90), (99, 99)]))),
        scope(head='<?xml version="1.0" encoding="no-such-code"?>'),
        scope(head='<?xml version="1.0" encoding="euc-jp"?>'),
        scope(head="<!DOCTYPE Annotations>"),
        b"\xff\xfe\x00",
        b"II*\x00",
    ],
)
def test_damaged_xml(path, text):
    message = refusal(scope_cells, path, text)
    assert message.startswith(f"{path}: ")
    assert "; " in message


def test_skip_bad_leaves_out_a_region_not_its_image(path):
    bad = region(BOX).replace("X=", "x=", 1)
    path.write_text(scope(annotation("Epithelial", region(BOX), bad, region(BOX))))
    arguments = (path, read_imagescope(path), (9, 9), CLASS_NAMES)
    assert "region 2: vertex" in refusal(fill_outlines, *arguments)
    cells, warnings = fill_outlines(*arguments, skip_bad=True)
    assert (len(cells[1]), sum((+warnings).values())) == (2, 1)


def test_entities_are_not_expanded(path):
    rounds = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(30))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "aaaaaaaaaa">{rounds}]>'
    text = scope(annotation("&e30;", region(BOX)), head=bomb)
    assert "unexpected document type" in refusal(scope_cells, path, text)


def test_external_files_are_not_read(path, tmp_path):
    (tmp_path / "secret").write_text("class1")
    head = f'<!DOCTYPE x [<!ENTITY s SYSTEM "{(tmp_path / "secret").as_uri()}">]>'
    text = scope("&s;", head=head)
    assert "unexpected document type" in refusal(scope_cells, path, text)


def test_a_missing_xml_or_a_folder(tmp_path):
    assert "can't be read (No such file" in refusal(read_imagescope, tmp_path / "a.xml")
    assert "can't be read" in refusal(read_imagescope, tmp_path)


def test_xml_cut_off_anywhere(path):
    whole = scope(annotation("Epithelial", region(BOX)), head="")
    for end in range(len(whole)):
        refusal(scope_cells, path, whole[:end])


def test_a_ring_without_points():
    assert to_ring("here", []).shape == (0, 2)
    assert fill_outlines(Path("x"), [Outline("a", "class1", [])], (3, 3), CLASS_NAMES)[0] == {}

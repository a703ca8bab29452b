"""GeoJSON: the format that QuPath reads; the polygons give the masks back."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import shapely
import shapely.geometry
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import cellseg.outline
from cellseg.images import ImageCells
from cellseg.rle import boxes_xyxy, encode, label_map_to_runs
from cellseg.write.geojson import cell_features, write_geojson
from cellseg.write.ids import cell_ids
from tests.read.refusal import refusal

NAMES = ["epithelial", "Zellkern – 細胞"]


def image_of(labels, name="a.tif", **more):
    """Return an image whose cells have class 0, unless other fields are given."""
    _, runs = label_map_to_runs(np.asarray(labels))
    fields = {
        "id": 1,
        "file_name": name,
        "path": Path(name),
        "size": runs.size,
        "name": name,
        "masks": encode(runs),
        "classes": np.zeros(len(runs), np.int64),
        "boxes": boxes_xyxy(runs),
    }
    return ImageCells(**fields | more)


def features_of(labels, classes=None, scores=None, **more):
    fields = {"scores": scores} | ({} if classes is None else {"classes": classes})
    return list(cell_features(image_of(labels, **fields), NAMES, **more))


def drawn(shape, size):
    """Return the mask of a shape: the pixels whose centres are inside."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return shapely.contains_xy(shape, columns + 0.5, rows + 0.5)


def test_a_detection():
    (feature,) = features_of([[0, 3]], np.array([1]), scores=np.array([0.75], np.float32))
    assert uuid.UUID(feature.pop("id")).version == 5
    assert feature == {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[1, 0], [2, 0], [2, 1], [1, 1], [1, 0]]]},
        "properties": {
            "objectType": "detection",
            "classification": {"name": "Zellkern – 細胞", "color": [240, 228, 66]},
            "measurements": {"score": 0.75},
        },
    }


def test_an_annotation_has_no_score():
    (feature,) = features_of([[1]], object_type="annotation")
    assert feature["properties"]["objectType"] == "annotation"
    assert "measurements" not in feature["properties"]


def test_pieces_and_holes_are_kept():
    (feature,) = features_of([[1, 1, 1, 0, 1], [1, 0, 1, 0, 0], [1, 1, 1, 0, 0]])
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert [len(polygon) for polygon in feature["geometry"]["coordinates"]] == [2, 1]


def test_ids_differ_within_an_image_and_between_images_but_not_between_runs():
    first, second = features_of([[1, 2]]), features_of([[1, 2]])
    assert first == second
    other = cell_features(image_of([[1, 2]], "b.tif"), NAMES)
    assert len({f["id"] for f in [*first, *other]}) == 4


def test_ids_do_not_depend_on_the_other_cells():
    three, two = features_of([[1, 2, 3]]), features_of([[0, 2, 3]])
    assert [feature["id"] for feature in three[1:]] == [feature["id"] for feature in two]
    masks = [{"size": [1, 2], "counts": "02"}] * 3
    assert len(set(cell_ids("a", masks))) == 3
    assert cell_ids("a", masks[:2]) == cell_ids("a", masks)[:2]


def test_given_ids_and_measurements():
    (feature,) = features_of(
        [[1]], ids=["mine"], measurements=[{"area_px": 1, "area_um2": None}],
        scores=np.array([0.5]),
    )  # fmt: skip
    assert feature["id"] == "mine"
    assert feature["properties"]["measurements"] == {"score": 0.5, "area_px": 1}


def test_a_mask_with_no_pixel_gives_no_feature():
    masks = [{"size": [1, 2], "counts": "2"}, {"size": [1, 2], "counts": "02"}]
    image = image_of([[1, 2]], masks=masks, classes=np.array([0, 1]))
    features = list(cell_features(image, NAMES))
    assert [f["properties"]["classification"]["name"] for f in features] == [NAMES[1]]


def test_blocks_do_not_matter(monkeypatch):
    labels = np.arange(1, 24).reshape(1, 23)
    whole = features_of(labels)
    monkeypatch.setattr(cellseg.outline, "_BLOCK", 5)
    assert features_of(labels) == whole


def test_a_mask_of_another_size():
    masks = [{"size": [2, 2], "counts": "4"}]
    with pytest.raises(ValueError, match="size"):
        list(cell_features(image_of([[0, 1]], masks=masks), NAMES))


@settings(deadline=None)
@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3))
)
def test_round_trip_through_the_polygons(labels):
    values = np.unique(labels[labels > 0])
    features = json.loads(json.dumps(features_of(labels)))
    assert len(features) == len(values)
    for value, feature in zip(values, features, strict=True):
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert shape.area == (labels == value).sum()
        np.testing.assert_array_equal(drawn(shape, labels.shape), labels == value)


def test_the_file_is_a_collection(tmp_path):
    path = tmp_path / "made" / "a.geojson"
    features = features_of([[1, 2, 2]])
    assert write_geojson(path, iter(features)) == 2
    assert json.loads(path.read_text("utf-8")) == {
        "type": "FeatureCollection",
        "features": features,
    }
    # One feature per line: files of 200,000 cells can be read and compared.
    assert len(path.read_text("utf-8").splitlines()) == 4


def test_an_image_without_cells_is_an_empty_collection(tmp_path):
    path = tmp_path / "a.geojson"
    assert write_geojson(path, []) == 0
    assert json.loads(path.read_text("utf-8")) == {"type": "FeatureCollection", "features": []}


def test_gzip_gives_the_same_bytes_and_replaces_its_own_files_only(tmp_path):
    path = tmp_path / "a.geojson.gz"
    features = features_of([[1, 2, 2]])
    assert write_geojson(path, features) == 2
    first = path.read_bytes()
    assert json.loads(gzip.decompress(first))["features"] == features
    write_geojson(path, features)
    assert path.read_bytes() == first
    path.write_bytes(gzip.compress(b"somebody's"))
    assert "a.geojson.gz: exists" in refusal(write_geojson, path, features)


def test_an_error_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.geojson"
    earlier = '{"type":"FeatureCollection","features":[\nearlier'
    path.write_text(earlier)

    def broken():
        yield {"type": "Feature"}
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        write_geojson(path, broken())
    assert path.read_text() == earlier
    assert [p.name for p in tmp_path.iterdir()] == ["a.geojson"]


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(write_geojson, tmp_path / "file" / "a.geojson", [])
    assert "a.geojson: can't be written" in message

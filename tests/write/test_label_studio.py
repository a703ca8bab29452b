"""Label Studio's predictions: polygons and brush masks give the masks back."""

from __future__ import annotations

import json

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cellseg.rle import label_map_to_runs
from cellseg.write.label_studio import brush_rle, write_label_studio
from tests.read.refusal import refusal
from tests.score.scoring_cases import decode
from tests.write.test_coco_polygons import image_of


def unpack(rle):
    """Decode thi.ng/rle-pack as Label Studio's converter does, value by value."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def read(count):
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    assert set(bits[at:]) <= {"0"}
    return np.array(values)


def tasks_of(path, images, **how):
    count = write_label_studio(path, images, ["x", "y"], **how)
    return count, json.loads(path.read_text("utf-8"))


def test_polygons_by_hand(tmp_path):
    image = image_of([[0, 1, 1, 0], [0, 1, 1, 0]], "cells/a b.tif", scores=np.array([0.75]))
    count, (task,) = tasks_of(tmp_path / "tasks.json", [image])
    assert count == 1
    assert task["data"] == {"image": "/data/local-files/?d=cells/a%20b.tif"}
    (prediction,) = task["predictions"]
    assert prediction["score"] == 0.75
    (result,) = prediction["result"]
    assert result.pop("id")
    assert result == {
        "type": "polygonlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": 4,
        "original_height": 2,
        "image_rotation": 0,
        "value": {
            "points": [[25, 0], [75, 0], [75, 100], [25, 100]],
            "closed": True,
            "polygonlabels": ["x"],
        },
        "score": 0.75,
    }


@pytest.mark.parametrize("brush", [False, True])
def test_pieces_and_images_without_cells(tmp_path, brush):
    images = [image_of([[1, 0, 1, 2]]), image_of([[0, 0]], "b.tif", 2)]
    count, tasks = tasks_of(tmp_path / "tasks.json", images, brush=brush)
    assert count == 2
    assert [len(task["predictions"][0]["result"]) for task in tasks] == [2 if brush else 3, 0]
    ids = [result["id"] for result in tasks[0]["predictions"][0]["result"]]
    assert len(set(ids)) == len(ids)
    assert tasks_of(tmp_path / "none.json", [])[1] == []


masks = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.booleans())


@settings(deadline=None)
@given(masks)
def test_masks_come_back_from_polygons(tmp_path_factory, labels):
    height, width = labels.shape
    _, (task,) = tasks_of(tmp_path_factory.mktemp("tasks") / "tasks.json", [image_of(labels)])
    drawn = np.zeros(labels.shape, bool)
    for result in task["predictions"][0]["result"]:
        points = np.array(result["value"]["points"]) * (width / 100, height / 100)
        ring = [points.round(6).reshape(-1).tolist()]
        drawn |= decode(pycocotools.mask.frPyObjects(ring, height, width)[0])
    np.testing.assert_array_equal(drawn, labels > 0)


@settings(deadline=None)
@given(masks)
def test_masks_come_back_from_brushes(labels):
    _, mask_runs = label_map_to_runs(labels)
    if len(mask_runs):
        rgba = unpack(brush_rle(mask_runs, 0)).reshape(*labels.shape, 4)
        np.testing.assert_array_equal(rgba, np.repeat(labels[..., None] * 255, 4, axis=2))


def test_long_runs_are_split():
    labels = np.zeros((200, 300), np.uint8)
    labels[100:, 1:] = 1
    _, mask_runs = label_map_to_runs(labels)
    rgba = unpack(brush_rle(mask_runs, 0)).reshape(200, 300, 4)
    np.testing.assert_array_equal(rgba[..., 3], labels * 255)


def test_somebody_elses_file_is_not_replaced(tmp_path):
    path = tmp_path / "tasks.json"
    path.write_text("[3]")
    assert "tasks.json: exists" in refusal(write_label_studio, path, [], ["x"])

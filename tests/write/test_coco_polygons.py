"""COCO polygons: pycocotools and the project's reader get the masks back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cellseg.images import ImageCells
from cellseg.read.foreign_coco import read_coco_images
from cellseg.rle import boxes_xyxy, encode, label_map_to_runs
from cellseg.write.coco import write_coco
from tests.read.refusal import refusal
from tests.score.scoring_cases import decode


def image_of(labels, name="a.tif", id_=1, **more):
    """Return an image whose cells have classes 0, 1, 0, 1, …"""
    labels = np.asarray(labels)
    _, mask_runs = label_map_to_runs(labels)
    more = {"file_name": name, "path": Path(name)} | more
    return ImageCells(
        id=id_,
        size=labels.shape,
        name=Path(name).stem,
        masks=encode(mask_runs),
        classes=np.arange(len(mask_runs)) % 2,
        boxes=boxes_xyxy(mask_runs),
        **more,
    )


def written(path, images, names=("x", "y")):
    write_coco(path, images, names)
    return json.loads(path.read_text("utf-8"))


def test_a_cell_by_hand(tmp_path):
    image = image_of([[0, 1, 1], [0, 1, 1]], scores=np.array([0.75]), mpp=0.25)
    coco = written(tmp_path / "coco.json", [image])
    assert coco["images"] == [{"id": 1, "file_name": "a.tif", "height": 2, "width": 3, "mpp": 0.25}]
    assert [(c["id"], c["name"]) for c in coco["categories"]] == [(1, "x"), (2, "y")]
    assert coco["annotations"] == [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [[1, 0, 3, 0, 3, 2, 1, 2]],
            "area": 4,
            "bbox": [1, 0, 2, 2],
            "iscrowd": 0,
            "score": 0.75,
        }
    ]


def test_pieces_are_polygons_and_a_hole_is_part_of_the_ring(tmp_path):
    labels = [[1, 1, 1, 0, 1], [1, 0, 1, 0, 0], [1, 1, 1, 0, 0]]
    (cell,) = written(tmp_path / "coco.json", [image_of(labels)])["annotations"]
    assert [len(ring) // 2 for ring in cell["segmentation"]] == [10, 4]
    assert cell["area"] == 9


def test_ids_run_on_and_empty_masks_are_left_out(tmp_path):
    images = [image_of([[1, 2]]), image_of([[0, 0]], "b.tif", 2), image_of([[0, 3]], "c.tif", 3)]
    empty = {"size": [1, 2], "counts": "2"}
    images[0] = replace(images[0], masks=[images[0].masks[0], empty])
    coco = written(tmp_path / "coco.json", images)
    assert [(c["id"], c["image_id"]) for c in coco["annotations"]] == [(1, 1), (2, 3)]
    assert len(coco["images"]) == 3


def test_a_pyramid_level_is_scaled_to_full_resolution(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 6, 3), np.uint8), photometric="rgb")
    image = image_of([[0, 1, 1], [0, 1, 1]], path=tmp_path / "a.tif", level=1, mpp=0.5)
    coco = written(tmp_path / "coco.json", [image])
    assert coco["images"][0] == {
        "id": 1, "file_name": "a.tif", "height": 4, "width": 6, "mpp": 0.25,
    }  # fmt: skip
    (cell,) = coco["annotations"]
    assert (cell["area"], cell["bbox"]) == (16, [2, 0, 4, 4])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["/x/a.tif", "/y/b.tif"], ["a.tif", "b.tif"]),
        (["/x/a.tif", "/y/a.tif"], ["/x/a.tif", "/y/a.tif"]),
        (["train/a/image.tif", "train/b/image.tif"], ["train/a/image.tif", "train/b/image.tif"]),
    ],
)
def test_file_names(tmp_path, names, expected):
    images = [image_of([[1]], name, n) for n, name in enumerate(names, 1)]
    coco = written(tmp_path / "coco.json", images)
    assert [image["file_name"] for image in coco["images"]] == expected


masks = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=10), elements=st.integers(0, 2)
)


@settings(deadline=None)
@given(masks)
def test_pycocotools_gets_the_masks_back(tmp_path_factory, labels):
    coco = written(tmp_path_factory.mktemp("coco") / "coco.json", [image_of(labels)])
    values = np.unique(labels[labels > 0])
    for value, cell in zip(values, coco["annotations"], strict=True):
        parts = pycocotools.mask.frPyObjects(cell["segmentation"], *labels.shape)
        mask = decode(pycocotools.mask.merge(parts))
        np.testing.assert_array_equal(mask, labels == value)
        assert cell["area"] == (labels == value).sum()


@settings(deadline=None, max_examples=30)
@given(masks)
def test_the_projects_reader_gets_the_masks_back(tmp_path_factory, labels):
    data = tmp_path_factory.mktemp("coco")
    tifffile.imwrite(data / "a.tif", np.zeros((*labels.shape, 3), np.uint8), photometric="rgb")
    image = image_of(labels)
    write_coco(data / "coco.json", [image], ["x", "y"])
    names, (back,), _ = read_coco_images(data / "coco.json", data)
    assert names == ["x", "y"]
    assert back.masks == image.masks
    assert back.classes.tolist() == image.classes.tolist()
    assert not back.warnings


def test_somebody_elses_file_is_not_replaced(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text('{"images": []}')
    assert "coco.json: exists" in refusal(write_coco, path, [image_of([[1]])], ["x", "y"])

"""What is learned from: the images of an annotation file, named, checked and split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cellseg.errors import InputError
from cellseg.learn.samples import load_training_data, name_images


@pytest.mark.parametrize(
    ("file_names", "names"),
    [
        (["train/a/image.tif", "train/b/IMAGE.TIFF"], ["a", "b"]),
        (["x/one.png", "two.tif"], ["one", "two"]),
        (["image.tif"], ["image"]),
        (["a/x.png", "b/x.png"], ["a/x.png", "b/x.png"]),
        (["x.png", "x.tif", "y.png"], ["x.png", "x.tif", "y.png"]),
        ([], []),
    ],
)
def test_names(file_names, names):
    assert name_images(file_names) == names


@given(st.lists(st.text("ab/.", min_size=1), unique=True))
def test_names_tell_images_apart(file_names):
    assert len(set(name_images(file_names))) == len(file_names)


@pytest.fixture
def foreign(tmp_path):
    """Somebody else's COCO file: polygons, ids with gaps, a crowd, two images of one name."""
    images = []
    for number, name in enumerate(("a/x.png", "b/x.png", "c.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(path)
        images.append({"id": 10 * number, "file_name": name, "height": 10, "width": 12})
    square = [[2, 2, 6, 2, 6, 6, 2, 6]]
    coco = {
        "images": images,
        "categories": [{"id": 9, "name": "nine"}, {"id": 3, "name": "three"}],
        "annotations": [
            {"id": 5, "image_id": 10, "category_id": 9, "segmentation": square, "iscrowd": 0},
            {"id": 6, "image_id": 0, "category_id": 3, "segmentation": square},
            {
                "id": 7, "image_id": 0, "category_id": 3, "iscrowd": 1,
                "segmentation": {"size": [10, 12], "counts": [0, 120]},
            },
        ],
    }  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    return tmp_path


def test_a_foreign_file(foreign):
    data = load_training_data(str(foreign), str(foreign / "coco.json"), 0, "", 0)
    assert data.categories == [{"id": 3, "name": "three"}, {"id": 9, "name": "nine"}]
    assert data.held_out == []
    assert [sample["name"] for sample in data.train] == ["a/x.png", "b/x.png", "c.png"]
    first, second, third = data.train
    assert first["file_name"] == str(foreign / "a/x.png")
    assert (first["image_id"], first["height"], first["width"]) == (0, 10, 12)
    # Without the crowd, with its own class, and the box of the mask.
    assert [a["class"] for a in first["annotations"]] == [0]
    assert first["annotations"][0]["bbox"] == [2, 2, 4, 4]
    assert [a["class"] for a in second["annotations"]] == [1]
    assert third["annotations"] == []


def test_file_names_that_are_whole_paths(foreign):
    path = foreign / "coco.json"
    coco = json.loads(path.read_text())
    for image in coco["images"]:
        image["file_name"] = str(foreign / image["file_name"])
    whole = foreign / "whole.json"
    whole.write_text(json.dumps(coco))
    data = load_training_data("/nowhere", str(whole), 0.4, "", 0)
    assert len(data.held_out) == 1
    assert len(data.train) == 2


def test_groups_by_name(foreign):
    groups = foreign / "groups.json"
    groups.write_text('{"a/x.png": "p", "b/x.png": "p", "c.png": "q"}')
    for seed in range(5):
        data = load_training_data(str(foreign), str(foreign / "coco.json"), 0.3, str(groups), seed)
        held = {sample["name"] for sample in data.held_out}
        assert held in ({"c.png"}, {"a/x.png", "b/x.png"})


def test_split_of_the_homeworks_layout(cells):
    annotations = str(cells / "train__annot.json")
    data = load_training_data(str(cells), annotations, 0.4, "", 0)
    assert len(data.train) == 3
    assert len(data.held_out) == 2
    everything = load_training_data(str(cells), annotations, 0, "", 0).train
    names = [sample["name"] for sample in everything]
    assert names == sorted(path.name for path in (cells / "train").iterdir())
    assert {s["name"] for s in data.train} | {s["name"] for s in data.held_out} == set(names)
    assert sum(len(s["annotations"]) for s in everything) == len(data.coco["annotations"])
    # Drawing a seed (-1) does not draw the split.
    again = load_training_data(str(cells), annotations, 0.4, "", -1)
    assert again.held_out == data.held_out


def test_an_image_that_is_a_folder(cells, tmp_path):
    own = Path(shutil.copytree(cells, tmp_path / "own"))
    image = next((own / "train").glob("*/image.tif"))
    image.unlink()
    image.mkdir()
    with pytest.raises(InputError, match=r"image\.tif: no such file, but"):
        load_training_data(str(own), str(own / "train__annot.json"), 0, "", 0)

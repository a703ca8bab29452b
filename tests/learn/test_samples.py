"""Training data: the images of an annotation file, named, checked and split."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cellseg.errors import InputError
from cellseg.learn.samples import check_up_to_date, load_training_data, split_data
from tests.read.refusal import refusal


@pytest.fixture
def foreign(tmp_path):
    """A COCO file of another source: polygons, ids with gaps, a crowd, two images of one name."""
    images = []
    for number, name in enumerate(("a/x.png", "b/x.png", "c.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(path)
        images.append({"id": 10 * number, "file_name": name, "height": 10, "width": 12})
    square, crowd = [[2, 2, 6, 2, 6, 6, 2, 6]], {"size": [10, 12], "counts": [0, 120]}
    coco = {
        "images": images,
        "categories": [{"id": 9, "name": "nine"}, {"id": 3, "name": "three"}],
        "annotations": [
            {"id": 5, "image_id": 10, "category_id": 9, "segmentation": square, "iscrowd": 0},
            {"id": 6, "image_id": 0, "category_id": 3, "segmentation": square},
            {"id": 7, "image_id": 0, "category_id": 3, "segmentation": crowd, "iscrowd": 1},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    return tmp_path


def test_a_foreign_file(foreign):
    data = load_training_data(str(foreign), str(foreign / "coco.json"))
    assert data.categories == [{"id": 3, "name": "three"}, {"id": 9, "name": "nine"}]
    assert data.validation == []
    assert [sample.name for sample in data.train] == ["a/x.png", "b/x.png", "c.png"]
    first, second, third = data.train
    assert first.path == foreign / "a/x.png"
    assert (first.id, first.size) == (0, (10, 12))
    # The crowd is excluded, and the box is that of the mask.
    assert first.classes.tolist() == [0]
    assert first.boxes.tolist() == [[2, 2, 6, 6]]
    assert second.classes.tolist() == [1]
    assert third.masks == []


def test_file_names_that_are_absolute_paths(foreign):
    path = foreign / "coco.json"
    coco = json.loads(path.read_text())
    for image in coco["images"]:
        image["file_name"] = str(foreign / image["file_name"])
    absolute = foreign / "absolute.json"
    absolute.write_text(json.dumps(coco))
    data = split_data(load_training_data("/nowhere", str(absolute)), 0.4)
    assert len(data.validation) == 1
    assert len(data.train) == 2


@pytest.mark.parametrize("form", ["./{}", "a/../{}", "../{folder}/{}", "{path}/{}"])
def test_an_image_under_two_names_is_refused(foreign, form):
    """It could be in the training set and in the validation set."""
    path = foreign / "coco.json"
    coco = json.loads(path.read_text())
    name = form.format("c.png", folder=foreign.name, path=foreign)
    coco["images"].append({**coco["images"][2], "id": 77, "file_name": name})
    path.write_text(json.dumps(coco))
    message = refusal(load_training_data, str(foreign), str(path))
    assert message.startswith(f"{path}: c.png and {name} are the same image")


def test_images_outside_the_data_folder_give_a_warning(foreign, caplog):
    (foreign / "a" / "x.png").rename(foreign.parent / "far.png")
    path = foreign / "coco.json"
    path.write_text(path.read_text().replace('"a/x.png"', '"../far.png"'))
    data = load_training_data(str(foreign), str(path))
    assert len(data.train) == 3
    assert "1: ../far.png" in caplog.text
    caplog.clear()
    load_training_data(str(foreign.parent), str(absolute(foreign)))
    assert "images outside" not in caplog.text


def absolute(folder):
    """Write the annotations of `foreign` with absolute paths; return the file."""
    coco = json.loads((folder / "coco.json").read_text())
    for image in coco["images"]:
        image["file_name"] = os.path.normpath(folder / image["file_name"])
    (folder / "absolute.json").write_text(json.dumps(coco))
    return folder / "absolute.json"


def test_groups_by_name(foreign):
    groups = foreign / "groups.json"
    groups.write_text('{"a/x.png": "p", "b/x.png": "p", "c.png": "q"}')
    everything = load_training_data(str(foreign), str(foreign / "coco.json"))
    for seed in range(5):
        data = split_data(everything, 0.3, groups=str(groups), seed=seed)
        validation = {sample.name for sample in data.validation}
        assert validation in ({"c.png"}, {"a/x.png", "b/x.png"})


def test_split_of_nycu_hw3s_layout(cells):
    loaded = load_training_data(str(cells), str(cells / "train__annot.json"))
    data = split_data(loaded, 0.4)
    assert (len(data.train), len(data.validation)) == (3, 2)
    names = [sample.name for sample in loaded.train]
    assert names == sorted(path.name for path in (cells / "train").iterdir())
    assert {s.name for s in data.train} | {s.name for s in data.validation} == set(names)
    assert sum(len(s.masks) for s in loaded.train) == len(data.coco["annotations"])
    # A random seed (-1) does not change the split.
    again = split_data(loaded, 0.4, seed=-1)
    assert [s.name for s in again.validation] == [s.name for s in data.validation]


def test_an_image_that_is_a_folder(cells, tmp_path):
    own = Path(shutil.copytree(cells, tmp_path / "own"))
    image = next((own / "train").glob("*/image.tif"))
    image.unlink()
    image.mkdir()
    with pytest.raises(InputError, match=r"image\.tif: not found"):
        load_training_data(str(own), str(own / "train__annot.json"))


@pytest.mark.parametrize("name", ["train/x/class1.tif", "corrected/annotations.json"])
def test_annotations_and_files_from_the_future(tmp_path, name, caplog):
    annotations, cells, now = tmp_path / "a.json", tmp_path / name, time.time()
    annotations.touch()
    cells.parent.mkdir(parents=True)
    cells.touch()
    os.utime(annotations, (now - 9, now - 9))
    os.utime(cells, (now - 99, now - 99))
    check_up_to_date(tmp_path, annotations)
    os.utime(cells, (now - 1, now - 1))
    with pytest.raises(InputError, match=r"a\.json: older than"):
        check_up_to_date(tmp_path, annotations)
    assert not caplog.text
    os.utime(cells, (now + 9999, now + 9999))
    check_up_to_date(tmp_path, annotations)
    assert f"1: {cells};" in caplog.text

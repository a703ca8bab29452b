"""Truth from a COCO file and from a folder of label maps."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg.errors import InputError
from cellseg.score.truth import read_truth
from tests.score.scoring_cases import decode, rectangle, truth_of

TISSUE = Path(
    os.environ.get("CELLSEG_TISSUE", Path(__file__).parents[3] / "shared" / "data" / "tissue")
)
SIZES = {"one": (5, 7), "two": (4, 4), "three": (3, 8)}


@pytest.fixture
def data(tmp_path):
    """A data folder with three test images, the first and the last of them annotated."""
    (tmp_path / "test").mkdir()
    entries = []
    for id, (name, (height, width)) in enumerate(SIZES.items(), 11):
        tifffile.imwrite(tmp_path / "test" / f"{name}.tif", np.zeros((height, width, 3), np.uint8))
        entries.append({"file_name": f"{name}.tif", "id": id, "height": height, "width": width})
    (tmp_path / "test_image_name_to_ids.json").write_text(json.dumps(entries))
    masks = tmp_path / "masks"
    (masks / "three").mkdir(parents=True)
    (masks / "one").mkdir()
    labels = np.zeros((5, 7))
    labels[:2, :2], labels[3:, 4:] = 4, 9
    tifffile.imwrite(masks / "one" / "class2.tif", labels)
    tifffile.imwrite(masks / "one" / "class4.tif", np.pad([[7]], ((2, 2), (3, 3))).astype(np.int32))
    return tmp_path


def test_a_folder_of_label_maps(data):
    truth = read_truth(data / "masks", data)
    assert [(i["id"], i["file_name"], i["height"], i["width"]) for i in truth["images"]] == [
        (11, "one.tif", 5, 7),
        (13, "three.tif", 3, 8),
    ]
    assert [c["name"] for c in truth["categories"]] == ["class1", "class2", "class3", "class4"]
    cells = [(a["image_id"], a["category_id"], a["area"]) for a in truth["annotations"]]
    assert cells == [(11, 2, 4), (11, 2, 6), (11, 4, 1)]
    expected = rectangle((5, 7), 3, 4, 5, 7)
    np.testing.assert_array_equal(decode(truth["annotations"][1]["segmentation"]), expected)


def test_classes_are_those_of_the_annotation_file(data):
    annotations = truth_of({1: ((2, 2), [])}, ["nucleus", "other"])
    (data / "train__annot.json").write_text(json.dumps(annotations))
    with pytest.raises(InputError, match=r"class4\.tif: expected one class<K>.tif .* 1 to 2"):
        read_truth(data / "masks", data)
    (data / "masks" / "one" / "class4.tif").unlink()
    names = [c["name"] for c in read_truth(data / "masks", data)["categories"]]
    assert names == ["nucleus", "other"]


def test_a_coco_file_needs_no_data_folder(tmp_path):
    truth = truth_of({4: ((5, 5), [(2, rectangle((5, 5), 1, 1, 3, 3), 0)])})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert read_truth(tmp_path / "truth.json", tmp_path / "none") == truth


@pytest.mark.parametrize(
    "name", ["class5.tif", "class0.tif", "classx.tif", "image.png", "class2.TIFF"]
)
def test_files_that_are_no_label_maps(data, name):
    (data / "masks" / "one" / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected one class<K>.tif for each class"):
        read_truth(data / "masks", data)


def test_hidden_files_don_t_matter(data):
    (data / "masks" / ".cache").mkdir()
    (data / "masks" / "one" / ".DS_Store").write_bytes(b"x")
    assert len(read_truth(data / "masks", data)["images"]) == 2


def test_a_folder_of_no_test_image(data):
    (data / "masks" / "four").mkdir()
    with pytest.raises(InputError, match=r"four: no image of that name in .*ids.json"):
        read_truth(data / "masks", data)


def test_two_images_of_one_name(data):
    path = data / "test_image_name_to_ids.json"
    twin = {"file_name": "one.png", "id": 99, "height": 5, "width": 7}
    path.write_text(json.dumps([*json.loads(path.read_text()), twin]))
    (data / "test" / "one.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"one: one.tif and one.png in .* are both called so"):
        read_truth(data / "masks", data)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
@pytest.mark.parametrize("name", ["masks", "masks/one"])
def test_a_folder_that_can_t_be_listed(data, name):
    (data / name).chmod(0)
    try:
        with pytest.raises(InputError, match=r"can't be listed"):
            read_truth(data / "masks", data)
    finally:
        (data / name).chmod(0o755)


def test_a_folder_with_nothing_in_it(data):
    (data / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no folder in it, expected <image>"):
        read_truth(data / "empty", data)


def test_a_label_map_of_another_size(data):
    tifffile.imwrite(data / "masks" / "one" / "class1.tif", np.zeros((7, 5), np.uint8))
    with pytest.raises(InputError, match=r"class1\.tif"):
        read_truth(data / "masks", data)


def test_labels_that_are_none(data):
    tifffile.imwrite(data / "masks" / "one" / "class1.tif", np.full((5, 7), np.nan))
    with pytest.raises(InputError, match=r"class1\.tif"):
        read_truth(data / "masks", data)


def test_a_list_that_tells_another_size(data):
    path = data / "test_image_name_to_ids.json"
    path.write_text(path.read_text().replace('"height": 5', '"height": 6'))
    with pytest.raises(InputError, match=r"one.tif: 5 x 7 .*says 6 x 7; mend the list"):
        read_truth(data / "masks", data)


def test_real_tissue():
    if not TISSUE.is_dir():
        pytest.skip(f"no tissue at {TISSUE}")
    truth = read_truth(TISSUE / "test_masks", TISSUE)
    counts = np.bincount([a["category_id"] for a in truth["annotations"]], minlength=5)
    assert len(truth["images"]) == 40
    assert counts[1:].tolist() == [1409, 1130, 514, 2576]

"""Truth from a COCO file and from a folder of label maps."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg.errors import InputError
from cellseg.read.ground_truth import (
    find_ground_truth,
    read_ground_truth,
    read_results_with_ground_truth,
)
from tests.score.scoring_cases import decode, entry, rectangle, truth_of

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
    truth = read_ground_truth(data / "masks", data)
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
        read_ground_truth(data / "masks", data)
    (data / "masks" / "one" / "class4.tif").unlink()
    names = [c["name"] for c in read_ground_truth(data / "masks", data)["categories"]]
    assert names == ["nucleus", "other"]


def test_a_coco_file_needs_no_data_folder(tmp_path):
    truth = truth_of({4: ((5, 5), [(2, rectangle((5, 5), 1, 1, 3, 3), 0)])})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert read_ground_truth(tmp_path / "truth.json", tmp_path / "none") == truth


@pytest.mark.parametrize(
    "name", ["class5.tif", "class0.tif", "classx.tif", "image.png", "class2.TIFF"]
)
def test_files_that_are_no_label_maps(data, name):
    (data / "masks" / "one" / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected one class<K>.tif for each class"):
        read_ground_truth(data / "masks", data)


def test_hidden_files_don_t_matter(data):
    (data / "masks" / ".cache").mkdir()
    (data / "masks" / "one" / ".DS_Store").write_bytes(b"x")
    assert len(read_ground_truth(data / "masks", data)["images"]) == 2


def test_a_folder_of_no_test_image(data):
    (data / "masks" / "four").mkdir()
    with pytest.raises(InputError, match=r"four: no image of that name in .*ids.json"):
        read_ground_truth(data / "masks", data)


def test_two_images_of_one_name(data):
    path = data / "test_image_name_to_ids.json"
    twin = {"file_name": "one.png", "id": 99, "height": 5, "width": 7}
    path.write_text(json.dumps([*json.loads(path.read_text()), twin]))
    (data / "test" / "one.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"one: one.tif and one.png in .* are both called so"):
        read_ground_truth(data / "masks", data)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
@pytest.mark.parametrize("name", ["masks", "masks/one"])
def test_a_folder_that_can_t_be_listed(data, name):
    (data / name).chmod(0)
    try:
        with pytest.raises(InputError, match=r"can't be listed"):
            read_ground_truth(data / "masks", data)
    finally:
        (data / name).chmod(0o755)


def test_a_folder_with_nothing_in_it(data):
    (data / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no folder in it, expected <image>"):
        read_ground_truth(data / "empty", data)


def test_a_label_map_of_another_size(data):
    tifffile.imwrite(data / "masks" / "one" / "class1.tif", np.zeros((7, 5), np.uint8))
    with pytest.raises(InputError, match=r"class1\.tif"):
        read_ground_truth(data / "masks", data)


def test_labels_that_are_none(data):
    tifffile.imwrite(data / "masks" / "one" / "class1.tif", np.full((5, 7), np.nan))
    with pytest.raises(InputError, match=r"class1\.tif"):
        read_ground_truth(data / "masks", data)


def test_a_list_that_tells_another_size(data):
    path = data / "test_image_name_to_ids.json"
    path.write_text(path.read_text().replace('"height": 5', '"height": 6'))
    with pytest.raises(InputError, match=r"one.tif: 5 x 7 .*says 6 x 7; mend the list"):
        read_ground_truth(data / "masks", data)


def test_real_tissue():
    if not TISSUE.is_dir():
        pytest.skip(f"no tissue at {TISSUE}")
    truth = read_ground_truth(TISSUE / "test_masks", TISSUE)
    counts = np.bincount([a["category_id"] for a in truth["annotations"]], minlength=5)
    assert len(truth["images"]) == 40
    assert counts[1:].tolist() == [1409, 1130, 514, 2576]


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def own_images(folder, listed, names):
    """Leave results as `inference.py --images` does, a detection in each image, and a truth."""
    one = rectangle((2, 2), 0, 0, 1, 1)
    write(
        folder / "own-list.json",
        [{"id": n, "file_name": name, "height": 2, "width": 2} for n, name in enumerate(listed, 1)],
    )
    truth = truth_of({id: ((2, 2), []) for id in range(10, 10 + len(names))})
    for image, name in zip(truth["images"], names, strict=True):
        image["file_name"] = name
    results = write(
        folder / "own.json", [entry(n, 1, one, n / 10) for n in range(1, 1 + len(listed))]
    )
    return results, write(folder / "truth.json", truth)


@pytest.mark.parametrize(
    ("listed", "names", "ids"),
    [
        (["/far/b.tif", "/far/a.tif"], ["a.tif", "b.tif"], [11, 10]),
        (["b.tif", "x/a.tif"], ["x/a.tif", "y/b.tif"], [11, 10]),
        (["C:\\far\\b\\image.tif", "a/image.tif"], [r"train\a\image.tif", "b/image.tif"], [11, 10]),
        # Several of one name: by the folders that they are in.
        (["/far/q/1.tif", "/far/p/1.tif"], ["p/1.tif", "q/1.tif"], [11, 10]),
        (["q/c/image.tif", "p/c/image.tif"], ["/p/c/image.tif", "/q/c/image.tif"], [11, 10]),
        # The second list's entry is the one that its folder leaves.
        (["p/1.tif", "1.tif"], ["/p/1.tif", "/q/1.tif"], [10, 11]),
    ],
)  # fmt: skip
def test_images_of_ones_own_are_told_by_their_names(tmp_path, listed, names, ids):
    path, source = own_images(tmp_path, listed, names)
    truth, (results,) = read_results_with_ground_truth([path], source, tmp_path)
    assert [image["id"] for image in truth["images"]] == [10, 11]
    assert [(found["image_id"], found["score"]) for found in results] == [
        (ids[0], 0.1),
        (ids[1], 0.2),
    ]


@pytest.mark.parametrize(
    ("listed", "names", "message"),
    [
        (["c.tif", "d.tif"], ["a.tif"], r"own\.json: none of the images in .* is in .*; call"),
        (["c/image.tif"], ["d/image.tif"], r"own\.json: none of the images"),
        (["a.tif", "c.tif"], ["a.tif"], r"entry 1: its image, c\.tif, .* --only_annotated"),
        (["a.tif"], ["p/a.tif", "q/a.tif"], r"list\.json: a\.tif may be q/a\.tif of .* with their"),
        (["p/a.tif", "q/a.tif"], ["a.tif"], r"list\.json: q/a\.tif may be a\.tif of"),
    ],
)  # fmt: skip
def test_images_of_ones_own_that_it_can_t_tell(tmp_path, listed, names, message):
    path, source = own_images(tmp_path, listed, names)
    with pytest.raises(InputError, match=message):
        read_results_with_ground_truth([path], source, tmp_path)


def test_images_of_ones_own_that_are_not_annotated(tmp_path):
    path, source = own_images(tmp_path, ["c.tif", "q/a.tif", "a.tif"], ["p/b.tif", "q/a.tif"])
    _, (results,) = read_results_with_ground_truth([path], source, tmp_path, only_annotated=True)
    assert [(found["image_id"], found["score"]) for found in results] == [(11, 0.2)]
    write(path, [{"image_id": 4}])
    with pytest.raises(InputError, match=r"entry 0: image_id 4 is not in .*own-list\.json"):
        read_results_with_ground_truth([path], source, tmp_path)
    write(path, [7, {"image_id": "a"}])  # whoever scores them says what is wrong
    assert read_results_with_ground_truth([path], source, tmp_path)[1] == [[7, {"image_id": "a"}]]


def test_what_was_not_among_images_of_ones_own_is_not_missed(tmp_path):
    path, source = own_images(tmp_path, ["b.tif"], ["a.tif", "b.tif"])
    truth, _ = read_results_with_ground_truth([path], source, tmp_path)
    assert [image["id"] for image in truth["images"]] == [11]
    (tmp_path / "other").mkdir()
    other, _ = own_images(tmp_path / "other", ["b.tif", "a.tif"], ["a.tif", "b.tif"])
    for both in ([path, other], [other, path]):
        with pytest.raises(
            InputError, match=r"a\.tif of .* was predicted for one of the two alone"
        ):
            read_results_with_ground_truth(both, source, tmp_path)
    truth, found = read_results_with_ground_truth([path, path], source, tmp_path)
    assert [image["id"] for image in truth["images"]] == [11]
    assert found[0] == found[1]


def test_compared_results_are_of_all_annotated_images(tmp_path):
    """Where two runs held out other images, what one wasn't asked for isn't missed."""
    one = rectangle((2, 2), 0, 0, 1, 1)
    paths = []
    for name, ids in (("a", (1, 2, 3)), ("b", (2, 3))):
        write(tmp_path / f"{name}-truth.json", truth_of({id: ((2, 2), []) for id in ids}))
        paths.append(write(tmp_path / f"{name}.json", [entry(id, 1, one, 0.5) for id in ids]))
    a, b = paths
    assert find_ground_truth([b, a]) == tmp_path / "b-truth.json"
    with pytest.raises(InputError, match=r"b\.json: image 1 of .*a-truth\.json, 1\.tif, is not"):
        read_results_with_ground_truth([a, b], tmp_path / "a-truth.json", tmp_path)
    truth, found = read_results_with_ground_truth(
        [a, b], tmp_path / "b-truth.json", tmp_path, only_annotated=True
    )
    assert len(truth["images"]) == 2
    assert found[0] == found[1]
    # The same id is another image in another annotation file.
    other = truth_of({2: ((2, 2), []), 3: ((2, 2), [])})
    other["images"][0]["file_name"] = "other.tif"
    with pytest.raises(InputError, match=r"a\.json: image 2 of .*other\.json, other\.tif"):
        read_results_with_ground_truth([a, b], write(tmp_path / "other.json", other), tmp_path)
    (tmp_path / "b-truth.json").unlink()
    for either in ([a, b], [b, a]):
        with pytest.raises(InputError, match=r"one alone has the annotations .* with --truth"):
            find_ground_truth(either)
    assert find_ground_truth([b, b]) is None

"""Ground truth from a COCO file and from a folder of label maps."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image

from cellseg.errors import InputError
from cellseg.read.ground_truth import (
    find_ground_truth,
    read_ground_truth,
    read_results_with_ground_truth,
)
from tests.cohorts import write_cohort
from tests.read.refusal import refusal
from tests.score.scoring_cases import decode, entry, rectangle, truth_of

TISSUE = Path(
    os.environ.get("CELLSEG_TISSUE", Path(__file__).parents[3] / "shared" / "data" / "tissue")
)
SIZES = {"one": (5, 7), "two": (4, 4), "three": (3, 8)}


@pytest.fixture
def data(tmp_path):
    """A data folder with three test images, of which the first and the last are annotated."""
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


@pytest.mark.parametrize(
    ("name", "mask"),
    [("one", "one.tif"), ("one", "one_masks.npy"), ("one", "one.mat"), ("one_img", "one_mask.png")],
)
def test_a_label_map_of_the_name_of_each_image(data, name, mask):
    """Of one class; a label map of 0 for an image without cells."""
    truth = data / "truth"
    truth.mkdir()
    labels = np.zeros((5, 7), np.uint8)
    labels[:2, :2], labels[3:, 4:] = 4, 9
    save_label_map(truth / mask, labels)
    save_label_map(truth / "three.png", np.zeros((3, 8), np.uint8))
    (data / "train__annot.json").write_text(json.dumps(truth_of({1: ((2, 2), [])}, ["nucleus"])))
    path = data / "test_image_name_to_ids.json"
    path.write_text(path.read_text().replace('"one.tif"', f'"{name}.tif"'))
    (data / "test" / "one.tif").rename(data / "test" / f"{name}.tif")
    coco = read_ground_truth(truth, data)
    assert [i["file_name"] for i in coco["images"]] == [f"{name}.tif", "three.tif"]
    assert [(a["image_id"], a["area"]) for a in coco["annotations"]] == [(11, 4), (11, 6)]


def save_label_map(path, labels):
    if path.suffix == ".npy":
        np.save(path, labels)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, {"inst_map": labels})
    elif path.suffix == ".png":
        Image.fromarray(labels).save(path)
    else:
        tifffile.imwrite(path, labels)


def test_files_of_no_image_and_of_two(data):
    truth = data / "truth"
    truth.mkdir()
    (truth / "notes.txt").write_text("")
    assert "truth: no folder in it" in refusal(read_ground_truth, truth, data)
    (truth / "four.geojson").write_text("")
    message = refusal(read_ground_truth, truth, data)
    assert message.startswith(f"{truth / 'four.geojson'}: no image of this name")
    (truth / "four.geojson").unlink()
    save_label_map(truth / "one.tif", np.zeros((5, 7), np.uint8))
    save_label_map(truth / "one_masks.tif", np.zeros((5, 7), np.uint8))
    assert "both contain annotations" in refusal(read_ground_truth, truth, data)


def test_images_and_label_maps_side_by_side(data):
    for name in ("one", "three"):
        save_label_map(data / "test" / f"{name}_masks.png", np.zeros(SIZES[name], np.uint8))
    assert len(read_ground_truth(data / "test", data)["images"]) == 2


@pytest.mark.parametrize("form", ["labels", "classes", "classes alone"])
def test_folders_with_the_files_of_all_images(data, form):
    """As in `train/`; the image `three` has no cells."""
    expected = read_ground_truth(data / "masks", data)
    truth = data / "truth"
    for name, size in (("one", (5, 7)), ("three", (3, 8))):
        maps = {k: np.zeros(size, np.uint8) for k in (2, 4)}
        for k in maps:
            if (path := data / "masks" / name / f"class{k}.tif").exists():
                maps[k] = tifffile.imread(path).astype(np.uint8)
            if form != "labels":
                (truth / f"class{k}").mkdir(parents=True, exist_ok=True)
                save_label_map(truth / f"class{k}" / f"{name}.png", maps[k])
        if form != "classes alone":
            (truth / "images").mkdir(parents=True, exist_ok=True)
            save_label_map(truth / "images" / f"{name}.png", np.zeros((*size, 3), np.uint8))
        if form == "labels":
            (truth / "labels").mkdir(exist_ok=True)
            save_label_map(truth / "labels" / f"{name}.tif", np.maximum(*maps.values()))
            rows = ["label,class", *(f"{n},{k}" for k in maps for n in np.unique(maps[k])[1:])]
            (truth / "labels" / f"{name}.csv").write_text("\n".join(rows))
    assert read_ground_truth(truth, data) == expected


@pytest.mark.parametrize("form", ["label.tif", "one_masks.png", "a.mat", "a.geojson"])
def test_a_folder_for_each_image_without_the_image(data, form):
    """Its cells may be in all the forms that training folders may have them in."""
    expected = read_ground_truth(data / "masks", data)
    folder = data / "truth" / "one"
    folder.mkdir(parents=True)
    (data / "truth" / "three").mkdir()
    maps = {k: tifffile.imread(data / "masks" / "one" / f"class{k}.tif") for k in (2, 4)}
    labels = np.maximum(*maps.values()).astype(np.uint16)
    class_of = {int(n): k for k in maps for n in np.unique(maps[k])[1:]}
    path = folder / form
    if path.suffix == ".mat":
        classes = [[class_of.get(n, 0)] for n in range(1, 10)]
        scipy.io.savemat(path, {"inst_map": labels, "inst_type": classes})
    elif path.suffix == ".geojson":
        cells = ((0, 0, 2, 2, "class2"), (4, 3, 7, 5, "class2"), (3, 2, 4, 3, "class4"))
        path.write_text(json.dumps([feature(*cell) for cell in cells]))
    else:
        save_label_map(path, labels)
        rows = [f"{n},{k}" for n, k in class_of.items()]
        (folder / "classes.csv").write_text("\n".join(["label,class", *rows]))
    assert read_ground_truth(data / "truth", data) == expected


def feature(x0, y0, x1, y1, name):
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}},
    }


def test_a_folder_of_an_image_with_files_that_are_not_of_cells(data):
    (data / "masks" / "three" / "notes.txt").write_text("")
    message = refusal(read_ground_truth, data / "masks", data)
    assert message.startswith(f"{data / 'masks' / 'three' / 'notes.txt'}: ")


def test_images_named_as_folders_of_all_images(data):
    """The folder `masks` is that of the image of this name."""
    path = data / "test_image_name_to_ids.json"
    path.write_text(path.read_text().replace('"one.tif"', '"masks.tif"'))
    (data / "test" / "one.tif").rename(data / "test" / "masks.tif")
    (data / "masks" / "one").rename(data / "masks" / "masks")
    images = read_ground_truth(data / "masks", data)["images"]
    assert [image["file_name"] for image in images] == ["masks.tif", "three.tif"]


def test_files_beside_the_folders_of_images(data, caplog):
    save_label_map(data / "masks" / "two.png", np.ones((4, 4), np.uint8))
    assert len(read_ground_truth(data / "masks", data)["images"]) == 2
    assert "two.png" in caplog.text


def test_classes_are_those_of_the_annotation_file(data):
    annotations = truth_of({1: ((2, 2), [])}, ["nucleus", "other"])
    (data / "train__annot.json").write_text(json.dumps(annotations))
    message = refusal(read_ground_truth, data / "masks", data)
    assert "class4.tif: expected one class<K>.tif for each class, K from 1 to 2" in message
    (data / "masks" / "one" / "class4.tif").unlink()
    names = [c["name"] for c in read_ground_truth(data / "masks", data)["categories"]]
    assert names == ["nucleus", "other"]


def test_a_coco_file_needs_no_data_folder(tmp_path):
    truth = truth_of({4: ((5, 5), [(2, rectangle((5, 5), 1, 1, 3, 3), 0)])})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert read_ground_truth(tmp_path / "truth.json", tmp_path / "none") == truth


@pytest.mark.parametrize(
    "name", ["class5.tif", "class0.tif", "classx.tif", "notes.png", "class2.TIFF"]
)
def test_unexpected_files(data, name):
    (data / "masks" / "one" / name).write_bytes(b"x")
    assert "expected one class<K>.tif for each class" in refusal(
        read_ground_truth, data / "masks", data
    )


def test_hidden_files_are_ignored(data):
    (data / "masks" / ".cache").mkdir()
    (data / "masks" / "one" / ".DS_Store").write_bytes(b"x")
    assert len(read_ground_truth(data / "masks", data)["images"]) == 2


def test_a_folder_of_no_test_image(data):
    (data / "masks" / "four").mkdir()
    message = refusal(read_ground_truth, data / "masks", data)
    assert message.startswith(f"{data / 'masks' / 'four'}: no image of this name")


def test_two_images_of_one_name(data):
    path = data / "test_image_name_to_ids.json"
    twin = {"file_name": "one.png", "id": 99, "height": 5, "width": 7}
    path.write_text(json.dumps([*json.loads(path.read_text()), twin]))
    (data / "test" / "one.png").write_bytes(b"x")
    message = refusal(read_ground_truth, data / "masks", data)
    assert "one: one.tif and one.png" in message
    assert "have this name" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
@pytest.mark.parametrize("name", ["masks", "masks/one"])
def test_a_folder_that_cannot_be_listed(data, name):
    (data / name).chmod(0)
    try:
        assert "can't be listed" in refusal(read_ground_truth, data / "masks", data)
    finally:
        (data / name).chmod(0o755)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("true", "true/cells"),  # too high
        ("true/cells/one", "true/cells"),  # too low
        ("false", None),  # two folders that may be meant
        ("test", None),  # the images themselves
    ],
)
def test_a_folder_one_level_too_high_or_too_low(data, given, expected, own):
    (data / "true").mkdir()
    (data / "masks").rename(data / "true" / "cells")
    for name in ("a", "b"):
        shutil.copytree(data / "true" / "cells", data / "false" / name)
    if own:
        (data / "test_image_name_to_ids.json").rename(data / "own-list.json")
        listed = json.loads((data / "own-list.json").read_text())
        write(
            data / "own-list.json",
            [{**each, "file_name": str(data / "test" / each["file_name"])} for each in listed],
        )
        write(data / "own.json", [])
        arguments = ([data / "own.json"], data / given, data)
        message = refusal(read_results_with_ground_truth, *arguments)
    else:
        message = refusal(read_ground_truth, data / given, data)
    assert ("seems to be meant" in message) == bool(expected)
    assert not expected or f"; pass {data / expected}, " in message


def test_an_empty_folder(data):
    (data / "empty").mkdir()
    assert "empty: no folder in it" in refusal(read_ground_truth, data / "empty", data)


@pytest.mark.parametrize("labels", [np.zeros((7, 5), np.uint8), np.full((5, 7), np.nan)])
def test_invalid_label_maps(data, labels):
    tifffile.imwrite(data / "masks" / "one" / "class1.tif", labels)
    assert "class1.tif" in refusal(read_ground_truth, data / "masks", data)


def test_a_list_with_another_size(data):
    path = data / "test_image_name_to_ids.json"
    path.write_text(path.read_text().replace('"height": 5', '"height": 6'))
    message = refusal(read_ground_truth, data / "masks", data)
    assert "one.tif: 5 x 7 (height x width), expected 6 x 7" in message


@pytest.mark.parametrize("name", ["./one.tif", "x/../one.tif", "{}/one.tif"])
def test_an_image_is_listed_once(data, name):
    """Under another name its cells would be another image's, and its detections false positives."""
    truth = truth_of({1: (SIZES["one"], []), 2: (SIZES["one"], [])})
    for image, file_name in zip(truth["images"], ("one.tif", name.format(data)), strict=True):
        image["file_name"] = file_name
    path = write(data / "truth.json", truth)
    assert "one.tif are the same image" in refusal(read_ground_truth, path, data)
    truth["images"][1]["file_name"] = "x/one.tif"
    assert len(read_ground_truth(write(path, truth), data)["images"]) == 2


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
    """Write results as `inference.py --images` does, a detection per image, and ground truth."""
    one = rectangle((2, 2), 0, 0, 1, 1)
    write(
        folder / "own-list.json",
        [{"id": n, "file_name": name, "height": 2, "width": 2} for n, name in enumerate(listed, 1)],
    )
    truth = truth_of({id: ((2, 2), []) for id in range(10, 10 + len(names))})
    for image, name in zip(truth["images"], names, strict=True):
        image["file_name"] = name
    detections = [entry(n, 1, one, n / 10) for n in range(1, 1 + len(listed))]
    return write(folder / "own.json", detections), write(folder / "truth.json", truth)


def read_all(*args, **keywords):
    """Return ground truth, and the images of each of the results as a list."""
    truth, results = read_results_with_ground_truth(*args, **keywords)
    return truth, [list(images) for images in results]


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
def test_own_images_are_paired_by_name(tmp_path, listed, names, ids):
    path, source = own_images(tmp_path, listed, names)
    truth, (images,) = read_all([path], source, tmp_path)
    assert [image["id"] for image in truth["images"]] == [10, 11]
    assert {(image.id, *image.scores) for image in images} == {*zip(ids, (0.1, 0.2), strict=True)}
    assert {image.id: str(image.path) for image in images} == dict(zip(ids, listed, strict=True))


@pytest.mark.parametrize(
    ("listed", "names", "message"),
    [
        (["c.tif", "d.tif"], ["a.tif"], r"own\.json: none of the images in .* is in .*"),
        (["c/image.tif"], ["d/image.tif"], r"own\.json: none of the images"),
        (["a.tif", "c.tif"], ["a.tif"], r"entry 1: its image, c\.tif, .* --only_annotated"),
        (["a.tif"], ["p/a.tif", "q/a.tif"], r"list\.json: a\.tif may be q/a\.tif of"),
        (["p/a.tif", "q/a.tif"], ["a.tif"], r"list\.json: q/a\.tif may be a\.tif of"),
    ],
)  # fmt: skip
def test_own_images_that_cannot_be_paired(tmp_path, listed, names, message):
    path, source = own_images(tmp_path, listed, names)
    with pytest.raises(InputError, match=message):
        read_all([path], source, tmp_path)


def test_a_folder_of_label_maps_of_own_images(tmp_path, capsys):
    """Of images anywhere: no data folder with a test list is needed; `a` has no cells."""
    listed = ["/far/b.png", "/far/a.png", "/far/c/image.tif"]
    path, _ = own_images(tmp_path, listed, [])
    folder = tmp_path / "masks"
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
    far = tmp_path / "far"
    far.mkdir()
    for each in ("a.png", "b.png"):
        Image.fromarray(np.full((2, 2, 3), 200, np.uint8)).save(far / each)
    tifffile.imwrite(folder / "c" / "image.tif", np.full((2, 2, 3), 200, np.uint8))
    tifffile.imwrite(folder / "b" / "class2.tif", np.eye(2, dtype=np.uint8))
    tifffile.imwrite(folder / "c" / "class1.tif", np.ones((2, 2), np.uint8))
    listing = tmp_path / "own-list.json"
    listing.write_text(
        listing.read_text().replace("/far/c", str(far / "c")).replace('"/far/', f'"{far}/')
    )
    truth, (images,) = read_all([path], folder, tmp_path / "no data")
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    cells = [(names[a["image_id"]], a["category_id"], a["area"]) for a in truth["annotations"]]
    assert sorted(cells) == [(f"{far}/b.png", 2, 2), (f"{far}/c/image.tif", 1, 4)]
    assert {names[image.id]: (*image.scores, image.name) for image in images} == {
        f"{far}/b.png": (0.1, "b"),
        f"{far}/a.png": (0.2, "a"),
        f"{far}/c/image.tif": (0.3, "c"),
    }
    assert "own.json: 3 images matched" in capsys.readouterr().out
    (far / "b.png").unlink()  # where it was predicted, not here
    assert read_all([path], folder, tmp_path)[0] == truth
    (folder / "d").mkdir()
    read_all([path], folder, tmp_path)
    assert f"{folder}: 1 image not in {listing}, so not scored: d" in capsys.readouterr().err
    for name in ("a", "b", "c"):
        shutil.rmtree(folder / name)
    message = refusal(read_all, [path], folder, tmp_path)
    # Never to remove a folder: it may be the data folder, with test_masks/ in it.
    assert message.startswith(f"{folder}: none of its folders (d) has the name of an image")
    assert "remove" not in message


def test_slides_come_by_the_ids_of_their_ground_truth(tmp_path, capsys):
    """Equal scores and resamples depend on the order of images, not on that of the table."""
    one = rectangle((2, 2), 0, 0, 1, 1)
    twice = [entry(1, 1, one, 0.3), entry(1, 1, one, 0.3)]
    slides = {
        "c": (tmp_path / "c.tif", (2, 2), [entry(1, 1, one, 0.1)]),
        "a": (tmp_path / "a.tif", (2, 2), twice),
        "d": (tmp_path / "d.tif", (2, 2), []),
        "b": (tmp_path / "b.tif", (2, 2), [entry(1, 1, one, 0.2)]),
    }
    write_cohort(tmp_path / "cohort", slides, ["a", "b", "c"])
    _, source = own_images(tmp_path, [], ["b.tif", "a.tif", "c.tif"])
    _, (images,) = read_all([tmp_path / "cohort"], source, tmp_path)
    found = [(image.id, image.name, *image.scores) for image in images]
    assert found == [(10, "b", 0.2), (11, "a", 0.3, 0.3), (12, "c", 0.1)]
    err = capsys.readouterr().err
    assert f"{source}" in err.splitlines()[0]
    assert "earlier one, which AP counts as false positives: 1, in 1 image: " in err
    # All slides are checked, also those that are not annotated.
    (tmp_path / "cohort" / "d" / "images-results.json").write_text("[7]")
    assert "d: entry 0" in refusal(read_all, [tmp_path / "cohort"], source, tmp_path)


def test_how_own_images_were_matched(tmp_path, capsys):
    listed = ["/far/p/1.tif", "/far/2.tif", "/far/p/3.tif", "/far/4.tif"]
    path, source = own_images(tmp_path, listed, ["p/1.tif", "2.tif", "q/3.tif", "5.tif", "6.tif"])
    read_all([path], source, tmp_path, only_annotated=True)
    out, err = capsys.readouterr()
    assert f"own.json: 3 images matched with {source}, 1 by path and 2 by file name\n" in out
    assert f"warning: {path}: 1 image not in {source}" in err
    assert f"warning: {source}: 2 images not in {path}" in err


def test_detections_without_ground_truth_are_an_error_before_all_else(tmp_path, capsys):
    path, source = own_images(tmp_path, ["a.tif", "b.tif"], ["a.tif"])
    other = tmp_path / "other"
    other.mkdir()
    good, _ = own_images(other, ["a.tif"], ["a.tif"])
    for paths in ([path], [good, path]):
        assert "entry 1: its image, b.tif" in refusal(read_all, paths, source, tmp_path)
        assert capsys.readouterr() == ("", "")
    # An image without detections can be left out.
    write(path, json.loads(path.read_text())[:1])
    _, (images,) = read_all([path], source, tmp_path)
    assert [(image.id, *image.scores) for image in images] == [(10, 0.1)]
    out, err = capsys.readouterr()
    assert "1 image matched" in out
    assert f"warning: {path}: 1 image not in {source}" in err


def test_own_images_that_are_not_annotated(tmp_path):
    path, source = own_images(tmp_path, ["c.tif", "q/a.tif", "a.tif"], ["p/b.tif", "q/a.tif"])
    _, (images,) = read_all([path], source, tmp_path, only_annotated=True)
    assert [(image.id, *image.scores) for image in images] == [(11, 0.2)]
    write(path, [{"image_id": 4}])
    with pytest.raises(InputError, match=r"entry 0: image_id 4 is not in .*own-list\.json"):
        read_all([path], source, tmp_path)
    for damaged in (7, {"image_id": "a"}):
        write(path, [damaged])
        assert "entry 0" in refusal(read_all, [path], source, tmp_path)


def test_annotated_images_that_were_not_predicted_are_not_scored(tmp_path):
    path, source = own_images(tmp_path, ["b.tif"], ["a.tif", "b.tif"])
    truth, _ = read_all([path], source, tmp_path)
    assert [image["id"] for image in truth["images"]] == [11]
    (tmp_path / "other").mkdir()
    other, _ = own_images(tmp_path / "other", ["b.tif", "a.tif"], ["a.tif", "b.tif"])
    for both in ([path, other], [other, path]):
        message = refusal(read_all, both, source, tmp_path)
        assert f"a.tif of {source} is in only one of the two results" in message
    truth, found = read_all([path, path], source, tmp_path)
    assert [image["id"] for image in truth["images"]] == [11]
    assert [[(image.id, *image.scores) for image in one] for one in found] == [[(11, 0.1)]] * 2


def test_compared_results_are_of_all_annotated_images(tmp_path):
    """If validation sets differ, images outside one of them give no false negatives."""
    one = rectangle((2, 2), 0, 0, 1, 1)
    paths = []
    for name, ids in (("a", (1, 2, 3)), ("b", (2, 3))):
        write(tmp_path / f"{name}-truth.json", truth_of({id: ((2, 2), []) for id in ids}))
        paths.append(write(tmp_path / f"{name}.json", [entry(id, 1, one, 0.5) for id in ids]))
    a, b = paths
    assert find_ground_truth([b, a]) == tmp_path / "b-truth.json"
    with pytest.raises(InputError, match=r"b\.json: image 1 of .*a-truth\.json, 1\.tif, is not"):
        read_all([a, b], tmp_path / "a-truth.json", tmp_path)
    truth, found = read_all([a, b], tmp_path / "b-truth.json", tmp_path, only_annotated=True)
    assert len(truth["images"]) == 2
    both = [(2, 0.5), (3, 0.5)]
    assert [[(image.id, *image.scores) for image in one] for one in found] == [both, both]
    # The same id is another image in another annotation file.
    other = truth_of({2: ((2, 2), []), 3: ((2, 2), [])})
    other["images"][0]["file_name"] = "other.tif"
    with pytest.raises(InputError, match=r"a\.json: image 2 of .*other\.json, other\.tif"):
        read_all([a, b], write(tmp_path / "other.json", other), tmp_path)
    (tmp_path / "b-truth.json").unlink()
    for either in ([a, b], [b, a]):
        assert "only one of " in refusal(find_ground_truth, either)
    assert find_ground_truth([b, b]) is None

"""annotation.py --merge_classes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import tifffile

import annotation
import evaluate
from cellseg.read.ground_truth import read_ground_truth
from cellseg.read.layout import CLASS_NAMES
from cellseg.read.merge_classes import merge_classes
from tests.read.refusal import refusal
from tests.score.scoring_cases import decode, rle

SIZE = (12, 20)
# The cell of each class is a square of a side of its number, in a column of its own.
CORNERS = {1: (0, 0), 2: (0, 2), 3: (0, 6), 4: (0, 10)}


def square(number):
    row, column = CORNERS[number]
    labels = np.zeros(SIZE, np.uint8)
    labels[row : row + number, column : column + number] = 1
    return labels


def write_train(data, maps, name="a"):
    folder = data / "train" / name
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "image.tif", np.full((*SIZE, 3), 200, np.uint8), photometric="rgb")
    for number, labels in maps.items():
        tifffile.imwrite(folder / f"class{number}.tif", labels)
    return data


@pytest.fixture
def data(tmp_path):
    return write_train(tmp_path / "data", {number: square(number) for number in CORNERS})


def run(data, *more):
    output = data / "out.json"
    assert annotation.main(["--data", str(data), "--output", str(output), *more]) == 0
    return json.loads(output.read_text())


def cells(coco):
    """Return the area of each cell, with the name of its class, in order."""
    names = {c["id"]: c["name"] for c in coco["categories"]}
    return [(names[a["category_id"]], a["area"]) for a in coco["annotations"]]


def class_names(coco):
    assert [c["id"] for c in coco["categories"]] == [*range(1, len(coco["categories"]) + 1)]
    return [c["name"] for c in coco["categories"]]


def test_a_class_takes_the_place_of_the_first_that_it_is_merged_from(data):
    coco = run(data, "--merge_classes", "even", "class4", "class2")
    assert class_names(coco) == ["class1", "even", "class3"]
    assert cells(coco) == [("class1", 1), ("even", 4), ("even", 16), ("class3", 9)]
    masks = [decode(a["segmentation"]) for a in coco["annotations"]]
    for mask, number in zip(masks, (1, 2, 4, 3), strict=True):
        np.testing.assert_array_equal(mask, square(number))


def test_several_merges(data, capsys):
    names = ["--class_names", "a", "b c", "d", "e"]
    coco = run(
        data, *names, "--merge-classes", "late", "E", " d ", "--merge_classes", "A", "a", "b c"
    )
    assert cells(coco) == [("A", 1), ("A", 4), ("late", 9), ("late", 16)]
    assert "2 late       1          2" in capsys.readouterr().out


def test_all_in_one(data):
    coco = run(data, "--merge_classes", "cell", *(f"class{n}" for n in CORNERS))
    assert class_names(coco) == ["cell"]
    assert [area for _, area in cells(coco)] == [1, 4, 9, 16]


def test_a_class_of_another_name(data):
    coco = run(data, "--merge_classes", "tumour", "class3")
    assert class_names(coco) == ["class1", "class2", "tumour", "class4"]
    assert cells(coco) == [("class1", 1), ("class2", 4), ("tumour", 9), ("class4", 16)]


def test_a_cell_in_two_merged_classes_is_one(tmp_path, capsys):
    data = write_train(tmp_path, {1: square(3), 2: square(3) + 2 * square(2), 3: square(3)})
    coco = run(data, "--merge_classes", "x", "class1", "class3")
    # The second class has other cells, at the same place and beside it.
    assert Counter(name for name, _ in cells(coco)) == {"x": 1, "class2": 2}
    warned = capsys.readouterr().err
    assert "cells in two of the classes that were merged, used once: 1, in 1 image: a" in warned
    assert "pixels in two cells: 9, " in warned
    (data / "train" / "a" / "class2.tif").unlink()
    run(data, "--merge_classes", "x", "class1", "class3")
    assert "pixels in two cells" not in capsys.readouterr().err


def test_images_without_cells_and_with_some_classes(tmp_path):
    write_train(tmp_path, {}, "empty")
    write_train(tmp_path, {2: square(2)}, "some")
    write_train(tmp_path, {4: square(4), 3: 0 * square(3)}, "others")
    coco = run(tmp_path, "--merge_classes", "x", "class1", "class3", "class4")
    by_image = Counter(a["image_id"] for a in coco["annotations"])
    ids = {i["file_name"].split("/")[1]: i["id"] for i in coco["images"]}
    assert set(ids) == {"empty", "others", "some"}
    assert by_image == {ids["some"]: 1, ids["others"]: 1}
    assert sorted(cells(coco)) == [("class2", 4), ("x", 16)]


def test_a_coco_file(data):
    run(data)
    coco = run(
        data, "--coco", str((data / "out.json").rename(data / "theirs.json")),
        "--merge_classes", "x", "class2", "class3",
    )  # fmt: skip
    assert cells(coco) == [("class1", 1), ("x", 4), ("x", 9), ("class4", 16)]


def test_classes_of_outlines(tmp_path):
    write_train(tmp_path, {})
    features = []
    for x, height, name in ((0, 1, "Plasma"), (4, 2, "Tumour"), (8, 3, "lymphocyte")):
        ring = [[x, 0], [x + 2, 0], [x + 2, height], [x, height], [x, 0]]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"classification": {"name": name}},
            }
        )
    (tmp_path / "train" / "a" / "cells.geojson").write_text(json.dumps(features))
    names = ["--class_names", "Lymphocyte", "Tumour", "Plasma"]
    coco = run(tmp_path, *names, "--merge_classes", "Immune", "Lymphocyte", "Plasma")
    assert class_names(coco) == ["Immune", "Tumour"]
    assert sorted(cells(coco)) == [("Immune", 2), ("Immune", 6), ("Tumour", 4)]


@pytest.mark.parametrize(
    ("merges", "found"),
    [
        ([["x"]], "x: "),
        ([["x", "class9"]], '"class9"'),
        ([["x", "class1", "class1"]], "class1"),
        ([["x", "class1"], ["y", "class2", "CLASS1"]], "y: class1"),
        ([["class3", "class1", "class2"]], "class3"),
        ([["class2", "class1"], ["class1", "class2"]], "class2"),
        ([["x", "class1"], ["X", "class2"]], "'X'"),
        ([[" ", "class1"]], "empty"),
        ([["a\nb", "class1"]], "a\\nb"),
    ],
)
def test_merges_that_are_wrong(data, merges, found):
    words = [word for merge in merges for word in ("--merge_classes", *merge)]
    message = refusal(run, data, *words)
    assert message.startswith("--merge_classes")
    assert found in message
    assert not (data / "out.json").exists()


def test_wrong_merges_of_a_coco_file_are_found_before_images_are_read(data):
    run(data)
    (data / "out.json").rename(data / "theirs.json")
    (data / "train" / "a" / "image.tif").write_bytes(b"")
    merge = ["--merge_classes", "x", "tumour"]
    message = refusal(run, data, "--coco", str(data / "theirs.json"), *merge)
    assert '"tumour"' in message


def test_no_merges_change_nothing():
    merge = merge_classes(["b", "a"], [])
    assert [*merge.names] == [*merge.file_names] == ["b", "a"]
    assert merge.numbers == {1: 1, 2: 2}
    assert not merge.flags


@pytest.fixture
def merged(data):
    """A data folder with merged classes, and ground truth of one test image as in its training."""
    merge = ["--merge_classes", "even", "class4", "class2", "--merge_classes", "last", "class3"]
    assert annotation.main(["--data", str(data), *merge]) == 0
    (data / "test").mkdir()
    image = np.full((*SIZE, 3), 200, np.uint8)
    tifffile.imwrite(data / "test" / "t.tif", image, photometric="rgb")
    entry = {"file_name": "t.tif", "id": 7, "height": SIZE[0], "width": SIZE[1]}
    (data / "test_image_name_to_ids.json").write_text(json.dumps([entry]))
    (data / "test_masks" / "t").mkdir(parents=True)
    for number in (2, 3, 4):
        tifffile.imwrite(data / "test_masks" / "t" / f"class{number}.tif", square(number))
    return data


def test_ground_truth_in_a_folder_is_merged_as_the_training_images(merged, capsys):
    coco = read_ground_truth(merged / "test_masks", merged)
    assert class_names(coco) == ["class1", "even", "last"]
    assert cells(coco) == [("even", 4), ("even", 16), ("last", 9)]
    assert "class1, even (class2, class4), last (class3)" in capsys.readouterr().out


def test_results_with_merged_classes_are_scored(merged):
    """The ground truth as results: class 2 twice, class 3 once."""
    results = [
        {"image_id": 7, "category_id": k, "score": 0.9, "bbox": box, "segmentation": rle(mask)}
        for k, mask, box in (
            (2, square(2), [2, 0, 2, 2]),
            (2, square(4), [10, 0, 4, 4]),
            (3, square(3), [6, 0, 3, 3]),
        )
    ]
    (merged / "results.json").write_text(json.dumps(results))
    scores = merged / "scores.json"
    words = [merged / "results.json", "--data", merged, "--json", scores, "--resamples", 0]
    assert evaluate.main([*map(str, words)]) == 0
    metrics = json.loads(scores.read_text())["metrics"]
    for name in ("AP50@100", "PQ", "F1"):
        assert metrics[name]["mean of classes"]["value"] == 1


def test_ground_truth_that_may_be_merged_already(merged, caplog):
    read_ground_truth(merged / "test_masks", merged)
    assert "merged already" not in caplog.text
    (merged / "test_masks" / "t" / "class4.tif").unlink()
    read_ground_truth(merged / "test_masks", merged)
    assert "merged already" in caplog.text


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_merge_that_the_data_folder_does_not_know(merged, caplog, elsewhere):
    """Folders of ground truth can't be merged then, and cells of further classes are lost."""
    (merged / "train__annot.json").unlink()
    output = merged / ("out.json" if elsewhere else "train__annot.json")
    words = ["--data", merged, "--output", output, "--merge_classes", "all", *CLASS_NAMES]
    assert annotation.main([*map(str, words)]) == 0
    assert ("train__annot.json" in caplog.text) == elsewhere
    caplog.clear()
    results = merged / "results" / "test-results.json"
    results.parent.mkdir()
    entry = {"image_id": 7, "category_id": 1, "score": 0.9, "bbox": [2, 0, 2, 2]}
    results.write_text(json.dumps([entry | {"segmentation": rle(square(2))}]))
    results.with_name("test-results-classes.json").write_text('[{"id": 1, "name": "all"}]')
    assert evaluate.main([str(results), "--data", str(merged), "--resamples", "0"]) == 0
    lost = "3 cells of classes that"
    assert [lost in text for text in caplog.messages if "false negatives" in text] == (
        [True] if elsewhere else []
    )
    assert ("class2, class3, class4" in caplog.text) == elsewhere


def test_outlines_may_have_names_after_merging(merged):
    ring = [[[2, 0], [4, 0], [4, 2], [2, 2], [2, 0]]]
    for path in (merged / "test_masks" / "t").iterdir():
        path.unlink()
    for name, expected in (("even", "even"), ("class4", "even"), ("LAST", "last")):
        feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": ring}}
        feature["properties"] = {"classification": {"name": name}}
        (merged / "truth").mkdir(exist_ok=True)
        (merged / "truth" / "t.geojson").write_text(json.dumps([feature]))
        assert cells(read_ground_truth(merged / "truth", merged)) == [(expected, 4)]


@pytest.mark.parametrize(
    "record",
    [
        [],
        "even",
        {"file_names": ["a"], "numbers": [1, 2]},
        {"file_names": ["a", "b", "c"], "numbers": [1, 2, 2]},
        {"file_names": ["a", "b", "c"], "numbers": [1, [2], 3]},
        {"file_names": ["a", "b", "c"], "numbers": [1, 2, 4]},
        {"file_names": ["a", 5, "c"], "numbers": [1, 2, 3]},
    ],
)
def test_a_damaged_record_of_merges(merged, record):
    path = merged / "train__annot.json"
    coco = json.loads(path.read_text())
    coco["info"]["merged_classes"] = record
    path.write_text(json.dumps(coco))
    message = refusal(read_ground_truth, merged / "test_masks", merged)
    assert message.startswith(f"{path}: ")
    assert "merged_classes" in message

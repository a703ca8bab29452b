"""check_submission.py on files of any program."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

import check_submission
import evaluate
from cellseg.write import submission
from tests.read.refusal import refusal

RLE = {"size": [4, 6], "counts": "01g0"}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "test").mkdir(parents=True)
    listed = []
    for number in range(1, 8):
        (folder / "test" / f"{number}.tif").touch()
        listed.append({"file_name": f"{number}.tif", "id": number, "height": 4, "width": 6})
    (folder / "test_image_name_to_ids.json").write_text(json.dumps(listed))
    return folder


def submit(folder, *pairs):
    path = folder / "mine.json"
    entries = [
        {"image_id": image, "category_id": category, "segmentation": RLE, "score": 0.5}
        for image, category in pairs
    ]
    path.write_text(json.dumps(entries))
    return str(path)


def test_valid(data, tmp_path, capsys):
    path = submit(tmp_path, *((image, 4) for image in range(1, 8)))
    assert check_submission.main([path, "--data", str(data)]) == 0
    assert capsys.readouterr().out == f"{path}: valid, 7 detections in 7 images\n"


def test_many_slides_are_no_submission(data, tmp_path):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "manifest.csv").touch()
    message = refusal(check_submission.main, [str(tmp_path / "cohort"), "--data", str(data)])
    assert "cohort: holds many slides" in message
    assert "manifest.csv" in message


def test_images_without_detections_are_listed(data, tmp_path, capsys):
    path = submit(tmp_path, (1, 1), (1, 2), (3, 1), (4, 1), (5, 1), (6, 1))
    check_submission.main([path, "--data", str(data)])
    out = capsys.readouterr().out
    assert "valid, 6 detections in 7 images, 2 of them without detections (ids 2, 7)\n" in out
    path = submit(tmp_path, (7, 1))
    check_submission.main([path, "--data", str(data)])
    assert "6 of them without detections (ids 1, 2, 3, 4, 5…)" in capsys.readouterr().out


@pytest.mark.parametrize("block", [1, 2, 99])
def test_detections_that_occur_twice_are_valid_but_counted(
    data, tmp_path, capsys, monkeypatch, block
):
    """In the same block of the file or not; with another class or score it is none."""
    monkeypatch.setattr(submission, "_BLOCK", block)
    path = submit(tmp_path, (1, 1), (1, 1), (2, 1), (3, 4), (1, 1), (3, 1), (2, 1))
    assert check_submission.main([path, "--data", str(data)]) == 0
    out, err = capsys.readouterr()
    assert "valid, 7 detections in 7 images" in out
    assert f"{path}: detections whose class, mask and score are those of an earlier one" in err
    assert err.endswith(": 3, in 2 images: 1.tif, 2.tif\n")
    entries = json.loads(Path(path).read_text())
    entries[1]["score"], entries[4]["score"], entries[6]["category_id"] = 0.25, 0.75, 2
    Path(path).write_text(json.dumps(entries))
    assert check_submission.main([path, "--data", str(data)]) == 0
    assert capsys.readouterr().err == ""


def test_an_empty_list(data, tmp_path):
    """The server's pycocotools can't read one."""
    path = submit(tmp_path)
    message = refusal(check_submission.main, [path, "--data", str(data)])
    assert message.startswith(f"{path}: no detections")


def test_images_are_not_needed(data, tmp_path):
    path = submit(tmp_path, (1, 1))
    shutil.rmtree(data / "test")
    assert check_submission.main([path, "--data", str(data)]) == 0
    (data / "test_image_name_to_ids.json").write_text("[3]")
    assert "ids.json: not a valid" in refusal(check_submission.main, [path, "--data", str(data)])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"id": "2"}, 'id "2"'),
        ({"id": math.nan}, "id NaN"),
        ({"id": 1}, "id 1 occurs twice"),
        ({"id": -2}, "id -2"),
        ({"height": 0}, "height 0"),
        ({"height": None}, "height null"),
        ({"width": 6.0}, "width 6.0"),
        ({"file_name": "1.tif"}, "file_name 1.tif occurs twice"),
        ({"file_name": "test/2.tif"}, 'file_name "test/2.tif"'),
        ({"file_name": "..\\2.tif"}, "file_name"),
        ({"file_name": None}, "file_name null"),
    ],
)
def test_a_broken_test_list_is_refused_as_in_other_commands(data, tmp_path, change, expected):
    path, listed = submit(tmp_path, (1, 1)), data / "test_image_name_to_ids.json"
    entries = json.loads(listed.read_text())
    entries[1] |= change
    listed.write_text(json.dumps(entries))
    message = refusal(check_submission.main, [path, "--data", str(data)])
    assert message.startswith(f"{listed}: ")
    assert "entry 2: " in message
    assert expected in message
    argv = [path, "--data", str(data), "--truth", str(data / "test")]
    assert refusal(evaluate.main, argv) == message
    # Nor does it need the images for that.
    shutil.rmtree(data / "test")
    assert refusal(check_submission.main, [path, "--data", str(data)]) == message
    listed.write_text(json.dumps({"images": entries}))
    assert "no list" in refusal(check_submission.main, [path, "--data", str(data)])


def test_classes_of_the_annotations(data, tmp_path):
    path = submit(tmp_path, (1, 5))
    assert "category_id 5" in refusal(check_submission.main, [path, "--data", str(data)])
    coco = {
        "images": [{"id": 1, "file_name": "x.tif", "height": 1, "width": 1}],
        "annotations": [],
        "categories": [{"id": n, "name": f"class {n}"} for n in (2, 5)],
    }
    named = tmp_path / "named.json"
    named.write_text(json.dumps(coco))
    assert check_submission.main([path, "--data", str(data), "--annotations", str(named)]) == 0
    # Those in the data folder are the default.
    (data / "train__annot.json").write_text(json.dumps(coco))
    assert check_submission.main([path, "--data", str(data)]) == 0
    path = submit(tmp_path, (1, 1))
    assert "category_id 1" in refusal(check_submission.main, [path, "--data", str(data)])


def test_bad_input(data, tmp_path):
    path = submit(tmp_path, (1, 1))
    for argv, expected in (
        ([], "the following arguments are required: FILE"),
        ([str(tmp_path / "none.zip"), "--data", str(data)], "none.zip"),
        ([path, "--data", str(tmp_path / "nowhere")], "nowhere"),
        ([path, "--data", str(data), "--annotations", str(tmp_path / "no.json")], "no.json"),
        ([path, "--data", str(data), "--what"], "unrecognized arguments: --what"),
    ):
        assert expected in refusal(check_submission.main, argv)

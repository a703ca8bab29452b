"""Lists of images: files and folders, annotated images, the test list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cellseg.read.image_lists import (
    list_annotated_images,
    list_entry,
    list_image_files,
    read_test_list,
)
from cellseg.read.layout import TEST_LIST
from tests.read.refusal import refusal


def write(path, size=(4, 6), value=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


def test_files_and_folders(tmp_path):
    b, a = write(tmp_path / "folder" / "b.png"), write(tmp_path / "folder" / "a.tif")
    (tmp_path / "folder" / "notes.txt").touch()
    single = write(tmp_path / "z.jpg")
    listed = list_image_files([single, tmp_path / "folder"])
    assert [(image.id, image.path) for image in listed] == [(1, single), (2, a), (3, b)]
    assert list_entry(listed[0]) == {"file_name": str(single), "id": 1, "height": 4, "width": 6}


def test_label_maps_in_a_folder_are_no_images(tmp_path, caplog):
    kept = ["a.tif", "b_img.png", "c_masks.png", "d mask.tif.png"]
    for name in [*kept, "a_masks.tif", "b_masks.png", "a_cp_masks.png", "a_1.png"]:
        write(tmp_path / name)
    names = [image.path.name for image in list_image_files([tmp_path])]
    assert names == ["a.tif", "a_1.png", *kept[1:]]
    assert "3 label maps" in caplog.text
    assert "a_cp_masks.png, a_masks.tif, b_masks.png" in caplog.text
    (image,) = list_image_files([tmp_path / "a_masks.tif"])  # the user wants it
    assert image.path.name == "a_masks.tif"


def test_an_image_named_twice_is_listed_once(tmp_path, monkeypatch):
    a, b = write(tmp_path / "a.png"), write(tmp_path / "b.png")
    monkeypatch.chdir(tmp_path)
    twice = [a, tmp_path, b, a, tmp_path / ".." / tmp_path.name / "b.png"]
    listed = list_image_files(twice)
    assert [(image.id, image.path.name) for image in listed] == [(1, "a.png"), (2, "b.png")]


def test_file_names_are_absolute(tmp_path, monkeypatch):
    """The path for reading is that of the command line, for messages."""
    (tmp_path / "deep" / "work").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/work")
    outer, inner = write(tmp_path / "a.png"), write(tmp_path / "deep" / "a.png")
    monkeypatch.chdir(tmp_path / "link")
    words = ["../../a.png", "../a.png", str(tmp_path / "link" / ".." / "a.png")]
    listed = list_image_files([Path(word) for word in words])
    assert [image.file_name for image in listed] == [str(outer), str(inner)]
    assert [str(image.path) for image in listed] == words[:2]
    write(tmp_path / "link" / "b.png")
    (image,) = list_image_files([Path("b.png")])
    assert image.file_name == str(Path.cwd() / "b.png")


def test_nothing_to_list(tmp_path):
    message = refusal(list_image_files, [tmp_path / "nowhere.tif"])
    assert message.startswith(f"--images {tmp_path / 'nowhere.tif'}: no such file")
    assert "no images" in refusal(list_image_files, [tmp_path])


def test_test_list(cells):
    listed = read_test_list(cells)
    entries = json.loads((cells / "test_image_name_to_ids.json").read_text())
    assert [list_entry(image) for image in listed] == entries


def coco(path, *file_names):
    content = {
        "images": [
            {"id": n, "file_name": name, "height": 4, "width": 6}
            for n, name in enumerate(file_names, 5)
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "x"}],
    }
    path.write_text(json.dumps(content))
    return path


def test_annotated_images(tmp_path):
    file = coco(tmp_path / "c.json", "train/one/image.tif", "train/two/image.tif")
    listed = list_annotated_images(tmp_path, file)
    assert [image.id for image in listed] == [5, 6]
    assert listed[1].path == tmp_path / "train/two/image.tif"
    assert [image.id for image in list_annotated_images(tmp_path, file, ["two"])] == [6]
    message = refusal(list_annotated_images, tmp_path, file, ["one", "three"])
    assert message.startswith(f"{file}: has no image three")
    assert "--annotations" in message


def test_images_of_the_same_name(tmp_path):
    file = coco(tmp_path / "c.json", "a/x.png", "b/x.png")
    assert [i.id for i in list_annotated_images(tmp_path, file, ["b/x.png"])] == [6]


ENTRY = {"file_name": "a.tif", "id": 7, "height": 3, "width": 4}


def write_list(data, value):
    for name in ("a.tif", "b.tif"):
        write(data / "test" / name)
    (data / TEST_LIST).write_text(json.dumps(value))
    return data


def test_order_of_the_test_list(tmp_path):
    entries = [{**ENTRY, "file_name": "b.tif", "id": 9, "note": "ignored"}, ENTRY]
    images = read_test_list(write_list(tmp_path, entries))
    assert [(i.id, i.file_name, i.size) for i in images] == [
        (9, "b.tif", (3, 4)),
        (7, "a.tif", (3, 4)),
    ]
    assert [i.path for i in images] == [tmp_path / "test" / "b.tif", tmp_path / "test" / "a.tif"]


BAD_LISTS = {
    "an object": ({"a.tif": 1}, "no list of test images"),
    "empty": ([], "no list of test images"),
    "a bare name": (["a.tif"], "entry 1 is not an object"),
    "an id twice": ([ENTRY, {**ENTRY, "file_name": "b.tif"}], "id 7 occurs twice"),
    "a file twice": ([ENTRY, {**ENTRY, "id": 8}], "file_name a.tif occurs twice"),
    "a file that is not there": ([{**ENTRY, "file_name": "c.tif"}], "lists c.tif, not found"),
    "two such files": (
        [{**ENTRY, "file_name": "c.tif"}, {**ENTRY, "id": 1, "file_name": "d.tif"}],
        "lists c.tif and 1 more, not found",
    ),
}
BAD_LISTS |= {
    f"file_name {name!r}": ([{**ENTRY, "file_name": name}], "is not the name of a file")
    for name in (None, 3, "", ".", "..", "../a.tif", "/a.tif", "x/../a.tif", "..\\a.tif", "a\0")
}
BAD_LISTS |= {
    f"{key} {value!r}": ([{**ENTRY, key: value}], f"{key} {json.dumps(value)} of a.tif is not")
    for key, values in {
        "id": ["7", 7.0, None, True, -1, [7]],
        "height": [0, -3, 3.5, "3", None, True],
        "width": [0, {}],
    }.items()
    for value in values
}


@pytest.mark.parametrize(("value", "found"), BAD_LISTS.values(), ids=BAD_LISTS)
def test_a_broken_test_list(tmp_path, value, found):
    line = refusal(read_test_list, write_list(tmp_path, value))
    assert line.startswith(f"{tmp_path / TEST_LIST}: ")
    assert found in line


def test_a_missing_test_list_or_one_that_is_not_json(tmp_path):
    write(tmp_path / "test" / "a.tif")
    assert "no such file" in refusal(read_test_list, tmp_path)
    (tmp_path / TEST_LIST).write_text("[{")
    assert "not JSON" in refusal(read_test_list, tmp_path)
    (tmp_path / TEST_LIST).write_bytes(b"\xff\xfe\0")
    assert "not JSON" in refusal(read_test_list, tmp_path)

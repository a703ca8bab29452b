"""Which images are predicted, and how they are read ahead."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg.errors import InputError
from cellseg.predict import images as module
from cellseg.predict.images import (
    ListedImage,
    list_annotated_images,
    list_any_images,
    list_test_images,
    read_ahead,
)


def write(path, size=(4, 6), value=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


def test_files_and_folders(tmp_path):
    b, a = write(tmp_path / "folder" / "b.png"), write(tmp_path / "folder" / "a.tif")
    (tmp_path / "folder" / "notes.txt").touch()
    alone = write(tmp_path / "z.jpg")
    listed = list_any_images([alone, tmp_path / "folder"])
    assert [(image.id, image.path) for image in listed] == [(1, alone), (2, a), (3, b)]
    assert listed[0].entry() == {"file_name": str(alone), "id": 1, "height": 4, "width": 6}


def test_an_image_named_twice_is_listed_once(tmp_path, monkeypatch):
    a, b = write(tmp_path / "a.png"), write(tmp_path / "b.png")
    monkeypatch.chdir(tmp_path)
    twice = [a, tmp_path, b, a, tmp_path / ".." / tmp_path.name / "b.png"]
    listed = list_any_images(twice)
    assert [(image.id, image.path.name) for image in listed] == [(1, "a.png"), (2, "b.png")]


def test_nothing_to_list(tmp_path):
    with pytest.raises(InputError, match="no such file; an image or a folder is expected"):
        list_any_images([tmp_path / "nowhere.tif"])
    with pytest.raises(InputError, match="no image in it"):
        list_any_images([tmp_path])


def test_test_list(cells):
    listed = list_test_images(cells)
    entries = json.loads((cells / "test_image_name_to_ids.json").read_text())
    assert [image.entry() for image in listed] == entries


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
    with pytest.raises(InputError, match=r"c\.json: has no image three, which the run held out"):
        list_annotated_images(tmp_path, file, ["one", "three"])


def test_images_that_share_a_name(tmp_path):
    file = coco(tmp_path / "c.json", "a/x.png", "b/x.png")
    assert [i.id for i in list_annotated_images(tmp_path, file, ["b/x.png"])] == [6]


def test_damage_comes_in_its_place(tmp_path):
    good = ListedImage(1, "a", write(tmp_path / "a.png"), (4, 6))
    cut = write(tmp_path / "b.png", (50, 50))
    cut.write_bytes(cut.read_bytes()[:60])
    missing = ListedImage(3, "c", tmp_path / "c.png", None)
    other_size = ListedImage(4, "a", good.path, (6, 4))
    found = list(read_ahead([good, ListedImage(2, "b", cut, None), missing, other_size, good]))
    assert [image.id for image, _ in found] == [1, 2, 3, 4, 1]
    kinds = [isinstance(result, InputError) for _, result in found]
    assert kinds == [False, True, True, True, False]
    assert "4 x 6 pixels (height x width), but it is listed with 6 x 4" in str(found[3][1])
    pixels = found[0][1]
    assert isinstance(pixels, np.ndarray)
    assert np.array_equal(pixels, np.full((4, 6, 3), 7, np.uint8))


def test_no_images():
    assert list(read_ahead([])) == []


def test_the_next_image_is_read_meanwhile(monkeypatch):
    begun = [threading.Event() for _ in range(3)]

    def read(image):
        begun[image.id].set()
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(module, "_read", read)
    listed = [ListedImage(n, "", None, None) for n in range(3)]  # type: ignore[arg-type]
    steps = read_ahead(listed)
    next(steps)
    assert begun[1].wait(10)
    assert not begun[2].is_set()
    assert len(list(steps)) == 2


@pytest.mark.parametrize("mode", ["grey", "rgba", "16 bit", "one pixel"])
def test_read_as_training_reads(tmp_path, mode):
    path = tmp_path / "a.tif"
    grey = np.full((2, 3), 9, np.uint8)
    kinds: dict[str, np.ndarray] = {
        "grey": grey,
        "rgba": np.dstack([grey, grey, grey, 0 * grey]),
        "16 bit": np.full((2, 3, 3), 257 * 9, np.uint16),
        "one pixel": np.full((1, 1, 3), 9, np.uint8),
    }
    stored = kinds[mode]
    tifffile.imwrite(path, stored, photometric="minisblack" if mode == "grey" else "rgb")
    height, width = stored.shape[:2]
    ((_, pixels),) = read_ahead([ListedImage(1, "a", path, (height, width))])
    assert isinstance(pixels, np.ndarray)
    assert np.array_equal(pixels, np.full((height, width, 3), 9, np.uint8))

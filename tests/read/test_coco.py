"""Annotation files: written ones open in pycocotools, read ones are checked completely."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from cellseg.errors import InputError
from cellseg.files import write_json
from cellseg.read.coco import (
    AnnotatedImage,
    annotated_cells,
    build_coco,
    class_names,
    contiguous_classes,
    image_records,
    load_coco,
    select_images,
)
from cellseg.rle import label_map_to_runs
from tests.read.refusal import refusal

# pycocotools 2.0.11 warns of its own decoder.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def labels(*rows):
    return label_map_to_runs(np.array([[int(c) for c in row] for row in rows]))[1]


IMAGES = [
    AnnotatedImage(
        "train/a/image.tif",
        (3, 4),
        {1: labels("0110", "0110", "0003"), 2: labels(*["0" * 4] * 3)},
        Counter(),
    ),
    AnnotatedImage("train/b/image.tif", (1, 2), {}, Counter()),
    AnnotatedImage("train/c/image.tif", (2, 2), {2: labels("10", "01")}, Counter()),
]
# By hand: columns run down. "0110/0110/0003" has its cell 1 in rows 0 and 1 of columns 1
# and 2: 3 off, 2 on, 1 off, 2 on, 4 off; its cell 3 is the last pixel: 11 off, 1 on.
FIRST: dict[str, Any] = {
    "info": {"description": "Cells by class, one annotation a cell (annotation.py)"},
    "images": [
        {"id": 1, "file_name": "train/a/image.tif", "height": 3, "width": 4},
        {"id": 2, "file_name": "train/b/image.tif", "height": 1, "width": 2},
        {"id": 3, "file_name": "train/c/image.tif", "height": 2, "width": 2},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": {"size": [3, 4], "counts": "32103"},
            "area": 4,
            "bbox": [1, 0, 2, 2],
            "iscrowd": 0,
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 1,
            "segmentation": {"size": [3, 4], "counts": ";1"},
            "area": 1,
            "bbox": [3, 2, 1, 1],
            "iscrowd": 0,
        },
        {
            "id": 3,
            "image_id": 3,
            "category_id": 2,
            "segmentation": {"size": [2, 2], "counts": "0120"},
            "area": 2,
            "bbox": [0, 0, 2, 2],
            "iscrowd": 0,
        },
    ],
    "categories": [{"id": 1, "name": "pale"}, {"id": 2, "name": "dark"}],
}


def test_build_coco():
    assert build_coco(IMAGES, ["pale", "dark"]) == FIRST


def test_pycocotools_opens_it(tmp_path, capsys):
    write_json(tmp_path / "coco.json", build_coco(IMAGES, ["pale", "dark"]))
    coco = COCO(tmp_path / "coco.json")
    capsys.readouterr()
    assert sorted(coco.getImgIds()) == [1, 2, 3]
    assert coco.getAnnIds(imgIds=[2]) == []
    assert coco.annToMask(coco.loadAnns(1)[0]).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0] * 4]
    assert coco.annToMask(coco.loadAnns(3)[0]).tolist() == [[1, 0], [0, 1]]


def load(tmp_path, coco):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco))
    return load_coco(path)


def test_written_annotations_are_read_unchanged(tmp_path):
    coco = build_coco(IMAGES, ["pale", "dark"])
    assert load(tmp_path, coco) == coco


def test_any_category_ids_become_classes_in_their_order(tmp_path):
    coco = copy.deepcopy(FIRST)
    names = {90: "dark", 0: "pale", 7: "x"}
    coco["categories"] = [{"id": id_, "name": name} for id_, name in names.items()]
    for annotation in coco["annotations"]:
        annotation["category_id"] = {1: 0, 2: 90}[annotation["category_id"]]
    coco = load(tmp_path, coco)
    assert contiguous_classes(coco) == {0: 0, 7: 1, 90: 2}
    assert class_names(coco) == ["pale", "x", "dark"]


def changed(*path, to):
    """Return FIRST with the value at `path` changed, or removed if `to` is `...`."""
    coco = copy.deepcopy(FIRST)
    parent = coco
    for key in path[:-1]:
        parent = parent[key]
    if to is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = to
    return coco


def test_masks_as_lists_of_counts_and_as_polygons(tmp_path):
    coco = changed("annotations", 0, "segmentation", "counts", to=[3, 2, 1, 2, 4])
    assert load(tmp_path, coco) == FIRST
    # The same rectangle, and another part next to it, which makes an L.
    square, corner = [1, 0, 3, 0, 3, 2, 1, 2], [0, 2, 1, 2, 1, 3, 0, 3]
    assert load(tmp_path, changed("annotations", 0, "segmentation", to=[square])) == FIRST
    both = load(tmp_path, changed("annotations", 0, "segmentation", to=[square, corner]))
    annotation = both["annotations"][0]
    mask = pycocotools.mask.decode(annotation["segmentation"])
    assert mask.tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0]]
    assert (annotation["area"], annotation["bbox"]) == (5, [0, 0, 3, 3])


def test_area_and_box_are_those_of_the_mask_not_of_the_file(tmp_path):
    for coco in (
        changed("annotations", 0, "bbox", to=[1.0, 0.0, 3.0, 2.0]),  # XYXY by mistake
        changed("annotations", 0, "bbox", to=...),
        changed("annotations", 0, "area", to=3.7),
        changed("annotations", 0, "area", to=...),
        *(changed("annotations", 0, "bbox", to=bbox) for bbox in ([], [3, 2, -1, 1], None, "0")),
        *(changed("annotations", 0, "area", to=area) for area in ("12", -1, math.nan, None)),
        *(changed("annotations", 0, "iscrowd", to=crowd) for crowd in (..., False, None)),
    ):
        assert load(tmp_path, coco) == FIRST


def test_forms_of_iscrowd(tmp_path):
    for crowd in (1, True):
        (annotation, *_) = load(tmp_path, annotation_with("iscrowd", crowd))["annotations"][1:]
        assert annotation["iscrowd"] is not True
        assert annotation["iscrowd"] == 1


def test_micrometres_per_pixel_are_kept(tmp_path):
    coco = load(tmp_path, changed("images", 0, "mpp", to=0.25))
    assert [image.mpp for image in image_records(coco, tmp_path)] == [0.25, None, None]
    images = annotated_cells(coco, tmp_path, ["a", "b", "c"])
    assert [image.mpp for image in images] == [0.25, None, None]


def test_a_file_without_annotations_is_read(tmp_path):
    assert load(tmp_path, changed("annotations", to=[]))["annotations"] == []


def annotation_with(key, value):
    return changed("annotations", 1, key, to=value)


BAD = {
    "a list": ([FIRST], "not COCO (a list"),
    "results": ([{"image_id": 1}], "not COCO (a list"),
    "null": (None, "not COCO (null"),
    "no images": (changed("images", to=...), 'not COCO (no list "images")'),
    "images an object": (changed("images", to={}), 'not COCO (no list "images")'),
    "no annotations": (changed("annotations", to=...), 'not COCO (no list "annotations")'),
    "no categories": (changed("categories", to=...), 'not COCO (no list "categories")'),
    "empty images": (changed("images", to=[]), '"images" is empty'),
    "empty categories": (changed("categories", to=[]), '"categories" is empty'),
    "an image a text": (changed("images", 1, to="b.tif"), 'entry 2 of "images" is not an object'),
    "an id a text": (changed("images", 0, "id", to="1"), 'entry 1 of "images" is not an object'),
    "an id true": (changed("images", 0, "id", to=True), 'entry 1 of "images" is not an object'),
    "an image id twice": (changed("images", 1, "id", to=1), "id in images 1 occurs twice"),
    "an annotation id twice": (annotation_with("id", 1), "id in annotations 1 occurs twice"),
    "a category id twice": (changed("categories", 1, "id", to=1), "id in categories 1 occurs"),
    **{
        f"mpp {mpp!r}": (changed("images", 0, "mpp", to=mpp), "image 1: mpp")
        for mpp in (0, -1, "abc", 250, True)
    },
    "a file twice": (
        changed("images", 1, "file_name", to="train/a/image.tif"),
        'file_name "train/a/image.tif" occurs twice',
    ),
    "a name twice": (changed("categories", 1, "name", to="pale"), "name 'pale' occurs twice"),
    "no file_name": (changed("images", 0, "file_name", to=...), "image 1: file_name null is not"),
    "a blank file_name": (changed("images", 0, "file_name", to=" "), 'image 1: file_name " " is'),
    "height 0": (changed("images", 0, "height", to=0), "image 1: height 0 is not"),
    "width 4.5": (changed("images", 0, "width", to=4.5), "image 1: width 4.5 is not"),
    "too wide": (changed("images", 0, "width", to=10**9), "image 1: width 1000000000 is not"),
    "no name": (changed("categories", 0, "name", to=3), "category 1: name 3 is not a name"),
    "an unknown image": (annotation_with("image_id", 9), "annotation 2: image_id 9 is not in"),
    "image_id a list": (annotation_with("image_id", [1]), "annotation 2: image_id [1] is not in"),
    "an unknown category": (annotation_with("category_id", 3), "category_id 3 is not in the file"),
    "no category": (annotation_with("category_id", ...), "category_id null is not in the file"),
    "iscrowd a text": (annotation_with("iscrowd", "0"), 'annotation 2: iscrowd "0" is not 0'),
    "iscrowd 2": (annotation_with("iscrowd", 2), "annotation 2: iscrowd 2 is not 0 or 1"),
}
SEGMENTATIONS = {
    "none": (None, "no segmentation"),
    "a text": (";1", 'segmentation ";1" is neither an RLE'),
    "no polygon": ([], "no segmentation"),
    "a flat polygon": ([0, 0, 1, 0, 1, 1], "segmentation [0, 0, 1, 0, 1, 1] is neither an RLE"),
    "two corners": ([[0, 0, 1, 1]], "annotation 2: polygon of fewer than 3 points"),
    "half a corner": ([[0, 0, 1, 0, 1, 1, 0]], "is neither an RLE"),
    "a polygon of text": ([["0"] * 6], "is neither an RLE"),
    "a polygon far away": ([[0, 0, 1e12, 0, 1, 1]], "is neither an RLE"),
    "a polygon without a pixel": ([[0, 0, 0, 0, 0, 0]], "annotation 2: empty mask"),
    "no size": ({"counts": ";1"}, "size null in an image of [3, 4]"),
    "another size": ({"size": [4, 3], "counts": ";1"}, "size [4, 3] in an image of [3, 4]"),
    "no counts": ({"size": [3, 4]}, "is neither an RLE"),
    "counts of text": ({"size": [3, 4], "counts": ["12"]}, "is neither an RLE"),
    "a count below 0": ({"size": [3, 4], "counts": [-1, 13]}, "is neither an RLE"),
    "counts too few": ({"size": [3, 4], "counts": [3, 4]}, "7 pixels in an image of [3, 4]"),
    "a broken RLE": ({"size": [3, 4], "counts": ";2"}, "broken mask (the counts don't add up"),
    "letters": ({"size": [3, 4], "counts": ";ü"}, "broken mask (the counts are not a COCO RLE"),
    "no pixel": ({"size": [3, 4], "counts": "<"}, "annotation 2: empty mask"),
}
BAD |= {
    f"segmentation: {name}": (annotation_with("segmentation", value), found)
    for name, (value, found) in SEGMENTATIONS.items()
}


@pytest.mark.parametrize(("coco", "found"), BAD.values(), ids=BAD)
def test_a_broken_file(tmp_path, coco, found):
    line = refusal(load, tmp_path, coco)
    assert line.startswith(f"{tmp_path / 'coco.json'}: ")
    assert found in line


def test_a_missing_file_or_one_that_is_not_json(tmp_path):
    path = tmp_path / "coco.json"
    for content, found in ((None, "no such file"), (b"{", "not JSON"), (b"\xff", "not JSON")):
        if content is not None:
            path.write_bytes(content)
        message = refusal(load_coco, path)
        assert found in message
        assert "annotation.py" in message
    assert "can't be read" in refusal(load_coco, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
PLACES = [
    ("images",), ("annotations",), ("categories",), ("images", 0), ("annotations", 0),
    ("categories", 0), ("images", 0, "id"), ("images", 0, "height"), ("images", 0, "file_name"),
    ("annotations", 0, "id"), ("annotations", 0, "image_id"), ("annotations", 0, "category_id"),
    ("annotations", 0, "segmentation"), ("annotations", 0, "segmentation", "size"),
    ("annotations", 0, "segmentation", "counts"), ("annotations", 0, "area"),
    ("annotations", 0, "bbox"), ("annotations", 0, "iscrowd"), ("categories", 0, "id"),
    ("categories", 0, "name"),
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_any_value_anywhere_is_read_or_an_input_error(tmp_path_factory, place, value):
    try:
        coco = load(tmp_path_factory.getbasetemp(), changed(*place, to=value))
    except InputError:
        return
    for annotation in coco["annotations"]:
        rle = annotation["segmentation"]
        assert annotation["area"] == pycocotools.mask.decode(rle).sum() > 0
        assert isinstance(rle["counts"], str)


def test_some_of_the_images():
    coco = build_coco(IMAGES, ["a", "b"])
    some = select_images(coco, {1, 2})
    assert [image["id"] for image in some["images"]] == [1, 2]
    assert [a["id"] for a in some["annotations"]] == [1, 2]
    assert some["categories"] == coco["categories"]
    assert len(coco["images"]) == 3
    assert select_images(coco, set())["annotations"] == []

"""Cells from label maps: masks are those of pycocotools, invalid labels are errors."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cellseg.read.annotate import annotate_image
from cellseg.read.brightness import DARK_TEXT
from cellseg.read.cell_checks import count_overlap_pixels
from cellseg.read.coco import build_coco
from cellseg.read.layout import read_train_folder
from cellseg.read.train_files import list_train_images
from cellseg.rle import MaskRuns, label_map_to_runs
from tests.read.refusal import refusal

TISSUE = Path(
    os.environ.get(
        "CELLSEG_TISSUE", Path(__file__).resolve().parents[3] / "shared" / "data" / "tissue"
    )
)


def write_image(folder, classes, size=(6, 8), brightness=200):
    folder.mkdir(parents=True)
    image = np.full((*size, 3), brightness, np.uint8)
    tifffile.imwrite(folder / "image.tif", image, photometric="rgb")
    for number, labels in classes.items():
        tifffile.imwrite(folder / f"class{number}.tif", labels)
    return folder


def annotate(folder, n_classes=4):
    return annotate_image(read_train_folder(folder, n_classes))


def paint(size, *boxes):
    """Return a float64 label map with boxes (value, top, bottom, left, right) painted in."""
    labels = np.zeros(size)
    for value, top, bottom, left, right in boxes:
        labels[top:bottom, left:right] = value
    return labels


def expected_annotations(folder, n_classes=4):
    """Yield the expected annotations, with one comparison and one pycocotools mask per cell."""
    for number in range(1, n_classes + 1):
        path = folder / f"class{number}.tif"
        if not path.exists():
            continue
        labels = tifffile.imread(path)
        for value in np.unique(labels[labels != 0]):
            mask = np.asfortranarray(labels == value).astype(np.uint8, order="F")
            rle = pycocotools.mask.encode(mask)
            yield {
                "category_id": number,
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                "area": int(pycocotools.mask.area(rle)),
                "bbox": pycocotools.mask.toBbox(rle).tolist(),
                "iscrowd": 0,
            }


def check(folders, n_classes=4):
    coco = build_coco([annotate(f, n_classes) for f in folders], list("abcd")[:n_classes])
    annotations = [
        {**annotation, "image_id": image_id}
        for image_id, folder in enumerate(folders, 1)
        for annotation in expected_annotations(folder, n_classes)
    ]
    expected = [{"id": n, **annotation} for n, annotation in enumerate(annotations, 1)]
    assert coco["annotations"] == expected
    return coco


def test_masks_of_real_tissue_are_those_of_pycocotools():
    if not TISSUE.is_dir():
        pytest.skip(f"no real tissue in {TISSUE}; set CELLSEG_TISSUE")
    folders = [source.place for source in list_train_images(TISSUE)[0][::6]]
    coco = check(folders)
    assert len(coco["annotations"]) > 1000


def test_cells_that_touch_are_in_pieces_or_have_holes(tmp_path):
    touching = paint((6, 8), (1, 0, 3, 0, 4), (2, 0, 3, 4, 8), (5, 3, 6, 0, 8))
    pieces = paint((6, 8), (9, 0, 1, 0, 1), (9, 5, 6, 7, 8), (7, 1, 5, 2, 7), (0, 2, 4, 3, 5))
    folder = write_image(tmp_path / "x", {1: touching, 3: pieces})
    image = annotate(folder)
    assert [len(cells) for cells in image.cells.values()] == [3, 2]
    check([folder])


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
        lambda size: st.dictionaries(
            st.integers(1, 4), arrays(np.uint8, size, elements=st.integers(0, 6)), max_size=4
        ).map(lambda classes: (size, classes))
    ),
    st.sampled_from(["f8", "f4", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"]),
)
def test_any_label_maps_of_any_type(tmp_path_factory, case, dtype):
    size, classes = case
    classes = {number: labels.astype(dtype) for number, labels in classes.items()}
    folder = write_image(tmp_path_factory.mktemp("any") / "x", classes, size)
    check([folder])
    masks = [labels > 0 for labels in classes.values()]
    twice = sum(masks, np.zeros(size, int)) >= 2
    assert annotate(folder).warnings["pixels in two cells"] == twice.sum()


def test_images_without_cells_are_kept(tmp_path):
    none = annotate(write_image(tmp_path / "none", {}))
    blank = annotate(write_image(tmp_path / "blank", {2: np.zeros((6, 8))}))
    assert none.cells == {}
    assert none.size == (6, 8)
    assert none.warnings == Counter({"images without cells": 1})
    assert blank.warnings == Counter({"images without cells": 1, "class files without cells": 1})
    coco = build_coco([none, blank], ["a", "b", "c", "d"])
    assert [image["file_name"] for image in coco["images"]] == [
        "train/none/image.tif",
        "train/blank/image.tif",
    ]
    assert coco["annotations"] == []


def test_a_binary_mask_gives_a_warning(tmp_path):
    """If one label is used for all cells, separate labels have probably been lost."""
    boxes = [(0, 2, 0, 2), (4, 6, 0, 2), (2, 4, 4, 6)]
    numbered = paint((6, 8), *((n, *box) for n, box in enumerate(boxes, 1)))
    touching = paint((6, 8), *((1, *box) for box in boxes), (1, 2, 4, 2, 3))  # at corners
    cut = paint((6, 8), *((1, *box) for box in boxes[:2]))  # by another cell, perhaps
    masks = {"bool": numbered > 0, "numbered": numbered, "touching": touching, "cut": cut}
    for n, (name, labels) in enumerate(masks.items()):
        warnings = annotate(write_image(tmp_path / str(n), {1: labels})).warnings
        assert any("in several pieces" in what for what in warnings) == (name == "bool"), name


def test_warnings_are_counted(tmp_path):
    big = paint((6, 8), (1, 0, 6, 0, 2), (2, 0, 6, 2, 4))  # two cells of 12 pixels
    other = paint((6, 8), (2, 0, 6, 3, 5), (4, 0, 2, 6, 8))  # of 12 and 4
    folder = write_image(tmp_path / "x", {1: big, 4: other}, brightness=16)
    (folder / "notes.txt").write_text("")
    assert annotate(folder).warnings == Counter(
        {
            "pixels in two cells": 6,
            "labels used in two class files of an image": 1,
            "cells of at most 10 pixels": 1,
            DARK_TEXT: 1,
            "unexpected files (.txt), ignored": 1,
        }
    )


def test_classes_that_are_each_numbered_from_1(tmp_path):
    """Only cells of one number that touch, at a side or a corner, may be one cell."""
    one = paint((6, 8), (1, 0, 2, 0, 2), (2, 0, 2, 6, 8), (3, 4, 6, 0, 2), (4, 5, 6, 5, 6))
    apart = paint((6, 8), (1, 0, 2, 3, 5), (3, 4, 6, 3, 5), (2, 4, 5, 6, 7))
    side, corner = paint((6, 8), (1, 0, 2, 2, 5)), paint((6, 8), (1, 2, 3, 2, 3))
    around = paint((6, 8), (2, 3, 6, 3, 8))  # in one box, but the corner of the other cell
    around[3:, 4:] = 0
    text = "labels used in two class files of an image"
    for n, (others, expected) in enumerate(
        [([apart], 0), ([side], 1), ([corner], 1), ([around], 0), ([side, corner], 2)]
    ):
        folder = write_image(tmp_path / str(n), {1: one, **dict(enumerate(others, 2))})
        assert annotate(folder).warnings[text] == expected, n


@pytest.mark.parametrize(("top", "bits"), [(4095, 12), (65535, 16)])
def test_12_bits_in_16_are_read_as_such_and_said(tmp_path, top, bits):
    folder = write_image(tmp_path / "x", {1: paint((6, 8), (1, 0, 6, 0, 8))})
    tifffile.imwrite(folder / "image.tif", np.full((6, 8, 3), top, np.uint16), photometric="rgb")
    warnings = annotate(folder).warnings
    assert [what for what in warnings if "16 bits" in what] == [
        f"images with {bits}-bit values in 16 bits, scaled to that range"
    ] * (bits < 16)
    assert DARK_TEXT not in warnings


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(np.nan, "f8"), (np.inf, "f4"), (-np.inf, "f8"), (-1.0, "f8"), (2.5, "f4"), (-3, "i2")],
)
def test_an_invalid_label_is_named_with_its_position(tmp_path, value, dtype):
    labels = paint((6, 8), (1, 0, 2, 0, 8)).astype(dtype)
    labels[4, 5] = value
    folder = write_image(tmp_path / "x", {2: labels})
    line = refusal(annotate, folder)
    assert line.startswith(f"{folder / 'class2.tif'}: label {value} in row 4, column 5")


def test_a_label_map_of_another_size(tmp_path):
    folder = write_image(tmp_path / "x", {1: np.zeros((8, 6))})
    assert "class1.tif: 8 x 6 (height x width), expected 6 x 8" in refusal(annotate, folder)


def test_an_image_too_long_for_coco(tmp_path):
    annotate(write_image(tmp_path / "just", {}, (1, 65535)))
    folder = write_image(tmp_path / "over", {}, (1, 65536))
    assert "1 x 65536 pixels (height x width), expected at most 65535" in refusal(annotate, folder)


def test_pixels_in_three_masks_count_once():
    masks = [
        label_map_to_runs(paint((4, 4), box))[1]
        for box in ((1, 0, 4, 0, 2), (1, 0, 2, 0, 4), (1, 0, 1, 0, 1))
    ]
    # A half, a half across it, and a corner of both: four pixels in common.
    assert count_overlap_pixels(masks) == 4
    assert count_overlap_pixels(masks[:1]) == 0
    assert count_overlap_pixels([]) == 0
    empty = np.zeros(0, np.int64)
    assert count_overlap_pixels([MaskRuns((4, 4), empty, empty, np.zeros(1, np.int64))]) == 0

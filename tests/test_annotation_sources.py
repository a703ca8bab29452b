"""annotation.py on annotations of other programs: GeoJSON, ImageScope XML and COCO."""

from __future__ import annotations

import contextlib
import json
import shlex

import numpy as np
import PIL.Image
import pycocotools.mask
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import annotation
import export
from cellseg.errors import InputError
from cellseg.learn.samples import load_training_data
from cellseg.read.foreign_coco import read_coco_images
from cellseg.read.ground_truth import read_ground_truth
from cellseg.rle import decode
from tests.read.refusal import refusal
from tests.read.test_coco import JSON
from tests.read.test_coco import PLACES as COCO_PLACES
from tests.score.scoring_cases import rle

LABELS = np.array([[1, 1, 0, 0, 2, 0], [1, 1, 0, 0, 2, 2], [0, 0, 0, 0, 0, 0], [3, 0, 3, 0, 0, 0]])
XML = (
    '<Annotations><Annotation><Attributes><Attribute Name="Neutrophil"/></Attributes><Regions>'
    '<Region><Vertices><Vertex X="1" Y="0"/><Vertex X="3" Y="0"/><Vertex X="3" Y="2"/>'
    '<Vertex X="1" Y="2"/></Vertices></Region></Regions></Annotation></Annotations>'
)


def write_image(path, size=(4, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.full((*size, 3), 200, np.uint8), photometric="rgb")


def write_train(data, name="a", size=(4, 6), **files):
    folder = data / "train" / name
    write_image(folder / "image.tif", size)
    for file_name, content in files.items():
        (folder / file_name.replace("__", ".")).write_text(content)
    return folder


def run(data, *more):
    output = data / "out.json"
    words = ["--data", str(data), "--output", str(output), "--jobs", "1"]
    assert annotation.main([*words, *more]) == 0
    return json.loads(output.read_text())


def refused(data, *more):
    message = refusal(run, data, *more)
    assert not (data / "out.json").exists()
    return message


def coco_of(segmentation, **more):
    return {
        "images": [{"id": 5, "file_name": "pictures/a.tif", "height": 4, "width": 6}],
        "categories": [{"id": 30, "name": "late"}, {"id": 20, "name": "early"}],
        "annotations": [
            {"id": 8, "image_id": 5, "category_id": 30, "segmentation": segmentation, **more}
        ],
    }


def write_coco(data, value):
    path = data / "theirs.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return ["--coco", str(path)]


# ------------------------------------------------------------------ GeoJSON and XML


@settings(deadline=None, max_examples=25)
@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 6))
)
def test_label_maps_and_their_geojson_give_the_same_annotations(tmp_path_factory, labels):
    data = tmp_path_factory.mktemp("data")
    folder = write_train(data, size=labels.shape)
    for number in (1, 2, 3):
        # Classes 1 to 3 have the labels 1 and 2, 3 and 4, 5 and 6.
        tifffile.imwrite(
            folder / f"class{number}.tif",
            np.where((labels + 1) // 2 == number, labels, 0).astype(np.float64),
        )
    before = run(data)
    export.main([str(data / "out.json"), "--data", str(data), "--format", "geojson"])
    for path in folder.glob("class*.tif"):
        path.unlink()
    (data / "export" / "geojson" / "a.geojson").rename(folder / "a.geojson")
    assert run(data) == before


@pytest.mark.parametrize("name", ["image.geojson", "a.geojson", "annotations.GeoJSON"])
def test_geojson_of_any_name(tmp_path, name):
    folder = write_train(tmp_path)
    (folder / name).write_text("[]")
    assert run(tmp_path)["annotations"] == []


def test_imagescope_xml(tmp_path, capsys):
    write_train(tmp_path, image__xml=XML)
    (cell,) = run(tmp_path)["annotations"]
    assert (cell["category_id"], cell["bbox"], cell["area"]) == (3, [1, 0, 3, 3], 9)
    assert cell["segmentation"] == rle([[0, 1, 1, 1, 0, 0]] * 3 + [[0] * 6])
    assert "3 class3       1          1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("attribute", "mpp"),
    [
        ('MicronsPerPixel="0.252000"', 0.252),
        ("SlideWidth='9'\n MicronsPerPixel = '0,5'", 0.5),
        ('MicronsPerPixel="0.000000"', None),
        ('MicronsPerPixel="353"', None),
        ('MicronsPerPixel=""', None),
        ('Note="MicronsPerPixel"', None),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_resolution_that_imagescope_says(tmp_path, attribute, mpp, encoding):
    """It counts if the image doesn't say it, and nobody states it."""
    text = XML.replace("<Annotations>", f"<Annotations {attribute}>")
    for name in "ab":
        write_train(tmp_path, name)
        (tmp_path / "train" / name / "cells.xml").write_text(text, encoding)
    tifffile.imwrite(
        tmp_path / "train" / "b" / "image.tif", np.full((4, 6, 3), 200, np.uint8),
        photometric="rgb", resolution=(10_000, 10_000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    assert [image.get("mpp") for image in run(tmp_path)["images"]] == [mpp, 1.0]
    assert [image["mpp"] for image in run(tmp_path, "--mpp", "0.3")["images"]] == [0.3, 0.3]


def test_class_names_of_outlines(tmp_path):
    write_train(tmp_path, image__xml=XML)
    coco = run(tmp_path, "--class_names", "other", "NEUTROPHIL")
    assert coco["annotations"][0]["category_id"] == 2
    (tmp_path / "out.json").unlink()
    text = refused(tmp_path, "--class_names", "other", "lymphocyte")
    assert "region 1 has class 'Neutrophil', expected one of other, lymphocyte" in text


def test_images_with_different_types_of_annotations(tmp_path):
    write_train(tmp_path, "a", image__xml=XML)
    write_train(tmp_path, "b", b__geojson="[]")
    tifffile.imwrite(write_train(tmp_path, "c") / "class1.tif", LABELS.astype(np.float64))
    assert [cell["image_id"] for cell in run(tmp_path)["annotations"]] == [1, 3, 3, 3]


def test_an_image_with_two_types_of_annotations(tmp_path):
    folder = write_train(tmp_path, image__xml=XML, image__geojson="[]")
    assert "image.geojson and image.xml both contain annotations" in refused(tmp_path)
    (folder / "image.xml").unlink()
    tifffile.imwrite(folder / "class1.tif", LABELS)
    assert "image.geojson and class1.tif both contain annotations" in refused(tmp_path)


def test_warnings_are_printed(tmp_path, capsys):
    text = XML.replace("<Regions>", "<Regions><Region><Vertices/></Region>")
    write_train(tmp_path, image__xml=text)
    run(tmp_path)
    err = capsys.readouterr().err
    assert "outlines of fewer than 3 points, ignored: 1, in 1 image: a" in err
    assert "warning: cells of at most 10 pixels: 1, in 1 image: a" in err


def test_skip_bad_skips_broken_outlines(tmp_path, capsys):
    write_train(tmp_path, "a", image__xml=XML)
    write_train(tmp_path, "b", image__xml=XML[:-5])
    assert "image.xml: not XML" in refused(tmp_path)
    assert len(run(tmp_path, "--skip_bad")["images"]) == 1
    assert "skipped: " in capsys.readouterr().err


# ------------------------------------------------------------------ COCO

HOOK = np.array([[0] * 6, [0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0] * 6])
BOX = np.array([[0] * 6, [0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0] * 6])


@pytest.mark.parametrize(
    ("segmentation", "mask"),
    [
        (rle(HOOK), HOOK),
        ({"size": [4, 6], "counts": [5, 2, 2, 1, 3, 1, 10]}, HOOK),
        ([[1, 1, 4, 1, 4, 3, 1, 3]], BOX),
        ([[1, 1, 4, 1, 4, 2, 1, 2], [1, 2, 4, 2, 4, 3, 1, 3]], BOX),
    ],
)
def test_coco_masks_of_every_form(tmp_path, segmentation, mask):
    write_image(tmp_path / "pictures" / "a.tif")
    coco = run(tmp_path, *write_coco(tmp_path, coco_of(segmentation, area=3, bbox=[0, 0, 1, 1])))
    assert coco["images"] == [{"id": 1, "file_name": "pictures/a.tif", "height": 4, "width": 6}]
    assert coco["categories"] == [{"id": 1, "name": "early"}, {"id": 2, "name": "late"}]
    (cell,) = coco["annotations"]
    assert cell["segmentation"] == rle(mask)
    assert (cell["id"], cell["image_id"], cell["category_id"]) == (1, 1, 2)
    assert cell["area"] == mask.sum() == pycocotools.mask.area(cell["segmentation"])
    assert cell["bbox"] == pycocotools.mask.toBbox(cell["segmentation"]).tolist()


def test_its_own_file_is_read_back_unchanged(tmp_path):
    for name in "ba":
        tifffile.imwrite(write_train(tmp_path, name) / "class2.tif", LABELS.astype(np.float64))
    before = run(tmp_path)
    own = tmp_path / "theirs.json"
    (tmp_path / "out.json").rename(own)
    shuffled = {**before, "images": before["images"][::-1]}
    own.write_text(json.dumps(shuffled))
    assert run(tmp_path, "--coco", str(own)) == before


def test_overlapping_cells_of_one_class_give_a_warning(tmp_path, capsys):
    write_image(tmp_path / "pictures" / "a.tif")
    value = coco_of(rle(BOX))
    value["annotations"].append({**value["annotations"][0], "id": 9, "segmentation": rle(HOOK)})
    assert len(run(tmp_path, *write_coco(tmp_path, value))["annotations"]) == 2
    assert "pixels in two cells: 4, in 1 image: pictures/a.tif" in capsys.readouterr().err


def crowd_coco(*areas, crowds=(), size=(200, 300), parts=1):
    """Return a file with squares of one category, in rows; those in `crowds` are crowd regions."""
    value = coco_of(None)
    value["images"][0] |= {"height": size[0], "width": size[1]}
    annotations, left = [], 0
    for n, area in enumerate(areas):
        mask, side = np.zeros(size, int), round(area**0.5)
        mask[:side, left : left + side] = 1
        if n in crowds and parts == 2:
            mask[-side:, -side:] = 1
        left += side
        annotations.append(
            {**value["annotations"][0], "id": n + 1, "segmentation": rle(mask)}
            | {"iscrowd": int(n in crowds)}
        )
    return {**value, "annotations": annotations}


@pytest.mark.parametrize("crowds", [range(6), range(3), [0]])
def test_single_cells_that_are_marked_as_crowds_are_used(tmp_path, capsys, crowds):
    write_image(tmp_path / "pictures" / "a.tif", (200, 300))
    value = crowd_coco(400, 100, 196, 225, 256, 900, crowds=crowds)
    coco = run(tmp_path, *write_coco(tmp_path, value))
    assert [cell["area"] for cell in coco["annotations"]] == [400, 100, 196, 225, 256, 900]
    assert {cell["iscrowd"] for cell in coco["annotations"]} == {0}
    err = capsys.readouterr().err
    assert f"used as cells: {len(crowds)}, in 1 image: pictures/a.tif" in err
    assert "ignored" not in err


@pytest.mark.parametrize("parts", [1, 2])
def test_crowds_of_many_cells_are_not_used(tmp_path, capsys, parts):
    """A region of 40 cells, or one in two places far apart."""
    write_image(tmp_path / "pictures" / "a.tif", (200, 300))
    value = crowd_coco(225, 225, 9025 if parts == 1 else 225, crowds=[2], parts=parts)
    coco = run(tmp_path, *write_coco(tmp_path, value))
    assert [cell["area"] for cell in coco["annotations"]] == [225, 225]
    assert "crowd regions (iscrowd), ignored: 1, in 1 image" in capsys.readouterr().err


def test_scoring_and_training_keep_crowds_but_warn(tmp_path, capsys):
    """They read a file as COCO defines it; one crowd region is as large as many cells."""
    path = tmp_path / "theirs.json"
    value = crowd_coco(225, 225, 225, 9025, crowds=[1, 2, 3])
    path.write_text(json.dumps(value))
    for load in (read_ground_truth, lambda path, data: load_training_data(data, path).coco):
        write_image(tmp_path / "pictures" / "a.tif", (200, 300))
        assert [a["iscrowd"] for a in load(path, tmp_path)["annotations"]] == [0, 1, 1, 1]
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path}: 2 crowd regions" in line
        assert "annotation.py --coco" in line
    path.write_text(json.dumps(crowd_coco(225, 225, 9025, crowds=[2])))
    read_ground_truth(path, tmp_path)
    assert capsys.readouterr().err == ""


def test_scoring_and_training_use_cells_that_occur_twice_once(tmp_path, capsys):
    """An RLE, a polygon and a crowd region; the same mask as a crowd or of another class stays."""
    path = tmp_path / "theirs.json"
    write_image(tmp_path / "pictures" / "a.tif", (200, 300))
    value = crowd_coco(225, 225, 9025, crowds=[2])
    value["annotations"][1]["segmentation"] = [[20, 20, 35, 20, 35, 35, 20, 35]]
    once = value["annotations"]
    value["annotations"] = [
        *once,
        *({**annotation, "id": annotation["id"] + 10} for annotation in once),
        {**once[0], "id": 21, "category_id": 20},
        {**once[0], "id": 22, "iscrowd": 1},
    ]
    path.write_text(json.dumps(value))
    for load in (read_ground_truth, lambda path, data: load_training_data(data, path).coco):
        assert [a["id"] for a in load(path, tmp_path)["annotations"]] == [1, 2, 3, 21, 22]
        line = capsys.readouterr().err.splitlines()[0]
        assert f"{path}: " in line
        assert "used once: 3, in 1 image: pictures/a.tif" in line
    path.write_text(json.dumps({**value, "annotations": once}))
    read_ground_truth(path, tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("is_traced", [False, True])
def test_scoring_warns_of_polygons_through_centres(tmp_path, capsys, is_traced):
    value, path = many(), tmp_path / "theirs.json"
    for cell in value["annotations"]:
        left, top = cell["segmentation"][0][:2]
        side = 7 if is_traced else 8  # as findContours of the 8 x 8 pixels
        cell |= {"segmentation": [box(left, top, side)], "area": 64}
    path.write_text(json.dumps(value))
    areas = {cell["area"] for cell in read_ground_truth(path, tmp_path)["annotations"]}
    assert areas == {49 if is_traced else 64}  # as pycocotools fills them
    assert (f"{path}: polygons" in capsys.readouterr().err) == is_traced


def test_cells_that_occur_twice_are_used_once(tmp_path, capsys):
    """Of one class; of two classes, both stay."""
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    value = many()
    first = value["annotations"][0]
    value["annotations"] += [{**first, "id": 50}, {**first, "id": 51, "category_id": 20}]
    coco = run(tmp_path, *write_coco(tmp_path, value))
    assert len(coco["annotations"]) == 7
    assert (
        "occur twice in a class, used once: 1, in 1 image: pictures/a.tif"
        in capsys.readouterr().err
    )


def test_a_polygon_outside_a_list(tmp_path):
    """As older versions of VIA write it."""
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    value = many()
    for cell in value["annotations"]:
        (cell["segmentation"],) = cell["segmentation"]
    assert cells_of(run(tmp_path, *write_coco(tmp_path, value))) == EXPECTED


def test_areas_of_boxes_do_not_move_polygons(tmp_path, capsys):
    """VIA states a box's area for every polygon: here those of diamonds with half of it."""
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    value = many()
    for cell in value["annotations"]:
        x, y = (middle + 4 for middle in cell["segmentation"][0][:2])
        cell |= {"segmentation": [[x - 4, y, x, y - 4, x + 4, y, x, y + 4]], "area": 64}
    drawn = run(tmp_path, *write_coco(tmp_path, value))
    for cell in value["annotations"]:
        del cell["area"]
    assert run(tmp_path, *write_coco(tmp_path, value)) == drawn
    assert "centres" not in capsys.readouterr().err


def test_images_without_annotations(tmp_path, capsys):
    write_image(tmp_path / "pictures" / "a.tif")
    value = {**coco_of(None), "annotations": []}
    assert run(tmp_path, *write_coco(tmp_path, value))["annotations"] == []
    assert "images without cells: 1, in 1 image: pictures/a.tif" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "[", "[]", "{}", "3", {"images": []}])
def test_damaged_coco(tmp_path, value):
    assert "theirs.json: " in refused(tmp_path, *write_coco(tmp_path, value))


def test_coco_of_another_image(tmp_path):
    write_image(tmp_path / "pictures" / "a.tif", (5, 6))
    text = refused(tmp_path, *write_coco(tmp_path, coco_of(rle(BOX))))
    assert "a.tif: 5 x 6 pixels (height x width), expected 4 x 6" in text


def test_coco_without_its_image(tmp_path):
    text = refused(tmp_path, *write_coco(tmp_path, coco_of(rle(BOX))))
    assert "a.tif" in text


def test_an_impossible_file_name(tmp_path):
    value = coco_of(rle(BOX))
    value["images"][0]["file_name"] = "a\0.tif"
    assert "image name" in refused(tmp_path, *write_coco(tmp_path, value))


def test_the_source_is_not_overwritten(tmp_path):
    source = tmp_path / "train__annot.json"
    source.write_text(json.dumps(coco_of(rle(BOX))))
    before = source.read_bytes()
    message = refusal(annotation.main, ["--data", str(tmp_path), "--coco", str(source)])
    assert f"--output {source}: is also an input" in message
    assert source.read_bytes() == before


def test_skip_bad_skips_images_with_bad_cells(tmp_path, capsys):
    for name in ("pictures/a.tif", "b.tif"):
        write_image(tmp_path / name)
    value = coco_of([[0, 0, 3, 3]])  # a polygon of two points
    value["images"].append({"id": 6, "file_name": "b.tif", "height": 4, "width": 6})
    value["annotations"].append({**value["annotations"][0], "id": 9, "image_id": 6})
    value["annotations"][1]["segmentation"] = rle(BOX)
    arguments = write_coco(tmp_path, value)
    assert "annotation 8: polygon of fewer than 3 points" in refused(tmp_path, *arguments)
    coco = run(tmp_path, *arguments, "--skip_bad")
    assert [image["file_name"] for image in coco["images"]] == ["b.tif"]
    assert len(coco["annotations"]) == 1
    assert "theirs.json: annotation 8: polygon of fewer than 3 points" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../a.tif", "/a.tif", "x\\..\\..\\a.tif"])
def test_coco_images_outside_the_data_folder(tmp_path, name):
    value = coco_of(rle(BOX))
    value["images"][0]["file_name"] = name
    assert "outside the data folder" in refused(tmp_path, *write_coco(tmp_path, value))


@pytest.mark.parametrize("name", ["{data}/a.tif", "../{data.name}/a.tif", "x/../a.tif"])
def test_other_names_of_coco_images_inside_the_data_folder(tmp_path, name):
    (tmp_path / "x").mkdir()
    write_image(tmp_path / "a.tif")
    value = coco_of(rle(BOX))
    value["images"][0]["file_name"] = name.format(data=tmp_path)
    (image,) = run(tmp_path, *write_coco(tmp_path, value))["images"]
    assert image["file_name"] == "a.tif"


def test_skip_bad_skips_missing_images(tmp_path, capsys):
    write_image(tmp_path / "b.tif")
    value = coco_of(rle(BOX))
    value["images"].append({"id": 6, "file_name": "b.tif", "height": 4, "width": 6})
    arguments = write_coco(tmp_path, value)
    assert "--skip_bad" in refused(tmp_path, *arguments)
    coco = run(tmp_path, *arguments, "--skip_bad")
    assert [image["file_name"] for image in coco["images"]] == ["b.tif"]
    assert "skipped: " in capsys.readouterr().err
    (tmp_path / "b.tif").unlink()
    (tmp_path / "out.json").unlink()
    assert "no image is found" in refused(tmp_path, *arguments, "--skip_bad")


@pytest.mark.parametrize("name", ["pictures/A.TIF", "Pictures/a.tif"])
def test_coco_images_of_another_case_are_named(tmp_path, name):
    write_image(tmp_path / "pictures" / "a.tif")
    write_image(tmp_path / "b.tif")
    value = coco_of(rle(BOX))
    value["images"][0]["file_name"] = name
    assert str(tmp_path / "pictures" / "a.tif") in refused(tmp_path, *write_coco(tmp_path, value))
    # Besides one that is found.
    value["images"].append({"id": 6, "file_name": "b.tif", "height": 4, "width": 6})
    assert str(tmp_path / "pictures" / "a.tif") in refused(tmp_path, *write_coco(tmp_path, value))


def test_coco_defines_the_classes(tmp_path):
    arguments = write_coco(tmp_path, coco_of(rle(BOX)))
    assert "--class_names: " in refused(tmp_path, *arguments, "--class_names", "a")


# ------------------------------------------------------------------ COCO of other programs


def many(n=6, size=(60, 90)):
    """Return a file with n squares of 8 x 8 as polygons, and the annotations expected of it."""
    value = coco_of(None)
    value["images"][0] |= {"height": size[0], "width": size[1]}
    value["annotations"] = [
        {"id": k + 1, "image_id": 5, "category_id": 30, "segmentation": [box(4 + 14 * k, 4, 8)]}
        for k in range(n)
    ]
    return value


def box(left, top, side):
    right, bottom = left + side, top + side
    return [left, top, right, top, right, bottom, left, bottom]


EXPECTED = [([4 + 14 * k, 4, 8, 8], 64) for k in range(6)]


def cells_of(coco):
    return [(cell["bbox"], cell["area"]) for cell in coco["annotations"]]


def with_image(**change):
    value = many()
    value["images"][0] |= change
    return {**value, "images": [{k: v for k, v in value["images"][0].items() if v is not ...}]}


@pytest.mark.parametrize(
    "change",
    [
        {"file_name": "pictures\\a.tif"},
        {"file_name": "./pictures/a.tif"},
        {"file_name": "{data}/pictures/a.tif"},
        {"height": 60.0, "width": 90.0},
        {"height": "60", "width": "90"},
        {"height": None, "width": None},
        {"height": 0, "width": 0},
        {"height": ...},
        {"height": ..., "width": ..., "file_name": "pictures\\a.tif"},
    ],
)
def test_paths_and_sizes_of_other_programs(tmp_path, capsys, change):
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    if "file_name" in change:
        change = {**change, "file_name": change["file_name"].format(data=tmp_path)}
    coco = run(tmp_path, *write_coco(tmp_path, with_image(**change)))
    assert coco["images"] == [{"id": 1, "file_name": "pictures/a.tif", "height": 60, "width": 90}]
    assert cells_of(coco) == EXPECTED
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name", ["C:\\data\\a.tif", "C:/data/a.tif", "/elsewhere/a.tif", "..\\a.tif"]
)
@pytest.mark.parametrize("size", [{}, {"height": None, "width": None}])
def test_paths_elsewhere(tmp_path, name, size):
    arguments = write_coco(tmp_path, with_image(file_name=name, **size))
    text = refused(tmp_path, *arguments)
    assert "a.tif: outside the data folder" in text


@pytest.mark.parametrize("size", [{"height": 60.5}, {"height": "60 px"}, {"height": -1}])
def test_impossible_sizes(tmp_path, size):
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    assert "image 5: height" in refused(tmp_path, *write_coco(tmp_path, with_image(**size)))


def test_a_byte_order_mark(tmp_path):
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    (tmp_path / "theirs.json").write_text(json.dumps(many()), encoding="utf-8-sig")
    assert cells_of(run(tmp_path, "--coco", str(tmp_path / "theirs.json"))) == EXPECTED


def test_coordinates_from_0_to_1(tmp_path, capsys):
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    value = many()
    for cell in value["annotations"]:
        points = np.array(cell["segmentation"]).reshape(-1, 2) / (90, 60)
        cell["segmentation"] = [points.ravel().tolist()]
    assert cells_of(run(tmp_path, *write_coco(tmp_path, value))) == EXPECTED
    assert "coordinates from 0 to 1, scaled to pixels: 6, in 1 image" in capsys.readouterr().err
    # Not if one cell shows that they are pixels; this image isn't annotated at all.
    value["annotations"][0]["segmentation"] = [box(4, 4, 8)]
    assert len(run(tmp_path, *write_coco(tmp_path, value))["annotations"]) == 1


@pytest.mark.parametrize("n_fractions", [1, 2, 3])
def test_coordinates_from_0_to_1_in_one_image(tmp_path, capsys, n_fractions):
    """Others are in pixels, so that nothing is scaled; cells are not lost without the cause."""
    sides = (60, 90)
    images: list[dict[str, object]] = []
    cells: list[dict[str, object]] = []
    for image_id, name in ((1, "a.tif"), (2, "b.tif")):
        write_image(tmp_path / name, sides)
        images.append({"id": image_id, "file_name": name, "height": 60, "width": 90})
        for n in range(3):
            part = np.array(box(20 * n, 5, 9)).reshape(-1, 2)
            if image_id == 2 and n < n_fractions:
                part = part / sides[::-1]
            cells.append(
                {"id": len(cells) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0}
                | {"segmentation": [part.ravel().tolist()]}
            )
    value = {"images": images, "categories": [{"id": 1, "name": "c"}], "annotations": cells}
    arguments = write_coco(tmp_path, value)
    if n_fractions == 3:
        message = refused(tmp_path, *arguments)
        assert message.startswith(f"{tmp_path / 'theirs.json'}: annotation 4: coordinates from 0")
        assert "multiply them by the image's width and height" in message
        arguments.append("--skip_bad")
    capsys.readouterr()
    assert len(run(tmp_path, *arguments)["annotations"]) == 6 - n_fractions
    err = capsys.readouterr().err
    where = f": {n_fractions}, in 1 image: b.tif" if n_fractions < 3 else "(b.tif: 3 cells, none of"
    assert "coordinates from 0 to 1" in err
    assert "multiply them by the image's width and height" in err
    assert where in err


DEGENERATE = {
    "a point": [[5, 5]],
    "two points": [[5, 5, 9, 9]],
    "a line": [[5, 5, 6, 6, 7, 7]],
    "one point thrice": [[5, 5, 5, 5, 5, 5]],
    "between pixels": [[5, 5, 5.2, 5, 5.2, 5.2]],
    "two points, in two parts": [[5, 5], [6, 6]],
    "an empty RLE": {"size": [60, 90], "counts": [5400]},
}


@pytest.mark.parametrize("segmentation", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("skip_bad", [[], ["--skip_bad"]])
def test_cells_without_a_pixel_are_left_out(tmp_path, capsys, segmentation, skip_bad):
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    value = many()
    value["annotations"].insert(
        2, {**value["annotations"][0], "id": 9, "segmentation": segmentation}
    )
    assert cells_of(run(tmp_path, *write_coco(tmp_path, value), *skip_bad)) == EXPECTED
    assert "cells without a pixel, left out: 1, in 1 image" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stray", [part for part in DEGENERATE.values() if isinstance(part, list)][:4]
)
def test_a_stray_part_of_a_cell_is_left_out(tmp_path, capsys, stray):
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    value = many()
    value["annotations"][3]["segmentation"] += stray
    assert cells_of(run(tmp_path, *write_coco(tmp_path, value))) == EXPECTED
    assert "parts of cells" in capsys.readouterr().err


BAD_CELLS = {
    "broken counts": {"size": [60, 90], "counts": "abc"},
    "another size": {"size": [90, 60], "counts": [5400]},
    "no mask": None,
    "a box alone": [],
    "half a point": [[1, 1, 2, 2, 3]],
    "text": [["a"]],
    "outside": [[400, 4, 408, 4, 408, 12]],
}


@pytest.mark.parametrize("segmentation", BAD_CELLS.values(), ids=BAD_CELLS)
def test_skip_bad_leaves_out_a_cell_not_its_image(tmp_path, capsys, segmentation):
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    value = many()
    value["annotations"].append({**value["annotations"][0], "id": 9, "segmentation": segmentation})
    arguments = write_coco(tmp_path, value)
    assert "theirs.json: annotation 9: " in refused(tmp_path, *arguments)
    assert cells_of(run(tmp_path, *arguments, "--skip_bad")) == EXPECTED
    assert "unusable cells, left out: 1, in 1 image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            {"category_id": 77},
            "cells of unknown categories, left out: 1, in 1 image: pictures/a.tif",
        ),
        ({"category_id": None}, "cells of unknown categories, left out: 1, in 1 image"),
        ({"iscrowd": 7}, "unusable cells, left out: 1, in 1 image"),
        ({"image_id": 77}, "annotation 9: image_id 77 is not in the file"),
        ({"image_id": [5]}, "(1 cell of images that are not in the file)"),
    ],
)
def test_skip_bad_leaves_out_a_cell_of_unknown_image_or_category(tmp_path, capsys, change, found):
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    value = many()
    value["annotations"].append({**value["annotations"][0], "id": 9, **change})
    arguments = write_coco(tmp_path, value)
    assert "theirs.json: annotation 9: " in refused(tmp_path, *arguments)
    assert cells_of(run(tmp_path, *arguments, "--skip_bad")) == EXPECTED
    assert found in capsys.readouterr().err


def test_ids_and_resolutions_that_are_text(tmp_path):
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    value = with_image(mpp="0.25", id="5")
    for cell in value["annotations"]:
        cell |= {"id": 1, "image_id": "5", "category_id": 30.0}
    coco = run(tmp_path, *write_coco(tmp_path, value))
    assert cells_of(coco) == EXPECTED
    assert coco["images"][0]["mpp"] == 0.25


@pytest.mark.parametrize("mpp", ["unknown", 0, -1, "1e9", [0.25]])
def test_an_unusable_resolution_is_unknown(tmp_path, capsys, mpp):
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    coco = run(tmp_path, *write_coco(tmp_path, with_image(mpp=mpp)))
    assert "mpp" not in coco["images"][0]
    assert "mpp" in capsys.readouterr().err


def test_images_in_another_folder_are_named(tmp_path):
    arguments = write_coco(tmp_path, many())
    assert "no image is found" in refused(tmp_path, *arguments)
    write_image(tmp_path / "images" / "default" / "a.tif", (60, 90))
    text = refused(tmp_path, *arguments, "--skip_bad")
    assert str(tmp_path / "images" / "default" / "a.tif") in text


def test_a_category_that_names_a_group_is_a_warning(tmp_path, capsys):
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    value = many()
    value["categories"] = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 30, "name": "late", "supercategory": "cells"},
    ]
    run(tmp_path, *write_coco(tmp_path, value))
    assert "cells is a class without a cell" in capsys.readouterr().err


@pytest.mark.parametrize("segmentation", [*DEGENERATE.values(), *BAD_CELLS.values()])
def test_an_image_of_which_no_cell_is_usable_is_not_one_without_cells(
    tmp_path, capsys, segmentation
):
    write_image(tmp_path / "pictures" / "a.tif", (60, 90))
    write_image(tmp_path / "b.tif", (60, 90))
    value = many(3)
    for cell in value["annotations"]:
        cell["segmentation"] = segmentation
    value["images"].append({"id": 6, "file_name": "b.tif", "height": 60, "width": 90})
    arguments = write_coco(tmp_path, value)
    assert "theirs.json: annotation 1: " in refused(tmp_path, *arguments)
    coco = run(tmp_path, *arguments, "--skip_bad")
    assert [image["file_name"] for image in coco["images"]] == ["b.tif"]
    assert "3 cells" in capsys.readouterr().err


@pytest.mark.parametrize("size", [{}, {"height": None}])
def test_skip_bad_says_how_many_cells_go_with_an_image(tmp_path, capsys, size):
    write_image(tmp_path / "b.tif", (60, 90))
    value = with_image(**size)
    value["images"].append({"id": 6, "file_name": "b.tif", "height": 60, "width": 90})
    coco = run(tmp_path, *write_coco(tmp_path, value), "--skip_bad")
    assert [image["file_name"] for image in coco["images"]] == ["b.tif"]
    assert "a.tif: no such file; check the name (6 cells" in capsys.readouterr().err


def test_exif_explains_a_size_in_a_coco_file(tmp_path):
    pixels = PIL.Image.fromarray(np.full((60, 90, 3), 200, np.uint8))
    tags = pixels.getexif()
    tags[274] = 6
    pixels.save(tmp_path / "a.jpg", exif=tags)
    text = refused(tmp_path, *write_coco(tmp_path, with_image(file_name="a.jpg")))
    assert "90 x 60 pixels (height x width), expected 60 x 90" in text
    assert "EXIF orientation 6" in text


SEGMENTATION = ("annotations", 0, "segmentation")
PLACES = [(), (*SEGMENTATION, 0), (*SEGMENTATION, 0, 3), *[p for p in COCO_PLACES if len(p) < 4]]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PLACES), JSON, st.booleans())
def test_any_value_anywhere_in_a_coco_file(tmp_path_factory, place, change, skip_bad):
    data = tmp_path_factory.getbasetemp()
    value = {"top": many(2)}
    parent, key = value, "top"
    for step in place:
        parent, key = parent[key], step
    parent[key] = change
    path = data / "any.json"
    path.write_text(json.dumps(value["top"]))
    with contextlib.suppress(InputError):
        _, images, _ = read_coco_images(path, data, skip_bad)
        assert all(decode(image.masks, image.size) for image in images if image.masks)


# ------------------------------------------------------------------ any folder


@pytest.mark.parametrize(
    ("image", "label_map", "table"),
    [
        ("images/{}.tif", "labels/{}.npy", "labels/{}.csv"),
        ("images/{}.tif", "masks/{}_masks.npy", "annotations/{}_classes.csv"),
        ("{}.tif", "{}_masks.npy", "{}.csv"),
    ],
)
def test_files_of_one_name_have_the_cells_of_a_folder(tmp_path, capsys, image, label_map, table):
    """The same annotations as with a folder for each image, but for its name."""
    text = "label,class\n1,1\n2,2\n3,2\n"
    for name, labels in {"a": LABELS, "b": LABELS[::-1], "c": 0 * LABELS}.items():
        folder = write_train(
            tmp_path / "nycu", name, classes__csv=text if labels.any() else "label,class\n"
        )
        np.save(folder / "label.npy", labels)
        train = tmp_path / "mine" / "train"
        write_image(train / image.format(name))
        for path in (label_map, table):
            (train / path.format(name)).parent.mkdir(exist_ok=True)
        np.save(train / label_map.format(name), labels)
        if labels.any():
            (train / table.format(name)).write_text(text)
    expected, found = run(tmp_path / "nycu"), run(tmp_path / "mine")
    names = [each.pop("file_name") for each in found["images"]]
    assert names == [f"train/{image.format(name)}" for name in "abc"]
    assert [each.pop("file_name") for each in expected["images"]] == [
        f"train/{name}/image.tif" for name in "abc"
    ]
    assert found == expected
    assert "left out" not in capsys.readouterr().err
    (train / table.format("a")).unlink()
    advised = train / f"{label_map.format('a').removesuffix('.npy')}.csv"
    assert advised.name in refusal(run, tmp_path / "mine")
    advised.write_text(text)
    assert run(tmp_path / "mine")["annotations"] == expected["annotations"]
    (train / label_map.format("b")).unlink()
    (train / table.format("b")).unlink()
    write_image(train / image.format("a_HE"))
    (train / table.format("d")).write_text(text)
    assert len(run(tmp_path / "mine")["images"]) == 2
    err = capsys.readouterr().err
    assert "2: a_HE.tif, b.tif" in err
    assert f"left out: 1: {table.format('d').split('/')[-1]}" in err


def test_all_classes_of_all_images_are_a_ready_flag(tmp_path):
    for name, classes in {"a": ["Fat cell", "Gland"], "b": ["Epithelial", "Ignore*"]}.items():
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 3]]]},
                "properties": {"classification": {"name": class_name}},
            }
            for class_name in classes
        ]
        write_train(tmp_path, name, a__geojson=json.dumps(features))
    text = refused(tmp_path)
    flag = "--class_names Epithelial 'Fat cell' Gland"
    assert flag in text
    coco = run(tmp_path, *shlex.split(flag))
    assert [category["name"] for category in coco["categories"]] == shlex.split(flag)[1:]
    assert len(coco["annotations"]) == 3
    (tmp_path / "out.json").unlink()
    text = refused(tmp_path, "--class_names", "Gland", "x")
    assert "--class_names Gland x Epithelial 'Fat cell'" in text


def test_a_number_of_a_given_class_is_not_another_class(tmp_path):
    """With --class_names x y 2, the cells of class 2 would no longer be y."""
    folder = write_train(tmp_path, classes__csv="label,class\n1,1\n2,2\n3,3\n")
    np.save(folder / "label.npy", LABELS)
    assert refused(tmp_path, "--class_names", "x", "y").endswith("--class_names x y 3")
    assert len(run(tmp_path, "--class_names", "x", "y", "3")["annotations"]) == 3


def test_skip_bad_counts_the_cells_of_label_maps_and_outlines(tmp_path, capsys):
    tifffile.imwrite(write_train(tmp_path, "a") / "class1.tif", LABELS)
    folder = write_train(tmp_path, "b")
    tifffile.imwrite(folder / "class1.tif", LABELS)
    (folder / "class2.tif").write_bytes(b"II*\0")
    write_train(tmp_path, "c", a__xml=XML, size=(4, 1))
    assert len(run(tmp_path, "--skip_bad")["annotations"]) == 3
    err = capsys.readouterr().err
    assert "class2.tif: " in err
    assert "(3 cells" in err
    assert "a.xml: region 1 is outside" in err
    assert "(1 cell " in err


def test_skip_bad_counts_no_cells_of_a_file_that_cannot_be_read(tmp_path, capsys):
    tifffile.imwrite(write_train(tmp_path, "a") / "class1.tif", LABELS)
    (write_train(tmp_path, "b") / "class1.tif").write_bytes(b"II*\0")
    assert len(run(tmp_path, "--skip_bad")["images"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "skipped: " in line]
    assert "class1.tif: " in line
    assert "0 cells" not in line


def test_files_beside_the_folders_are_a_warning(tmp_path, capsys):
    write_train(tmp_path, "a")
    (tmp_path / "train" / "b.tif").write_bytes(b"")
    (tmp_path / "train" / "c").symlink_to(tmp_path / "missing")
    (tmp_path / "train" / "d").symlink_to(tmp_path / "train" / "a")
    run(tmp_path)
    err = capsys.readouterr().err
    assert "in no image's folder, ignored: 1: b.tif" in err
    assert "link to is missing: 1: c" in err


def test_files_beside_a_label_map(tmp_path, capsys):
    """classes.csv is the table of the classes, whatever else lies there."""
    folder = write_train(
        tmp_path, classes__csv="label,class\n1,1\n2,2\n", sizes__csv="cell,area\n1,4\n"
    )
    (folder / "image.tif.aux.xml").write_text("<PAMDataset/>")
    np.save(folder / "label.npy", LABELS * (LABELS < 3))
    assert [each["category_id"] for each in run(tmp_path)["annotations"]] == [1, 2]
    captured = capsys.readouterr().err
    assert "(.csv)" in captured
    assert "xml" not in captured


def test_skip_bad_leaves_out_labels_without_a_class(tmp_path, capsys):
    folder = write_train(tmp_path, classes__csv="label,class\n1,1\n2,2\n")
    np.save(folder / "label.npy", LABELS)
    assert "such as 3" in refused(tmp_path)
    assert len(run(tmp_path, "--skip_bad")["annotations"]) == 2
    assert "1, in 1 image: a" in capsys.readouterr().err

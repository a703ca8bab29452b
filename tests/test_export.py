"""export.py: every format from results and from annotations, every flag, every error."""

from __future__ import annotations

import csv
import gzip
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import shapely.geometry
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import annotation
import export
import utils
from cellseg.colours import class_colour
from cellseg.look import overlay
from cellseg.look.formats import FORMATS
from cellseg.read.cells import read_annotated_cells, read_predicted_cells
from cellseg.read.window import read_image
from cellseg.rle import crop_runs, encode, label_map_to_runs
from cellseg.write import measured
from tests.cohorts import write_cohort
from tests.read.refusal import refusal as refusal_of
from tests.score.scoring_cases import rle

LEFT = np.array([[1, 1, 0, 0, 0, 0]] * 4)
RIGHT = np.array([[0, 0, 0, 1, 1, 1]] * 4)
MIDDLE = np.array([[0, 1, 1, 1, 0, 0]] * 4)


def entry(mask, category=1, score=0.9, image=7):
    return {
        "image_id": image,
        "category_id": category,
        "segmentation": rle(mask),
        "score": score,
        "bbox": [0, 0, 1, 1],
    }


@pytest.fixture
def data(tmp_path):
    """A data folder with two test images and no training images."""
    folder = tmp_path / "data"
    (folder / "test").mkdir(parents=True)
    listed = []
    for id_, name in ((7, "one.tif"), (9, "two.tif")):
        tifffile.imwrite(folder / "test" / name, np.full((4, 6, 3), 200, np.uint8))
        listed.append({"file_name": name, "id": id_, "height": 4, "width": 6})
    (folder / "test_image_name_to_ids.json").write_text(json.dumps(listed))
    return folder


@pytest.fixture
def run(tmp_path):
    """Return a function that writes results into a run folder and returns their path."""

    def write(entries):
        path = tmp_path / "run" / "test-results.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(entries))
        return path

    return write


def features_of(path):
    return json.loads(Path(path).read_text("utf-8"))["features"]


def classes_of(path):
    return [feature["properties"]["classification"]["name"] for feature in features_of(path)]


def all_files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_everything_from_results(data, run, capsys):
    results = run([entry(LEFT), entry(RIGHT, 3, 0.6)])
    assert export.main([str(results), "--data", str(data)]) == 0
    output = results.parent / "export"
    assert all_files(output) == [
        "geojson/one.geojson",
        "geojson/two.geojson",
        "labels/one/class1.tif",
        "labels/one/class3.tif",
        "overlay/one.png",
        "overlay/two.png",
    ]
    first, second = features_of(output / "geojson" / "one.geojson")
    assert first["properties"] == {
        "objectType": "detection",
        "classification": {"name": "class1", "color": list(class_colour(0))},
        "measurements": {"score": 0.9},
    }
    assert second["properties"]["classification"]["name"] == "class3"
    assert shapely.geometry.shape(second["geometry"]).bounds == (3, 0, 6, 4)
    assert features_of(output / "geojson" / "two.geojson") == []
    assert (output / "labels" / "two").is_dir()
    np.testing.assert_array_equal(tifffile.imread(output / "labels/one/class3.tif"), 2 * RIGHT)
    out = capsys.readouterr().out
    assert "labels: 2 images, 2 cells: " in out
    assert str(output / "labels") in out


def test_everything_from_annotations(tmp_path, capsys):
    data = tmp_path / "data"
    image = data / "train" / "sample"
    image.mkdir(parents=True)
    tifffile.imwrite(image / "image.tif", np.full((4, 6, 3), 200, np.uint8))
    tifffile.imwrite(image / "class2.tif", LEFT.astype(np.float64))
    assert annotation.main(["--data", str(data), "--class_names", "a", "b"]) == 0
    annotations = data / "train__annot.json"
    assert export.main([str(annotations)]) == 0  # whose folder is the data folder
    assert all_files(data / "export") == [
        "geojson/sample.geojson",
        "labels/sample/class2.tif",
        "overlay/sample.png",
    ]
    (feature,) = features_of(data / "export" / "geojson" / "sample.geojson")
    assert feature["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "b", "color": list(class_colour(1))},
    }
    assert "geojson: 1 image, 1 cell: " in capsys.readouterr().out


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        arrays(
            np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 5)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_exported_labels_give_the_same_annotations(tmp_path_factory, maps):
    data = tmp_path_factory.mktemp("data")
    shape = maps[0].shape
    image = data / "train" / "a"
    image.mkdir(parents=True)
    tifffile.imwrite(image / "image.tif", np.zeros((*shape, 3), np.uint8), photometric="rgb")
    for k, labels in enumerate(maps, 1):
        labels = np.resize(labels, shape)  # classes may overlap
        tifffile.imwrite(image / f"class{k}.tif", labels.astype(np.float64))
    annotation.main(["--data", str(data), "--jobs", "1"])
    annotations = data / "train__annot.json"
    before = annotations.read_bytes()
    export.main([str(annotations), "--format", "labels", "--data", str(data)])
    for path in image.glob("class*.tif"):
        path.unlink()
    for path in (data / "export" / "labels" / "a").iterdir():
        path.rename(image / path.name)
    annotation.main(["--data", str(data), "--jobs", "1"])
    assert annotations.read_bytes() == before


def test_real_tissue_gives_the_same_annotations(tmp_path):
    tissue = os.environ.get("CELLSEG_TISSUE")
    source = Path(tissue) if tissue else utils.DATA.parents[1] / "shared" / "data" / "tissue"
    if not source.is_dir():
        pytest.skip(f"no real tissue at {source}; set CELLSEG_TISSUE")
    data = tmp_path / "data"
    for folder in sorted((source / "train").iterdir())[:6]:
        copy = data / "train" / folder.name
        copy.mkdir(parents=True)
        for path in folder.glob("*.tif"):
            (copy / path.name).symlink_to(path)
    annotation.main(["--data", str(data), "--jobs", "1"])
    annotations = data / "train__annot.json"
    before = annotations.read_bytes()
    export.main([str(annotations), "--data", str(data), "--format", "labels", "geojson"])
    _, images = read_annotated_cells(annotations, data)
    for image in images:
        features = features_of(data / "export" / "geojson" / f"{image.name}.geojson")
        assert len(features) == len(image.masks)
        for feature, mask in zip(features[:40], image.masks, strict=False):
            shape = shapely.geometry.shape(feature["geometry"])
            rows, columns = np.mgrid[: image.size[0], : image.size[1]]
            left, top, right, bottom = map(int, shape.bounds)
            box = np.s_[top:bottom, left:right]
            drawn = np.zeros(image.size, bool)
            drawn[box] = shapely.contains_xy(shape, columns[box] + 0.5, rows[box] + 0.5)
            assert shape.is_valid
            assert rle(drawn) == mask
        for path in (data / "train" / image.name).glob("class*.tif"):
            path.unlink()
        for path in (data / "export" / "labels" / image.name).iterdir():
            path.rename(data / "train" / image.name / path.name)
    annotation.main(["--data", str(data), "--jobs", "1"])
    assert annotations.read_bytes() == before


def test_an_earlier_export_is_replaced(data, run):
    results = run([entry(LEFT), entry(RIGHT, 3)])
    arguments = [str(results), "--data", str(data)]
    export.main(arguments)
    run([entry(LEFT)])
    export.main(arguments)
    output = results.parent / "export"
    assert [p.name for p in (output / "labels" / "one").iterdir()] == ["class1.tif"]
    assert len(features_of(output / "geojson" / "one.geojson")) == 1


def test_files_of_earlier_exports_are_noticed(data, run, capsys):
    """Those of other images, formats or settings; what is written again is not."""
    arguments = [str(run([entry(LEFT)])), "--data", str(data)]
    for _ in range(2):
        export.main(arguments)
        assert capsys.readouterr().err == ""
    listed = json.loads((data / "test_image_name_to_ids.json").read_text())
    (data / "test_image_name_to_ids.json").write_text(json.dumps(listed[:1]))
    export.main([*arguments, "--gzip"])
    geojson, overlay = capsys.readouterr().err.splitlines()
    assert "one.geojson, two.geojson" in geojson
    assert "two.png" in overlay


def test_detections_that_occur_twice_give_a_warning(data, run, capsys):
    results = run([entry(LEFT), entry(LEFT, 2), entry(RIGHT), entry(LEFT), entry(LEFT, image=9)])
    export.main([str(results), "--data", str(data), "--format", "geojson"])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{results}: detections" in line
    assert line.endswith(": 1, in 1 image: one.tif")
    assert len(features_of(results.parent / "export" / "geojson" / "one.geojson")) == 2


# ------------------------------------------------------------------ flags


@pytest.mark.parametrize("form", FORMATS)
def test_single_format(data, run, form):
    results = run([entry(LEFT)])
    export.main([str(results), "--data", str(data), "--format", form, form])
    assert [p.stem for p in (results.parent / "export").iterdir()] == [form]


def test_geojson_and_labels_need_no_pixels(data, run):
    for name in ("one.tif", "two.tif"):
        (data / "test" / name).write_bytes(b"")
    results = run([entry(LEFT)])
    assert export.main([str(results), "--data", str(data), "--format", "geojson", "labels"]) == 0


def test_overlays_of_large_images_are_reduced_and_only_if_asked_for(data, run, monkeypatch, capsys):
    monkeypatch.setattr(overlay, "WINDOW", 4)
    monkeypatch.setattr(export, "WINDOW", 4)
    results = run([entry(LEFT, score=0.6)])
    assert export.main([str(results), "--data", str(data)]) == 0
    assert "overlay: 2 images of more than 4 pixels a side left out" in capsys.readouterr().out
    folder = results.parent / "export" / "overlay"
    assert not folder.exists()
    argv = [str(results), "--data", str(data), "--format", "overlay", "--max_side", "3"]
    assert export.main(argv) == 0
    assert export.main(argv) == 0  # its own pictures are replaced
    assert sorted(path.name for path in folder.iterdir()) == ["one.jpg", "two.jpg"]
    assert read_image(folder / "one.jpg").shape[1] == 240  # of the legend


def test_overlays_of_large_images_are_windows(data, run, monkeypatch):
    monkeypatch.setattr(overlay, "WINDOW", 4)
    drawn: dict[str, tuple] = {}
    monkeypatch.setattr(overlay, "draw_overlay", lambda *arguments: arguments)
    monkeypatch.setattr(
        overlay, "write_png", lambda path, picture: drawn.setdefault(path.name, picture)
    )
    results = run([entry(LEFT, score=0.6), entry(RIGHT, 3, 0.7)])
    export.main([str(results), "--data", str(data), "--format", "overlay", "--max_side", "0"])
    assert list(drawn) == ["x00000_y00000.png", "x00004_y00000.png"]
    run([])
    pixels, masks, classes, _, scores = drawn["x00004_y00000.png"]
    assert pixels.shape == (4, 2, 3)
    assert masks == [rle(RIGHT[:, 4:])]
    assert classes.tolist() == [2]
    assert scores == pytest.approx([0.7])
    pixels, masks, classes, _, scores = drawn["x00000_y00000.png"]
    assert masks == [rle(mask[:, :4]) for mask in (RIGHT, LEFT)]


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)),
    st.data(),
)
def test_cropped_masks_are_those_of_the_cropped_label_map(labels, draw):
    height, width = labels.shape
    left = draw.draw(st.integers(0, width - 1))
    top = draw.draw(st.integers(0, height - 1))
    right = draw.draw(st.integers(left + 1, width))
    bottom = draw.draw(st.integers(top + 1, height))
    values, mask_runs = label_map_to_runs(labels)
    window = labels[top:bottom, left:right]
    labels_in_window, expected = label_map_to_runs(window)
    cut = crop_runs(mask_runs, (left, top, right, bottom))
    assert len(cut) == len(values)
    masks = [mask for mask, n in zip(encode(cut), np.diff(cut.offsets), strict=True) if n]
    assert masks == encode(expected)
    assert values[np.diff(cut.offsets) > 0].tolist() == labels_in_window.tolist()


@pytest.mark.parametrize(
    ("threshold", "n"), [(None, 2), ("0", 3), ("0.5", 2), ("0.6", 1), ("1", 0)]
)
def test_score_threshold(data, run, capsys, threshold, n):
    parts = [np.arange(6) // 2 == n + np.zeros((4, 1)) for n in range(3)]
    scores = (0.49, 0.5, 0.9)
    results = run([entry(part, score=s) for part, s in zip(parts, scores, strict=True)])
    more = [] if threshold is None else ["--score_threshold", threshold]
    export.main([str(results), "--data", str(data), "--format", "geojson", *more])
    assert len(features_of(results.parent / "export" / "geojson" / "one.geojson")) == n
    # What the default leaves out is said.
    assert ("1 cell with a score" in capsys.readouterr().out) == (threshold is None)


def test_each_cell_is_exported_once(data, run, capsys):
    """The left one is detected in two classes; most of the last one lies under the others."""
    hidden = np.array([[0, 1, 1, 1, 1, 0]] * 4)
    left, right = [entry(LEFT, 2, 0.48), entry(LEFT, 1, 0.64)], entry(RIGHT, 3, 0.9)
    results = run([*left, right, entry(hidden, 1, 0.6)])
    export.main([str(results), "--data", str(data), "--format", "geojson"])
    features = features_of(results.parent / "export" / "geojson" / "one.geojson")
    found = [f["properties"]["classification"]["name"] for f in features]
    assert found == ["class3", "class1"]
    shown = [f["properties"]["measurements"] for f in features]
    assert [pytest.approx(0.9), pytest.approx(0.8)] == [next(iter(each.values())) for each in shown]
    assert "1 cell mostly under others" in capsys.readouterr().out


def test_scores_that_are_too_large_to_be_squared_or_added(data, run, tmp_path):
    """Other programs may write any; warnings of numpy are errors in tests."""
    results = run([entry(LEFT, 1, 1e308), entry(LEFT, 2, -1e308), entry(RIGHT, 1, 1e308)])
    table = tmp_path / "cells.csv"
    flags = ["--data", str(data), "--table", str(table), "--format", "geojson", "label-studio"]
    assert export.main([str(results), *flags]) == 0
    assert [float(row["score"]) for row in table_of(table)] == [1e308, 1e308]
    task, _ = json.loads((results.parent / "export" / "label-studio.json").read_text())
    assert task["predictions"][0]["score"] == 1e308


@pytest.mark.parametrize("large_first", [True, False])
def test_of_equal_scores_the_smaller_cell_is_on_top(data, run, capsys, large_first):
    """Cells in a cell, as in ground truth with a score; with the report's and Python's cells."""
    large, left, right = np.ones((4, 6)), 0 * LEFT, 0 * LEFT
    left[1, 1:3] = right[1:3, 3:5] = 1
    entries = [entry(large), entry(right), entry(left)]
    results = run(entries if large_first else entries[::-1])
    table = results.parent / "cells.csv"
    argv = [str(results), "--data", str(data), "--format", "geojson", "labels", "overlay"]
    export.main([*argv, "--table", str(table)])
    output = results.parent / "export"
    labels = tifffile.imread(output / "labels/one/class1.tif")
    np.testing.assert_array_equal(labels, np.where(left, 1, np.where(right, 2, 3)))
    assert [row["area_px"] for row in table_of(table)] == ["2", "4", "24"]
    areas = [
        shapely.geometry.shape(f["geometry"]).area
        for f in features_of(output / "geojson/one.geojson")
    ]
    assert areas == [2, 4, 24]
    text = capsys.readouterr().out
    assert "3 cells" in text
    assert "hidden" not in text
    assert "mostly under" not in text


@pytest.mark.parametrize("kind", ["annotations", "detections"])
def test_type_in_qupath_and_gzip(data, run, kind):
    results = run([entry(LEFT)])
    flags = ["--format", "geojson", "--as", kind, "--gzip"]
    assert export.main([str(results), "--data", str(data), *flags]) == 0
    path = results.parent / "export" / "geojson" / "one.geojson.gz"
    (feature,) = json.loads(gzip.decompress(path.read_bytes()))["features"]
    assert feature["properties"]["objectType"] == kind[:-1]


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_alone_and_with_formats(data, run, tmp_path, capsys):
    results = run([entry(LEFT), entry(RIGHT, 3, 0.6), entry(MIDDLE, 2, 0.4)])
    path = tmp_path / "made" / "cells.csv"
    flags = ["--data", str(data), "--table", str(path)]
    assert export.main([str(results), *flags]) == 0
    assert all_files(path.parent) == ["cells-summary.csv", "cells.csv"]
    assert not (results.parent / "export").exists()
    rows = table_of(path)
    assert [(row["image"], row["class"], row["score"]) for row in rows] == [
        ("one", "class1", "0.9"), ("one", "class3", "0.6"),
    ]  # fmt: skip
    assert [row["area_px"] for row in rows] == ["8", "12"]
    out = capsys.readouterr().out
    assert "table: 2 images, 2 cells: " in out
    assert "resolution unknown" in out
    more = ["--format", "geojson", "coco", "--measurements", "--mpp", "0.5"]
    assert export.main([str(results), *flags, *more]) == 0
    output = results.parent / "export"
    assert all_files(output) == ["coco.json", "geojson/one.geojson", "geojson/two.geojson"]
    for feature, row in zip(
        features_of(output / "geojson" / "one.geojson"), table_of(path), strict=True
    ):
        assert feature["id"] == row["id"]
        for name, value in feature["properties"]["measurements"].items():
            assert value == float(row[name])
        assert feature["properties"]["measurements"]["area_um2"] == float(row["area_px"]) / 4
    assert len(json.loads((output / "coco.json").read_text())["annotations"]) == 2


@pytest.mark.parametrize("n_kept", [0, 3, 1000])
def test_measurements_are_those_of_each_image_and_made_once(
    data, run, tmp_path, capsys, monkeypatch, n_kept
):
    """Of 2 and 3 cells, the first image is kept, the second measured again, or none, or both."""
    monkeypatch.setattr(measured, "_KEPT", n_kept)
    results = run([
        *(entry(mask, 1, score) for mask, score in ((LEFT, 0.9), (RIGHT, 0.8))),
        *(entry(mask, 2, 0.7, image=9) for mask in (LEFT[:, ::-1], MIDDLE[:, ::-1], RIGHT * 0)),
    ])  # fmt: skip
    (data / "test" / "one.tif").write_bytes(b"damaged")
    flags = ["--data", str(data), "--table", str(tmp_path / "cells.csv"), "--measurements"]
    assert export.main([str(results), *flags, "--format", "geojson"]) == 0
    warnings = capsys.readouterr().err.count("stain columns are empty")
    assert warnings == (2 if n_kept == 0 else 1)
    rows = {row["id"]: row for row in table_of(tmp_path / "cells.csv")}
    folder = results.parent / "export" / "geojson"
    features = features_of(folder / "one.geojson") + features_of(folder / "two.geojson")
    assert len(features) == 4
    for feature in features:
        row = rows[feature["id"]]
        values = feature["properties"]["measurements"]
        assert {name: float(row[name]) for name in values} == values
        assert ("eosin_od_mean" in values) == (row["image"] == "two")


@pytest.mark.parametrize("mpp", [None, 0.3])
def test_pixels_that_are_not_square(data, run, tmp_path, capsys, mpp):
    """0.25 µm wide and 0.5 µm high, as the file says, whatever the list says."""
    image = data / "test" / "one.tif"
    per_cm = {"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(image, np.zeros((4, 6, 3), np.uint8), photometric="rgb", **per_cm)
    results, table = run([entry(LEFT)]), tmp_path / "cells.csv"
    of_list = {"file_name": str(image), "id": 7, "height": 4, "width": 6}
    of_list |= {"mpp": mpp} if mpp else {}
    (results.parent / "test-results-list.json").write_text(json.dumps([of_list]))
    argv = [str(results), "--data", str(data), "--table", str(table)]
    assert export.main(argv) == 0
    assert "not square: 1: one" in capsys.readouterr().err
    (row,) = table_of(table)
    assert float(row["area_um2"]) == pytest.approx(8 * (mpp**2 if mpp else 0.125))
    assert export.main([*argv, "--mpp", "0.5"]) == 0
    assert "not square" not in capsys.readouterr().err


def test_micrometres_are_not_those_of_an_image_of_another_size(data, run, tmp_path, capsys):
    """Another image was put in the place of the one that was predicted."""
    per_cm = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    results, table = run([entry(LEFT)]), tmp_path / "cells.csv"
    for height, um2 in ((4, "0.5"), (5, "")):
        pixels = np.zeros((height, 6, 3), np.uint8)
        tifffile.imwrite(data / "test" / "one.tif", pixels, photometric="rgb", **per_cm)
        assert export.main([str(results), "--data", str(data), "--table", str(table)]) == 0
        (row,) = table_of(table)
        assert (row["area_px"], row["area_um2"]) == ("8", um2)
        assert ("one.tif: 5 x 6 pixels" in capsys.readouterr().err) == (height == 5)


def test_a_missing_image_is_said_before_anything_is_written(data, run, tmp_path):
    results, table = run([entry(LEFT)]), tmp_path / "cells.csv"
    paths = [str(data / "test" / f"{name}.tif") for name in ("one", "two")]
    size = {"height": 4, "width": 6}
    images = [
        {"file_name": path, "id": id_, **size} for id_, path in zip((7, 9), paths, strict=True)
    ]
    (results.parent / "test-results-list.json").write_text(json.dumps(images))
    Path(paths[1]).unlink()
    argv = [str(results), "--data", str(data)]
    for flags in ([], ["--format", "geojson", "overlay", "--table", str(table)]):
        assert "two.tif: no such file" in (message := refusal(*argv, *flags))
        assert "--format geojson labels" in message
    assert not (results.parent / "export").exists()
    assert not table.exists()
    assert export.main([*argv, "--format", "geojson", "labels", "--table", str(table)]) == 0


def test_folder_names_that_are_not_utf_8_in_tables(run, tmp_path):
    listed = [{"file_name": "/caf\udce9/x.png", "id": 1, "height": 4, "width": 6}]
    results = run([entry(LEFT, image=1)])
    (results.parent / "test-results-list.json").write_text(json.dumps(listed))
    path = tmp_path / "cells.csv"
    formats = ["coco", "label-studio", "label-studio-brush"]
    assert export.main([str(results), "--table", str(path), "--format", *formats]) == 0
    assert [row["image"] for row in table_of(path)] == ["x"]


def test_micrometres_of_a_pyramid_level_in_the_table(tmp_path, run):
    pyramid = tmp_path / "a.tif"
    with tifffile.TiffWriter(pyramid) as tiff:
        how = {"photometric": "rgb", "tile": (16, 16)}
        resolution = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}  # 0.5 µm
        tiff.write(np.zeros((8, 12, 3), np.uint8), subifds=1, **how, **resolution)
        tiff.write(np.zeros((4, 6, 3), np.uint8), subfiletype=1, **how)
    results = run([entry(LEFT, image=1)])
    listed = [{"file_name": str(pyramid), "id": 1, "height": 4, "width": 6, "level": 1}]
    path = tmp_path / "cells.csv"
    for of_list, flags, um2 in ((None, [], 8), (2.0, [], 32), (2.0, ["--mpp", "0.25"], 2)):
        more = {"mpp": of_list} if of_list else {}
        sidecar = results.parent / "test-results-list.json"
        sidecar.write_text(json.dumps([listed[0] | more]))
        assert export.main([str(results), "--table", str(path), *flags]) == 0
        (row,) = table_of(path)
        assert (row["area_px"], float(row["area_um2"])) == ("8", um2)
    # Without the file, the list may tell; --mpp is of a full resolution whose size is not known.
    pyramid.unlink()
    assert export.main([str(results), "--table", str(path)]) == 0
    assert float(table_of(path)[0]["area_um2"]) == 32
    path.unlink()
    message = refusal(results, "--table", path, "--mpp", "0.25")
    assert message.startswith(f"{pyramid}: ")
    assert "--mpp" in message
    assert not path.exists()
    sidecar.write_text(json.dumps([listed[0] | {"level": 0}]))
    assert export.main([str(results), "--table", str(path), "--mpp", "0.25"]) == 0
    assert float(table_of(path)[0]["area_um2"]) == 0.5


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--table", "cells.xlsx"], "cells.xlsx"),
        (["--h5ad", "cells.csv"], "cells.csv"),
    ],
)
def test_tables_that_cannot_be_written(data, run, flags, named):
    assert named in refusal(run([entry(LEFT)]), "--data", data, *flags)


def test_output(data, run, tmp_path, monkeypatch):
    results = run([entry(LEFT)])
    monkeypatch.chdir(tmp_path)
    more = ["--format", "labels", "--output", "there/it is"]
    export.main([str(results), "--data", data.name, *more])
    assert all_files(tmp_path / "there") == ["it is/labels/one/class1.tif"]
    assert not (results.parent / "export").exists()


def test_class_names(data, run):
    results = run([entry(LEFT, 2)])
    words = ["--format", "geojson", "--class_names", "a", "b"]
    export.main([str(results), "--data", str(data), *words])
    assert classes_of(results.parent / "export" / "geojson" / "one.geojson") == ["b"]


def test_classes_of_the_run(data, run):
    results = run([entry(LEFT, 5)])
    categories = [{"id": n, "name": f"class {n}"} for n in range(1, 6)]
    record = {"annotations": {}, "categories": categories, "held_out": []}
    (results.parent / "run.json").write_text(json.dumps(record))
    export.main([str(results), "--data", str(data), "--format", "geojson"])
    assert classes_of(results.parent / "export" / "geojson" / "one.geojson") == ["class 5"]


def test_the_newest_results_by_default(data, tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "RUNS", tmp_path / "runs")
    for age, name in ((50, "new"), (100, "old")):
        path = tmp_path / "runs" / "model" / name / "test-results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps([entry(LEFT)]))
        os.utime(path, (1e9 - age, 1e9 - age))
    export.main(["--data", str(data), "--format", "geojson"])
    assert (tmp_path / "runs/model/new/export/geojson/one.geojson").exists()
    assert not (tmp_path / "runs/model/old/export").exists()


def test_a_zip_and_a_run_folder(data, run):
    results = run([entry(LEFT)])
    archive = results.parent / "submission.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(results, "test-results.json")
    for source in (archive, results.parent):
        output = results.parent / f"from-{source.name}"
        arguments = [str(source), "--data", str(data), "--format", "geojson"]
        export.main([*arguments, "--output", str(output)])
        assert len(features_of(output / "geojson" / "one.geojson")) == 1
    export.main([str(results.parent), "--data", str(data), "--format", "geojson"])
    assert (results.parent / "export").is_dir()


def test_hidden_cells_are_counted(data, tmp_path, capsys):
    """Annotations are exported as they are, the earlier one on top."""
    masks = np.ones((4, 6)), LEFT
    annotations = [{**entry(mask), "id": n, "area": 1} for n, mask in enumerate(masks, 1)]
    images = [{"id": 7, "file_name": "one.tif", "height": 4, "width": 6}]
    categories = [{"id": 1, "name": "a"}]
    coco = {"images": images, "categories": categories, "annotations": annotations}
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco))
    export.main([str(path), "--data", str(data), "--format", "labels"])
    assert "2 cells, 1 of them hidden" in capsys.readouterr().out


def test_pixels_go_to_the_higher_score(data, run):
    results = run([entry(LEFT + MIDDLE > 0, score=0.6), entry(RIGHT, score=0.9)])
    export.main([str(results), "--data", str(data), "--format", "labels"])
    labels = tifffile.imread(results.parent / "export/labels/one/class1.tif")
    assert labels[0].tolist() == [2, 2, 2, 1, 1, 1]


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        export.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in ("format", "data", "annotations", "output", "score_threshold", "class_names"):
        assert f"--{flag}" in text
    assert "QuPath" in text
    assert "python export.py" in text


@pytest.mark.parametrize("where", ["absolute", "relative"])
def test_results_of_own_images_with_their_list(tmp_path, run, monkeypatch, where):
    """inference.py --images writes results, and a list of the images next to them."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    tifffile.imwrite(pictures / "a.tif", np.full((4, 6, 3), 200, np.uint8), photometric="rgb")
    results = run([entry(LEFT, image=1)])
    name = str(pictures / "a.tif") if where == "absolute" else "../pictures/a.tif"
    listed = [{"file_name": name, "id": 1, "height": 4, "width": 6}]
    (results.parent / "test-results-list.json").write_text(json.dumps(listed))
    monkeypatch.chdir(results.parent)
    export.main([str(results)])
    assert all_files(results.parent / "export") == [
        "geojson/a.geojson",
        "labels/a/class1.tif",
        "overlay/a.png",
    ]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/d/a/x.png", "/d/b/x.png", "/d/b/y.png"], ["a/x", "b/x", "y"]),
        (["/d/p/1/x.png", "/d/q/1/x.png", "/d/q/2/x.png"], ["p/1/x", "q/1/x", "2/x"]),
        (["/x.png", "/d/x.png"], ["x", "d/x"]),
        (["/x.png", "../x.tif", "./d/../x.bmp"], ["x.png", "x.tif", "x"]),
        (["/d/x.png", "/d/x.tif", "/e/x.tif", "/f/x.tif"], ["x.png", "x.tif", "e/x", "f/x"]),
        (["/d/a/image.tif", "/d/b/Image.TIF", "/image.png"], ["a", "b", "image"]),
        (["/d/p/1/image.tif", "/d/q/1/image.tif"], ["p/1", "q/1"]),
        (["/d/a/image.tif", "/d/a.tif"], ["image.tif", "a.tif"]),
        (["C:\\d\\a\\x.png", "C:\\d\\b\\x.png"], ["a/x", "b/x"]),
        (["/caf\udce9/x.png"], ["x"]),  # a folder name that is not UTF-8
    ],
)
def test_output_names_of_own_images(run, files, names):
    listed = [
        {"file_name": file, "id": n, "height": 4, "width": 6} for n, file in enumerate(files, 1)
    ]
    results = run([entry(LEFT, image=n) for n in range(1, len(files) + 1)])
    (results.parent / "test-results-list.json").write_text(json.dumps(listed))
    assert [image.name for image in read_predicted_cells(results, Path())[1]] == names
    assert export.main([str(results), "--format", "geojson", "labels"]) == 0
    assert all_files(results.parent / "export") == [
        *sorted(f"geojson/{name}.geojson" for name in names),
        *sorted(f"labels/{name}/class1.tif" for name in names),
    ]


HOSTILE = [
    "...tif",
    "....tif",
    ". .tif",
    "C:.tif",
    "con.tif",
    "a..tif",
    "nul.x.tif",
    "x" * 251 + ".tif",
]
HOSTILE += ["a/...tif", "b/...tif", "a/. ./image.tif", "a /b.tif", "com1/x.tif"]


@pytest.mark.parametrize("source", ["own images", "annotations"])
def test_nothing_is_written_or_removed_outside_the_output_folder(tmp_path, run, source):
    """Images with hostile names; each has its own files below the output folder."""
    mine = [tmp_path / "run" / "export" / folder / "class9.tif" for folder in (".", "labels")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    if source == "annotations":
        file = tmp_path / "run" / "coco.json"
        coco = coco_of(*HOSTILE)
        (cell,) = coco["annotations"]
        coco["annotations"] = [
            cell | {"id": image["id"], "image_id": image["id"]} for image in coco["images"]
        ]
        file.write_text(json.dumps(coco))
    else:
        file = run([entry(LEFT, image=n) for n, _ in enumerate(HOSTILE)])
        listed = [
            {"file_name": name, "id": n, "height": 4, "width": 6} for n, name in enumerate(HOSTILE)
        ]
        file.with_name("test-results-list.json").write_text(json.dumps(listed))
    before = set(tmp_path.rglob("*"))
    assert export.main([str(file), "--format", "geojson", "labels"]) == 0
    assert [path.read_bytes() for path in mine] == [b"mine"] * 2
    new = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    out = tmp_path / "run" / "export"
    geojson = {path for path in new if path.is_relative_to(out / "geojson")}
    labels = {path for path in new if path.is_relative_to(out / "labels")}
    assert geojson | labels == new
    assert len(geojson) == len(labels) == len(HOSTILE)
    for path in new:  # also on Windows, which ignores dots and spaces at the end of a name
        for part in path.relative_to(out).parts:
            assert not part.endswith((".", " "))
            assert ":" not in part
            assert part.partition(".")[0].upper() not in ("CON", "NUL", "COM1")


@pytest.mark.parametrize("name", ["..", "/", "a\n.png"])
def test_own_images_without_a_printable_name(run, name):
    results = run([entry(LEFT, image=1)])
    listed = [{"file_name": name, "id": 1, "height": 4, "width": 6}]
    (results.parent / "test-results-list.json").write_text(json.dumps(listed))
    assert "has no printable name" in refusal(results, "--format", "geojson")


@pytest.mark.parametrize(
    "change", [{"file_name": 3}, {"id": "1"}, {"height": 0}, {"width": None}, {"id": 2}]
)
def test_a_damaged_sidecar_list(run, change):
    results = run([entry(LEFT, image=1)])
    good = {"file_name": "a.tif", "id": 1, "height": 4, "width": 6}
    path = results.parent / "test-results-list.json"
    damaged = [json.dumps([{**good, "id": 2}, {**good, **change}]), "[]", "{}", "[3]"]
    for text in damaged:
        path.write_text(text)
        assert refusal(results).startswith(f"{path}: not a valid image list")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"level": -1}, "level -1"),
        ({"mpp": "0.5"}, 'mpp "0.5"'),
        ({"tissue_px2": None}, "tissue_px2 null"),
        ({"id": 1.0}, "id 1.0"),
    ],
)
def test_a_damaged_sidecar_list_names_what_is_wrong(run, change, expected):
    results = run([entry(LEFT, image=1)])
    good = {"file_name": "a.tif", "id": 2, "height": 4, "width": 6}
    path = results.parent / "test-results-list.json"
    path.write_text(json.dumps([good, {**good, "file_name": "b.tif", "id": 1, **change}]))
    message = refusal(results)
    assert message.startswith(f"{path}: not a valid image list: entry 2: {expected} ")


def test_results_on_annotated_images(data, run, tmp_path, capsys):
    """Their ids are those of the annotation file; images without detections have no cells."""
    coco = coco_of("train/a/image.tif", "train/b/image.tif")
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(coco))
    results = run([entry(LEFT, 12, image=2)])
    arguments = [str(results), "--data", str(data), "--format", "geojson"]
    export.main([*arguments, "--annotations", str(annotations)])
    folder = results.parent / "export"
    assert all_files(folder) == ["geojson/a.geojson", "geojson/b.geojson"]
    assert features_of(folder / "geojson/a.geojson") == []
    assert "annotations.json: 1 of 2 images without detections" in capsys.readouterr().err
    run([entry(LEFT, image=3)])
    text = refusal(*arguments, "--annotations", annotations)
    assert f"image_id 3 is not among the images of {annotations} (1 to 2)" in text


def test_the_sidecar_annotations_give_the_images_of_results(data, run):
    """Id 7 is also in the test list; images without cells are exported too."""
    coco = coco_of("train/a/image.tif", "train/b/image.tif")
    coco["images"][0]["id"] = coco["annotations"][0]["image_id"] = 7
    results = run([entry(LEFT, 12, image=7)])
    (results.parent / "test-results-truth.json").write_text(json.dumps(coco))
    for source in (results, results.parent):
        assert export.main([str(source), "--data", str(data), "--format", "geojson"]) == 0
        folder = results.parent / "export" / "geojson"
        assert all_files(folder) == ["a.geojson", "b.geojson"]
        assert classes_of(folder / "a.geojson") == ["a"]


def test_annotations_define_only_the_classes_of_images_with_a_list(run, tmp_path):
    """Ids refer to the list, although another image has id 1 in the annotations."""
    results = run([entry(LEFT, 12, image=1)])
    listed = [{"file_name": "/far/b.png", "id": 1, "height": 4, "width": 6}]
    (results.parent / "test-results-list.json").write_text(json.dumps(listed))
    (tmp_path / "coco.json").write_text(json.dumps(coco_of("a.png", "b.png")))
    arguments = ["--annotations", str(tmp_path / "coco.json"), "--format", "geojson"]
    assert export.main([str(results), *arguments]) == 0
    folder = results.parent / "export" / "geojson"
    assert all_files(folder) == ["b.geojson"]
    assert classes_of(folder / "b.geojson") == ["a"]


@pytest.mark.parametrize("where", ["annotations", "run"])
def test_classes_are_those_of_the_annotations_or_the_run(data, run, tmp_path, where):
    """Any ids are possible; other names are in the order of the ids."""
    coco = coco_of("train/a/image.tif")
    coco["images"][0]["id"] = coco["annotations"][0]["image_id"] = 7
    results = run([entry(LEFT, 12), entry(RIGHT, 40)])
    arguments = [str(results), "--data", str(data), "--format", "geojson"]
    if where == "annotations":
        (tmp_path / "coco.json").write_text(json.dumps(coco))
        arguments += ["--annotations", str(tmp_path / "coco.json")]
    else:
        record = {"annotations": {}, "categories": coco["categories"], "held_out": []}
        (results.parent / "run.json").write_text(json.dumps(record))

    def found(*more):
        export.main([*arguments, *more])
        name = "a" if where == "annotations" else "one"
        return classes_of(results.parent / "export" / "geojson" / f"{name}.geojson")

    assert found() == ["a", "b"]
    assert found("--class_names", "x", "y") == ["x", "y"]
    text = refusal(*arguments, "--class_names", "x", "y", "z")
    assert text.startswith("--class_names: 3 names for 2 classes (a, b)")
    if where == "annotations":  # the run's own would get other names
        classes = results.with_name(results.stem + "-classes.json")
        classes.write_text('[{"id": 12, "name": "b"}, {"id": 40, "name": "c"}]')
        assert "class 12 is b, but in" in refusal(*arguments)
        classes.unlink()
    run([entry(LEFT, 1)])
    text = refusal(*arguments)
    assert "category_id 1 is not among the classes (12 to 40)" in text
    assert text.endswith("with --annotations")


# ------------------------------------------------------------------ annotations of other programs


def coco_of(*file_names, **more):
    images = [
        {"id": n, "file_name": name, "height": 4, "width": 6}
        for n, name in enumerate(file_names, 1)
    ]
    return {
        "images": images,
        "categories": [{"id": 40, "name": "b"}, {"id": 12, "name": "a"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 40, "segmentation": rle(LEFT), **more}
        ],
    }


def test_any_category_ids_become_classes_in_order(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text("\n " + json.dumps(coco_of("sub/a.png")))
    export.main([str(path), "--format", "geojson", "labels"])
    assert classes_of(tmp_path / "export" / "geojson" / "sub" / "a.geojson") == ["b"]
    assert (tmp_path / "export" / "labels" / "sub" / "a" / "class2.tif").exists()


def test_image_files_are_named_by_their_folder_ignoring_case(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_of("train/a/Image.TIF", "image.tif")))
    export.main([str(path), "--format", "geojson"])
    assert all_files(tmp_path / "export") == ["geojson/a.geojson", "geojson/image.geojson"]


def test_crowd_regions_are_ignored(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_of("a.png", iscrowd=1)))
    export.main([str(path), "--format", "geojson"])
    assert features_of(tmp_path / "export" / "geojson" / "a.geojson") == []


def test_crowd_regions_that_are_left_out_are_counted(tmp_path, capsys):
    """One is as large as a cell, and so probably one; the other as all others together."""
    path = tmp_path / "coco.json"
    value = coco_of("sub/a.png", "b.png")
    squares = np.zeros((3, 20, 40), int)
    squares[0, :2, :2] = squares[1, :2, 4:6] = squares[2, :, 10:] = 1
    value["images"][0] |= {"height": 20, "width": 40}
    value["annotations"] = [
        {**value["annotations"][0], "id": n, "segmentation": rle(mask), "iscrowd": int(n > 0)}
        for n, mask in enumerate(squares)
    ]
    path.write_text(json.dumps(value))
    assert export.main([str(path), "--format", "geojson"]) == 0
    assert len(features_of(tmp_path / "export" / "geojson" / "sub" / "a.geojson")) == 1
    single, all_crowds = capsys.readouterr().err.splitlines()
    assert f"{path}: 1 crowd region" in single
    assert "annotation.py --coco" in single
    assert f"{path}: crowd regions (iscrowd), left out: 2, in 1 image: sub/a" in all_crowds


@pytest.mark.parametrize("n_large", [0, 1])
def test_crowd_regions_as_large_as_a_cell_are_named_once(tmp_path, capsys, n_large):
    path = tmp_path / "coco.json"
    value = coco_of("a.png", "b.png", "c.png")
    squares = np.zeros((4, 20, 40), int)
    squares[0, :2, :2] = squares[1, :2, 4:6] = squares[2, :2, 8:10] = 1
    squares[3, :, 12 : 40 if n_large else 14] = 1
    for image in value["images"]:
        image |= {"height": 20, "width": 40}
    ids = [image["id"] for image in value["images"]]
    value["annotations"] = [
        {**value["annotations"][0], "id": n, "image_id": id_, "segmentation": rle(mask)}
        | {"iscrowd": int(n in (1, 2) or (n == 3 and n_large))}
        for n, (mask, id_) in enumerate(zip(squares, [*ids, ids[2]], strict=True))
    ]
    path.write_text(json.dumps(value))
    assert export.main([str(path), "--format", "geojson"]) == 0
    single, *more = capsys.readouterr().err.splitlines()
    assert "2 crowd regions" in single
    assert "in 2 images: b.png, c.png" in single
    assert len(more) == n_large


def test_cells_that_are_annotated_twice_are_exported_once(tmp_path, capsys):
    path = tmp_path / "coco.json"
    value = coco_of("sub/a.png", "b.png")
    value["annotations"] += [{**value["annotations"][0], "id": n} for n in (2, 3)]
    value["annotations"] += [{**value["annotations"][0], "id": 4, "image_id": 2}]
    path.write_text(json.dumps(value))
    assert export.main([str(path), "--format", "geojson"]) == 0
    assert len(features_of(tmp_path / "export" / "geojson" / "sub" / "a.geojson")) == 1
    assert len(features_of(tmp_path / "export" / "geojson" / "b.geojson")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: cells that occur twice in a class, used once: 2, in 1 image: sub/a.png" in line


# ------------------------------------------------------------------ many slides


def write_slides(folder, names, classes=("nucleus",)):
    """Write a cohort of slides with one cell each."""
    cell = entry(LEFT, image=1)
    write_cohort(folder, {name: (f"/far/{name}.tif", (4, 6), [cell]) for name in names}, classes)


def test_all_slides_of_a_cohort(tmp_path, capsys):
    """In the order of the table; failed, missing and unfinished ones are left out by name."""
    cohort, table = tmp_path / "moved", tmp_path / "cells.csv"
    write_slides(cohort, ["b/s", "a/s", "c", "d", "e"])
    (cohort / "c" / "images-results.json").unlink()
    manifest = cohort / "manifest.csv"
    text = manifest.read_text().replace("study/d,1,,0.5,", "study/d,,,,no file")
    manifest.write_text(text.replace("study/e,1,,0.5,", "study/e,,,,"))
    assert export.main([str(cohort), "--table", str(table), "--format", "geojson"]) == 0
    rows = table_of(table)
    assert [row["image"] for row in rows] == ["b/s", "a/s"]
    assert [row["class"] for row in rows] == ["nucleus"] * 2
    assert len({row["id"] for row in rows}) == 2
    err = capsys.readouterr().err.splitlines()
    for place in (cohort / "c", "/far/d.tif", "/far/e.tif"):
        (found,) = (line for line in err if str(place) in line)
        assert f"{manifest}: 1 slide left out" in found
    assert sum("left out" in line for line in err) == 3
    assert all_files(cohort / "export") == ["geojson/a/s.geojson", "geojson/b/s.geojson"]

    # Names and ids do not depend on which of them are done.
    (cohort / "a" / "s" / "images-results.json").unlink()
    (cohort / "s").mkdir()
    (cohort / "s" / "images-results.json").write_text("[]")  # of a table without the other
    assert export.main([str(cohort), "--table", str(table)]) == 0
    assert table_of(table) == rows[:1]


def test_cohorts_that_can_not_be_exported(tmp_path):
    write_slides(tmp_path / "a", ["x", "y"])
    other = [{"id": 1, "name": "lymphocyte"}]
    (tmp_path / "a" / "y" / "images-results-classes.json").write_text(json.dumps(other))
    assert f"{tmp_path / 'a' / 'y'}: has the classes lymphocyte, but" in refusal(tmp_path / "a")
    assert "--to_correct" in refusal(tmp_path / "a", "--to_correct", tmp_path / "fix")
    assert not (tmp_path / "fix").exists()
    (tmp_path / "a" / "images-results.json").write_text("[]")
    assert "holds images-results.json and manifest.csv" in refusal(tmp_path / "a")
    write_slides(tmp_path / "b", [])
    assert "no slide" in refusal(tmp_path / "b")
    (tmp_path / "b" / "manifest.csv").write_text("a,b\n1,2\n")
    assert "manifest.csv" in refusal(tmp_path / "b")


# ------------------------------------------------------------------ errors


def refusal(*arguments):
    return refusal_of(export.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "half", "inf"])
def test_score_threshold_is_from_0_to_1(value):
    assert "--score_threshold: '" in refusal(f"--score-threshold={value}")


def test_unknown_format():
    assert "argument --format: invalid choice: 'svg'" in refusal("--format", "svg")


def test_flags_for_results_with_annotations(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_of("a.png")))
    assert refusal(path, "--score_threshold", "0.3").startswith("--score_threshold: ")
    assert refusal(path, "--class_names", "a").startswith("--class_names: ")
    assert refusal(path, "--annotations", path).startswith("--annotations: ")


def test_no_results_yet(data, tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "RUNS", tmp_path / "runs")
    assert "no results (test-results.json)" in refusal("--data", data)


def test_missing_source(tmp_path):
    assert "nothing.json: no such file" in refusal(tmp_path / "nothing.json")


@pytest.mark.parametrize("text", ["", "[", "{", "[1]", "{}", "3", '{"images": 3}', "[[]]"])
def test_damaged_sources(data, tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    assert refusal(path, "--data", data).startswith(str(path))
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("image_id", 8), ("image_id", "7"), ("category_id", 5), ("category_id", 0)],
        *[("score", float("nan")), ("score", "high"), ("segmentation", [])],
        ("segmentation", {"size": [6, 4], "counts": "0"}),
        ("segmentation", {"size": [4, 6], "counts": "broken"}),
    ],
)
def test_results_that_do_not_fit_the_test_list(data, run, key, value):
    results = run([entry(LEFT), {**entry(RIGHT), key: value}])
    assert refusal(results, "--data", data).startswith(f"{results}: entry 1: ")


def test_errors_for_other_images_or_classes_name_the_flag(data, run):
    results = run([entry(LEFT), entry(LEFT, image=8)])
    text = refusal(results, "--data", data)
    assert "image_id 8 is not among the images of " in text
    assert text.endswith("--data or --annotations")
    text = refusal(run([entry(LEFT, 5)]), "--data", data)
    assert "entry 0: category_id 5 is not among the classes (1 to 4)" in text
    assert text.endswith("with --class_names")


@pytest.mark.parametrize(
    "categories", [None, 3, [], [3], [{}], [{"id": 1}], [{"id": "1", "name": "a"}]]
)
def test_a_damaged_run_record(data, run, categories):
    results = run([entry(LEFT)])
    record = {"annotations": {}, "categories": categories, "held_out": []}
    (results.parent / "run.json").write_text(json.dumps(record))
    assert "run.json: not the record of a run" in refusal(results, "--data", data)


def test_a_data_folder_without_a_test_list(tmp_path, run):
    message = refusal(run([entry(LEFT)]), "--data", tmp_path)
    assert "test_image_name_to_ids.json: no such file" in message


def test_an_overlay_needs_its_image(data, run):
    results = run([entry(LEFT)])
    tifffile.imwrite(data / "test" / "one.tif", np.zeros((5, 6, 3), np.uint8))
    text = refusal(results, "--data", data, "--format", "overlay")
    assert "one.tif: 5 x 6 pixels (height x width), expected 4 x 6" in text
    (data / "test" / "one.tif").write_bytes(b"II*\0")
    assert "one.tif" in refusal(results, "--data", data, "--format", "overlay")


def test_a_missing_annotated_image(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_of("a.png")))
    assert "a.png: " in refusal(path, "--data", tmp_path, "--format", "overlay")


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "..\\a.png", "."])
def test_image_names_outside_the_data_folder(tmp_path, name):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_of(name)))
    assert "outside the data folder" in refusal(path, "--format", "geojson")


@pytest.mark.parametrize(
    "name", ["{data}/sub/a.png", "../{data.name}/sub/a.png", "sub/../sub/a.png"]
)
@pytest.mark.parametrize("is_link", [False, True])
def test_other_names_of_images_inside_the_data_folder(tmp_path, run, name, is_link):
    data = tmp_path / "cells"
    (data / "sub").mkdir(parents=True)
    tifffile.imwrite(data / "sub" / "a.png", np.full((4, 6, 3), 200, np.uint8))
    path = data / "coco.json"
    path.write_text(json.dumps(coco_of(name.format(data=data), "b.png")))
    if is_link:
        (tmp_path / "link").symlink_to(data)
    argv = [str(path), "--data", str(tmp_path / ("link" if is_link else "cells"))]
    assert export.main([*argv, "--format", "geojson"]) == 0
    assert all_files(data / "export") == ["geojson/b.geojson", "geojson/sub/a.geojson"]
    results = run([entry(LEFT, 12, image=1)])
    argv = [str(results), "--data", str(data), "--annotations", str(path), "--format", "geojson"]
    assert export.main(argv) == 0
    output = results.parent / "export"
    assert all_files(output) == ["geojson/b.geojson", "geojson/sub/a.geojson"]


def test_image_names_that_clash(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_of("a.png", "a.tif")))
    assert "a.png and a.tif have the same output name" in refusal(path, "--format", "geojson")


def test_names_that_differ_only_in_case(tmp_path):
    """On many systems they are the same file."""
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_of("a.png", "A.png", "sub/b.png", "Sub/B.png")))
    assert export.main([str(path), "--format", "geojson", "--data", str(tmp_path)]) == 0
    names = all_files(tmp_path / "export")
    assert len({name.lower() for name in names}) == 4
    assert {"geojson/a.geojson", "geojson/sub/b.geojson"} <= set(names)


def test_output_that_is_a_file(data, run, tmp_path):
    (tmp_path / "file").write_text("")
    results = run([entry(LEFT)])
    for form in FORMATS:
        text = refusal(results, "--data", data, "--format", form, "--output", tmp_path / "file")
        assert "can't be written" in text

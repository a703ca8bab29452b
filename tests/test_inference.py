"""inference.py: from a run to the zip, every flag, unusable images, resuming, several runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from shapely.geometry import shape

import annotation
import check_submission
import evaluate
import export
import inference
import report
import train
import utils
from cellseg import runs
from cellseg.errors import InputError
from cellseg.predict.job import PredictionJob
from cellseg.predict.predictor import Predictor
from cellseg.predict.tile_store import TileStore
from cellseg.read.cells import read_predicted_cells, select_by_score
from cellseg.read.coco import load_coco
from cellseg.read.window import read_image
from cellseg.rle import crop_mask, decode
from tests.processes import is_gone

HERE = Path(__file__).resolve().parents[1]


@pytest.fixture
def predict(run, cells, tmp_path):
    """Predict with the run into `tmp_path / "out"`; return the exit code."""

    def go(*words, checkpoint=run, data=cells, output=tmp_path / "out"):
        argv = ["--checkpoint", checkpoint, "--output", output, "--device", "cpu"]
        argv += ["--data", data] if data else []
        return inference.main([str(word) for word in (*argv, *words)])

    return go


def results(path):
    return json.loads(Path(path).read_text())


def refusal(predict, *words, **keywords):
    """Return the one-line message of the error."""
    with pytest.raises(InputError) as caught:
        predict(*words, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_from_the_run_to_the_zip(predict, cells, tmp_path, capsys):
    assert predict() == 0
    out = capsys.readouterr().out
    entries = results(tmp_path / "out" / "test-results.json")
    archive = tmp_path / "out" / "test-results.zip"
    with zipfile.ZipFile(archive) as opened:
        assert json.loads(opened.read("test-results.json")) == entries
    assert f"ready to submit: {archive}" in out
    assert "model_best.pth" in out
    assert {entry["image_id"] for entry in entries} <= {1, 2, 3}
    assert {entry["category_id"] for entry in entries} <= {1, 2, 3, 4}
    assert f"{len(entries)} detections in 3 images" in out
    for path in (archive, archive.with_suffix(".json")):
        assert check_submission.main([str(path), "--data", str(cells)]) == 0


@pytest.mark.one_engine
def test_the_newest_finished_run_and_its_folder(run, cells, tmp_path, monkeypatch, capsys):
    root = tmp_path / "tensorboard"
    for name in ("a", "b"):
        shutil.copytree(run, root / "tiny" / name)
    os.utime(root / "tiny" / "b" / runs.FINAL, (1, 1))  # the older run
    monkeypatch.setattr(utils, "RUNS", root)
    assert inference.main(["--data", str(cells), "--device", "cpu"]) == 0
    assert (root / "tiny" / "a" / "test-results.zip").is_file()
    assert not (root / "tiny" / "b" / "test-results.zip").exists()
    assert str(root / "tiny" / "a") in capsys.readouterr().out


def test_no_run(monkeypatch, tmp_path):
    monkeypatch.setattr(utils, "RUNS", tmp_path)
    with pytest.raises(InputError, match="train first"):
        inference.main([])


@pytest.mark.one_engine
@pytest.mark.parametrize("how", ["--weight_name", "--checkpoint"])
def test_weights_by_name(predict, run, capsys, how):
    if how == "--weight_name":
        assert predict(how, runs.FINAL) == 0
    else:
        assert predict(checkpoint=run / runs.FINAL) == 0
    assert "model_final.pth" in capsys.readouterr().out


@pytest.mark.one_engine
def test_output_as_a_file(predict, tmp_path):
    path = tmp_path / "new" / "folder" / "mine.json"
    assert predict(output=path) == 0
    with zipfile.ZipFile(path.with_suffix(".zip")) as opened:
        assert opened.namelist() == ["test-results.json"]


def test_score_threshold_and_max_detections(predict, tmp_path):
    path = tmp_path / "all.json"
    predict("--score_threshold", 0, output=path)
    everything = results(path)
    scores: dict[int, list[float]] = {}
    for entry in everything:
        scores.setdefault(entry["image_id"], []).append(entry["score"])
    assert all(len(of_image) > 3 for of_image in scores.values())
    assert all(of_image == sorted(of_image, reverse=True) for of_image in scores.values())

    predict("--score_threshold", 0, "--max_detections", 3)
    best = results(tmp_path / "out" / "test-results.json")
    assert [e["score"] for e in best] == [s for of_image in scores.values() for s in of_image[:3]]

    limit = sorted(entry["score"] for entry in everything)[len(everything) // 2]
    predict("--score_threshold", limit)
    kept = [entry["score"] for entry in results(tmp_path / "out" / "test-results.json")]
    assert kept
    assert min(kept) >= limit


def test_a_limit_that_leaves_out_cells_is_reported(predict, cells, capsys):
    predict("--score_threshold", 0, "--max_detections", 1)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "more cells" in line]
    assert "3 tiles of 3 images" in line
    assert all(path.name in line for path in cells.glob("test_release/*.tif"))
    assert "TEST.DETECTIONS_PER_IMAGE" in line
    predict()
    assert "TEST.DETECTIONS_PER_IMAGE" not in capsys.readouterr().err


@pytest.mark.one_engine
def test_options_reach_the_config(predict, tmp_path):
    predict("--score_threshold", 0, "TEST.DETECTIONS_PER_IMAGE", 1)
    assert len(results(tmp_path / "out" / "test-results.json")) == 3


def test_no_detections(predict, cells, tmp_path, capsys):
    assert predict("--score_threshold", 1) == 0
    assert results(tmp_path / "out" / "test-results.json") == []
    printed = capsys.readouterr()
    assert "0 detections in 3 images, 3 of them without" in printed.out
    assert "ready to submit" not in printed.out
    archive = tmp_path / "out" / "test-results.zip"
    assert "no cells found in any image, so the zip is not valid" in printed.err
    with pytest.raises(InputError, match=r"test-results\.zip: "):
        check_submission.main([str(archive), "--data", str(cells)])


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_weights_that_give_nan(predict, run, tmp_path, capsys, value):
    """Values so large overflow in the next layer."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    saved = torch.load(copy / runs.BEST, weights_only=True)
    weight = next(v for name, v in saved["model"].items() if v.ndim == 4)
    weight[0] = value
    torch.save(saved, copy / runs.BEST)
    assert predict(checkpoint=copy) == 0
    err = capsys.readouterr().err
    assert "warning: values of the network are not finite (NaN) in 3 of 3 batches" in err


@pytest.mark.parametrize("head", ["rpn", "box_predictor", "mask_head"])
def test_heads_that_give_nan(predict, run, tmp_path, capsys, head):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    saved = torch.load(copy / runs.BEST, weights_only=True)
    next(v for name, v in saved["model"].items() if head in name)[:] = float("nan")
    torch.save(saved, copy / runs.BEST)
    assert predict(checkpoint=copy) == 0
    assert "(NaN) in 3 of 3 batches" in capsys.readouterr().err


@pytest.mark.one_engine
def test_images_that_are_almost_black(predict, tmp_path, capsys):
    for name, value in (("black", 0), ("dim", 60), ("bright", 200)):
        Image.fromarray(np.full((40, 30), value, np.uint8)).save(tmp_path / f"{name}.png")
    assert predict("--images", *tmp_path.glob("*.png")) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "of 255" in line]
    assert line.startswith("warning: images with hardly a pixel above 64 of 255")
    assert ": 2: " in line
    assert "black.png" in line
    assert "dim.png" in line
    assert "bright.png" not in line


@pytest.mark.one_engine
@pytest.mark.parametrize(("dataset", "count"), [("train", 5), ("val", 2)])
def test_train_and_validation_images(predict, run, cells, tmp_path, capsys, dataset, count):
    assert predict("--dataset", dataset, "--score_threshold", 0) == 0
    assert f"detections in {count} images" in capsys.readouterr().out
    entries = results(tmp_path / "out" / f"{dataset}-results.json")
    coco = json.loads((cells / "train__annot.json").read_text())
    validation = runs.read_record(run)["held_out"]
    expected = {
        image["id"]
        for image in coco["images"]
        if dataset == "train" or Path(image["file_name"]).parent.name in validation
    }
    assert {entry["image_id"] for entry in entries} <= expected
    assert len(expected) == count
    assert not list((tmp_path / "out").glob("*.zip"))


@pytest.mark.one_engine
@pytest.mark.parametrize(("dataset", "count"), [("train", 5), ("val", 2)])
def test_annotated_images_are_scored_and_exported_by_name(
    predict, cells, tmp_path, capsys, dataset, count
):
    """Their ids are in the test list too."""
    assert predict("--dataset", dataset, "--score_threshold", 0) == 0
    command = capsys.readouterr().out.splitlines()[-1].partition("python evaluate.py ")[2]
    file, flag, _ = words = command.split()
    assert flag == "--truth"
    truth = load_coco(tmp_path / "out" / f"{dataset}-results-truth.json")
    for argv in (words, [file], [file, "--data", str(cells)]):
        assert evaluate.main([*argv, "--resamples", "0"]) == 0
        out = capsys.readouterr().out
        assert f"\n{count} images, {len(truth['annotations'])} ground-truth cells, " in out
    assert export.main([file]) == 0  # the run's data folder
    assert report.main([file, "--resamples", "0"]) == 0
    expected = {Path(image["file_name"]).parent.name for image in truth["images"]}
    assert len(expected) == count
    exported = (tmp_path / "out" / "export" / "geojson").iterdir()
    assert {path.stem for path in exported} == expected


@pytest.mark.one_engine
@pytest.mark.parametrize("dataset", ["train", "val"])
def test_annotations_that_are_not_the_run_s(predict, run, own, tmp_path, dataset):
    """By default the run's own are used; they may be in another place now."""
    assert predict("--dataset", dataset, data=None) == 0
    moved = own / "moved.json"
    (own / "train__annot.json").rename(moved)
    assert predict("--dataset", dataset, "--annotations", moved, data=own) == 0
    written = (tmp_path / "out" / f"{dataset}-results.json").read_bytes()
    message = refusal(predict, "--dataset", dataset, data=own)
    assert message.startswith(f"{own / 'train__annot.json'}: no such file")
    moved.write_text(moved.read_text().replace('"iscrowd": 0', '"iscrowd":  0', 1))
    message = refusal(predict, "--dataset", dataset, "--annotations", moved)
    assert message.startswith(f"{moved}: not the annotations that {run} ")
    assert (tmp_path / "out" / f"{dataset}-results.json").read_bytes() == written


@pytest.mark.one_engine
def test_the_same_weights_twice(predict, run):
    message = refusal(predict, "--checkpoint", str(run), str(run / runs.BEST), checkpoint=run)
    assert message.startswith("--checkpoint: names the same weights twice")


@pytest.mark.one_engine
def test_an_annotation_file_that_cannot_be_read_is_refused_before_predicting(
    predict, own, tmp_path
):
    (own / "train__annot.json").write_text("{")
    assert str(own / "train__annot.json") in refusal(predict, data=own)
    assert not (tmp_path / "out").exists()


@pytest.mark.one_engine
def test_a_submission_without_an_image_is_not_ready(predict, own, tmp_path, capsys):
    path = own / "test_image_name_to_ids.json"
    listed = json.loads(path.read_text())
    listed[0]["height"] += 1
    path.write_text(json.dumps(listed))
    assert "1 of 3 images skipped" in refusal(predict, data=own)
    assert "ready to submit" not in capsys.readouterr().out
    assert (tmp_path / "out" / "test-results.zip").is_file()


@pytest.mark.one_engine
def test_no_zip_for_the_list_of_other_classes(predict, own, tmp_path, capsys):
    path = own / "train__annot.json"
    coco = json.loads(path.read_text())
    coco["categories"][1]["name"] = "another"
    path.write_text(json.dumps(coco))
    archive = tmp_path / "out" / "test-results.zip"
    assert predict(data=own) == 0
    out, err = capsys.readouterr()
    assert not archive.exists()
    assert "ready to submit" not in out
    assert "warning: the run's classes (1 class1, 2 class2, 3 class3, 4 class4) are not" in err
    assert "2 another" in err
    assert predict("--zip", data=own) == 0
    out, err = capsys.readouterr()
    assert archive.is_file()
    assert "ready to submit" not in out
    assert "the server may refuse the zip" in err
    assert predict(data=own) == 0
    assert f"{archive} has earlier results" in capsys.readouterr().err
    assert predict("--zip", "--dataset", "val") == 0
    assert archive.with_name("val-results.zip").is_file()


@pytest.mark.one_engine
def test_a_run_without_validation_images(predict, run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    record = results(copy / runs.RECORD)
    (copy / runs.RECORD).write_text(json.dumps(record | {"held_out": []}))
    record["annotations"]["path"] = "/gone.json"  # to find it would not help
    (copy / runs.RECORD).write_text(json.dumps(record | {"held_out": []}))
    message = refusal(predict, "--dataset", "val", checkpoint=copy)
    assert "--dataset val: " in message
    assert f"{copy} " in message


@pytest.mark.one_engine
def test_images_and_folders(predict, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(np.full((40, 30), 200, np.uint8)).save(folder / "grey.png")
    Image.fromarray(np.full((1, 1, 4), 200, np.uint8)).save(folder / "pixel.png")
    deep = tmp_path / "deep.tif"
    tifffile.imwrite(deep, np.full((30, 40, 3), 50000, np.uint16), photometric="rgb")
    words = ["--images", folder, deep, folder / "grey.png", "--score_threshold", 0]
    assert predict(*words, data=tmp_path / "nowhere") == 0
    assert "in 3 images" in capsys.readouterr().out
    listed = results(tmp_path / "out" / "images-results-list.json")
    expected = [(folder / "grey.png", 40, 30), (folder / "pixel.png", 1, 1), (deep, 30, 40)]
    for n, (entry, (path, height, width)) in enumerate(zip(listed, expected, strict=True), 1):
        assert (entry["file_name"], entry["id"]) == (str(path), n)
        assert (entry["height"], entry["width"]) == (height, width)
        # Even and bright: no tissue; its resolution is unknown.
        assert entry["tissue_px2"] == 0
        assert entry["seconds"] > 0
        assert not {"tissue_mm2", "cells_per_mm2"} & entry.keys()
    assert not list((tmp_path / "out").glob("*.zip"))


@pytest.mark.one_engine
def test_the_classes_are_beside_the_results(predict, run, tmp_path):
    """Exports name the run's classes, of whichever run the results are."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    record = results(copy / runs.RECORD)
    named = [{"id": n, "name": name} for n, name in zip((2, 3, 5, 9), "abcd", strict=True)]
    (copy / runs.RECORD).write_text(json.dumps(record | {"categories": named}))
    image = tmp_path / "grey.png"
    Image.fromarray(np.full((60, 70), 120, np.uint8)).save(image)
    out = tmp_path / "out"
    words = ["--images", image, "--score_threshold", 0]

    def exported():
        argv = [str(out), "--format", "coco", "--score_threshold", "0"]
        assert export.main(argv) == 0
        return [each["name"] for each in results(out / "export" / "coco.json")["categories"]]

    assert predict(*words, checkpoint=copy) == 0
    assert exported() == [*"abcd"]
    assert read_predicted_cells(out, Path())[0] == [*"abcd"]
    assert {e["category_id"] for e in results(out / "images-results.json")} <= {2, 3, 5, 9}
    assert predict(*words) == 0
    assert exported() == [each["name"] for each in record["categories"]]
    (out / "images-results-classes.json").write_text('[{"id": 1}]')
    with pytest.raises(InputError, match=r"images-results-classes\.json: not the classes"):
        read_predicted_cells(out, Path())
    # In the run's own folder, its record has them.
    assert predict(*words, checkpoint=copy, output=copy) == 0
    assert not list(copy.glob("*-classes.json"))
    assert read_predicted_cells(copy, Path())[0] == [*"abcd"]


@pytest.mark.one_engine
def test_images_that_changed_after_the_prediction(predict, tmp_path, monkeypatch, caplog):
    """A copy, which has another time, has not."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((30, 40), 120, np.uint8)).save(name)
    assert predict("--images", "a.png", "b.png", "--score_threshold", 0) == 0
    commands = [(report, ["out"]), (export, ["out", "--table", "cells.csv"])]

    def warnings():
        caplog.clear()
        assert [command.main(words) for command, words in commands] == [0, 0]
        return [line for line in caplog.messages if "changed since" in line]

    os.utime("a.png", (2e9, 2e9))
    assert warnings() == []
    Image.fromarray(np.eye(30, 40) > 0).save("b.png")
    assert len(warnings()) == 2
    assert all(f": 1: {tmp_path / 'b.png'}; " in line for line in warnings())


@pytest.mark.one_engine
def test_own_results_without_their_list(predict, cells, tmp_path):
    """Their ids are not those of the test list."""
    image = next((cells / "test_release").glob("*.tif"))
    assert predict("--images", image) == 0
    (tmp_path / "out" / "images-results-list.json").unlink()
    with pytest.raises(InputError, match=r"images-results-list\.json: no such file"):
        read_predicted_cells(tmp_path / "out", cells)


@pytest.fixture
def low_score(monkeypatch):
    """A minimum score of the counts that the network, which has learnt nothing, reaches."""
    monkeypatch.setattr("cellseg.write.summary.MIN_SCORE", 0.3)
    return 0.3


@pytest.mark.one_engine
@pytest.mark.usefixtures("low_score")
def test_regions_and_the_numbers_of_a_slide(predict, slide, tmp_path, capsys):
    """Cells in a rectangle only; their number per mm² is in the list and in a line."""
    regions = tmp_path / "regions.geojson"
    ring = [[0, 0], [48, 0], [48, 64], [0, 64], [0, 0]]
    regions.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    words = ["--images", slide, "--mpp", 0.5, "--tile", 40, "--overlap", 12, "INPUT.ZOOM", "1.0"]
    assert "regions.geojson: feature 1" in refusal(predict, "--regions", regions, *words)
    feature = {"type": "Feature", "geometry": json.loads(regions.read_text()), "properties": {}}
    regions.write_text(json.dumps(feature))
    assert predict("--regions", regions, "--all-tiles", *words) == 0
    out = capsys.readouterr().out
    assert "regions: 1 outline" in out
    entries = results(tmp_path / "out" / "images-results.json")
    assert len(entries) > 5
    for entry in entries:
        box, mask = crop_mask(decode([entry["segmentation"]]), 0)
        assert box[0] + mask.nonzero()[1].mean() + 0.5 < 48
    (listed,) = results(tmp_path / "out" / "images-results-list.json")
    assert listed["tissue_mm2"] == pytest.approx(listed["tissue_px2"] * 0.5**2 / 1e6, rel=1e-3)
    assert listed["tissue_px2"] <= 48 * 64
    box, mask = crop_mask(decode([listed["regions"]]), 0)
    assert box.tolist() == [0, 0, 48, 64]
    assert mask.all()
    assert 0 < sum(listed["cells"].values()) < len(entries)  # some in several classes
    for name, count in listed["cells"].items():
        assert listed["cells_per_mm2"][name] == pytest.approx(
            count / listed["tissue_mm2"], rel=1e-3
        )
    assert "slide.tif: " in out
    assert "mm² of tissue" in out
    message = refusal(predict, "--regions", regions, "--images", slide, HERE / "docs" / "demo.png")
    assert "--regions" in message
    assert "2 are predicted" in message


@pytest.mark.one_engine
def test_the_numbers_of_an_image_are_those_of_its_cells(predict, tmp_path, low_score):
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(tmp_path / "x.png")
    assert predict("--images", tmp_path / "x.png", "--score_threshold", 0) == 0
    out = tmp_path / "out"
    (listed,) = results(out / "images-results-list.json")
    (cells,) = read_predicted_cells(out / "images-results.json", Path())[1]
    (cells,), _ = select_by_score([cells], low_score)
    counts = np.bincount(cells.classes, minlength=len(listed["cells"]))
    assert [*listed["cells"].values()] == counts.tolist()
    assert counts.sum() > 0


@pytest.mark.one_engine
def test_relative_images_are_exported_from_another_folder(predict, cells, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        image = np.full((20, 30, 3), 200, np.uint8)
        Image.fromarray(image).save(tmp_path / name / "x.png")
    monkeypatch.chdir(tmp_path)
    assert predict("--images", "one/x.png", "two/x.png", "--score_threshold", 0) == 0
    monkeypatch.chdir(cells)
    file = str(tmp_path / "out" / "images-results.json")
    assert export.main([file]) == 0
    overlays = tmp_path / "out" / "export" / "overlay"
    names = [str(path.relative_to(overlays)) for path in overlays.rglob("*.png")]
    assert sorted(names) == ["one/x.png", "two/x.png"]
    assert report.main([file, "--output", str(tmp_path / "page.html")]) == 0


@pytest.mark.one_engine
@pytest.mark.parametrize("name", ["empty", "nowhere.tif"])
def test_images_that_are_not_found(predict, tmp_path, name):
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / name}: " in refusal(predict, "--images", tmp_path / name)


@pytest.fixture
def own(cells, tmp_path):
    """A copy of the data for a test to damage."""
    return Path(shutil.copytree(cells, tmp_path / "own"))


@pytest.mark.one_engine
@pytest.mark.parametrize("damage", ["truncated", "another size"])
def test_an_unusable_image_is_skipped(predict, own, tmp_path, capsys, damage):
    bad = sorted((own / "test_release").iterdir())[1]
    if damage == "truncated":
        bad.write_bytes(bad.read_bytes()[:500])
    else:
        tifffile.imwrite(bad, np.zeros((7, 9, 3), np.uint8))
    assert "1 of 3 images" in refusal(predict, "--score_threshold", 0, data=own)
    printed = capsys.readouterr()
    assert f" {bad}: " in printed.err
    assert "ready to submit" not in printed.out
    image_ids = {entry["image_id"] for entry in results(tmp_path / "out" / "test-results.json")}
    assert image_ids == {1, 3}
    assert (tmp_path / "out" / "test-results.zip").is_file()


@pytest.mark.one_engine
def test_an_image_too_large_for_the_gpu_is_skipped(predict, monkeypatch, tmp_path):
    predict_tiles = Predictor.predict_tiles

    def out_of_memory(self, jobs, brightness=None):
        for number, result in enumerate(predict_tiles(self, jobs, brightness)):
            yield InputError("too large") if number == 1 else result

    monkeypatch.setattr(Predictor, "predict_tiles", out_of_memory)
    assert "1 of 3 images" in refusal(predict, "--score_threshold", 0)
    image_ids = {entry["image_id"] for entry in results(tmp_path / "out" / "test-results.json")}
    assert image_ids == {1, 3}


@pytest.mark.one_engine
def test_only_failed_tiles_are_retried(run, slide, undisturbed, tmp_path, monkeypatch, capsys):
    """Two of a slide's six tiles fail, then one, then none."""
    predict_tiles, argv = Predictor.predict_tiles, argv_of(run, slide, tmp_path)
    for failing, n_predicted in ((2, 6), (1, 2), (0, 1)):
        predicted: list[object] = []

        def out_of_memory(self, jobs, brightness=None, failing=failing, predicted=predicted):
            for number, result in enumerate(predict_tiles(self, jobs, brightness)):
                predicted.append(result)
                yield InputError(f"{failing} fail") if number < failing else result

        with monkeypatch.context() as patch:
            patch.setattr(Predictor, "predict_tiles", out_of_memory)
            if failing:
                with pytest.raises(InputError, match=rf"none of 1 image .*; {failing} fail"):
                    inference.main(argv)
                assert not list(tmp_path.glob("*.json"))
            else:
                assert inference.main(argv) == 0
        assert len(predicted) == n_predicted
        resuming = f"resuming: {6 - n_predicted} tiles"
        assert (resuming in capsys.readouterr().out) == (n_predicted < 6)
    assert (tmp_path / "images-results.json").read_bytes() == undisturbed
    assert not (tmp_path / "images-results.parts").exists()


@pytest.mark.one_engine
def test_no_usable_image_leaves_the_previous_results(predict, own, tmp_path):
    assert predict(data=own) == 0
    previous = (tmp_path / "out" / "test-results.json").read_bytes()
    for path in (own / "test_release").iterdir():
        path.write_bytes(b"II*\0")
    assert "none of 3 images" in refusal(predict, data=own)
    assert (tmp_path / "out" / "test-results.json").read_bytes() == previous
    assert not list((tmp_path / "out").glob("*.parts"))


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--score_threshold", 2], "--score_threshold: '2'"),
        (["--score_threshold", "nan"], "--score_threshold: 'nan'"),
        (["--score_threshold", "-0.1"], "--score_threshold: '-0.1'"),
        (["--max_detections", 0], "--max_detections: '0'"),
        (["--max_detections", "x"], "--max_detections: 'x'"),
        (["--tile", 0], "--tile: '0'"),
        (["--batch", 0], "--batch: '0'"),
        (["--num_gpus", 0], "--workers/--num_gpus/--processes: '0'"),
        (["--num_machines", 2], "--scheduler"),
        (["--dist_url", "auto"], "--scheduler"),
        (["--scheduler", "tcp://h:1", "--workers", 2], "--scheduler and --workers: "),
        (["--scheduler", ""], "--scheduler: is empty"),
        (["--scheduler", "localhost"], "--scheduler localhost: "),
        (["--scheduler", "ucx://h:1"], "--scheduler ucx://h:1: "),
        (["--overlap", 0], "--overlap: '0'"),
        (["--tile", 10, "--overlap", 10], "tiles of 10 px with an overlap of 10 px"),
        (["--overlap", 10], "--overlap: runs without INPUT.ZOOM"),
        (["--level", 1], "--level: needs --images"),
        (["--annotations", "x.json"], "--annotations: needs --dataset"),
        (["--images", "x.tif", "--annotations", "x.json"], "--annotations: needs --dataset"),
        (["--output", "x.txt"], "--output x.txt: "),
        (["--weight_name", "run/x.pth"], "--weight_name run/x.pth: "),
        (["--tta", "twice"], "invalid choice: 'twice'"),
        (["TEST.SYMMETRIES", 3], "TEST.SYMMETRIES 3: "),
        (["--dataset", "all"], "invalid choice: 'all'"),
        (["--dataset", "train", "--images", "x.tif"], "--images and --dataset: "),
        (["--device", "abacus"], "--device abacus: "),
        (["--weight_name", "x.pth"], "--weight_name takes last.pth"),
        (["MODEL.NONSENSE", 1], "MODEL.NONSENSE"),
        (["MODEL.MASK_ON", "False"], "MODEL.MASK_ON False"),
        (["TEST.TILE", 40, "MODEL.WEIGHTS", "x.pth"], "MODEL.WEIGHTS x.pth: "),
        (["INPUT.ZOOM", 2, "INPUT.MIN_SIZE_TEST", 64], "INPUT.MIN_SIZE_TEST 64: "),
        (["INPUT.MIN_SIZE_TEST", "big"], "INPUT.MIN_SIZE_TEST big: "),
        (["INPUT.MIN_SIZE_TEST", 64, "--data", "x"], "--data: "),
    ],
)
def test_invalid_flags(predict, words, expected):
    assert expected in refusal(predict, *words)


@pytest.mark.one_engine
def test_invalid_paths(predict, tmp_path, cells):
    assert "config.yaml" in refusal(predict, checkpoint=cells)
    assert f"{tmp_path / 'nowhere'}: " in refusal(predict, checkpoint=tmp_path / "nowhere")
    assert "nowhere" in refusal(predict, data=tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    assert f"{file}/test-results.parts: " in refusal(predict, output=file)
    (tmp_path / "folder.json").mkdir()
    message = refusal(predict, output=tmp_path / "folder.json")
    assert f"--output {tmp_path / 'folder.json'}: " in message
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.one_engine
@pytest.mark.parametrize("name", [runs.CONFIG, runs.RECORD, runs.BEST])
def test_a_damaged_run(predict, run, tmp_path, name):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    path = copy / name
    path.write_bytes(path.read_bytes()[:1000] + b"\n}")
    assert str(path) in refusal(predict, checkpoint=copy)


def test_weights_of_another_network(predict, run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    torch.save({"model": {"x": torch.zeros(1)}}, copy / "other.pth")
    message = refusal(predict, "--weight_name", "other.pth", checkpoint=copy)
    assert f"{copy / 'other.pth'}: " in message


@pytest.mark.parametrize("ids", [[3, 9], [1], list(range(1, 8))], ids=["3 and 9", "K=1", "K=7"])
def test_other_classes_from_annotation_to_submission(own, tiny, tmp_path, ids):
    """The submission has the ids of the annotation file, also other ones than 1…K."""
    if ids[0] == 1 and len(ids) > 1:
        names = [f"kind {n}" for n in ids]
        assert annotation.main(["--data", str(own), "--class_names", *names]) == 0
    else:
        path = own / "train__annot.json"
        coco = json.loads(path.read_text())
        coco["categories"] = [{"id": n, "name": f"kind {n}"} for n in reversed(ids)]
        for number, entry in enumerate(coco["annotations"]):
            entry["category_id"] = ids[number % len(ids)]
        path.write_text(json.dumps(coco))
    root = tmp_path / "runs"
    argv = ["--config-file", tiny, "--data", own, "--output_dir", root, "--device", "cpu"]
    assert train.main([str(word) for word in [*argv, "SOLVER.MAX_ITER", 1]]) == 0
    (run,) = root.glob("*/*")
    argv = ["--checkpoint", run, "--data", own, "--device", "cpu", "--score_threshold", 0]
    assert inference.main([str(word) for word in argv]) == 0
    category_ids = {entry["category_id"] for entry in results(run / "test-results.json")}
    assert category_ids
    assert category_ids <= set(ids)
    assert [c["id"] for c in runs.read_record(run)["categories"]] == ids
    assert check_submission.main([str(run / "test-results.zip"), "--data", str(own)]) == 0
    # Without the annotation file, the classes are NYCU HW3's four.
    if ids == [3, 9]:
        (own / "train__annot.json").unlink()
        if 9 in category_ids:
            with pytest.raises(InputError, match="category_id 9"):
                check_submission.main([str(run / "test-results.zip"), "--data", str(own)])


def argv_of(run, path, output, *words):
    """Return the command line to predict an image in small tiles."""
    argv = ["--checkpoint", run, "--images", path, "--output", output, "--device", "cpu"]
    argv += ["--tile", 40, "--overlap", 12, "--score_threshold", 0.2, *words, "INPUT.ZOOM", "1.0"]
    return [str(word) for word in argv]


@pytest.fixture(scope="module")
def slide(tmp_path_factory, cells):
    """A tiled TIFF with two pyramid levels; full resolution has 6 tiles of 40 pixels."""
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    image = np.resize(read_image(next(cells.glob("test_release/*.tif"))), (64, 96, 3))
    with tifffile.TiffWriter(path) as writer:
        options = {"photometric": "rgb", "tile": (32, 32), "compression": "zlib"}
        writer.write(image, subifds=1, **options)
        writer.write(image[::2, ::2], subfiletype=1, **options)
    return path


@pytest.fixture(scope="module")
def undisturbed(run, slide, tmp_path_factory):
    """The results of an uninterrupted prediction of the slide."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert inference.main(argv_of(run, slide, folder)) == 0
    written = (folder / "images-results.json").read_bytes()
    assert len(json.loads(written)) > 10
    return written


# Killed while it writes the line of a tile, or while it writes the results.
DIE = """\
import os, signal, sys
import inference
from cellseg.predict.tile_store import TileStore
from cellseg.write.submission import SubmissionWriter
left = [int(sys.argv.pop(1))]
append, add = TileStore.append, SubmissionWriter.add
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def truncated_line(self, key, predictions):
    left[0] -= 1
    path = self.folder / "tiles.jsonl"
    before = path.stat().st_size
    append(self, key, predictions)
    if left[0] < 0:
        os.truncate(path, (before + path.stat().st_size) // 2)
        die()
def truncated_results(self, *args):
    add(self, *args)
    self._file.flush()
    die()
TileStore.append, SubmissionWriter.add = truncated_line, truncated_results
inference.main()
"""


@pytest.mark.one_engine
@pytest.mark.parametrize(("n_done", "views"), [(0, []), (4, ["--tta"]), (6, [])])
def test_killed_and_resumed(
    run, slide, undisturbed, tmp_path, monkeypatch, capsys, forked, n_done, views
):
    """Killed in tile `n_done`, or after the last tile while it writes the results."""
    argv = argv_of(run, slide, tmp_path, *views)
    done = forked("-c", DIE, n_done, *argv)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not list(tmp_path.glob("*.json"))
    predicted = count_tiles(monkeypatch)
    assert inference.main(argv) == 0
    assert len(predicted) == 6 - n_done
    assert (f"resuming: {n_done} tiles" in capsys.readouterr().out) == (n_done > 0)
    written = (tmp_path / "images-results.json").read_bytes()
    assert not (tmp_path / "images-results.parts").exists()
    if views:
        assert inference.main(argv) == 0
        assert written == (tmp_path / "images-results.json").read_bytes() != undisturbed
    else:
        assert written == undisturbed


@pytest.mark.one_engine
def test_a_table_of_slides(run, slide, tmp_path, capsys):
    """One in a list of bad ones; its folder is like the results of other images."""
    shutil.copy(slide, tmp_path / "good.tif")
    (tmp_path / "cut.tif").write_bytes(slide.read_bytes()[:900])
    (tmp_path / "far.geojson").write_text(
        '{"type": "Polygon", "coordinates": [[[900, 900], [950, 900], [950, 950], [900, 900]]]}'
    )
    shutil.copy(slide, tmp_path / "region.tif")
    table = tmp_path / "slides.csv"
    table.write_text(
        "path,mpp,regions\ngood.tif,,\ncut.tif,,\nnone.tif,,\nregion.tif,,far.geojson\n"
    )
    out = tmp_path / "out"
    argv = argv_of(run, table, out)
    with pytest.raises(InputError, match=rf"^3 of 4 slides failed, see {out / 'manifest.csv'}"):
        inference.main(argv)
    err = capsys.readouterr().err
    for name in ("cut.tif", "none.tif", "far.geojson"):
        assert sum(line.startswith("warning: failed: ") for line in err.splitlines()) == 3
        assert f"{tmp_path / name}: " in err
    single = tmp_path / "single"
    assert inference.main(argv_of(run, tmp_path / "good.tif", single)) == 0
    results_file = "images-results.json"
    assert (out / "good" / results_file).read_bytes() == (single / results_file).read_bytes()
    assert export.main([str(out / "good")]) == 0
    capsys.readouterr()
    tables = []
    for source in (out / "good", out, Path(shutil.copytree(out, tmp_path / "moved"))):
        assert export.main([str(source), "--table", str(tmp_path / "cells.csv")]) == 0
        tables.append((tmp_path / "cells.csv").read_text())
        warning = f"{source / 'manifest.csv'}: 3 slides left out, failed"
        assert (warning in capsys.readouterr().err) == (source.name != "good")
    assert tables[0] == tables[1] == tables[2]
    table.write_text("path\ngood.tif\n")
    capsys.readouterr()
    assert inference.main(argv) == 0
    assert "1 slide already done" in capsys.readouterr().out
    for words in (["--zip"], ["--regions", "x.geojson"]):
        with pytest.raises(InputError, match=r"slides\.csv: a table of slides"):
            inference.main(argv_of(run, table, out, *words))
    with pytest.raises(InputError, match=r"--output .*x\.json: a folder"):
        inference.main(argv_of(run, table, tmp_path / "x.json"))
    with pytest.raises(InputError, match=r"^1 of 1 slide failed"):
        inference.main(argv_of(run, table, out, "--level", 7))
    assert "level 7" in (out / "manifest.csv").read_text()


@pytest.mark.one_engine
def test_the_resolution_of_a_row_comes_before_that_of_the_flag(run, slide, tmp_path, capsys):
    for name in ("stated", "other"):
        shutil.copy(slide, tmp_path / f"{name}.tif")
    table, out = tmp_path / "slides.csv", tmp_path / "out"

    def resolutions(row, *flag):
        """Return those of both slides, and how many were done before."""
        table.write_text(f"path,mpp\nstated.tif,{row}\nother.tif,\n")
        capsys.readouterr()
        assert inference.main(argv_of(run, table, out, "--all_tiles", *flag)) == 0
        lists = [results(out / name / "images-results-list.json") for name in ("stated", "other")]
        n_done = re.search(r"(\d) slides? already done", capsys.readouterr().out)
        return [listed[0].get("mpp") for listed in lists], int(n_done[1]) if n_done else 0

    assert resolutions(0.25) == ([0.25, None], 0)
    assert resolutions(0.25, "--mpp", 0.5) == ([0.25, 0.5], 1)
    assert resolutions(0.25, "--mpp", 1) == ([0.25, 1], 1)
    assert resolutions(0.5, "--mpp", 1) == ([0.5, 1], 1)
    assert resolutions("", "--mpp", 1) == ([1, 1], 1)


# The first worker that predicts is killed, or also the client when it has stored a tile. Each
# process runs this script.
DYING = """\
import os, signal
import inference, utils
from cellseg.predict.predictor import Predictor
from cellseg.predict.tile_store import TileStore
predict_tiles, append = Predictor.predict_tiles, TileStore.append
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def worker_dies(self, jobs, brightness=None):
    results = predict_tiles(self, jobs, brightness)
    yield next(results)
    try:
        os.close(os.open(os.environ["MARK"], os.O_CREAT | os.O_EXCL))
        die()
    except FileExistsError:
        yield from results
def client_dies(self, *args):
    append(self, *args)
    die()
Predictor.predict_tiles = worker_dies
if os.environ["WHO"] == "client":
    TileStore.append = client_dies
if __name__ == "__main__":
    utils.run_command(inference.main)
"""


@pytest.fixture
def start_workers(run, slide, tmp_path):
    """Function that starts a prediction by two workers, in a session of its own."""
    script = tmp_path / "dying.py"
    script.write_text(DYING)

    def start(who):
        return subprocess.Popen(
            [sys.executable, script, *argv_of(run, slide, tmp_path, "--workers", 2)],
            env=os.environ | {"PYTHONPATH": str(HERE), "WHO": who, "MARK": str(tmp_path / "mark")},
            start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


@pytest.mark.one_engine
def test_one_of_two_workers_is_killed(start_workers, undisturbed, tmp_path):
    process = start_workers("worker")
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 0, err
    *warned, last = err.splitlines()
    assert last.startswith(f"{len(warned)} warnings"), err  # those of one process, and no more
    assert all(line.startswith("warning: ") for line in warned), err
    assert (tmp_path / "mark").exists()
    assert (tmp_path / "images-results.json").read_bytes() == undisturbed
    assert not (tmp_path / "images-results.parts").exists()
    assert is_gone(process.pid)


@pytest.mark.one_engine
def test_the_client_of_two_workers_is_killed(
    run, slide, start_workers, undisturbed, tmp_path, capsys
):
    process = start_workers("client")
    assert process.wait(timeout=300) == -signal.SIGKILL
    assert is_gone(process.pid)
    process.communicate()
    # One process resumes.
    assert inference.main(argv_of(run, slide, tmp_path)) == 0
    assert "resuming: 1 tile " in capsys.readouterr().out
    assert (tmp_path / "images-results.json").read_bytes() == undisturbed


def count_tiles(monkeypatch):
    """Return a list that collects the tiles predicted from now on."""
    predict_tiles, predicted = Predictor.predict_tiles, []

    def count(self, jobs):
        jobs = list(jobs)
        predicted.extend(jobs)
        return predict_tiles(self, jobs)

    monkeypatch.setattr(Predictor, "predict_tiles", count)
    return predicted


@pytest.fixture
def stopped(run, slide, tmp_path, monkeypatch):
    """Copies of run and slide, predicted into `tmp_path` and stopped by Ctrl-C after 4 tiles."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    image = Path(shutil.copy(slide, tmp_path / "slide.tif"))
    append, left = TileStore.append, [4]

    def stop(*args):
        left[0] -= 1
        append(*args)
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TileStore, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            inference.main(argv_of(copy, image, tmp_path))
    return copy, image


@pytest.mark.one_engine
def test_stopped_and_resumed(capsys, stopped, tmp_path):
    copy, image = stopped
    assert (tmp_path / "images-results.parts").is_dir()
    assert inference.main(argv_of(copy, image, tmp_path)) == 0
    assert "resuming: 4 tiles" in capsys.readouterr().out


@pytest.mark.one_engine
@pytest.mark.parametrize("changed", ["option", "weights", "image", "merging", "nothing"])
def test_a_change_discards_the_stored_tiles(stopped, tmp_path, monkeypatch, changed):
    copy, image = stopped
    flags = {"option": ["--score_threshold", "0.01"], "merging": ["--across_classes"]}
    words = flags.get(changed, [])
    if changed == "weights":
        path = runs.choose_weights(copy)
        saved = torch.load(path, weights_only=True)
        torch.save(saved, path)
        os.utime(path, (1, 1))
    if changed == "image":
        image.write_bytes(image.read_bytes())
        os.utime(image, (1, 1))
    predicted = count_tiles(monkeypatch)
    assert inference.main(argv_of(copy, image, tmp_path, *words)) == 0
    assert len(predicted) == (2 if changed in ("merging", "nothing") else 6)


@pytest.mark.one_engine
def test_levels_of_a_pyramid(predict, slide, tmp_path):
    assert predict("--images", slide, "--level", 1, "--score_threshold", 0) == 0
    out = tmp_path / "out"
    (listed,) = results(out / "images-results-list.json")
    assert (listed["height"], listed["width"]) == (32, 48)
    entries = results(out / "images-results.json")
    assert entries
    assert all(entry["segmentation"]["size"] == [32, 48] for entry in entries)
    # Overlays are of that level, outlines in pixels of full resolution as in viewers.
    words = [str(out / "images-results.json"), "--score_threshold", "0"]
    assert export.main(words) == 0
    assert (out / "export" / "overlay" / "slide.png").is_file()
    (outlines,) = (out / "export" / "geojson").iterdir()
    shapes = [shape(feature["geometry"]) for feature in results(outlines)["features"]]
    (cells,) = read_predicted_cells(out / "images-results.json", Path())[1]
    ends = cells.boxes[:, 2:].max(axis=0)
    outline_ends = np.max([outline.bounds[2:] for outline in shapes], axis=0)
    assert outline_ends.tolist() == (2 * ends).tolist()
    assert report.main([*words, "--output", str(tmp_path / "page.html")]) == 0
    message = refusal(predict, "--images", slide, "--level", 2)
    assert f"{slide}: " in message
    assert "2 levels, 0 to 1, but level 2" in message


@pytest.mark.one_engine
def test_results_of_several_runs_need_an_own_place(run):
    before = sorted(run.iterdir())
    with pytest.raises(InputError, match=r"--checkpoint: several .* --output"):
        inference.main(["--checkpoint", str(run), str(run / runs.FINAL)])
    assert sorted(run.iterdir()) == before


@pytest.mark.one_engine
def test_a_record_with_other_classes_than_the_network(predict, run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    record = results(copy / runs.RECORD)
    record["categories"].pop()
    (copy / runs.RECORD).write_text(json.dumps(record))
    message = refusal(predict, checkpoint=copy)
    assert str(copy / runs.RECORD) in message
    assert "3 classes" in message


@pytest.mark.one_engine
def test_several_weights_files_of_one_run(run, slide, tmp_path, capsys):
    argv = argv_of(run / runs.BEST, slide, tmp_path)
    assert inference.main([*argv[:2], str(run / runs.FINAL), *argv[2:]]) == 0
    weights = capsys.readouterr().out.splitlines()[0]
    assert weights.count(runs.BEST) == weights.count(runs.FINAL) == 1


@pytest.mark.one_engine
def test_runs_with_different_validation_images(predict, run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    record = results(copy / runs.RECORD)
    record["held_out"], record["train"] = record["train"][:2], record["held_out"]
    (copy / runs.RECORD).write_text(json.dumps(record))
    assert "different validation images" in refusal(
        predict, "--checkpoint", run, copy, "--dataset", "val"
    )


@pytest.mark.one_engine
def test_sidecar_files_of_previous_results_are_removed(predict, cells, tmp_path):
    path = tmp_path / "mine.json"
    for words in (["--images", cells / "test_release"], ["--dataset", "val"], []):
        assert predict(*words, output=path) == 0
    left = sorted(path.name for path in tmp_path.glob("mine*"))
    assert left == ["mine-classes.json", "mine-data.json", "mine.json", "mine.zip"]


@pytest.mark.one_engine
def test_the_data_folder_of_the_test_list_is_beside_its_results(predict, cells, tmp_path):
    out = tmp_path / "out"
    assert predict() == 0
    # Images, list and label maps are looked for there.
    assert export.main([str(out), "--format", "overlay"]) == 0
    assert evaluate.main([str(out), "--resamples", "0"]) == 0
    assert check_submission.main([str(out / "test-results.zip"), "--data", str(cells)]) == 0
    assert predict("--images", next((cells / "test_release").glob("*.tif"))) == 0
    assert predict("--dataset", "val", output=out / "test-results.json") == 0
    assert not (out / "test-results-data.json").exists()


@pytest.mark.one_engine
def test_replaced_results_of_other_images_are_named(predict, cells, tmp_path, monkeypatch, capfd):
    first, second, third = sorted((cells / "test_release").glob("*.tif"))
    monkeypatch.chdir(cells)
    warning = "replaces the results of"
    for images, n_replaced in (
        ([first, second], 0),
        ([first.relative_to(cells), second, third], 0),
        ([third], 2),
        ([third], 0),
        ([first], 1),
    ):
        assert predict("--images", *images) == 0
        lines = [line for line in capfd.readouterr().err.splitlines() if warning in line]
        assert len(lines) == (n_replaced > 0)
        if lines:
            assert f"{warning} {n_replaced} other image" in lines[0]
            assert "--output" in lines[0]
    (tmp_path / "out" / "images-results-list.json").write_text("[1]")
    with pytest.raises(InputError):  # it is not this program's
        predict("--images", first)
    capfd.readouterr()
    assert predict("--images", first, output=tmp_path / "new.json") == 0
    assert predict(output=tmp_path / "new.json") == 0
    assert f"{warning} 1 other image ({first.name})" in capfd.readouterr().err


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.json", {"mine": 1}),
        ("mine.zip", "mine"),
        ("mine-list.json", ["a.tif"]),
        ("mine-classes.json", ["a"]),
        ("mine-data.json", ["a"]),
        ("mine-truth.json", {"images": [], "annotations": [], "categories": []}),
    ],
)
@pytest.mark.parametrize("words", [[], ["--dataset", "val"]])
def test_files_of_the_user_are_not_replaced_or_removed(predict, tmp_path, name, content, words):
    (tmp_path / name).write_text(json.dumps(content))
    if name == "mine.zip" and words:
        assert predict(*words, output=tmp_path / "mine.json") == 0  # writes no zip
    else:
        message = refusal(predict, *words, output=tmp_path / "mine.json")
        assert message.startswith(f"{tmp_path / name}: exists, ")
        assert "--output" in message
        assert [path.name for path in tmp_path.glob("mine*")] == [name]
    assert json.loads((tmp_path / name).read_text()) == content


def test_several_runs_are_fused(run, slide, undisturbed, tmp_path):
    """A run fused with its copy gives its own results, with other weights different ones."""
    argv = argv_of(run, slide, tmp_path)
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    assert inference.main([*argv[:2], str(copy), *argv[2:]]) == 0
    assert results(tmp_path / "images-results.json") == json.loads(undisturbed)
    shutil.copy(copy / runs.FINAL, copy / runs.BEST)
    with torch.no_grad():
        saved = torch.load(copy / runs.BEST, weights_only=True)
        for name, values in saved["model"].items():
            if name.endswith("bias"):
                values += 0.1
        torch.save(saved, copy / runs.BEST)
    assert inference.main([*argv[:2], str(copy), *argv[2:]]) == 0
    written = results(tmp_path / "images-results.json")
    assert written != json.loads(undisturbed)
    options = ["INPUT.ZOOM", "1.0", "TEST.TILE", "40", "TEST.OVERLAP", "12"]
    options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.2"]
    cells = Predictor.from_run([run, copy], options=options).predict(slide)
    assert sorted(map(float, map(str, cells.scores))) == sorted(e["score"] for e in written)


@pytest.mark.one_engine
@pytest.mark.parametrize("name", ["OBJECTNESS_POWER", "FOREGROUND_POWER"])
def test_runs_whose_scores_have_different_scales(run, slide, tmp_path, capsys, name):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = (copy / runs.CONFIG).read_text()
    key = f"{name}: 0.0"
    assert key in config
    (copy / runs.CONFIG).write_text(config.replace(key, key.replace("0.0", "1.0")))
    argv = argv_of(run, slide, tmp_path)
    argv = [*argv[:2], str(copy), *argv[2:]]
    assert inference.main(argv) == 0
    assert f"{name} 0 and 1" in capsys.readouterr().err
    assert inference.main([*argv, f"MODEL.ROI_HEADS.{name}", "0"]) == 0
    assert name not in capsys.readouterr().err


@pytest.mark.one_engine
def test_runs_with_different_classes(run, slide, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    record = results(copy / runs.RECORD)
    record["categories"][0]["name"] = "other"
    (copy / runs.RECORD).write_text(json.dumps(record))
    argv = argv_of(run, slide, tmp_path)
    expected = rf"{copy}: .*\(1 other, 2 .*{run} \(1 class1, 2 "
    with pytest.raises(InputError, match=expected):
        inference.main([*argv[:2], str(copy), *argv[2:]])
    with pytest.raises(InputError, match=expected):
        Predictor.of_run([run, copy])  # the former name


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("words", "symmetries", "scales"),
    [
        ([], 1, (1.0,)),
        (["--tta"], 4, (1.0,)),
        (["--tta", "mirror"], 2, (1.0,)),
        (["--tta", "flips"], 4, (1.0,)),
        (["--tta", "flips", "mirror"], 4, (1.0,)),
        (["--tta", "turns"], 8, (1.0,)),
        (["--tta", "scales"], 1, (0.8, 1.0, 1.25)),
        (["--tta", "scales", "mirror"], 2, (0.8, 1.0, 1.25)),
        (["--tta", "turns", "flips", "scales"], 8, (0.8, 1.0, 1.25)),
        (["--tta", "TEST.SYMMETRIES", "2"], 2, (1.0,)),
        (["--tta", "scales", "--", "TEST.SYMMETRIES", "2"], 2, (0.8, 1.0, 1.25)),
    ],
)
def test_tta_sets_the_views(run, words, symmetries, scales):
    cfg = inference.configure(inference.parse(["--device", "cpu", *words]), run)
    assert (cfg.TEST.SYMMETRIES, tuple(cfg.TEST.SCALES)) == (symmetries, scales)


def test_keys_end_the_values_of_a_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("INPUT.PNG", "b.tif"):
        (tmp_path / name).touch()
    pairs = ["TEST.TILE", "40", "INPUT.ZOOM", "1.0"]
    # A file may have the name of a key; the required value of a flag is no key.
    words = ["--output", "TEST.JSON", "--images", "DATA.TIF", "INPUT.PNG", "b.tif"]
    for more in ([], ["--amp"], ["--tta"], ["--checkpoint", "run"]):
        args = inference.parse([*words, *more, *pairs])
        assert args.options == pairs
        assert args.images == [Path("DATA.TIF"), Path("INPUT.PNG"), Path("b.tif")]
        assert args.output == Path("TEST.JSON")
    assert inference.parse([]).options == []


@pytest.mark.parametrize("views", [[], ["scales"]])
def test_views_change_the_detections(run, slide, undisturbed, tmp_path, views):
    words = ["--tta", *views, "--score_threshold", 0.02, "--batch", 3]
    assert inference.main(argv_of(run, slide, tmp_path, *words)) == 0
    scores = {entry["score"] for entry in results(tmp_path / "images-results.json")}
    assert scores
    assert not scores & {entry["score"] for entry in json.loads(undisturbed)}
    assert min(scores) >= 0.02  # the threshold applies to fused scores


def test_from_python_as_from_the_command_line(run, slide, undisturbed):
    """The README's example, with files and arrays."""
    options = ["INPUT.ZOOM", "1.0", "TEST.TILE", "40", "TEST.OVERLAP", "12"]
    options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.2"]
    predictor = Predictor.from_run(run, options=options)
    expected = json.loads(undisturbed)
    for image in (slide, str(slide), read_image(slide)):
        cells = predictor.predict(image)
        assert cells.size == (64, 96)
        assert (np.diff(cells.scores) <= 0).all()
        listed = zip(cells.scores, cells.classes, cells.masks, cells.boxes, strict=True)
        key = [(float(str(s)), c + 1, m["counts"], *box.tolist()) for s, c, m, box in listed]
        written = [
            (entry["score"], entry["category_id"], entry["segmentation"]["counts"], *xyxy(entry))
            for entry in expected
        ]
        for ours, theirs in zip(sorted(key), sorted(written), strict=True):
            assert ours[:3] == theirs[:3]
            assert ours[3:] == pytest.approx(theirs[3:], abs=0.011)


def xyxy(entry):
    x, y, width, height = entry["bbox"]
    return x, y, x + width, y + height


@pytest.mark.one_engine
def test_a_list_with_a_missing_file(predict, own, capsys):
    path = sorted((own / "test_release").iterdir())[0]
    path.unlink()
    message = refusal(predict, data=own)
    assert path.name in message + capsys.readouterr().err


@pytest.mark.one_engine
@pytest.mark.parametrize(("tile", "warned"), [(39, True), (40, False)])
def test_tiles_that_cut_most_cells_are_warned_of(predict, capsys, tile, warned):
    assert predict("--tile", tile, "DATA.LONGEST_CELL", 20.0) == 0
    assert (f"tiles of {tile} px" in capsys.readouterr().err) == warned


@pytest.mark.one_engine
def test_missing_tiles_are_an_error(predict, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(PredictionJob, "run", lambda *_: None)
        message = refusal(predict, "--score_threshold", 0)
    assert "3 tiles" in message
    assert not (tmp_path / "out" / "test-results.json").exists()
    assert predict("--score_threshold", 0) == 0

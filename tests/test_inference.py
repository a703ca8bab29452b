"""inference.py: from a run to the zip, every flag, and images that can't be used."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import annotation
import check_submission
import inference
import train
import utils
from cellseg import runs
from cellseg.errors import InputError
from cellseg.predict.predictor import Predictor


@pytest.fixture
def predict(run, cells, tmp_path):
    """Predict with the run; gives the exit code. Results go to `tmp_path / "out"`."""

    def go(*words, checkpoint=run, data=cells, output=tmp_path / "out"):
        argv = ["--checkpoint", checkpoint, "--data", data, "--output", output, "--device", "cpu"]
        return inference.main([str(word) for word in (*argv, *words)])

    return go


def results(path):
    return json.loads(Path(path).read_text())


def refusal(predict, *words, **keywords):
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
    assert f"checked, and ready to submit: {archive}" in out
    assert "model_best.pth" in out
    assert {entry["image_id"] for entry in entries} <= {1, 2, 3}
    assert {entry["category_id"] for entry in entries} <= {1, 2, 3, 4}
    assert f"{len(entries)} cells in 3 images" in out
    for path in (archive, archive.with_suffix(".json")):
        assert check_submission.main([str(path), "--data", str(cells)]) == 0


def test_the_newest_finished_run_and_its_folder(run, cells, tmp_path, monkeypatch, capsys):
    root = tmp_path / "tensorboard"
    for name in ("a", "b"):
        shutil.copytree(run, root / "tiny" / name)
    os.utime(root / "tiny" / "b" / runs.FINAL, (1, 1))  # finished long ago
    monkeypatch.setattr(utils, "RUNS", root)
    assert inference.main(["--data", str(cells), "--device", "cpu"]) == 0
    assert (root / "tiny" / "a" / "test-results.zip").is_file()
    assert not (root / "tiny" / "b" / "test-results.zip").exists()
    assert str(root / "tiny" / "a") in capsys.readouterr().out


def test_no_run(monkeypatch, tmp_path):
    monkeypatch.setattr(utils, "RUNS", tmp_path)
    with pytest.raises(InputError, match="train first"):
        inference.main([])


@pytest.mark.parametrize("how", ["--weight_name", "--checkpoint"])
def test_weights_by_name(predict, run, capsys, how):
    if how == "--weight_name":
        assert predict(how, runs.FINAL) == 0
    else:
        assert predict(checkpoint=run / runs.FINAL) == 0
    assert "model_final.pth" in capsys.readouterr().out


def test_output_as_a_file(predict, tmp_path):
    path = tmp_path / "new" / "folder" / "mine.json"
    assert predict(output=path) == 0
    with zipfile.ZipFile(path.with_suffix(".zip")) as opened:
        assert opened.namelist() == ["test-results.json"]


def test_threshold_and_cap(predict, tmp_path):
    """A cap keeps the best, a threshold those above it: both by hand from all."""
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
    found = [entry["score"] for entry in results(tmp_path / "out" / "test-results.json")]
    assert found
    assert min(found) >= limit


def test_options_reach_the_config(predict, tmp_path):
    predict("--score_threshold", 0, "TEST.DETECTIONS_PER_IMAGE", 1)
    assert len(results(tmp_path / "out" / "test-results.json")) == 3


def test_nothing_found(predict, tmp_path, capsys):
    assert predict("--score_threshold", 1) == 0
    assert results(tmp_path / "out" / "test-results.json") == []
    assert "0 cells in 3 images, 3 of them without any" in capsys.readouterr().out


@pytest.mark.parametrize(("dataset", "count"), [("train", 5), ("val", 2)])
def test_other_parts_of_the_data(predict, run, cells, tmp_path, capsys, dataset, count):
    assert predict("--dataset", dataset, "--score_threshold", 0) == 0
    assert f"cells in {count} images" in capsys.readouterr().out
    found = {entry["image_id"] for entry in results(tmp_path / "out" / f"{dataset}-results.json")}
    coco = json.loads((cells / "train__annot.json").read_text())
    held = runs.read_record(run)["held_out"]
    expected = {
        image["id"]
        for image in coco["images"]
        if dataset == "train" or Path(image["file_name"]).parent.name in held
    }
    assert found <= expected
    assert len(expected) == count
    assert not list((tmp_path / "out").glob("*.zip"))


def test_annotations_named(predict, cells, tmp_path):
    coco = json.loads((cells / "train__annot.json").read_text())
    coco["images"] = coco["images"][:1]
    coco["annotations"] = []
    file = tmp_path / "one.json"
    file.write_text(json.dumps(coco))
    assert predict("--dataset", "train", "--annotations", file) == 0
    assert "which the run held out" in refusal(predict, "--dataset", "val", "--annotations", file)


def test_val_of_a_run_without_any(predict, run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    record = results(copy / runs.RECORD)
    (copy / runs.RECORD).write_text(json.dumps(record | {"held_out": []}))
    assert "held no images out" in refusal(predict, "--dataset", "val", checkpoint=copy)


def test_any_images(predict, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(np.full((40, 30), 200, np.uint8)).save(folder / "grey.png")
    Image.fromarray(np.full((1, 1, 4), 200, np.uint8)).save(folder / "pixel.png")
    deep = tmp_path / "deep.tif"
    tifffile.imwrite(deep, np.full((30, 40, 3), 50000, np.uint16), photometric="rgb")
    words = ["--images", folder, deep, folder / "grey.png", "--score_threshold", 0]
    assert predict(*words, data=tmp_path / "nowhere") == 0
    assert "in 3 images" in capsys.readouterr().out
    assert results(tmp_path / "out" / "images-results-list.json") == [
        {"file_name": str(path), "id": n, "height": height, "width": width}
        for n, (path, height, width) in enumerate(
            [(folder / "grey.png", 40, 30), (folder / "pixel.png", 1, 1), (deep, 30, 40)], 1
        )
    ]
    assert not list((tmp_path / "out").glob("*.zip"))


def test_images_without_any(predict, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no image in it" in refusal(predict, "--images", tmp_path / "empty")
    assert "no such file" in refusal(predict, "--images", tmp_path / "nowhere.tif")


@pytest.fixture
def own(cells, tmp_path):
    """A copy of the data that the test may damage."""
    return Path(shutil.copytree(cells, tmp_path / "own"))


@pytest.mark.parametrize("damage", ["cut off", "another size"])
def test_one_bad_image_does_not_lose_the_others(predict, own, tmp_path, capsys, damage):
    bad = sorted((own / "test_release").iterdir())[1]
    if damage == "cut off":
        bad.write_bytes(bad.read_bytes()[:500])
    else:
        tifffile.imwrite(bad, np.zeros((7, 9, 3), np.uint8))
    message = refusal(predict, "--score_threshold", 0, data=own)
    assert "1 of 3 images left out, see above" in message
    assert f"left out: {bad}: " in capsys.readouterr().err
    found = {entry["image_id"] for entry in results(tmp_path / "out" / "test-results.json")}
    assert found == {1, 3}
    assert (tmp_path / "out" / "test-results.zip").is_file()


def test_an_image_too_large_for_the_gpu_does_not_lose_the_others(predict, monkeypatch, tmp_path):
    look = Predictor.look

    def short_of_memory(self, looks):
        for number, found in enumerate(look(self, looks)):
            yield InputError("too large") if number == 1 else found

    monkeypatch.setattr(Predictor, "look", short_of_memory)
    assert "1 of 3 images left out" in refusal(predict, "--score_threshold", 0)
    found = {entry["image_id"] for entry in results(tmp_path / "out" / "test-results.json")}
    assert found == {1, 3}


def test_no_image_at_all_leaves_the_former_results(predict, own, tmp_path):
    assert predict(data=own) == 0
    former = (tmp_path / "out" / "test-results.json").read_bytes()
    for path in (own / "test_release").iterdir():
        path.write_bytes(b"II*\0")
    assert "none of the 3 images can be used; " in refusal(predict, data=own)
    assert (tmp_path / "out" / "test-results.json").read_bytes() == former


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--score_threshold", 2], "--score_threshold 2.0: a number from 0 to 1"),
        (["--score_threshold", "nan"], "--score_threshold nan"),
        (["--score_threshold", "-0.1"], "--score_threshold -0.1"),
        (["--max_detections", 0], "--max_detections 0: 1 or more"),
        (["--max_detections", "x"], "invalid int value"),
        (["--dataset", "all"], "invalid choice: 'all'"),
        (["--dataset", "train", "--images", "x.tif"], "--images and --dataset: give one"),
        (["--device", "abacus"], "--device abacus: not to be had here"),
        (["--weight_name", "x.pth"], "no x.pth in it; --weight_name takes last.pth"),
        (["MODEL.NONSENSE", 1], "there is no key MODEL.NONSENSE"),
        (["MODEL.MASK_ON", "False"], "with masks on is expected"),
        (["INPUT.MIN_SIZE_TEST", "big"], "INPUT.MIN_SIZE_TEST big: a value like"),
        (["INPUT.MIN_SIZE_TEST", 64, "--data", "x"], "--data: flags must stand before"),
    ],
)
def test_bad_flags(predict, words, expected):
    assert expected in refusal(predict, *words)


def test_bad_places(predict, tmp_path, cells):
    assert "not a run, it has no config.yaml" in refusal(predict, checkpoint=cells)
    assert "not a run" in refusal(predict, checkpoint=tmp_path / "nowhere")
    assert "nowhere" in refusal(predict, data=tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    assert "can't be made" in refusal(predict, output=file)
    (tmp_path / "folder.json").mkdir()
    assert "can't be written" in refusal(predict, output=tmp_path / "folder.json")


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
    assert "other.pth: can't be loaded as weights" in message


@pytest.mark.parametrize("ids", [[3, 9], [1], list(range(1, 8))], ids=["3 and 9", "K=1", "K=7"])
def test_other_classes_from_annotation_to_submission(own, tiny, tmp_path, ids):
    """The ids of the annotation file come back in the submission, also other people's."""
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
    found = {entry["category_id"] for entry in results(run / "test-results.json")}
    assert found
    assert found <= set(ids)
    assert [c["id"] for c in runs.read_record(run)["categories"]] == ids
    assert check_submission.main([str(run / "test-results.zip"), "--data", str(own)]) == 0
    # The homework's four classes would be refused, or mistaken.
    if ids == [3, 9]:
        (own / "train__annot.json").unlink()
        if 9 in found:
            with pytest.raises(InputError, match="category_id 9"):
                check_submission.main([str(run / "test-results.zip"), "--data", str(own)])

"""inference.py: from a run to the zip, every flag, and images that can't be used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import tifffile
import torch
from PIL import Image

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
from cellseg.read.coco import load_coco
from cellseg.read.tiff import read_image

HERE = Path(__file__).resolve().parents[1]


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


def test_no_detections(predict, cells, tmp_path, capsys):
    assert predict("--score_threshold", 1) == 0
    assert results(tmp_path / "out" / "test-results.json") == []
    said = capsys.readouterr()
    assert "0 cells in 3 images, 3 of them without any" in said.out
    assert "ready to submit" not in said.out
    archive = tmp_path / "out" / "test-results.zip"
    assert f"not to be submitted: {archive} is without a cell, and" in said.err
    with pytest.raises(InputError, match="without a cell"):
        check_submission.main([str(archive), "--data", str(cells)])


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


@pytest.mark.parametrize(("dataset", "count"), [("train", 5), ("val", 2)])
def test_annotated_images_are_scored_alone_and_exported_under_their_names(
    predict, cells, tmp_path, capsys, dataset, count
):
    """Their ids are numbers that the test list has too."""
    assert predict("--dataset", dataset, "--score_threshold", 0) == 0
    said = capsys.readouterr().out.splitlines()[-1].partition("score them: python evaluate.py ")
    file, flag, _ = words = said[2].split()
    assert flag == "--truth"
    truth = load_coco(tmp_path / "out" / f"{dataset}-results-truth.json")
    for argv in (words, [file, "--data", str(cells)]):
        assert evaluate.main([*argv, "--resamples", "0"]) == 0
        out = capsys.readouterr().out
        assert f"\n{count} images, {len(truth['annotations'])} true cells, " in out
    assert export.main([file, "--data", str(cells)]) == 0
    expected = {Path(image["file_name"]).parent.name for image in truth["images"]}
    assert len(expected) == count
    found = (tmp_path / "out" / "export" / "geojson").iterdir()
    assert {path.stem for path in found} == expected


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


def test_any_images_are_read_from_another_folder(predict, cells, tmp_path, monkeypatch):
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
    assert sorted(overlays.rglob("*.png")) == [
        overlays / "one" / "x.png",
        overlays / "two" / "x.png",
    ]
    assert report.main([file, "--output", str(tmp_path / "page.html")]) == 0


def test_images_without_any(predict, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no image in it" in refusal(predict, "--images", tmp_path / "empty")
    assert "no such file" in refusal(predict, "--images", tmp_path / "nowhere.tif")


@pytest.fixture
def own(cells, tmp_path):
    """A copy of the data that the test may damage."""
    return Path(shutil.copytree(cells, tmp_path / "own"))


@pytest.mark.parametrize("decode_errors", ["cut off", "another size"])
def test_one_bad_image_does_not_lose_the_others(predict, own, tmp_path, capsys, decode_errors):
    bad = sorted((own / "test_release").iterdir())[1]
    if decode_errors == "cut off":
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
    look = Predictor.predict_tiles

    def short_of_memory(self, jobs):
        for number, found in enumerate(look(self, jobs)):
            yield InputError("too large") if number == 1 else found

    monkeypatch.setattr(Predictor, "predict_tiles", short_of_memory)
    assert "1 of 3 images left out" in refusal(predict, "--score_threshold", 0)
    found = {entry["image_id"] for entry in results(tmp_path / "out" / "test-results.json")}
    assert found == {1, 3}


def test_what_failed_is_tried_again_and_nothing_else(
    run, slide, undisturbed, tmp_path, monkeypatch, capsys
):
    """Two of a slide's six tiles fail, then one, then none: memory was short for a while."""
    look, argv = Predictor.predict_tiles, argv_of(run, slide, tmp_path)
    for failing, n_looked in ((2, 6), (1, 2), (0, 1)):
        looked: list[object] = []

        def short_of_memory(self, jobs, failing=failing, looked=looked):
            for number, found in enumerate(look(self, jobs)):
                looked.append(found)
                yield InputError(f"{failing} fail") if number < failing else found

        with monkeypatch.context() as patch:
            patch.setattr(Predictor, "predict_tiles", short_of_memory)
            if failing:
                with pytest.raises(InputError, match=rf"none of .* again; {failing} fail"):
                    inference.main(argv)
                assert not list(tmp_path.glob("*.json"))
            else:
                assert inference.main(argv) == 0
        assert len(looked) == n_looked
        said = f"going on: {6 - n_looked} tiles were done before"
        assert (said in capsys.readouterr().out) == (n_looked < 6)
    assert (tmp_path / "images-results.json").read_bytes() == undisturbed
    assert not (tmp_path / "images-results.parts").exists()


def test_no_image_at_all_leaves_the_former_results(predict, own, tmp_path):
    assert predict(data=own) == 0
    former = (tmp_path / "out" / "test-results.json").read_bytes()
    for path in (own / "test_release").iterdir():
        path.write_bytes(b"II*\0")
    assert "none of the 3 images can be used, " in refusal(predict, data=own)
    assert (tmp_path / "out" / "test-results.json").read_bytes() == former
    assert not list((tmp_path / "out").glob("*.parts"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--score_threshold", 2], "--score_threshold: '2' is not a number from 0 to 1"),
        (["--score_threshold", "nan"], "--score_threshold: 'nan' is not a number"),
        (["--score_threshold", "-0.1"], "--score_threshold: '-0.1' is not a number"),
        (["--max_detections", 0], "--max_detections: '0' is not a whole number of 1 or more"),
        (["--max_detections", "x"], "--max_detections: 'x' is not a whole number of 1 or more"),
        (["--tile", 0], "--tile: '0' is not a whole number of 1 or more"),
        (["--batch", 0], "--batch: '0' is not a whole number of 1 or more"),
        (["--num_gpus", 0], "--num_gpus 0: 1 or more is expected; --device cpu works"),
        (["--num_machines", 2], "say with --dist_url tcp://HOST:PORT where machine 0 is"),
        (["--overlap", 0], "--overlap: '0' is not a whole number of 1 or more"),
        (["--tile", 10, "--overlap", 10], "tiles of 10 px that overlap by 10 px"),
        (["--overlap", 10], "--overlap 10: is of tiles, but runs without INPUT.ZOOM look at"),
        (["--annotations", "x.json"], "--annotations: is for --dataset train or val"),
        (["--images", "x.tif", "--annotations", "x.json"], "--annotations: is for --dataset"),
        (["--weight_name", "run/x.pth"], "--weight_name run/x.pth: lies in a folder, but"),
        (["--tta", "twice"], "invalid choice: 'twice'"),
        (["TEST.SYMMETRIES", 3], "TEST.SYMMETRIES 3: one of 1, 2, 4, 8"),
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
    message = refusal(predict, output=tmp_path / "folder.json")
    assert "folder.json: can't be written, it is a folder" in message
    assert not list(tmp_path.glob("*.parts"))


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
    # NYCU HW3's four classes would be refused, or mistaken.
    if ids == [3, 9]:
        (own / "train__annot.json").unlink()
        if 9 in found:
            with pytest.raises(InputError, match="category_id 9"):
                check_submission.main([str(run / "test-results.zip"), "--data", str(own)])


def argv_of(run, path, output, *words):
    """Predict an image in small tiles."""
    argv = ["--checkpoint", run, "--images", path, "--output", output, "--device", "cpu"]
    argv += ["--tile", 40, "--overlap", 12, "--score_threshold", 0.2, *words, "INPUT.ZOOM", "1.0"]
    return [str(word) for word in argv]


@pytest.fixture(scope="module")
def slide(tmp_path_factory, cells):
    """A tiled TIFF with a pyramid of two levels; the finer one has 6 tiles of 40 pixels."""
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    image = np.resize(read_image(next(cells.glob("test_release/*.tif"))), (64, 96, 3))
    with tifffile.TiffWriter(path) as writer:
        options = {"photometric": "rgb", "tile": (32, 32), "compression": "zlib"}
        writer.write(image, subifds=1, **options)
        writer.write(image[::2, ::2], subfiletype=1, **options)
    return path


@pytest.fixture(scope="module")
def undisturbed(run, slide, tmp_path_factory):
    """What a prediction of the slide writes that nothing stops."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert inference.main(argv_of(run, slide, folder)) == 0
    written = (folder / "images-results.json").read_bytes()
    assert len(json.loads(written)) > 10
    return written


# Dies as by kill -9 in the middle of the line of a tile, or in the middle of the results.
DIE = """\
import io, os, signal, sys
import inference
from cellseg.predict.tile_store import Journal
from cellseg.write.submission import SubmissionWriter
left = [int(sys.argv.pop(1))]
append, add = Journal.append, SubmissionWriter.add
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def torn(self, key, found, file):
    left[0] -= 1
    if left[0] >= 0:
        return append(self, key, found, file)
    line = io.StringIO()
    append(self, key, found, line)
    file.write(line.getvalue()[:len(line.getvalue()) // 2])
    file.flush()
    die()
def cut(self, *what):
    add(self, *what)
    self._file.flush()
    die()
Journal.append, SubmissionWriter.add = torn, cut
inference.main()
"""


@pytest.mark.parametrize("engine", ["torchvision"], indirect=True, scope="session")
@pytest.mark.parametrize(("n_done", "views"), [(0, []), (4, ["--tta"]), (6, [])])
def test_killed_and_started_again(
    run, slide, undisturbed, tmp_path, monkeypatch, capsys, n_done, views
):
    """While it does tile number `n_done`; after the last one, while it writes the results."""
    argv = argv_of(run, slide, tmp_path, *views)
    done = subprocess.run(
        [sys.executable, "-c", DIE, str(n_done), *argv], cwd=HERE, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not list(tmp_path.glob("*.json"))
    looked = counted_looks(monkeypatch)
    assert inference.main(argv) == 0
    assert len(looked) == 6 - n_done
    said = f"going on: {n_done} tiles were done before"
    assert (said in capsys.readouterr().out) == (n_done > 0)
    written = (tmp_path / "images-results.json").read_bytes()
    assert not (tmp_path / "images-results.parts").exists()
    if views:
        assert inference.main(argv) == 0
        assert written == (tmp_path / "images-results.json").read_bytes() != undisturbed
    else:
        assert written == undisturbed


@pytest.mark.detectron2
@pytest.mark.parametrize("engine", ["detectron2"], indirect=True, scope="session")
def test_two_machines_write_what_one_writes(run, slide, undisturbed, tmp_path):
    """As far as one machine can tell: two commands that find each other by their address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--num_machines", 2, "--dist_url", f"tcp://127.0.0.1:{port}", "--machine_rank"]
    machines = [
        subprocess.Popen(
            [sys.executable, "inference.py", *argv_of(run, slide, tmp_path, *where, machine)],
            cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for machine in (0, 1)
    ]  # fmt: skip
    out = [machine.communicate()[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0]
    assert out[1].splitlines()[-1] == "done; machine 0 writes the results"
    assert (tmp_path / "images-results.json").read_bytes() == undisturbed
    assert not (tmp_path / "images-results.parts").exists()


# One of two processes dies in the middle of its second tile. Each reads this script again.
ONE_DIES = """\
import os, signal
import inference, utils
from cellseg.predict.tile_store import Journal
append = Journal.append
def die(self, key, found, file):
    append(self, key, found, file)
    if file.name.endswith("-1.jsonl"):
        file.write('{"image": 0, "ti')
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
Journal.append = die
if __name__ == "__main__":
    utils.run_command(inference.main)
"""


@pytest.mark.detectron2
@pytest.mark.parametrize("engine", ["detectron2"], indirect=True, scope="session")
def test_one_of_two_processes_is_killed(run, slide, undisturbed, tmp_path, capsys):
    argv = argv_of(run, slide, tmp_path, "--num_gpus", 2)
    script = tmp_path / "one_dies.py"
    script.write_text(ONE_DIES)
    done = subprocess.run(
        [sys.executable, script, *argv], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    message = done.stderr.splitlines()[-1]
    assert message.startswith("one_dies.py: error: --num_gpus: one of the processes was ended")
    assert not list(tmp_path.glob("*.json"))
    # The process alone does what both left undone, and knows their tiles.
    assert inference.main(argv_of(run, slide, tmp_path)) == 0
    assert "tiles were done before" in capsys.readouterr().out
    assert (tmp_path / "images-results.json").read_bytes() == undisturbed


def counted_looks(monkeypatch):
    """Return a list that fills with the tiles that are looked at from now on."""
    look, looked = Predictor.predict_tiles, []

    def count(self, jobs):
        jobs = list(jobs)
        looked.extend(jobs)
        return look(self, jobs)

    monkeypatch.setattr(Predictor, "predict_tiles", count)
    return looked


@pytest.fixture
def stopped(run, slide, tmp_path, monkeypatch):
    """A prediction into `tmp_path` of a copied run and slide, stopped by Ctrl-C after 4 tiles."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    image = Path(shutil.copy(slide, tmp_path / "slide.tif"))
    append, left = TileStore.append, [4]

    def stop(*words):
        left[0] -= 1
        append(*words)
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TileStore, "append", stop)
        assert inference.main(argv_of(copy, image, tmp_path)) == 130
    return copy, image


def test_a_stopped_one_says_that_it_goes_on(capsys, stopped, tmp_path):
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
    copy, image = stopped
    assert (tmp_path / "images-results.parts").is_dir()
    assert inference.main(argv_of(copy, image, tmp_path)) == 0
    assert "going on: 4 tiles were done before" in capsys.readouterr().out


@pytest.mark.parametrize("changed", ["option", "weights", "image", "nothing"])
def test_whatever_changes_begins_anew(stopped, tmp_path, monkeypatch, changed):
    copy, image = stopped
    words = ["--across_classes"] if changed == "option" else []
    if changed == "weights":
        path = runs.choose_weights(copy)
        saved = torch.load(path, weights_only=True)
        torch.save(saved, path)
        os.utime(path, (1, 1))
    if changed == "image":
        image.write_bytes(image.read_bytes())
        os.utime(image, (1, 1))
    looked = counted_looks(monkeypatch)
    assert inference.main(argv_of(copy, image, tmp_path, *words)) == 0
    assert len(looked) == (2 if changed == "nothing" else 6)


@pytest.mark.detectron2
@pytest.mark.parametrize("engine", ["detectron2"], indirect=True, scope="session")
def test_two_processes_write_what_one_writes(run, slide, undisturbed, tmp_path):
    done = subprocess.run(
        [sys.executable, "inference.py", *argv_of(run, slide, tmp_path, "--num_gpus", 2)],
        cwd=HERE, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "images-results.json").read_bytes() == undisturbed
    assert not (tmp_path / "images-results.parts").exists()


def test_levels_of_a_pyramid(predict, slide, tmp_path):
    assert predict("--images", slide, "--level", 1, "--score_threshold", 0) == 0
    out = tmp_path / "out"
    (listed,) = results(out / "images-results-list.json")
    assert (listed["height"], listed["width"]) == (32, 48)
    found = results(out / "images-results.json")
    assert found
    assert all(entry["segmentation"]["size"] == [32, 48] for entry in found)
    # Drawn on that level, and outlined in the finest one, which viewers show.
    words = [str(out / "images-results.json"), "--score_threshold", "0"]
    assert export.main(words) == 0
    assert (out / "export" / "overlay" / "slide.png").is_file()
    (outlines,) = (out / "export" / "geojson").iterdir()
    corners = np.concatenate(
        [
            np.concatenate(polygon)
            for feature in results(outlines)["features"]
            for polygon in (
                [feature["geometry"]["coordinates"]]
                if feature["geometry"]["type"] == "Polygon"
                else feature["geometry"]["coordinates"]
            )
        ]
    )
    assert corners.max(0).tolist() == [
        2 * max(right for _, _, right, _ in map(extent, found)),
        2 * max(bottom for _, _, _, bottom in map(extent, found)),
    ]
    assert report.main([*words, "--output", str(tmp_path / "page.html")]) == 0
    message = refusal(predict, "--images", slide, "--level", 2)
    assert message.endswith("it has 2 levels, 0 to 1, but level 2 was asked for; take another")
    assert "--level: is for --images" in refusal(predict, "--level", 1)


def extent(entry):
    """The box of a result's mask, XYXY in whole pixels."""
    left, top, width, height = pycocotools.mask.toBbox(entry["segmentation"]).tolist()
    return left, top, left + width, top + height


def test_every_weights_file_that_is_named_is_taken(run, slide, tmp_path, capsys):
    argv = argv_of(run / runs.BEST, slide, tmp_path)
    assert inference.main([*argv[:2], str(run / runs.FINAL), *argv[2:]]) == 0
    weights = capsys.readouterr().out.splitlines()[0]
    assert weights.count(runs.BEST) == weights.count(runs.FINAL) == 1


def test_runs_with_other_validation_images_are_not_fused_on_them(predict, run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    record = results(copy / runs.RECORD)
    record["held_out"], record["train"] = record["train"][:2], record["held_out"]
    (copy / runs.RECORD).write_text(json.dumps(record))
    message = refusal(predict, "--checkpoint", run, copy, "--dataset", "val")
    assert "the runs held other images out" in message


def test_what_belonged_to_former_results_goes(predict, tmp_path):
    for name in ("mine-list.json", "mine-truth.json"):
        (tmp_path / name).write_text("[]")
    assert predict(output=tmp_path / "mine.json") == 0
    assert sorted(path.name for path in tmp_path.glob("mine*")) == ["mine.json", "mine.zip"]


def test_several_runs_are_fused(run, slide, undisturbed, tmp_path):
    """One run beside itself finds what it finds alone; its weights of another time do not."""
    argv = argv_of(run, slide, tmp_path)
    assert inference.main([*argv[:2], str(run), *argv[2:]]) == 0
    assert results(tmp_path / "images-results.json") == json.loads(undisturbed)
    copy = Path(shutil.copytree(run, tmp_path / "run"))
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
    found = Predictor.from_run([run, copy], options=options).predict(slide)
    assert sorted(map(float, map(str, found.scores))) == sorted(e["score"] for e in written)


def test_runs_of_other_classes_are_not_fused(run, slide, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    record = results(copy / runs.RECORD)
    record["categories"][0]["name"] = "other"
    (copy / runs.RECORD).write_text(json.dumps(record))
    argv = argv_of(run, slide, tmp_path)
    expected = rf"{copy}: has other classes \(1 other, 2 .*\) than {run} \(1 class1, 2 "
    with pytest.raises(InputError, match=expected):
        inference.main([*argv[:2], str(copy), *argv[2:]])
    with pytest.raises(InputError, match=expected):
        Predictor.from_run([run, copy])


@pytest.mark.parametrize(
    ("words", "symmetries", "scales"),
    [
        ([], 1, (1.0,)),
        (["--tta"], 4, (1.0,)),
        (["--tta", "flips"], 4, (1.0,)),
        (["--tta", "turns"], 8, (1.0,)),
        (["--tta", "scales"], 1, (0.8, 1.0, 1.25)),
        (["--tta", "turns", "flips", "scales"], 8, (0.8, 1.0, 1.25)),
        (["--tta", "TEST.SYMMETRIES", "2"], 2, (1.0,)),
        (["--tta", "scales", "--", "TEST.SYMMETRIES", "2"], 2, (0.8, 1.0, 1.25)),
    ],
)
def test_views_as_they_are_asked_for(run, words, symmetries, scales):
    cfg = inference.configure(inference.parse(["--device", "cpu", *words]), run)
    assert (cfg.TEST.SYMMETRIES, tuple(cfg.TEST.SCALES)) == (symmetries, scales)


def test_keys_end_the_values_of_a_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("INPUT.PNG", "b.tif"):
        (tmp_path / name).touch()
    pairs = ["TEST.TILE", "40", "INPUT.ZOOM", "1.0"]
    # A file may be named as a key is; a value that a flag must have is the flag's.
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
    found = results(tmp_path / "images-results.json")
    assert found
    plain = {entry["score"] for entry in json.loads(undisturbed)}
    assert not plain & {entry["score"] for entry in found}
    # The threshold is one of the fused score.
    assert min(entry["score"] for entry in found) >= 0.02


def test_from_python_as_from_the_command_line(run, slide, undisturbed):
    """The README's example: files and arrays."""
    options = ["INPUT.ZOOM", "1.0", "TEST.TILE", "40", "TEST.OVERLAP", "12"]
    options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.2"]
    predictor = Predictor.from_run(run, options=options)
    expected = json.loads(undisturbed)
    for image in (slide, str(slide), read_image(slide)):
        found = predictor.predict(image)
        assert found.size == (64, 96)
        assert (np.diff(found.scores) <= 0).all()
        listed = zip(found.scores, found.classes, found.masks, found.boxes, strict=True)
        key = [(float(str(s)), c + 1, m["counts"], *box.tolist()) for s, c, m, box in listed]
        written = [
            (entry["score"], entry["category_id"], entry["segmentation"]["counts"], *xyxy(entry))
            for entry in expected
        ]
        for mine, its in zip(sorted(key), sorted(written), strict=True):
            assert mine[:3] == its[:3]
            assert mine[3:] == pytest.approx(its[3:], abs=0.011)


def xyxy(entry):
    x, y, width, height = entry["bbox"]
    return x, y, x + width, y + height


def test_a_list_with_a_missing_file(predict, own, capsys):
    path = sorted((own / "test_release").iterdir())[0]
    path.unlink()
    message = refusal(predict, data=own)
    assert path.name in message + capsys.readouterr().err


def test_tiles_that_no_process_did_are_not_left_out_in_silence(predict, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(PredictionJob, "predict", lambda *_: None)
        message = refusal(predict, "--score_threshold", 0)
    assert message == "3 tiles were not done; the same command goes on from here"
    assert not (tmp_path / "out" / "test-results.json").exists()
    assert predict("--score_threshold", 0) == 0

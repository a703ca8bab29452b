"""Many slides: folders, manifest, what is done again, and slides that fail."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from cellseg import config
from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.predict.cohort import MARKER, Cohort, Outcome
from cellseg.predict.job import PredictionJob, predict_here
from cellseg.predict.predictor import Predictor
from cellseg.predict.workers import Workers
from cellseg.predictions import Predictions
from cellseg.read.image_lists import ImageSet
from cellseg.read.results import OWN_RESULTS_FILE
from cellseg.read.slide_table import Slide
from cellseg.write.sidecars import write_sidecars
from cellseg.write.submission import write_submission

HERE = Path(__file__).resolve().parents[2]


class FakePredictor(Predictor):
    """Detects one cell in each tile; fails by the name of the image."""

    predicted: ClassVar[list[str]] = []

    def __init__(self):
        cfg = config.default_config("torchvision")
        cfg.TEST.TILE, cfg.TEST.OVERLAP = 20, 4
        super().__init__([], [cfg])

    def predict_tiles(self, jobs, brightness=None):  # noqa: ARG002
        for job in jobs:
            name = job.image.stem
            if "torn" in name and job.tile.window[0]:
                yield InputError(f"{job.image}: torn")
                continue
            if "broken" in name:
                raise KeyError("a bug")
            self.predicted.append(name)
            box = np.array([[8, 8, 9, 9]], np.float32)
            mask = {"size": list(job.tile.size), "counts": ""}
            yield Predictions(
                job.tile.size, box, np.ones(1, np.float32), np.zeros(1, np.int64), [mask]
            )


class Lab:
    """Slides of 20 x 52 px, 3 tiles each, and their cohort.

    The slide of a name is that of the file in `files`, or of the name in the folder.
    """

    def __init__(self, folder: Path):
        self.folder, self.made_from, self.wrong = folder, "run", ""
        self.names = ["a", "b", "c"]
        self.files: dict[str, str] = {}
        FakePredictor.predicted.clear()

    def slides(self):
        slides = []
        for name in self.names:
            path = self.folder / f"{self.files.get(name, name)}.png"
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                Image.fromarray(np.full((20, 52), 200, np.uint8)).save(path)
            problem = "line 2: mpp" if name == "unusable" else ""
            slides.append(Slide(ImageRecord(1, str(path), path, None), name, problem))
        return slides

    def begin(self, image: ImageRecord, results: Path) -> PredictionJob:
        if image.path.stem == "level":
            raise InputError(f"{image.path}: no level 3")
        return PredictionJob.begin(FakePredictor(), [], [image], results, all_tiles=True)

    def write(self, job: PredictionJob) -> Outcome:
        if self.wrong in job.images[0].path.stem and self.wrong:
            raise OSError(28, "No space left on device", str(job.results))
        with write_submission(job.results, [1]) as writer:
            for _, tile in job.store.entries():
                writer.add(1, tile)
        listed = {"file_name": job.images[0].file_name, "id": 1, "height": 20, "width": 52}
        write_sidecars(job.results, [listed], [{"id": 1, "name": "cell"}], ImageSet("", []))
        return Outcome(writer.count, 0.5, "one line")

    def run(self, predict=None, **keywords):
        """Predict the slides; return the names of the images of the tiles."""
        FakePredictor.predicted.clear()
        output = self.folder / "out"
        cohort = Cohort(self.slides(), output, lambda _: self.made_from, self.begin, self.write)
        cohort.run(predict or predict_here(FakePredictor()), **keywords)
        return sorted(FakePredictor.predicted)

    def manifest(self):
        with (self.folder / "out" / "manifest.csv").open(newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def test_a_folder_for_each_slide_and_a_manifest(lab, capsys):
    assert lab.run() == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    rows = lab.manifest()
    assert list(rows[0]) == ["path", "folder", "cells", "mm2", "seconds", "error"]
    for name, row in zip("abc", rows, strict=True):
        folder = lab.folder / "out" / name
        assert (row["path"], row["folder"]) == (str(lab.folder / f"{name}.png"), str(folder))
        assert (row["cells"], row["mm2"], row["error"]) == ("3", "0.5", "")
        assert float(row["seconds"]) >= 0
        sidecars = ["images-results-classes.json", "images-results-list.json"]
        files = sorted(path.name for path in folder.iterdir())
        assert files == [MARKER, *sidecars, OWN_RESULTS_FILE]
    assert "3 slides done: " in capsys.readouterr().out
    assert sorted(p.name for p in (lab.folder / "out").iterdir()) == ["a", "b", "c", "manifest.csv"]


def test_started_again_it_does_what_is_missing_or_changed(lab, capsys):
    lab.run()
    before = lab.manifest()
    assert lab.run() == []
    assert lab.manifest() == before
    assert "3 slides already done" in capsys.readouterr().out
    lab.names.append("d")
    assert lab.run() == ["d"] * 3
    os.utime(lab.folder / "b.png", (1, 1))
    (lab.folder / "out" / "c" / OWN_RESULTS_FILE).unlink()
    (lab.folder / "out" / "d" / MARKER).write_text("{}")
    assert lab.run() == ["b"] * 3 + ["c"] * 3 + ["d"] * 3
    (lab.folder / "out" / "a" / OWN_RESULTS_FILE).write_text("[]")  # of another command
    assert lab.run() == ["a"] * 3
    lab.made_from = "another run"
    assert len(lab.run()) == 12
    assert [row["error"] for row in lab.manifest()] == [""] * 4


def test_a_marker_is_never_that_of_other_results(lab, monkeypatch):
    """Stopped after the results of changed flags were written, then again with the former ones."""
    lab.run()
    lab.made_from = "another run"
    monkeypatch.setattr("cellseg.predict.cohort.write_json", lambda *_, **__: sys.exit(1))
    with pytest.raises(SystemExit):
        lab.run()
    monkeypatch.undo()
    lab.made_from = "run"
    assert lab.run() == ["a"] * 3


@pytest.mark.parametrize("what", ["list", "classes"])
def test_a_slide_without_its_list_or_classes_is_not_done(lab, what):
    lab.run()
    (lab.folder / "out" / "b" / f"images-results-{what}.json").unlink()
    assert lab.run() == ["b"] * 3
    assert (lab.folder / "out" / "b" / f"images-results-{what}.json").exists()


def results_of(lab, name):
    return (lab.folder / "out" / name / OWN_RESULTS_FILE).stat().st_mtime_ns


def forget_image(marker):
    """Make a marker as earlier versions wrote it."""
    content = json.loads(marker.read_text())
    del content["image"]
    marker.write_text(json.dumps(content))


@pytest.mark.parametrize("is_former", [False, True])
def test_results_of_another_slide_are_not_replaced(lab, is_former):
    lab.names, lab.files = ["s", "b"], {"s": "x/s"}
    lab.run()
    written = results_of(lab, "s")
    if is_former:
        forget_image(lab.folder / "out" / "s" / MARKER)
    lab.files = {"s": "y/s"}
    for _ in range(2):
        with pytest.raises(InputError, match=r"^1 of 2 slides failed"):
            lab.run()
        assert FakePredictor.predicted == []
        other, done = lab.manifest()
        for text in (lab.folder / "y/s.png", lab.folder / "x/s.png", lab.folder / "out/s"):
            assert str(text) in other["error"]
        assert (done["error"], done["cells"]) == ("", "3")
        assert results_of(lab, "s") == written
    lab.files = {"s": "x/s"}
    assert lab.run() == []
    shutil.rmtree(lab.folder / "out" / "s")
    lab.files = {"s": "y/s"}
    assert lab.run() == ["s"] * 3


@pytest.mark.parametrize("change", ["", "time", "size", "content", "run"])
def test_the_results_of_a_slide_follow_its_file(lab, change, capsys):
    """Those of another file, or of another run, may be of another slide."""
    lab.names, lab.files = ["s", "b"], {"s": "x/s"}
    lab.run()
    written = results_of(lab, "s")
    (lab.folder / "x").rename(lab.folder / "y")
    lab.files = {"s": "y/s"}
    path = lab.folder / "y" / "s.png"
    if change == "time":
        os.utime(path, (1, 1))
    elif change == "size":
        stat = path.stat()
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "content":  # as of uncompressed images from an archive
        stat, written_bytes = path.stat(), bytearray(path.read_bytes())
        written_bytes[-1] ^= 1
        path.write_bytes(written_bytes)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "run":
        lab.made_from = "another run"
    if change:
        with pytest.raises(InputError, match=r"^1 of 2 slides failed"):
            lab.run()
        return
    assert lab.run() == []
    assert "2 slides already done" in (out := capsys.readouterr().out)
    assert f"1 slide moved since the prediction: {lab.folder / 'x/s.png'} to {path}" in out
    assert lab.manifest()[0]["path"] == str(path)
    listed = json.loads((lab.folder / "out" / "s" / "images-results-list.json").read_text())
    assert [image["file_name"] for image in listed] == [str(path)]
    assert results_of(lab, "s") == written
    assert lab.run() == []
    assert "moved" not in capsys.readouterr().out
    os.utime(path, (1, 1))
    assert lab.run() == ["s"] * 3


def test_results_without_a_marker_are_not_replaced_by_another_slides(lab):
    lab.names, lab.files = ["s"], {"s": "x/s"}
    lab.run()
    (lab.folder / "out" / "s" / MARKER).unlink()
    lab.files = {"s": "y/s"}
    with pytest.raises(InputError, match=r"^1 of 1 slide failed"):
        lab.run()
    (lab.folder / "y" / "s.png").unlink()
    (lab.folder / "y" / "s.png").symlink_to(lab.folder / "x" / "s.png")  # the same slide
    assert lab.run() == ["s"] * 3


@pytest.mark.parametrize("is_former", [False, True])
def test_the_results_of_a_slide_follow_its_name(lab, is_former, caplog):
    lab.names, lab.files = ["s", "s/b"], {"s": "x/s", "s/b": "b"}
    lab.run()
    written = results_of(lab, "s")
    (lab.folder / "out" / "s" / "mine.txt").touch()
    if is_former:
        forget_image(lab.folder / "out" / "s" / MARKER)
    lab.names, lab.files = ["s/s", "y/s", "s/b"], {"s/s": "x/s", "s/b": "b"}
    assert lab.run() == ["s"] * 3  # of y
    assert results_of(lab, "s/s") == written
    assert (lab.folder / "out" / "s" / "s" / "mine.txt").exists()
    assert sorted(path.name for path in (lab.folder / "out" / "s").iterdir()) == ["b", "s"]
    assert [row["cells"] for row in lab.manifest()] == ["3"] * 3
    assert not caplog.messages
    assert lab.run() == []


def test_folders_that_are_no_longer_in_the_table(lab, caplog):
    lab.run()
    lab.names = ["c", "d"]
    assert lab.run() == ["d"] * 3
    (warning,) = caplog.messages
    assert str(lab.folder / "out" / "manifest.csv") in warning
    for name in "ab":
        assert str(lab.folder / "out" / name) in warning
        assert (lab.folder / "out" / name / MARKER).exists()
    lab.names = ["a", "b", "c", "d"]
    assert lab.run() == []


def test_a_damaged_manifest_is_written_again(lab):
    lab.run()
    (lab.folder / "out" / "manifest.csv").write_bytes(b"\xff\n")
    assert lab.run() == []
    assert len(lab.manifest()) == 3


def test_a_slide_in_two_rows_of_which_one_can_not_be_used(lab):
    lab.names = ["a", "unusable"]
    lab.files = {"unusable": "a"}
    with pytest.raises(InputError, match=r"^1 of 2 slides failed"):
        lab.run()
    assert [(row["cells"], row["error"]) for row in lab.manifest()] == [
        ("3", ""),
        ("", "line 2: mpp"),
    ]


def test_a_stopped_prediction_goes_on_with_its_tiles(lab):
    def stop(groups):
        yield from list(predict_here(FakePredictor())(groups))[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.run(stop)
    assert [row["cells"] for row in lab.manifest()] == ["3", "", ""]
    assert lab.run() == ["b"] * 2 + ["c"] * 3
    assert [row["cells"] for row in lab.manifest()] == ["3"] * 3


FAILING = {
    "unusable": "line 2: mpp",
    "level": "no level 3",
    "torn": "torn.png: torn",
    "cut": "cut.png: ",
    "broken": "error.txt: KeyError",
    "full": f"{OWN_RESULTS_FILE}: No space left",
}


@pytest.mark.parametrize("workers", [False, True])
def test_slides_that_fail_cost_no_other(lab, workers, request, caplog):
    lab.names = ["a", *FAILING, "b"]
    lab.slides()
    lab.wrong = "full"
    cut = lab.folder / "cut.png"
    cut.write_bytes(cut.read_bytes()[:20])
    predict = None
    if workers:
        predict = Workers(request.getfixturevalue("client"), FakePredictor).predict
    with pytest.raises(InputError, match=r"^6 of 8 slides failed, see .*manifest\.csv"):
        lab.run(predict, in_background=workers)
    rows = {Path(row["folder"]).name: row for row in lab.manifest()}
    assert list(rows) == lab.names
    for name, row in rows.items():
        assert FAILING.get(name, "") in row["error"]
        assert bool(row["error"]) == (name in FAILING)
        assert row["cells"] == ("" if name in FAILING else "3")
        assert (lab.folder / "out" / name / MARKER).exists() == (name not in FAILING)
    assert "a bug" in (lab.folder / "out" / "broken" / "error.txt").read_text()
    assert sum(message.startswith("failed: ") for message in caplog.messages) == 6
    # Only these are tried again.
    lab.wrong = ""
    with pytest.raises(InputError, match=r"^5 of 8 slides"):
        lab.run()
    assert {row["error"] for row in lab.manifest() if row["path"].endswith("full.png")} == {""}


def test_workers_give_what_one_process_gives(lab, client):
    lab.names = [f"slide {n}" for n in range(12)]
    lab.run()
    out = lab.folder / "out"
    expected = {name: (out / name / OWN_RESULTS_FILE).read_bytes() for name in lab.names}
    lab.made_from = "again"
    lab.run(Workers(client, FakePredictor).predict, in_background=True)
    for name, content in expected.items():
        assert (out / name / OWN_RESULTS_FILE).read_bytes() == content


def test_a_problem_of_all_slides_ends_the_command(lab):
    def fail(groups):
        yield next(predict_here(FakePredictor())(groups))
        raise InputError("--scheduler: lost the connection")

    with pytest.raises(InputError, match="lost the connection"):
        lab.run(fail)
    assert len(lab.manifest()) == 3
    assert lab.run() == ["a"] * 2 + ["b"] * 3 + ["c"] * 3


HOLD = """\
import sys, time
from pathlib import Path
from cellseg.predict.tile_store import lock_folder
unlock = lock_folder(Path(sys.argv[1]))
print("ready", flush=True)
time.sleep(60)
"""


def test_two_commands_into_one_folder(lab):
    argv = [sys.executable, "-c", HOLD, lab.folder / "out"]
    with subprocess.Popen(argv, cwd=HERE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(InputError, match=rf"out: another .*process {process.pid} on "):
            lab.run()
        process.kill()
    assert len(lab.run()) == 9

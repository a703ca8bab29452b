"""Many slides: folders, manifest, what is done again, and slides that fail."""

from __future__ import annotations

import csv
import os
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
from cellseg.read.results import OWN_RESULTS_FILE
from cellseg.read.slide_table import Slide
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
    """Slides of 20 x 52 px, 3 tiles each, and their cohort."""

    def __init__(self, folder: Path):
        self.folder, self.made_from, self.wrong = folder, "run", ""
        self.names = ["a", "b", "c"]
        FakePredictor.predicted.clear()

    def slides(self):
        slides = []
        for name in self.names:
            path = self.folder / f"{name}.png"
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
        assert sorted(path.name for path in folder.iterdir()) == [MARKER, OWN_RESULTS_FILE]
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

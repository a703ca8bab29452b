"""Results and annotations as other programs and systems store them, in all commands."""

from __future__ import annotations

import codecs
import json
import os
import signal
import zipfile

import numpy as np
import pytest
import tifffile

import check_submission
import evaluate
import export
import report
from cellseg.read.results import read_results
from tests.read.refusal import refusal
from tests.score.scoring_cases import entry, rectangle, truth_of

SIZE = (8, 12)
CELL = rectangle(SIZE, 0, 0, 4, 4)
ENTRIES = [entry(1, 1, CELL, 0.9)]


@pytest.fixture
def data(tmp_path):
    """A data folder with one test image."""
    folder = tmp_path / "data"
    (folder / "test").mkdir(parents=True)
    tifffile.imwrite(folder / "test" / "1.tif", np.full((*SIZE, 3), 200, np.uint8))
    listed = [{"file_name": "1.tif", "id": 1, "height": SIZE[0], "width": SIZE[1]}]
    (folder / "test_image_name_to_ids.json").write_text(json.dumps(listed))
    (folder / "truth.json").write_text(json.dumps(truth_of({1: (SIZE, [(1, CELL, 0)])})))
    return folder


def commands(path, data):
    """Return a call of each command that reads results."""
    where, truth = ["--data", str(data)], ["--truth", str(data / "truth.json"), "--resamples", "0"]
    page = ["--output", str(data / "page.html")]
    return {
        "check_submission": (check_submission.main, [str(path), *where]),
        "evaluate": (evaluate.main, [str(path), *where, *truth]),
        "export": (export.main, [str(path), *where, "--format", "geojson"]),
        "report": (report.main, [str(path), *where, *page, *truth]),
        "report without truth": (report.main, [str(path), *where, *page]),
    }


COMMANDS = ["check_submission", "evaluate", "export", "report", "report without truth"]


def write_zip(path, *members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


# ------------------------------------------------------------------ byte order marks


def with_mark(value):
    return codecs.BOM_UTF8 + json.dumps(value).encode()


@pytest.mark.parametrize("name", ["export", "report"])
def test_annotations_with_a_byte_order_mark(data, name):
    path = data / "marked.json"
    path.write_bytes(with_mark(json.loads((data / "truth.json").read_text())))
    if name == "export":
        assert export.main([str(path), "--data", str(data), "--format", "geojson"]) == 0
        (feature,) = json.loads((data / "export/geojson/1.geojson").read_text())["features"]
        assert feature["properties"]["objectType"] == "annotation"
    else:  # they are no results, and the message says so
        assert f"{path}: annotations, expected results" in refusal(report.main, [str(path)])
        argv = ["--annotations", str(path), "--data", str(data)]
        assert report.main([*argv, "--output", str(data / "page.html")]) == 0


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("is_zip", [False, True])
def test_results_with_a_byte_order_mark(data, name, is_zip):
    """All read them; the server doesn't."""
    path = data / "marked.json"
    path.write_bytes(with_mark(ENTRIES))
    if is_zip:
        path = write_zip(data / "marked.zip", ("test-results.json", path.read_bytes()))
    command, argv = commands(path, data)[name]
    if name == "check_submission":
        assert f"{path}: begins with a byte order mark" in refusal(command, argv)
    else:
        assert command(argv) == 0
        assert read_results(path) == ENTRIES


# ------------------------------------------------------------------ pipes and devices


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("where", ["a pipe", "in a folder", "a device"])
def test_pipes_are_no_results(data, tmp_path, name, where):
    """To open one waits for a program that writes into it."""

    def wait_no_longer(*_):
        pytest.fail("waits for ever")

    path = tmp_path / "test-results.json"
    if where == "a device":
        path = "/dev/null"
    else:
        os.mkfifo(path)
    command, argv = commands(tmp_path if where == "in a folder" else path, data)[name]
    before = signal.signal(signal.SIGALRM, wait_no_longer)
    signal.alarm(20)
    try:
        message = refusal(command, argv)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert message.startswith(f"{path}: a device or pipe, expected a file")


# ------------------------------------------------------------------ zips


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "members",
    [
        ["test-results.json", "test-results.json"],
        ["a/test-results.json", "b/test-results.json"],
        ["old/test-results.json", "test-results.json"],
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_results_in_a_zip(data, name, members):
    """It would depend on their order which are read."""
    path = write_zip(data / "two.zip", *((member, json.dumps(ENTRIES)) for member in members))
    command, argv = commands(path, data)[name]
    message = refusal(command, argv)
    assert message.startswith(f"{path}: the zip holds {', '.join(members)}, expected only test-")

"""The command: each type of page, each flag, each error message."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

import export
import report
import utils
from cellseg.errors import InputError
from cellseg.read.ground_truth import read_ground_truth
from tests.cohorts import write_cohort
from tests.score.scoring_cases import entry, rectangle, truth_of

PROJECT = Path(__file__).parents[1]
SIZE = (20, 30)
RESULTS = [
    entry(21, 1, rectangle(SIZE, 0, 0, 8, 8), 0.9),
    entry(22, 2, rectangle(SIZE, 0, 0, 8, 8), 0.4),
]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def data(tmp_path):
    """Two test images with label maps, and next to the data folder a run with results."""
    data = tmp_path / "data"
    entries = []
    for id_, name in ((21, "a"), (22, "b")):
        (data / "test_release").mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(data / "test_release" / f"{name}.tif", np.full((*SIZE, 3), 99, np.uint8))
        entries.append({"file_name": f"{name}.tif", "id": id_, "height": 20, "width": 30})
        labels = np.zeros(SIZE)
        labels[:8, :9] = 1
        (data / "test_masks" / name).mkdir(parents=True)
        tifffile.imwrite(data / "test_masks" / name / "class1.tif", labels)
    write(data / "test_image_name_to_ids.json", entries)
    write(tmp_path / "run" / "test-results.json", RESULTS)
    (tmp_path / "run" / "metrics.json").write_text('{"iteration": 3, "total_loss": 1.5}\n')
    return data


@pytest.fixture
def make(data, capsys):
    """Run the command on the data folder; return the page and its index."""

    def make(*argv):
        page = data.parent / "page.html"
        code = report.main([*map(str, argv), "--data", str(data), "--output", str(page)])
        assert code == 0
        html = page.read_text()
        output = capsys.readouterr().out
        assert "2 images, " in output
        assert output.endswith("page.html in a browser\n")
        return html, json.loads(html.split('id="index">')[1].split("</script>")[0])

    return make


def test_results_with_the_data_folders_ground_truth(make, data):
    html, index = make(data.parent / "run", "--resamples", 20)
    assert (index["has_ground_truth"], len(index["results"]), index["threshold"]) == (True, 1, 0.5)
    assert [image["name"] for image in index["images"]] == ["a.tif", "b.tif"]
    assert index["images"][0]["results"][0]["match"] == [0]
    for words in ("Precision and recall", "Training loss", "with 95 % intervals", "AP of masks"):
        assert words in html
    again, _ = make(data.parent / "run", "--resamples", 20)
    assert again == html


def test_a_zip_or_file_a_ground_truth_file_and_flags(make, data):
    truth = truth_of({21: (SIZE, [(1, rectangle(SIZE, 0, 0, 8, 8), 0)])}, ["x", "y"])
    truth["images"][0]["file_name"] = "test_release/a.tif"
    write(data / "truth.json", truth)
    with pytest.raises(InputError, match="image_id 22"):
        make(data.parent / "run", "--truth", data / "truth.json")
    page = data.parent / "one.html"
    argv = ["--truth", data / "truth.json", "--only_annotated", "--score_threshold", 0.25]
    argv = [data.parent / "run" / "test-results.json", *argv, "--resamples", 0, "--output", page]
    assert report.main([*map(str, argv), "--data", str(data)]) == 0
    html = page.read_text()
    assert '"threshold":0.25' in html
    assert "score of 0.25 or more" in html
    assert "with 95" not in html  # also not in the note below the scores
    assert html.count("<h3>F1</h3>") == 1


def test_cells_by_class_are_those_of_the_table_of_cells(make, data):
    """Nine cells lie in one of more than four times their area; another is mostly under it."""
    large = entry(21, 1, rectangle(SIZE, 0, 0, 20, 20), 0.9)
    small = [entry(21, 2, rectangle(SIZE, n, n, n + 4, n + 4), 0.8) for n in range(0, 16, 4)]
    small += [entry(21, 2, rectangle(SIZE, n, 0, n + 4, 4), 0.8) for n in (4, 8, 12, 16)]
    small += [entry(21, 2, rectangle(SIZE, 16, 16, 20, 20), 0.8)]
    hidden = entry(21, 2, rectangle(SIZE, 3, 3, 20, 14), 0.6)
    results = write(data / "results.json", [large, *small, hidden])
    table = data / "cells.csv"
    assert export.main([str(results), "--data", str(data), "--table", str(table)]) == 0
    summary = csv.DictReader((data / "cells-summary.csv").read_text().splitlines())
    counts = [row["count"] for row in summary if row["image"] == "all"]
    assert counts == ["1", "9", "0", "0", "10"]
    (data / "test_masks").rename(data / "masks")
    for truth in ([], ["--truth", data / "masks"]):
        html, _ = make(results, *truth)
        table = html.split("Detections with a score of 0.5 or more, all")[1].split("</tbody>")[0]
        assert re.findall(r"</th><td>(\d+)", table) == counts
        assert "Not counted: 1 cell mostly under others" in html


@pytest.mark.parametrize("large_first", [True, False])
def test_results_that_are_the_ground_truth(data, large_first):
    """A cell in a cell, with equal scores: both are true positives, the smaller one first."""
    large, small = rectangle(SIZE, 0, 0, 10, 10), rectangle(SIZE, 2, 2, 8, 8)
    cells = [large, small] if large_first else [small, large]
    truth = truth_of({21: (SIZE, [(1, mask, 0) for mask in cells])}, [f"class{k}" for k in "1234"])
    truth["images"][0]["file_name"] = "test_release/a.tif"
    write(data / "truth.json", truth)
    results = write(data / "same.json", [entry(21, 1, mask, 0.9) for mask in cells])
    page = data.parent / "same.html"
    argv = [results, "--truth", data / "truth.json", "--resamples", 0, "--output", page]
    assert report.main([*map(str, argv), "--data", str(data)]) == 0
    html = page.read_text()
    (image,) = json.loads(html.split('id="index">')[1].split("</script>")[0])["images"]
    assert image["results"][0]["iou"] == [1, 1]
    assert image["results"][0]["match"] == ([1, 0] if large_first else [0, 1])
    assert "Not counted" not in html


def test_the_seed_draws_other_intervals(make, data):
    first, _ = make(data.parent / "run", "--resamples", 5)
    others = (make(data.parent / "run", "--resamples", 5, "--seed", seed)[0] for seed in (1, 2, 3))
    assert any(other != first for other in others)


def test_annotations_of_test_images_without_folder(make, data):
    truth = truth_of({21: (SIZE, []), 22: (SIZE, [])})
    for image, name in zip(truth["images"], "ab", strict=True):
        image["file_name"] = f"{name}.tif"
    _, index = make("--annotations", write(data / "truth.json", truth))
    assert (index["has_ground_truth"], index["results"]) == (True, [])
    truth["images"][0]["file_name"] = "gone.tif"
    with pytest.raises(InputError, match=r"gone\.tif: .* --data"):
        make("--annotations", write(data / "truth.json", truth))


@pytest.mark.parametrize("with_truth", [True, False])
def test_detections_that_occur_twice_give_a_warning(data, caplog, with_truth):
    results = write(data / "results.json", [RESULTS[0], RESULTS[0]])
    if not with_truth:
        (data / "test_masks").rename(data / "masks")
    page = str(data.parent / "page.html")
    argv = [str(results), "--data", str(data), "--output", page, "--resamples", "0"]
    assert report.main(argv) == 0
    (record,) = caplog.records
    assert f"{results}: detections" in record.getMessage()
    assert record.getMessage().endswith(": 1, in 1 image: a.tif")


def test_crowd_regions_are_not_cells(make, data):
    cell, crowd = (rectangle(SIZE, top, 0, top + 8, 8) for top in (0, 10))
    truth = truth_of({21: (SIZE, [(1, cell, 0), (1, crowd | cell, 1)]), 22: (SIZE, [])})
    for image, name in zip(truth["images"], "ab", strict=True):
        image["file_name"] = f"{name}.tif"
    path = write(data / "truth.json", truth)
    html, _ = make("--annotations", path)
    assert "<dt>ground-truth cells</dt><dd>1</dd>" in html
    assert html.count('<button data-image="0"') == 1  # the example
    assert "64 px" in html
    scored, _ = make(data.parent / "run", "--truth", path, "--resamples", 0)
    for page in (html, scored):
        histogram = page.split("Sizes of the ground-truth cells")[1].split("</figure>")[0]
        assert "a (1)" in histogram


def test_annotations_as_label_maps(make, data):
    html, index = make("--annotations", data / "test_masks")
    assert index["classes"] == ["class1", "class2", "class3", "class4"]
    assert "class1, by rising size" in html
    assert "Precision and recall" not in html


def test_without_ground_truth(make, data):
    (data / "test_masks").rename(data / "elsewhere")
    html, index = make(data.parent / "run")
    assert index["has_ground_truth"] is False
    assert "class2, by falling score" in html
    assert "Training loss" in html
    other = write(data.parent / "other" / "test-results.json", RESULTS[:1])
    _, index = make(data.parent / "run", "--compare", other)
    assert len(index["results"]) == 2
    assert [len(one["scores"]) for one in index["images"][1]["results"]] == [1, 0]


def test_results_with_a_list_of_other_images(make, data, monkeypatch):
    """inference.py --images writes a list next to its results, used instead of the test list."""
    monkeypatch.chdir(data.parent)
    results = write(data.parent / "images-results.json", [])
    listed = [
        {"id": n, "file_name": f"data/test_release/{x}.tif", "height": 20, "width": 30}
        for n, x in ((1, "a"), (2, "b"))
    ]
    write(data.parent / "images-results-list.json", listed)
    _, index = make(results)
    assert index["has_ground_truth"] is False
    other = write(data.parent / "one-results.json", [])
    write(data.parent / "one-results-list.json", listed[:1])
    for first in (results, data.parent / "run"):
        with pytest.raises(InputError, match=r"one-results\.json: .* same images"):
            make(first, "--compare", other)
    # Ground truth with other ids is matched by name.
    write(results, [{**RESULTS[0], "image_id": 2}])
    _, index = make(results, "--truth", data / "test_masks", "--resamples", 0)
    assert [image["results"][0]["scores"] for image in index["images"]] == [[], [0.9]]
    # The list's names and resolution are used, and its area of the tissue.
    listed[1] |= {"mpp": 2.0, "tissue_px2": 250}
    write(data.parent / "images-results-list.json", listed)
    for flags in ([], ["--truth", data / "test_masks", "--resamples", 0]):
        html, index = make(results, *flags)
        assert [(image["name"], image["mpp"]) for image in index["images"]] == [
            ("a", None),
            ("b", 2.0),
        ]
        assert "of the tissue" in html
        assert "0.5 or more, all images, 0.001 mm²" in html  # 250 px of 4 µm²
        assert "<td>1,000.0</td>" in html  # one detection in 0.001 mm²
        assert "of 1 of the 2 images" in html
        assert "0.001 mm² in 1 of 2 images</caption>" in html
    # Its paths are from the folder in which it was written.
    monkeypatch.chdir(data)
    with pytest.raises(InputError, match=r"a\.tif: image of .*images-results\.json not found"):
        make(results)


def test_many_slides(make, data):
    """On one page, by the names of their folders, with and without ground truth."""
    ids = {"b": 22, "a": 21}
    slides = {
        name: (
            data / "test_release" / f"{name}.tif",
            SIZE,
            [each for each in RESULTS if each["image_id"] == id_],
        )
        for name, id_ in ids.items()
    }
    cohort = data.parent / "cohort"
    write_cohort(cohort, slides, ["class1", "class2", "class3", "class4"])
    _, index = make(cohort)
    assert [image["name"] for image in index["images"]] == ["b", "a"]
    assert [image["results"][0]["scores"] for image in index["images"]] == [[0.4], [0.9]]
    html, index = make(cohort, "--truth", data / "test_masks", "--resamples", 0)
    matches = {image["name"]: image["results"][0]["match"] for image in index["images"]}
    assert matches == {"a": [0], "b": [0]}  # each one's detection with its own cell
    assert "AP of masks" in html


def test_two_results_on_other_validation_images(make, data):
    for name, ids in (("wide", (21, 22)), ("narrow", (21,))):
        truth = truth_of({id_: (SIZE, []) for id_ in ids})
        for image, letter in zip(truth["images"], "ab", strict=False):
            image["file_name"] = f"{letter}.tif"
        write(data.parent / f"{name}-truth.json", truth)
    wide, narrow = (write(data.parent / f"{name}.json", []) for name in ("wide", "narrow"))
    with pytest.raises(InputError, match=r"narrow\.json: .*22 .*wide-truth\.json.* b\.tif"):
        make(wide, "--compare", narrow, "--resamples", 0)
    with pytest.raises(InputError, match=r"run: .*annotations"):
        make(wide, "--compare", data.parent / "run")


def figure_titles(html):
    return re.findall(r"<figcaption>([^<]+)</figcaption>", html)


def test_plots_without_anything_are_left_out(make, data):
    """Neither cells nor detections; detections only; cells only."""
    truth = truth_of({id_: (SIZE, []) for id_ in (21, 22)})
    for image, letter in zip(truth["images"], "ab", strict=True):
        image["file_name"] = f"test_release/{letter}.tif"
    (data / "test_masks").rename(data / "masks")
    empty = write(data / "truth.json", truth)
    none, some = write(data / "none.json", []), write(data / "some.json", RESULTS[:1])
    for argv in ([none], [none, "--truth", empty], [none, "--truth", empty, "--compare", none]):
        html, _ = make(*argv)
        assert figure_titles(html) == []
    assert figure_titles(make("--annotations", empty)[0]) == []
    html, _ = make(some, "--truth", empty)
    assert figure_titles(html) == ["Cells per image", "Scores of the detected cells"]
    html, _ = make(none, "--truth", data / "masks")
    assert "Scores by class, with 95 % intervals" in figure_titles(html)
    assert "Scores of the detected cells" not in figure_titles(html)


def test_intervals_are_named_where_there_are_some(data):
    """Of two images with cells of class 1 there are intervals, of one there are none."""
    page = data.parent / "page.html"
    for names, has_intervals in (("ab", True), ("a", False)):
        cells = {21: rectangle(SIZE, 0, 0, 8, 9), 22: rectangle(SIZE, 0, 0, 8, 9)}
        truth = truth_of(
            {
                id_: (SIZE, [(1, mask, 0)] if letter in names else [])
                for (id_, mask), letter in zip(cells.items(), "ab", strict=True)
            }
        )
        for image, letter in zip(truth["images"], "ab", strict=True):
            image["file_name"] = f"test_release/{letter}.tif"
        path = write(data / "truth.json", truth)
        results = write(data / "results.json", RESULTS[:1])
        argv = [results, "--truth", path, "--data", data, "--output", page]
        assert report.main([*map(str, argv)]) == 0
        html = page.read_text()
        assert ("Scores by class, with 95 % intervals" in html) is has_intervals
        assert ("intervals where at least two images" in html) is has_intervals


def test_two_results(make, data):
    other = write(data.parent / "other" / "test-results.json", RESULTS[:1])
    html, index = make(data.parent / "run", "--compare", other, "--resamples", 20)
    assert [Path(name).name for name in index["results"]] == ["run", "test-results.json"]
    assert "B − A, mean of classes" in html
    assert "detected cells of A" in html


def test_defaults(data, monkeypatch, capsys):
    monkeypatch.setattr(utils, "RUNS", data.parent / "runs")
    with pytest.raises(InputError, match=r"runs: .*test-results\.json"):
        report.main(["--data", str(data)])
    run = data.parent / "runs" / "model" / "run"
    write(run / "test-results.json", RESULTS)
    assert report.main(["--data", str(data), "--resamples", "0"]) == 0
    assert (run / "report.html").is_file()
    assert report.main(["--annotations", str(data / "test_masks"), "--data", str(data)]) == 0
    assert (data / "test_masks" / "report.html").is_file()
    assert "open " in capsys.readouterr().out


def test_bad_input(make, data):
    run = data.parent / "run"
    truth = write(data / "truth.json", truth_of({21: (SIZE, [])}))
    for argv, message in (
        (["--annotations", truth, "--truth", truth], "--annotations: .*leave out --truth"),
        (["--annotations", truth, "--compare", run], "--annotations: .*leave out --compare"),
        ([run, "--annotations", truth], "--annotations: .*leave out RESULTS"),
        (["--annotations", data / "gone"], "gone: .*COCO file or a folder"),
        ([truth], r"truth\.json: annotations, expected results; .* --annotations"),
        ([run, "--compare", truth], r"truth\.json: annotations, expected results"),
        ([run, "--truth", data / "gone"], "gone: .*--truth, or leave it out"),
        ([data / "gone.json"], r"gone\.json: "),
        ([run, "--compare", data / "gone.json"], r"gone\.json: "),
        *(([run, "--score_threshold", text], f"'{text}' .* 0 to 1") for text in ("2", "x", "nan")),
        ([run, "--resamples", "-1"], "--resamples: '-1'"),
        ([run, "--seed", "1.5"], r"--seed: '1\.5'"),
        ([run, "--nothing"], "--nothing"),
    ):
        with pytest.raises(InputError, match=message):
            make(*argv)


def test_a_damaged_image_keeps_the_former_page(make, data):
    html, _ = make(data.parent / "run", "--resamples", 0)
    path = data / "test_release" / "b.tif"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"b\.tif"):
        make(data.parent / "run", "--resamples", 0)
    assert (data.parent / "page.html").read_text() == html


def test_an_image_of_another_size(make, data):
    (data / "test_masks").rename(data / "elsewhere")
    tifffile.imwrite(data / "test_release" / "b.tif", np.zeros((20, 29, 3), np.uint8))
    with pytest.raises(InputError, match=r"b\.tif: 20 x 29 pixels .* 20 x 30"):
        make(data.parent / "run")


def test_only_pages_are_replaced(make, data):
    annotations = data / "train__annot.json"
    annotations.write_text(json.dumps(read_ground_truth(data / "test_masks", data)))
    before = annotations.read_bytes()
    argv = ["--annotations", str(annotations), "--data", str(data)]
    with pytest.raises(InputError, match=r"--output .*train__annot\.json: is also an input"):
        report.main([*argv, "--output", str(annotations)])
    assert annotations.read_bytes() == before
    (data.parent / "page.html").write_text("<!doctype html><title>mine</title>")
    with pytest.raises(InputError, match=r"page\.html: exists, .*--output"):
        make(*argv[:2])
    (data.parent / "page.html").unlink()
    for _ in range(2):
        make(*argv[:2])


def test_a_page_that_can_t_be_written(data):
    (data.parent / "folder.html").mkdir()
    argv = [str(data.parent / "run"), "--data", str(data), "--resamples", "0"]
    with pytest.raises(InputError, match=r"folder\.html: can't be written"):
        report.main([*argv, "--output", str(data.parent / "folder.html")])


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        report.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for words in ("python report.py --annotations", "--compare B", "(default: 0.5)", "95 %"):
        assert words in text


def test_from_any_folder_without_torch(data):
    """As a program from another folder: exit code and output; no network library is loaded."""
    code = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: assert not {'torch', 'detectron2'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(PROJECT / "report.py")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    options = {"cwd": data.parent, "env": environment, "capture_output": True, "text": True}
    good = subprocess.run([*command, "run", "--data", "data"], check=False, **options)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.endswith("open run/report.html in a browser\n")
    bad = subprocess.run([*command, "gone.json", "--data", "data"], check=False, **options)
    assert bad.returncode == 2
    assert bad.stderr.startswith("report.py: error: gone.json: ")
    assert bad.stderr.count("\n") == 1

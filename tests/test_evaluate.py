"""evaluate.py: tables, files, every flag, and errors."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import tifffile

import evaluate
import utils
from cellseg.errors import InputError
from cellseg.read.ground_truth import read_ground_truth
from tests.cohorts import write_cohort
from tests.read.refusal import refusal
from tests.score.scoring_cases import truth_of

PROJECT = Path(__file__).parents[1]
SIZE = (6, 40)


def rle(start, end):
    """Return the RLE of the columns `start` to `end` of 6 pixels."""
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[:, start:end] = 1
    coded = pycocotools.mask.encode(mask)
    return {"size": list(SIZE), "counts": coded["counts"].decode()}


def entry(image_id, class_id, start, end, score):
    mask = rle(start, end)
    return {"image_id": image_id, "category_id": class_id, "segmentation": mask, "score": score}


RESULTS = [
    entry(21, 1, 0, 4, 0.9),
    entry(21, 2, 10, 13, 0.8),
    entry(22, 1, 0, 5, 0.4),
    entry(22, 2, 3, 7, 0.7),
]


@pytest.fixture
def data(tmp_path):
    """A data folder with two annotated test images, and results."""
    (tmp_path / "test_release").mkdir()
    entries = []
    for id, name in ((21, "a"), (22, "b")):
        tifffile.imwrite(
            tmp_path / "test_release" / f"{name}.tif", np.full((*SIZE, 3), 200, np.uint8)
        )
        entries.append({"file_name": f"{name}.tif", "id": id, "height": 6, "width": 40})
        (tmp_path / "test_masks" / name).mkdir(parents=True)
    (tmp_path / "test_image_name_to_ids.json").write_text(json.dumps(entries))
    for name, class_id, spans in (
        ("a", 1, [(0, 4), (20, 24)]),
        ("a", 2, [(10, 14)]),
        ("b", 1, [(0, 5)]),
    ):
        labels = np.zeros(SIZE)
        for label, (start, end) in enumerate(spans, 10 * class_id):
            labels[:, start:end] = label
        tifffile.imwrite(tmp_path / "test_masks" / name / f"class{class_id}.tif", labels)
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    return tmp_path


@pytest.fixture
def score(data, capsys):
    """Run the command on the results; return the JSON and the printed text."""

    def run(*flags, results="results.json"):
        files = [str(data / results), "--data", str(data), "--json", str(data / "s.json")]
        code = evaluate.main([*files, "--resamples", "5", *flags])
        assert code == 0
        return json.loads((data / "s.json").read_text()), capsys.readouterr().out

    return run


def values(scores, metric):
    row = scores["metrics"][metric]
    return [row["classes"][f"class{k}"]["value"] for k in (1, 2)]


def test_detections_that_occur_twice_count_and_give_a_warning(data, capsys):
    """The copy of the only detection of class 2 in the first image is a false positive."""

    def precision(results):
        (data / "results.json").write_text(json.dumps(results))
        files = [str(data / "results.json"), "--data", str(data), "--json", str(data / "s.json")]
        assert evaluate.main([*files, "--resamples", "0"]) == 0
        scores = json.loads((data / "s.json").read_text())
        return values(scores, "AP50@all"), capsys.readouterr().err

    once, err = precision([*RESULTS[:1], entry(22, 1, 0, 5, 0.1)])
    assert err == ""
    # Of these scores, Python's hashes are equal.
    assert "earlier one" not in precision([{**RESULTS[0], "score": s} for s in (-1.0, -2.0)])[1]
    twice, err = precision([*RESULTS[:1], RESULTS[0], entry(22, 1, 0, 5, 0.1)])
    assert once[0] > twice[0]
    assert f"{data / 'results.json'}: detections" in err
    assert err.endswith(": 1, in 1 image: a.tif\n")


def test_tables_and_json(score):
    scores, text = score()
    assert scores["images"] == 2
    assert scores["classes"] == ["class1", "class2", "class3", "class4"]
    # class1: 2 of 3 detected, first in rank; class2: 1 of 1 at IoU 3/4.
    ap50 = [67 / 101, 1]
    assert values(scores, "AP50@100") == values(scores, "AP50@all") == pytest.approx(ap50)
    assert values(scores, "AP75@all") == pytest.approx(ap50)
    assert values(scores, "AP@all") == pytest.approx([67 / 101, 0.6])
    # The third detection is not in the label maps: its score is below 0.5.
    assert values(scores, "recall") == pytest.approx([1 / 3, 1])
    assert scores["metrics"]["AP50@all"]["classes"]["class3"]["value"] is None
    assert scores["results"].endswith("results.json")
    assert "2 images, 4 ground-truth cells, 4 detections" in text
    line = next(line for line in text.splitlines() if line.startswith("class3"))
    assert line.split() == ["class3", "–", "–", "–"]


def test_score_threshold(score):
    scores, _ = score("--score_threshold", "0.3")
    # The fourth detection has the higher score and gets 2 of the third one's 5 columns.
    assert values(scores, "recall") == pytest.approx([2 / 3, 1])
    assert values(scores, "pooled SQ")[0] == pytest.approx((1 + 3 / 5) / 2)
    assert values(score("--score-threshold", "0.75")[0], "precision") == [1, 1]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_results_that_are_the_ground_truth(data, score, order):
    """Cells in cells and across cells: of equal scores, none hides another."""
    spans = [(1, 0, 12), (2, 4, 8), (2, 8, 11), (1, 9, 20)]
    spans = [spans[n] for n in order]
    cells = [(k, np.eye(1, 40, dtype=np.uint8).repeat(6, 0) * 0, 0) for k, *_ in spans]
    for (_, mask, _), (_, start, end) in zip(cells, spans, strict=True):
        mask[:, start:end] = 1
    truth = truth_of({21: (SIZE, cells)}, [f"class{k}" for k in range(1, 5)])
    truth["images"][0]["file_name"] = "test_release/a.tif"
    (data / "truth.json").write_text(json.dumps(truth))
    (data / "same.json").write_text(json.dumps([entry(21, *span, 0.9) for span in spans]))
    scores, text = score("--truth", str(data / "truth.json"), results="same.json")
    for metric in ("PQ", "AJI", "F1", "AP@all"):
        assert values(scores, metric) == [1, 1], metric
    assert "1 image, 4 ground-truth cells, 4 detections" in text


@pytest.mark.parametrize(("rule", "sq"), [("score", 0.8), ("smaller", 0.8), ("larger", 1)])
def test_overlap(score, rule, sq):
    scores, text = score("--score_threshold", "0", "--overlap", rule)
    assert values(scores, "pooled SQ")[0] == pytest.approx(sq)
    assert scores["overlap"] == rule
    assert f"go to the {'higher score' if rule == 'score' else rule + ' area'}\n" in text


@pytest.mark.parametrize(
    ("flags", "of_classes", "of_any"),
    [
        # In the second image, the cell of class 1 and the detection of class 2 are 2.5 px apart.
        ([], [2 / (2 + 2 + 1), 2 / (2 + 2)], 6 / (6 + 1)),
        (["--radius", "2.5"], [2 / (2 + 2 + 1), 2 / (2 + 2)], 6 / (6 + 1)),
        (["--radius", "2"], [2 / (2 + 2), 2 / (2 + 1)], 4 / (4 + 2 + 1)),
    ],
)
def test_detection_by_centroid(score, flags, of_classes, of_any):
    scores, text = score(*flags)
    assert values(scores, "centroid F1") == pytest.approx(of_classes)
    assert scores["metrics"]["centroid F1"]["any class"]["value"] == pytest.approx(of_any)
    assert scores["centroid_radius"] == float(flags[1] if flags else 12)
    assert "centroid F1" in text


def test_resamples_and_seed(score):
    scores, text = score("--resamples", "0")
    assert scores["metrics"]["F1"]["any class"]["low"] is None
    assert "interval" not in text
    scores, text = score("--resamples", "3", "--seed", "3")
    assert (
        scores["metrics"]["F1"]["any class"]["low"] <= scores["metrics"]["F1"]["any class"]["value"]
    )
    assert "from 3 " in text
    again, _ = score("--resamples", "3", "--seed", "3")
    assert again == scores
    others = [score("--resamples", "3", "--seed", str(seed))[0] for seed in range(4, 7)]
    assert any(other["metrics"] != scores["metrics"] for other in others)


@pytest.mark.parametrize(
    ("spans", "n_repeated"),
    [
        ([], 0),
        ([(0, 10), (10, 20)], 0),  # neighbours
        ([(0, 10), (5, 14)], 0),  # 5 / 14
        ([(0, 10), (0, 5)], 2),  # 1 / 2
        ([(0, 10), (2, 10), (1, 9), (20, 21)], 3),
    ],
)
def test_cells_that_are_annotated_twice_are_said(data, capsys, spans, n_repeated):
    """Also in two classes, which the ground truth as results does not have; crowds don't count."""
    images = {}
    for id in (21, 22):
        masks = [np.zeros(SIZE, bool) for _ in spans]
        for mask, (start, end) in zip(masks, spans, strict=True):
            mask[:, start:end] = True
        cells = [(1 + n % 2, mask, 0) for n, mask in enumerate(masks)]
        images[id] = (SIZE, cells if id == 22 else [(1, mask, 1) for mask in masks])
    (data / "truth.json").write_text(json.dumps(truth_of(images)))
    own = [entry(22, 1 + n % 2, start, end, 1.0) for n, (start, end) in enumerate(spans)]
    (data / "results.json").write_text(json.dumps(own))
    flags = ["--data", str(data), "--truth", str(data / "truth.json")]
    results = str(data / "results.json")
    assert evaluate.main([results, *flags, "--json", str(data / "s.json")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "truth.json: cells" in line]
    assert len(said) == bool(n_repeated)
    assert all(f": {n_repeated}, in 1 image: " in line for line in said)
    pq = json.loads((data / "s.json").read_text())["metrics"]["PQ"]["any class"]["value"]
    assert (pq == 1) == (bool(spans) and not n_repeated)
    assert evaluate.main(["--compare", results, results, *flags]) == 0
    assert capsys.readouterr().err.count("truth.json: cells") == bool(n_repeated)


def test_cells_without_a_pixel_of_their_own_are_said(data, capsys):
    """Detections in one of more than four times their area; annotations under smaller ones."""
    spans = [(0, 20, 1, 0.9), (2, 4, 2, 0.8), (8, 10, 2, 0.7), (12, 14, 2, 0.4)]
    found = [entry(21, k, start, end, score) for start, end, k, score in spans]
    (data / "results.json").write_text(json.dumps(found))
    cells = np.zeros((4, *SIZE), bool)
    cells[0, :, :10] = cells[1, :, :5] = cells[2, :, 5:10] = cells[3, :, 20:30] = True
    truth = truth_of({21: (SIZE, [(1, mask, 0) for mask in cells])})
    (data / "truth.json").write_text(json.dumps(truth))
    argv = [str(data / "results.json"), "--data", str(data), "--truth", str(data / "truth.json")]
    assert evaluate.main([*argv, "--json", str(data / "s.json")]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "label maps" in line]
    assert "results.json: 1 ground-truth cell and 2 detected cells without a pixel" in line
    rows = json.loads((data / "s.json").read_text())["per_image"]
    assert [rows[-1][name] for name in ("true", "found", "hits")] == [3, 1, 0]
    assert evaluate.main([*argv, "--overlap", "smaller"]) == 0
    assert "1 ground-truth cell without a pixel" in capsys.readouterr().err


def test_csv(score, data):
    score("--csv", str(data / "images.csv"))
    with open(data / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 5
    first = rows[0]
    assert (first["image_id"], first["file_name"], first["class"]) == ("21", "a.tif", "class1")
    assert (first["true"], first["found"], first["error"]) == ("2", "1", "-1")
    assert (first["hits"], first["misses"], first["false_alarms"]) == ("1", "1", "0")
    assert float(first["DQ"]) == pytest.approx(2 / 3)
    assert rows[2]["PQ"] == ""


def test_ground_truth_as_coco_and_results_as_zip_agree(score, data):
    scores, _ = score()
    (data / "truth.json").write_text(json.dumps(read_ground_truth(data / "test_masks", data)))
    with zipfile.ZipFile(data / "sent.zip", "w") as archive:
        archive.write(data / "results.json", "test-results.json")
    other, _ = score("--truth", str(data / "truth.json"), results="sent.zip")
    assert other["metrics"] == scores["metrics"]


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_missing_data_folder_is_a_warning_only_where_it_is_needed(
    data, monkeypatch, capsys, form
):
    """A folder has no ids, so they are those of the test list."""
    monkeypatch.setattr(utils, "DATA", data)
    (data / "results-data.json").write_text(json.dumps({"data": str(data / "gone")}))
    truth = data / "test_masks"
    if form == "file":
        truth = data / "truth.json"
        truth.write_text(json.dumps(read_ground_truth(data / "test_masks", data)))
    words = [data / "results.json", "--truth", truth, "--resamples", 0]
    assert evaluate.main([*map(str, words)]) == 0
    assert (str(data / "gone") in capsys.readouterr().err) == (form == "folder")


def test_cells_of_images_without_results_are_false_negatives(score, data):
    (data / "some.json").write_text(json.dumps(RESULTS[:2]))
    scores, _ = score(results="some.json")
    assert scores["images"] == 2
    assert values(scores, "AP50@all")[0] == pytest.approx(34 / 101)
    (data / "none.json").write_text("[]")
    assert values(score(results="none.json")[0], "AP50@all") == [0, 0]


def test_only_annotated(score, data):
    for path in (data / "test_masks" / "b").iterdir():
        path.unlink()
    (data / "test_masks" / "b").rmdir()
    with pytest.raises(InputError, match=r"results\.json: entry 2: image_id 22"):
        score()
    scores, _ = score("--only_annotated")
    assert scores["images"] == 1
    assert values(scores, "AP50@all") == pytest.approx([51 / 101, 1])


def test_compare(data, capsys):
    (data / "run").mkdir()
    (data / "run" / "test-results.json").write_text(json.dumps(RESULTS[1:]))
    words = [str(data / "run"), str(data / "results.json"), "--data", str(data)]
    words += ["--resamples", "20", "--json", str(data / "d.json")]
    assert evaluate.main(["--compare", *words]) == 0
    text = capsys.readouterr().out
    assert "A: " in text
    assert "\nB − A with 95 % intervals" in text
    written = json.loads((data / "d.json").read_text())
    assert written["a"].endswith("run")
    recall = written["b_minus_a"]["recall"]["classes"]
    assert recall["class1"]["value"] == pytest.approx(1 / 3)
    assert recall["class1"]["low"] <= 1 / 3 <= recall["class1"]["high"]
    assert recall["class2"] == {"value": 0, "low": None, "high": None}  # in one image only
    assert written["b_minus_a"]["AP@all"]["any class"]["value"] is None


def test_the_newest_run_is_the_default(data, monkeypatch, capsys):
    monkeypatch.setattr(utils, "RUNS", data / "runs")
    with pytest.raises(InputError, match=r"runs: .*test-results\.json"):
        evaluate.main(["--data", str(data)])
    run = data / "runs" / "model" / "run"
    run.mkdir(parents=True)
    (run / "test-results.json").write_text(json.dumps(RESULTS))
    assert evaluate.main(["--data", str(data), "--resamples", "0"]) == 0
    assert "model/run/test-results.json against" in capsys.readouterr().out


def test_no_ground_truth(data, tmp_path):
    with pytest.raises(InputError, match=r"test_masks: .*--truth"):
        evaluate.main([str(data / "results.json"), "--data", str(tmp_path / "none")])
    with pytest.raises(InputError, match=r"gone\.json: "):
        evaluate.main([str(data / "results.json"), "--truth", str(data / "gone.json")])


def test_results_that_are_missing_are_said_before_missing_ground_truth(data, tmp_path):
    none, good = str(tmp_path / "none"), str(data / "results.json")
    for words in (["typo.json"], ["--compare", good, "typo.json"], ["typo.json", "--truth", none]):
        assert refusal(evaluate.main, [*words, "--data", none]).startswith("typo.json: ")
    (tmp_path / "empty").mkdir()
    message = refusal(evaluate.main, [str(tmp_path / "empty"), "--data", none])
    assert message.startswith(f"{tmp_path / 'empty' / 'test-results.json'}: ")


def test_results_are_not_scored_by_the_ground_truth_of_other_images(data, capsys):
    (data / "results-list.json").write_text("[]")  # as from inference.py --images
    with pytest.raises(InputError, match=r"results\.json: .*your own images; .*--truth"):
        evaluate.main([str(data / "results.json"), "--data", str(data)])
    (data / "results-list.json").unlink()
    truth = {
        "images": [{"id": n, "file_name": f"{n}.tif", "height": 6, "width": 40} for n in (21, 22)],
        "categories": [{"id": n, "name": f"own{n}"} for n in (1, 2, 3, 4)],
        "annotations": [],
    }
    (data / "results-truth.json").write_text(json.dumps(truth))  # as from --dataset val
    words = [str(data / "results.json"), "--data", str(data), "--resamples", "0"]
    assert evaluate.main(words) == 0
    out = capsys.readouterr().out
    assert "against" in out
    assert "own1" in out


def test_compared_results_are_of_the_same_images(data):
    for name, ids in (("wide", (21, 22)), ("narrow", (21,))):
        truth = truth_of({id: (SIZE, []) for id in ids}, ["a", "b"])
        (data / f"{name}-truth.json").write_text(json.dumps(truth))
        results = [each for each in RESULTS if each["image_id"] in ids]
        (data / f"{name}.json").write_text(json.dumps(results))
    wide, narrow, other = (str(data / f"{n}.json") for n in ("wide", "narrow", "results"))
    words = ["--data", str(data), "--resamples", "2"]
    with pytest.raises(InputError, match=r"narrow\.json: image 22 of .*wide-truth\.json, 22\.tif"):
        evaluate.main(["--compare", wide, narrow, *words])
    assert evaluate.main(["--compare", narrow, wide, "--only_annotated", *words]) == 0
    with pytest.raises(InputError, match=r"results\.json: .*wide\.json"):
        evaluate.main(["--compare", wide, other, *words])
    (data / "results-list.json").write_text("[]")
    with pytest.raises(InputError, match=r"results\.json: .*your own images"):
        evaluate.main(["--compare", wide, other, *words])


def test_own_images_are_matched_by_name(data, score):
    """Their ids are from inference.py --images, and differ from the ground truth's."""
    truth = read_ground_truth(data / "test_masks", data)
    (data / "truth.json").write_text(json.dumps(truth))
    scores, _ = score()
    own = [{**each, "image_id": 23 - each["image_id"]} for each in RESULTS]
    listed = [
        {"id": n, "file_name": f"/far/{name}.tif", "height": 6, "width": 40}
        for n, name in ((1, "b"), (2, "a"))
    ]
    (data / "own.json").write_text(json.dumps(own))
    (data / "own-list.json").write_text(json.dumps(listed))
    by_name, _ = score("--truth", str(data / "truth.json"), results="own.json")
    assert by_name["metrics"] == scores["metrics"]


@pytest.mark.parametrize("flag", ["--json", "--csv"])
@pytest.mark.parametrize("name", ["results.json", "truth.json", "results-truth.json", "link.json"])
def test_an_input_is_never_overwritten(data, flag, name):
    truth = json.dumps(read_ground_truth(data / "test_masks", data))
    for each in ("truth.json", "results-truth.json"):
        (data / each).write_text(truth)
    (data / "link.json").symlink_to(data / "results.json")
    before = {path: path.read_bytes() for path in data.glob("*.json")}
    words = [str(data / "results.json"), "--truth", str(data / "truth.json")]
    with pytest.raises(InputError, match=rf"{flag} .*{name}: is also an input"):
        evaluate.main([*words, flag, str(data / name)])
    assert {path: path.read_bytes() for path in data.glob("*.json")} == before


@pytest.mark.parametrize("form", ["sidecar", "run"])
def test_classes_with_the_ids_of_others_are_not_scored(data, score, form):
    def write(*names):
        classes = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
        record = {"annotations": {}, "categories": classes, "held_out": []}
        path, value = {
            "sidecar": (data / "results-classes.json", classes),
            "run": (data / "run.json", record),
        }[form]
        path.write_text(json.dumps(value))

    scores, _ = score()
    write("class2", "class1", "class3", "class4")
    with pytest.raises(InputError, match=r"results\.json: class 1 is class2, but .* class1"):
        score()
    for shifted in (("Class2",), ("a", "class1"), ("class1", "class2", "class3", "a", "class4")):
        write(*shifted)
        with pytest.raises(InputError, match=r"results\.json: class \d is \w*, but .* class \d"):
            score()
    for names in (("class1", "class2", "class3", "class4"), ("a", "b", "c", "d"), ("CLASS1",)):
        write(*names)
        assert score()[0]["metrics"] == scores["metrics"]


def write_truth(data, *names):
    truth = read_ground_truth(data / "test_masks", data)
    for name, category in zip(names, truth["categories"], strict=True):
        category["name"] = name
    (data / "truth.json").write_text(json.dumps(truth))


@pytest.mark.parametrize("change", ["", "crowd", "not scored"])
def test_cells_of_classes_that_results_do_not_have_are_a_warning(data, score, caplog, change):
    """Of the images that are scored; crowd regions are no cells."""
    truth = read_ground_truth(data / "test_masks", data)
    (cell,) = (each for each in truth["annotations"] if each["category_id"] == 2)  # in a.tif
    cell["iscrowd"] = int(change == "crowd")
    (data / "truth.json").write_text(json.dumps(truth))
    name = "b" if change == "not scored" else "a"
    listed = {"id": 1, "file_name": f"{name}.tif", "height": 6, "width": 40}
    (data / "own.json").write_text("[]")
    (data / "own-list.json").write_text(json.dumps([listed]))
    (data / "own-classes.json").write_text('[{"id": 1, "name": "class1"}]')
    score("--truth", str(data / "truth.json"), results="own.json")
    lost = [text for text in caplog.messages if "all false negatives: class2" in text]
    assert len(lost) == (not change)
    assert all("1 cell of classes" in text for text in lost)


def test_classes_with_other_names_are_a_warning(data, score, caplog):
    write_truth(data, "Tumour", "stroma", "immune", "dead")
    flags = ("--truth", str(data / "truth.json"))
    for names, warned in (
        (["tumour ", "Stroma", "immune", "dead"], ""),
        (["class1", "stroma", "immune", "class4"], ""),
        (["tumour", "stroma", "lymphocyte", "dead", "fifth"], "lymphocyte (immune)"),
    ):
        classes = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
        (data / "results-classes.json").write_text(json.dumps(classes))
        caplog.clear()
        score(*flags)
        assert ("other names" in caplog.text) == bool(warned)
        assert warned in caplog.text


def test_a_folder_with_results_of_own_images(data, score):
    scores, _ = score()
    (data / "out").mkdir()
    (data / "results.json").rename(data / "out" / "images-results.json")
    listed = [
        {"id": n, "file_name": f"/far/{name}.png", "height": 6, "width": 40}
        for n, name in ((21, "a"), (22, "b"))
    ]
    (data / "test_image_name_to_ids.json").unlink()
    (data / "out" / "images-results-list.json").write_text(
        json.dumps(listed).replace("/far", str(data / "test_release")).replace(".png", ".tif")
    )
    by_name, text = score("--truth", str(data / "test_masks"), results="out")
    assert by_name["metrics"] == scores["metrics"]
    assert text.splitlines()[0].endswith("by the names of its folders")
    (data / "out" / "val-results.json").write_text("[]")
    with pytest.raises(InputError, match=r"out: holds images-results\.json and val-results\.json"):
        score(results="out")


@pytest.mark.parametrize("are_there", [True, False])
def test_label_maps_named_as_own_images(data, score, are_there):
    """Images may have been moved since; the list says their sizes."""
    scores, _ = score()
    (data / "gt").mkdir()
    for name, classes in {"a": {1: [(0, 4), (20, 24)], 2: [(10, 14)]}, "b": {1: [(0, 5)]}}.items():
        labels, rows = np.zeros(SIZE, np.uint8), ["label,class"]
        for k, (start, end) in [(k, span) for k, spans in classes.items() for span in spans]:
            labels[:, start:end] = len(rows)
            rows.append(f"{len(rows)},{k}")
        tifffile.imwrite(data / "gt" / f"{name}_mask.tif", labels)
        (data / "gt" / f"{name}.csv").write_text("\n".join(rows))
    (data / "out").mkdir()
    (data / "results.json").rename(data / "out" / "images-results.json")
    listed = [
        {"id": n, "file_name": str(data / "own" / f"{name}_image.tif"), "height": 6, "width": 40}
        for n, name in ((21, "a"), (22, "b"))
    ]
    (data / "out" / "images-results-list.json").write_text(json.dumps(listed))
    (data / "own").mkdir()
    for name in "ab" if are_there else "":
        shutil.copy(data / "test_release" / f"{name}.tif", data / "own" / f"{name}_image.tif")
    by_name, text = score("--truth", str(data / "gt"), results="out")
    assert by_name["metrics"] == scores["metrics"]
    assert text.splitlines()[0].endswith("by the names of its files")
    for path in (data / "gt").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(InputError, match="gt: none of its files "):
        score("--truth", str(data / "gt"), results="out")


def test_other_class_names_of_many_slides_are_one_warning(data, score, caplog):
    write_truth(data, "Tumour", "stroma", "immune", "dead")
    paths = {name: data / "test_release" / f"{name}.tif" for name in "ab"}
    slides = {name: (path, SIZE, RESULTS[:0]) for name, path in paths.items()}
    write_cohort(data / "cohort", slides, ["tumour", "stroma", "lymphocyte", "dead"])
    score("--truth", str(data / "truth.json"), results="cohort")
    assert caplog.text.count("other names") == 1
    assert "lymphocyte (immune)" in caplog.text


@pytest.mark.parametrize(("columns", "n_outside"), [(22, 1), (23, 0), (3, 2)])
def test_ground_truth_outside_the_predicted_regions_is_not_counted(
    data, score, caplog, columns, n_outside
):
    """A cell of columns 20 to 24 has its centroid at 22, one of 10 to 14 at 12."""
    (data / "out").mkdir()
    (data / "results.json").rename(data / "out" / "images-results.json")
    path = {name: str(data / "test_release" / f"{name}.tif") for name in "ab"}
    listed = [
        {"id": 21, "file_name": path["a"], "height": 6, "width": 40, "regions": rle(0, columns)},
        {"id": 22, "file_name": path["b"], "height": 6, "width": 40},
    ]
    (data / "out" / "images-results-list.json").write_text(json.dumps(listed))
    in_regions, _ = score("--truth", str(data / "test_masks"), results="out")
    assert ("outside the regions" in caplog.text) == bool(n_outside)
    assert f"{n_outside}, in 1 image: a" in caplog.text or not n_outside
    for name, middle in (("class1", 22), ("class2", 12)):
        file = data / "test_masks" / "a" / f"{name}.tif"
        labels = tifffile.imread(file)
        labels[:, middle - 2 : middle + 2] *= middle < columns
        tifffile.imwrite(file, labels)
    whole = data / "whole"
    shutil.copytree(data / "out", whole)
    del listed[0]["regions"]
    (whole / "images-results-list.json").write_text(json.dumps(listed))
    words = ["--truth", str(data / "test_masks"), "--resamples", "2"]
    with pytest.raises(InputError, match="whole: was predicted in other regions than"):
        evaluate.main(["--compare", str(data / "out"), str(whole), *words])
    assert evaluate.main(["--compare", str(data / "out"), str(data / "out"), *words]) == 0
    (data / "out" / "images-results-list.json").write_text(json.dumps(listed))
    assert score("--truth", str(data / "test_masks"), results="out")[0] == in_regions
    for bad in ("x", {"size": [6, 40]}, rle(0, 1) | {"size": [6, 41]}, rle(0, 1) | {"counts": "~"}):
        listed[1]["regions"] = bad
        (data / "out" / "images-results-list.json").write_text(json.dumps(listed))
        with pytest.raises(InputError, match=r"images-results-list\.json: .*entry 2: regions"):
            score("--truth", str(data / "test_masks"), results="out")


def test_regions_of_an_image_of_another_size_are_one_line(data, score):
    """Where it has no detections, which would be of another size, too."""
    (data / "out").mkdir()
    (data / "out" / "images-results.json").write_text("[]")
    path = str(data / "test_release" / "a.tif")
    listed = [{"id": 1, "file_name": path, "height": 6, "width": 40, "regions": rle(0, 9)}]
    (data / "out" / "images-results-list.json").write_text(json.dumps(listed))
    truth = truth_of({21: ((6, 39), [])})
    truth["images"][0]["file_name"] = "a.tif"
    (data / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(InputError, match=r"a\.tif: 6 x 39 .* 6 x 40"):
        score("--truth", str(data / "truth.json"), results="out")


def test_many_slides_are_scored_as_images_predicted_together(data, score, capsys):
    scores, _ = score()
    paths = {name: data / "test_release" / f"{name}.tif" for name in "ab"}
    ids = {"a": 21, "b": 22}
    slides = {
        name: (path, SIZE, [each for each in RESULTS if each["image_id"] == ids[name]])
        for name, path in paths.items()
    }
    write_cohort(data / "cohort", slides, [f"class{k}" for k in range(1, 5)])
    (data / "test_image_name_to_ids.json").rename(data / "elsewhere.json")
    masks = str(data / "test_masks")
    together, text = score("--truth", masks, results="cohort")
    assert together["metrics"] == scores["metrics"]
    assert "2 images matched" in text
    compared = ["--compare", str(data / "cohort"), str(data / "cohort"), "--truth", masks]
    assert evaluate.main([*compared, "--resamples", "5"]) == 0
    assert "cohort" in capsys.readouterr().out

    # A slide that is not annotated; one without results, which is not scored.
    shutil.rmtree(data / "test_masks" / "a")
    with pytest.raises(InputError, match=r"cohort/a: entry 0: .*a\.tif, .* --only_annotated"):
        score("--truth", masks, results="cohort")
    assert score("--truth", masks, "--only_annotated", results="cohort")[0]["images"] == 1
    capsys.readouterr()
    (data / "cohort" / "a" / "images-results.json").unlink()
    assert score("--truth", masks, results="cohort")[0]["images"] == 1
    (data / "cohort" / "b" / "images-results.json").write_text('[{"image_id": 1}]')
    with pytest.raises(InputError, match=r"cohort/b: entry 0: .*missing"):
        score("--truth", masks, results="cohort")
    with pytest.raises(InputError, match=r"cohort: .* --truth"):
        score(results="cohort")
    with pytest.raises(InputError, match=r"manifest\.csv: is also an input"):
        score("--truth", masks, "--csv", str(data / "cohort" / "manifest.csv"), results="cohort")


def test_a_slide_without_results_keeps_its_ground_truth(data, score, capsys):
    """Another one has the same name, which would be scored against its cells."""
    masks = data / "test_masks"
    slides = {}
    for name in ("x/s", "y/s", "b"):
        path = data / "far" / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, np.full((*SIZE, 3), 200, np.uint8))
        slides[name] = (path, SIZE, [RESULTS[0]])
    cohort = data / "cohort"
    write_cohort(cohort, slides, [f"class{k}" for k in range(1, 5)])
    manifest = cohort / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("study/x/s,1,,0.5,", "study/x/s,,,,no memory"))
    (masks / "a").rename(masks / "s")
    with pytest.raises(InputError, match="both have this name"):
        score("--truth", str(masks), results="cohort")
    truth = truth_of({1: (SIZE, [(1, np.ones(SIZE), 0)]), 2: (SIZE, [])})
    for image, name in zip(truth["images"], ("x/s.tif", "b.tif"), strict=True):
        image["file_name"] = name
    (data / "truth.json").write_text(json.dumps(truth))
    capsys.readouterr()
    found, text = score("--truth", str(data / "truth.json"), "--only_annotated", results="cohort")
    assert found["images"] == 1  # b
    assert "1 image matched" in text
    # Of a slide without results and a name of its own, label maps are not used.
    (masks / "s").rename(masks / "c")
    manifest.write_text(manifest.read_text().replace("far/x/s.tif", "far/c.tif"))
    (cohort / "y" / "s").rename(cohort / "s")
    flags = ["--truth", str(masks), "--only_annotated"]
    assert score(*flags, results="cohort")[0]["images"] == 1
    assert evaluate.main(["--compare", str(cohort), str(cohort), *flags, "--resamples", "5"]) == 0


def test_errors_name_the_results_file(data):
    good, bad = str(data / "results.json"), data / "bad.json"
    bad.write_text(json.dumps([*RESULTS, entry(21, 9, 0, 2, 0.5)]))
    for words in ([], ["--compare", good]):
        with pytest.raises(InputError, match=r"bad\.json: entry 4: category_id 9"):
            evaluate.main([*words, str(bad), "--data", str(data)])


@pytest.mark.parametrize("flag", ["--json", "--csv"])
@pytest.mark.parametrize(
    "name",
    ["results.json", "truth.json", "test_image_name_to_ids.json", "test_masks/a/class1.tif"],
)
def test_inputs_are_not_overwritten(data, flag, name):
    (data / "truth.json").write_text(json.dumps(read_ground_truth(data / "test_masks", data)))
    before = (data / name).read_bytes()
    argv = [str(data / "results.json"), "--data", str(data), flag, str(data / name)]
    with pytest.raises(InputError, match=rf"{name}: (exists, .*{flag}|is also an input)"):
        evaluate.main([*argv, "--truth", str(data / "truth.json"), "--resamples", "0"])
    assert (data / name).read_bytes() == before


@pytest.mark.parametrize("flag", ["--json", "--csv"])
def test_a_folder_as_output_is_refused_before_scoring(data, flag, monkeypatch):
    monkeypatch.setattr(utils, "score_results", lambda *_a, **_k: pytest.fail("scored"))
    argv = [str(data / "results.json"), "--data", str(data), flag, str(data)]
    with pytest.raises(InputError, match=rf"{data}: can't be written .*{flag}"):
        evaluate.main(argv)


def test_scores_are_replaced_and_files_differ(data):
    argv = [str(data / "results.json"), "--data", str(data), "--resamples", "0"]
    for words in (["--json", "s"], ["--csv", "t"], ["--json", "s", "--csv", "t"]):
        words = [str(data / word) if len(word) == 1 else word for word in words]
        assert evaluate.main([*argv, *words]) == 0
    with pytest.raises(InputError, match=r"--json and --csv"):
        evaluate.main([*argv, "--json", str(data / "s"), "--csv", str(data / "." / "s")])
    compare = ["--compare", *argv[:1] * 2, "--data", str(data), "--json", str(data / "c")]
    for _ in range(2):
        assert evaluate.main(compare) == 0


def test_files_are_written_before_the_summary_is_printed(data, monkeypatch):
    def fail(*_, **__):
        raise InterruptedError

    monkeypatch.setattr("builtins.print", fail)
    argv = [str(data / "results.json"), "--data", str(data), "--resamples", "0"]
    with pytest.raises(InterruptedError):
        evaluate.main([*argv, "--json", str(data / "s"), "--csv", str(data / "t")])
    assert json.loads((data / "s").read_text())["images"] == 2
    assert (data / "t").is_file()


def test_a_file_that_can_not_be_written(data):
    results = str(data / "results.json")
    words = ["--data", str(data), "--resamples", "0", "--json", f"{results}/s.json"]
    with pytest.raises(InputError, match=r"results\.json/s\.json"):
        evaluate.main([results, *words])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--score_threshold", "1.5"], "--score_threshold: '1.5'"),
        (["--score_threshold", "nan"], "--score_threshold: 'nan'"),
        (["--score_threshold", "half"], "--score_threshold: 'half'"),
        (["--resamples", "-1"], "--resamples: '-1'"),
        (["--resamples", "1.5"], "--resamples: '1.5'"),
        (["--seed", "x"], "--seed: 'x'"),
        (["--radius", "0"], "--radius: '0'"),
        (["--radius", "nan"], "--radius: 'nan'"),
        (["--overlap", "both"], "--overlap: invalid choice: 'both'"),
        (["--compare", "a"], "--compare: expected 2 arguments"),
        (["r.json", "--compare", "a", "b"], "--compare takes two results"),
        (["--compare", "a", "b", "--csv", "c"], "--csv needs one result"),
        (["--compare", "a", "b", "--resamples", "0"], "--compare needs intervals"),
        (["--json", "x", "--csv", "x"], "--json and --csv: both are x"),
    ],
)
def test_invalid_flags(flags, message):
    with pytest.raises(InputError) as caught:
        evaluate.main(flags)
    assert message in str(caught.value)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        evaluate.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in ("examples:", "--compare A B", "(default: 0.5)", "(default: 1000)", "MoNuSAC"):
        assert word in text


def test_from_any_folder_without_torch(data):
    """As a program from another folder: no network library is loaded, errors are one line."""
    code = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: assert not {'torch', 'detectron2'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(PROJECT / "evaluate.py")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    good, bad = (
        subprocess.run(
            [*command, name, "--data", ".", "--resamples", "0"],
            cwd=data, env=environment, capture_output=True, text=True, check=False,
        )
        for name in ("results.json", "gone.json")
    )  # fmt: skip
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("results.json against test_masks\n")
    assert bad.returncode == 2
    assert bad.stderr.startswith("evaluate.py: error: gone.json: ")
    assert bad.stderr.count("\n") == 1

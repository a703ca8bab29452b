"""The command: its tables and files, each flag, each line for bad input."""

import csv
import json
import os
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
from tests.score.scoring_cases import truth_of

PROJECT = Path(__file__).parents[1]
SIZE = (6, 40)


def rle(start, end):
    """Rows 0–5 of the columns `start` to `end`: `end − start` columns of 6 pixels."""
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[:, start:end] = 1
    coded = pycocotools.mask.encode(mask)
    return {"size": list(SIZE), "counts": coded["counts"].decode()}


def found(image_id, class_id, start, end, score):
    return {
        "image_id": image_id,
        "category_id": class_id,
        "segmentation": rle(start, end),
        "score": score,
    }


RESULTS = [
    found(21, 1, 0, 4, 0.9),
    found(21, 2, 10, 13, 0.8),
    found(22, 1, 0, 5, 0.4),
    found(22, 2, 3, 7, 0.7),
]


@pytest.fixture
def data(tmp_path):
    """A data folder with two annotated test images, and results beside it."""
    (tmp_path / "test_release").mkdir()
    entries = []
    for id, name in ((21, "a"), (22, "b")):
        tifffile.imwrite(tmp_path / "test_release" / f"{name}.tif", np.zeros((*SIZE, 3), np.uint8))
        entries.append({"file_name": f"{name}.tif", "id": id, "height": 6, "width": 40})
        (tmp_path / "test_masks" / name).mkdir(parents=True)
    (tmp_path / "test_image_name_to_ids.json").write_text(json.dumps(entries))
    for name, class_id, spans in (
        ("a", 1, [(0, 4), (20, 24)]),
        ("a", 2, [(10, 14)]),
        ("b", 1, [(0, 5)]),
    ):
        labels = np.zeros(SIZE)
        for label, (start, end) in enumerate(spans, 1):
            labels[:, start:end] = label
        tifffile.imwrite(tmp_path / "test_masks" / name / f"class{class_id}.tif", labels)
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    return tmp_path


@pytest.fixture
def score(data, capsys):
    """Run the command on the results, and read what it writes as JSON and prints."""

    def run(*flags, results="results.json"):
        files = [str(data / results), "--data", str(data), "--json", str(data / "s.json")]
        code = evaluate.main([*files, "--resamples", "5", *flags])
        assert code == 0
        return json.loads((data / "s.json").read_text()), capsys.readouterr().out

    return run


def values(told, metric):
    row = told["metrics"][metric]
    return [row["classes"][f"class{k}"]["value"] for k in (1, 2)]


def test_tables_and_json(score):
    told, text = score()
    assert told["images"] == 2
    assert told["classes"] == ["class1", "class2", "class3", "class4"]
    # class1: 2 of 3 found, first in rank; class2: 1 of 1 at IoU 3/4.
    ap50 = [67 / 101, 1]
    assert values(told, "AP50@100") == values(told, "AP50@all") == pytest.approx(ap50)
    assert values(told, "AP75@all") == pytest.approx(ap50)
    assert values(told, "AP@all") == pytest.approx([67 / 101, 0.6])
    # In the label maps the third one doesn't count: its score is below 0.5.
    assert values(told, "recall") == pytest.approx([1 / 3, 1])
    assert told["metrics"]["AP50@all"]["classes"]["class3"]["value"] is None
    assert told["results"].endswith("results.json")
    assert "2 images, 4 true cells, 4 detections" in text
    line = next(line for line in text.splitlines() if line.startswith("class3"))
    assert line.split() == ["class3", "–", "–", "–"]


def test_score_threshold(score):
    told, _ = score("--score_threshold", "0.3")
    # The fourth detection has the better score and takes 2 of the third one's 5 columns.
    assert values(told, "recall") == pytest.approx([2 / 3, 1])
    assert values(told, "pooled SQ")[0] == pytest.approx((1 + 3 / 5) / 2)
    assert values(score("--score-threshold", "0.75")[0], "precision") == [1, 1]


@pytest.mark.parametrize(("rule", "sq"), [("score", 0.8), ("smaller", 0.8), ("larger", 1)])
def test_overlap(score, rule, sq):
    told, text = score("--score_threshold", "0", "--overlap", rule)
    assert values(told, "pooled SQ")[0] == pytest.approx(sq)
    assert told["overlap"] == rule
    assert f"the {'higher score' if rule == 'score' else rule + ' area'} keeps" in text


def test_resamples_and_seed(score):
    told, text = score("--resamples", "0")
    assert told["metrics"]["F1"]["any class"]["low"] is None
    assert "interval" not in text
    told, text = score("--resamples", "3", "--seed", "3")
    assert told["metrics"]["F1"]["any class"]["low"] <= told["metrics"]["F1"]["any class"]["value"]
    assert "from 3 sets" in text
    again, _ = score("--resamples", "3", "--seed", "3")
    assert again == told
    others = [score("--resamples", "3", "--seed", str(seed))[0] for seed in range(4, 7)]
    assert any(other["metrics"] != told["metrics"] for other in others)


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


def test_csv_of_a_name_that_is_no_letters(score, data):
    truth = read_ground_truth(data / "test_masks", data)
    truth["images"][0]["file_name"] = "caf\udce9.tif"  # in Latin-1, as os.listdir gives it
    (data / "truth.json").write_text(json.dumps(truth))
    score("--truth", str(data / "truth.json"), "--csv", str(data / "images.csv"))
    assert r",caf\udce9.tif," in (data / "images.csv").read_text("utf-8")


def test_ground_truth_as_coco_and_results_as_zip_agree(score, data):
    told, _ = score()
    (data / "truth.json").write_text(json.dumps(read_ground_truth(data / "test_masks", data)))
    with zipfile.ZipFile(data / "sent.zip", "w") as archive:
        archive.write(data / "results.json", "test-results.json")
    other, _ = score("--truth", str(data / "truth.json"), results="sent.zip")
    assert other["metrics"] == told["metrics"]


def test_images_without_results_count_as_missed(score, data):
    (data / "some.json").write_text(json.dumps(RESULTS[:2]))
    told, _ = score(results="some.json")
    assert told["images"] == 2
    assert values(told, "AP50@all")[0] == pytest.approx(34 / 101)
    (data / "none.json").write_text("[]")
    assert values(score(results="none.json")[0], "AP50@all") == [0, 0]


def test_only_annotated(score, data):
    for path in (data / "test_masks" / "b").iterdir():
        path.unlink()
    (data / "test_masks" / "b").rmdir()
    with pytest.raises(InputError, match=r"entry 2: image_id 22 is none of the truth's 1 images"):
        score()
    told, _ = score("--only_annotated")
    assert told["images"] == 1
    assert values(told, "AP50@all") == pytest.approx([51 / 101, 1])


def test_compare(data, capsys):
    (data / "run").mkdir()
    (data / "run" / "test-results.json").write_text(json.dumps(RESULTS[1:]))
    told = data / "d.json"
    both = [str(data / "run"), str(data / "results.json")]
    code = evaluate.main(
        ["--compare", *both, "--data", str(data), "--resamples", "20", "--json", str(told)]
    )
    text = capsys.readouterr().out
    assert code == 0
    assert "A: " in text
    assert "\nB − A with 95 % intervals" in text
    apart = json.loads(told.read_text())
    assert apart["a"].endswith("run")
    recall = apart["b_minus_a"]["recall"]["classes"]
    assert recall["class1"]["value"] == pytest.approx(1 / 3)
    assert recall["class2"] == {"value": 0, "low": 0, "high": 0}
    assert apart["b_minus_a"]["AP@all"]["any class"]["value"] is None


def test_the_newest_run_is_the_default(data, monkeypatch, capsys):
    monkeypatch.setattr(utils, "RUNS", data / "runs")
    with pytest.raises(InputError, match=r"runs: no run has a test-results.json yet"):
        evaluate.main(["--data", str(data)])
    run = data / "runs" / "model" / "run"
    run.mkdir(parents=True)
    (run / "test-results.json").write_text(json.dumps(RESULTS))
    assert evaluate.main(["--data", str(data), "--resamples", "0"]) == 0
    assert "model/run/test-results.json against" in capsys.readouterr().out


def test_no_ground_truth(data, tmp_path):
    with pytest.raises(InputError, match=r"test_masks: no such annotations; name .* --truth"):
        evaluate.main([str(data / "results.json"), "--data", str(tmp_path / "none")])
    with pytest.raises(InputError, match=r"gone.json: no such annotations"):
        evaluate.main([str(data / "results.json"), "--truth", str(data / "gone.json")])


def test_results_are_not_scored_by_the_ground_truth_of_other_images(data, capsys):
    (data / "results-list.json").write_text("[]")  # as inference.py --images leaves it
    with pytest.raises(InputError, match=r"results\.json: of images of your own; name .* --truth"):
        evaluate.main([str(data / "results.json"), "--data", str(data)])
    (data / "results-list.json").unlink()
    truth = {
        "images": [{"id": n, "file_name": f"{n}.tif", "height": 6, "width": 40} for n in (21, 22)],
        "categories": [{"id": n, "name": f"own{n}"} for n in (1, 2, 3, 4)],
        "annotations": [],
    }
    (data / "results-truth.json").write_text(json.dumps(truth))  # as --dataset val does
    words = [str(data / "results.json"), "--data", str(data), "--resamples", "0"]
    assert evaluate.main(words) == 0
    out = capsys.readouterr().out
    assert "against" in out
    assert "own1" in out


def test_compared_results_are_of_the_same_images(data):
    for name, ids in (("wide", (21, 22)), ("narrow", (21,))):
        truth = truth_of({id: (SIZE, []) for id in ids}, ["a", "b"])
        (data / f"{name}-truth.json").write_text(json.dumps(truth))
        found = [each for each in RESULTS if each["image_id"] in ids]
        (data / f"{name}.json").write_text(json.dumps(found))
    wide, narrow, other = (str(data / f"{n}.json") for n in ("wide", "narrow", "results"))
    words = ["--data", str(data), "--resamples", "2"]
    with pytest.raises(InputError, match=r"narrow\.json: image 22 of .*wide-truth\.json, 22\.tif"):
        evaluate.main(["--compare", wide, narrow, *words])
    assert evaluate.main(["--compare", narrow, wide, "--only_annotated", *words]) == 0
    with pytest.raises(InputError, match=r"results\.json: .* one alone has the annotations"):
        evaluate.main(["--compare", wide, other, *words])
    (data / "results-list.json").write_text("[]")
    with pytest.raises(InputError, match=r"results\.json: of images of your own"):
        evaluate.main(["--compare", wide, other, *words])


def test_images_of_ones_own_are_told_by_their_names(data, score):
    """inference.py --images counts images as they come."""
    truth = read_ground_truth(data / "test_masks", data)
    (data / "truth.json").write_text(json.dumps(truth))
    told, _ = score()
    own = [{**each, "image_id": 23 - each["image_id"]} for each in RESULTS]
    listed = [
        {"id": n, "file_name": f"/far/{name}.tif", "height": 6, "width": 40}
        for n, name in ((1, "b"), (2, "a"))
    ]
    (data / "own.json").write_text(json.dumps(own))
    (data / "own-list.json").write_text(json.dumps(listed))
    assert (
        score("--truth", str(data / "truth.json"), results="own.json")[0]["metrics"]
        == (told["metrics"])
    )


def test_results_that_don_t_fit_name_their_file(data):
    (data / "bad.json").write_text(json.dumps([*RESULTS, found(21, 9, 0, 2, 0.5)]))
    with pytest.raises(InputError, match=r"bad\.json: entry 4: category_id 9, but"):
        evaluate.main([str(data / "bad.json"), "--data", str(data)])
    with pytest.raises(InputError, match=r"bad\.json: entry 4"):
        evaluate.main(
            ["--compare", str(data / "results.json"), str(data / "bad.json"), "--data", str(data)]
        )


def test_a_file_that_can_t_be_written(data, capsys):
    with pytest.raises(InputError, match=r"results\.json/s\.json"):
        evaluate.main(
            [
                str(data / "results.json"),
                *("--data", str(data), "--resamples", "0"),
                *("--json", str(data / "results.json" / "s.json")),
            ]
        )
    capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--score_threshold", "1.5"], "'1.5' is not a number from 0 to 1"),
        (["--score_threshold", "nan"], "'nan' is not a number from 0 to 1"),
        (["--score_threshold", "half"], "'half' is not a number"),
        (["--resamples", "-1"], "'-1' is not a whole number"),
        (["--resamples", "1.5"], "'1.5' is not a whole number"),
        (["--seed", "x"], "'x' is not a whole number"),
        (["--overlap", "both"], "invalid choice: 'both'"),
        (["--compare", "a"], "expected 2 arguments"),
        (["r.json", "--compare", "a", "b"], "--compare takes two results"),
        (["--compare", "a", "b", "--csv", "c"], "--csv is of one result"),
        (["--compare", "a", "b", "--resamples", "0"], "--compare needs an interval"),
    ],
)
def test_flags_that_don_t_fit(flags, message):
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
    """As a program: exit code 2 and one line, from elsewhere; no network library is loaded."""
    code = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: assert not {'torch', 'detectron2'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(PROJECT / "evaluate.py")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    good = subprocess.run(
        [*command, "results.json", "--data", ".", "--resamples", "0"],
        cwd=data,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("results.json against test_masks\n")
    bad = subprocess.run(
        [*command, "gone.json", "--data", "."],
        cwd=data,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert bad.returncode == 2
    assert bad.stderr.startswith("evaluate.py: error: gone.json: no such file")
    assert bad.stderr.count("\n") == 1

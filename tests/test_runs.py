"""Run folders: the newest run, its weights, its record."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cellseg import runs
from cellseg.errors import InputError
from cellseg.runs import locked_run


def make(root, name, *files, recipe="model", finished_at=None):
    run = root / recipe / name
    run.mkdir(parents=True)
    for file in (runs.CONFIG, *files):
        (run / file).touch()
    if finished_at is not None:
        (run / runs.FINAL).touch()
        os.utime(run / runs.FINAL, (finished_at, finished_at))
    return run


def test_new_runs_have_separate_folders(tmp_path):
    made = [runs.new_run(tmp_path, "model") for _ in range(4)]
    assert len(set(made)) == 4
    assert made == sorted(made)
    assert all(run.is_dir() and run.parent == tmp_path / "model" for run in made)


def test_folder_of_a_run_can_not_be_created(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another --output_dir"):
        runs.new_run(tmp_path / "file", "model")


def test_newest_finished_run_by_its_end(tmp_path):
    late = make(tmp_path, "20250101-000000", finished_at=2000)
    make(tmp_path, "20250102-000000", finished_at=1000)
    make(tmp_path, "20250103-000000")  # not finished
    (tmp_path / "model" / "20250104-000000").mkdir()  # not a run
    assert runs.find_newest_run(tmp_path) == late


def test_newest_unfinished_run_by_its_start(tmp_path):
    make(tmp_path, "20250103-000000", finished_at=9000)
    make(tmp_path, "20250101-000000", runs.LAST)
    last = make(tmp_path, "20250102-000000", runs.LAST)
    assert runs.find_unfinished_run(tmp_path) == last


def test_unfinished_cross_validation(tmp_path):
    make(tmp_path, "20250101-000000")
    folder = tmp_path / "model" / "20250102-000000"
    for fold in ("fold1", "fold2"):
        make(folder.parent, fold, runs.FINAL, recipe=folder.name)
    assert runs.find_unfinished_run(tmp_path) == folder  # without a summary yet
    assert runs.find_unfinished_run(tmp_path, "model") == folder
    with pytest.raises(InputError, match="no unfinished run"):
        runs.find_unfinished_run(tmp_path, folder.name)
    (folder / runs.SUMMARY).touch()
    assert runs.find_unfinished_run(tmp_path).name == "20250101-000000"


def test_newest_run_of_a_recipe(tmp_path):
    one = make(tmp_path, "20250101-000000", recipe="a", finished_at=1)
    make(tmp_path, "20250102-000000", recipe="ab", finished_at=2)
    assert runs.find_newest_run(tmp_path, "a") == one
    for recipe in ("b", "/etc", "[", "..", "a*"):
        with pytest.raises(InputError, match="no finished run"):
            runs.find_newest_run(tmp_path, recipe)


def test_no_run(tmp_path):
    with pytest.raises(InputError, match=r"no finished run in it; train first: python train\.py"):
        runs.find_newest_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no unfinished run"):
        runs.find_unfinished_run(tmp_path)
    make(tmp_path, "20250101-000000")
    with pytest.raises(InputError, match="1 are not finished"):
        runs.find_newest_run(tmp_path)


def test_run_folder(tmp_path):
    run = make(tmp_path, "one", runs.FINAL)
    assert runs.resolve_run_folder(run) == run
    assert runs.resolve_run_folder(run / runs.FINAL) == run
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"not a run, it has no config\.yaml"):
            runs.resolve_run_folder(path)


def test_folder_of_runs_is_a_broken_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    with pytest.raises(InputError, match=r"can't be .*; choose another --output_dir"):
        runs.new_run(tmp_path / "link", "model")
    first, second = runs.new_run(tmp_path, "model"), runs.new_run(tmp_path, "model")
    assert first.parent == second.parent
    assert first != second


def test_named_and_default_weights(tmp_path):
    run = make(tmp_path, "one", runs.FINAL)
    (run / runs.BEST).touch()
    assert runs.find_weights(run) == run / runs.BEST
    assert runs.find_weights(run / runs.FINAL) == run / runs.FINAL
    assert runs.find_weights(run / runs.CONFIG) == run / runs.BEST
    assert runs.find_weights(run, runs.FINAL) == run / runs.FINAL
    assert runs.find_weights(run / runs.CONFIG, runs.FINAL) == run / runs.FINAL
    assert runs.find_weights(run / runs.BEST, runs.BEST) == run / runs.BEST
    with pytest.raises(InputError, match=r"model_final\.pth: --checkpoint .*model_best\.pth"):
        runs.find_weights(run / runs.BEST, runs.FINAL)


@pytest.mark.parametrize("where", ["absolute", "sibling", "below"])
def test_weights_of_another_run_are_an_error(tmp_path, where):
    run, other = make(tmp_path, "one", runs.FINAL), make(tmp_path, "two", runs.FINAL)
    name = {
        "absolute": str(other / runs.FINAL),
        "sibling": f"../two/{runs.FINAL}",
        "below": f"./{runs.FINAL}/",
    }[where]
    with pytest.raises(InputError, match=r"--weight_name .*expected a file name"):
        runs.find_weights(run, name)


def test_choice_of_weights(tmp_path):
    run = make(tmp_path, "one")
    with pytest.raises(InputError, match="no weights are saved yet"):
        runs.choose_weights(run)
    (run / runs.FINAL).touch()
    assert runs.choose_weights(run) == run / runs.FINAL
    (run / runs.BEST).touch()
    assert runs.choose_weights(run) == run / runs.BEST
    assert runs.choose_weights(run, runs.FINAL) == run / runs.FINAL
    with pytest.raises(InputError, match=r"no x\.pth in it; --weight_name takes model_best\.pth, "):
        runs.choose_weights(run, "x.pth")


def test_a_run_with_a_checkpoint_only(tmp_path):
    run = make(tmp_path, "one")
    (run / runs.LAST).touch()
    with pytest.raises(InputError) as caught:
        runs.choose_weights(run)
    assert str(run / runs.LAST) in str(caught.value)
    assert "--" not in str(caught.value)  # no flag of one of the commands


def test_record(tmp_path):
    annotations = tmp_path / "annotations.json"
    annotations.write_bytes(b"[1]")
    categories = [{"id": 3, "name": "ä"}]
    runs.write_record(
        tmp_path, ["train.py", "-e", "3"], annotations, categories, ["a"], ["b"], ["zoom"]
    )
    record = runs.read_record(tmp_path)
    assert record["command"] == ["train.py", "-e", "3"]
    assert record["categories"] == categories
    assert (record["train"], record["held_out"]) == (["a"], ["b"])
    assert record["from_data"] == ["zoom"]
    assert record["annotations"] == {
        "path": str(annotations),
        "sha256": hashlib.sha256(b"[1]").hexdigest(),
    }
    assert {"python", "torch", "detectron2", "numpy"} <= set(record["versions"])


GOOD = {"annotations": {}, "categories": [{"id": 1, "name": "x"}], "train": [], "held_out": []}


@pytest.mark.parametrize(
    "change",
    [
        {"annotations": "x"},
        {"categories": []},
        {"categories": None},
        {"categories": {"id": 1}},
        {"categories": [1]},
        {"categories": [{"id": "1", "name": "x"}]},
        {"categories": [{"id": True, "name": "x"}]},
        {"categories": [{"id": 1}]},
        {"categories": [{"id": 1, "name": ""}]},
        {"categories": [{"id": 1, "name": " "}]},
        {"held_out": 3},
        {"held_out": [3]},
    ],
)
def test_invalid_record(tmp_path, change):
    path = tmp_path / runs.RECORD
    path.write_text(json.dumps(GOOD))
    assert runs.read_record(tmp_path) == GOOD
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(InputError, match=r"run\.json: not the record of a run"):
        runs.read_record(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"annotations": {}}'])
def test_not_a_record(tmp_path, text):
    (tmp_path / runs.RECORD).write_text(text)
    with pytest.raises(InputError, match=r"run\.json: not "):
        runs.read_record(tmp_path)


def test_missing_record(tmp_path):
    with pytest.raises(InputError, match="no such file, expected the record of the run"):
        runs.read_record(tmp_path)


def test_version_of_a_missing_package(monkeypatch):
    monkeypatch.setattr(runs, "_PACKAGES", ("surely-not-installed",))
    assert runs.package_versions()["surely-not-installed"] == "missing"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"processes": 4}, 4),
        ({"command": ["train.py", "--num-gpus", "3"]}, 3),
        ({"command": ["train.py", "--num_gpus=2"]}, 2),
        ({"command": ["train.py"]}, 1),
        ({"command": None}, 1),
        ({"processes": "many"}, 1),
        ({"processes": -1}, 1),
    ],
)
def test_processes_of_a_run_and_of_one_of_an_earlier_version(tmp_path, change, expected):
    record = {"annotations": {}, "categories": [{"id": 1, "name": "a"}], "held_out": []}
    (tmp_path / runs.RECORD).write_text(json.dumps(record | change))
    assert runs.recorded_processes(tmp_path) == expected


def test_one_command_at_a_time_trains_a_run(tmp_path):
    hold = "import sys; from pathlib import Path; from cellseg.runs import locked_run\n"
    hold += "with locked_run(Path(sys.argv[1])): print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)],
        cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(InputError, match=f"{tmp_path}: .* {other.pid} "), locked_run(tmp_path):
            pass
        other.communicate("\n")
    with locked_run(tmp_path):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())

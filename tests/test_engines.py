"""The whole way without Detectron2, and what an engine says of what is not its own."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import inference
import train
from cellseg import runs
from cellseg.errors import InputError
from tests.barred import bar

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """Call this to run a command of the project where Detectron2 can't be imported."""
    folder = bar(tmp_path_factory.mktemp("barred"), "detectron2")

    def command(*words):
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return command


def succeeded(done):
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(done):
    """Return the one line that a command failed with."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def data(tmp_path_factory, cells, without):
    """A data folder that was annotated without Detectron2."""
    folder = tmp_path_factory.mktemp("engines") / "data"
    shutil.copytree(cells, folder, ignore=shutil.ignore_patterns("train__annot.json"))
    succeeded(without("annotation.py", "--data", folder))
    return folder


@pytest.fixture(scope="module")
def flags(tiny, data):
    argv = ["--config-file", tiny, "--data", data, "--device", "cpu", "--val_fraction", 0.4]
    return [str(word) for word in argv]


# With these, the tiny training of 4 iterations is scored and saved twice.
OPTIONS = ["TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.EMA", "0.9"]


@pytest.fixture(scope="module")
def training(tmp_path_factory, without, flags):
    """A run that was trained without Detectron2, and what was said meanwhile."""
    root = tmp_path_factory.mktemp("runs_without")
    said = succeeded(without("train.py", *flags, "--output_dir", root, *OPTIONS))
    return runs.find_newest_run(root), said


@pytest.fixture(scope="module")
def run(training):
    return training[0]


def other_engines(run, folder):
    """Copy a run of torchvision's into `folder` as if Detectron2 had made it."""
    shutil.copytree(run, folder)
    config = (folder / runs.CONFIG).read_text()
    assert config.count("ENGINE: torchvision\n") == 1
    (folder / runs.CONFIG).write_text(config.replace("ENGINE: torchvision", "ENGINE: detectron2"))
    return folder


# --- without Detectron2


def test_training_says_which_engine_and_why(training):
    _, said = training
    assert [line for line in said.splitlines() if line.startswith("engine")] == [
        "engine: torchvision (Detectron2 can't be used here: No module named 'detectron2')"
    ]


def test_the_run_is_predicted_and_scored_without_being_told(without, data, run, tmp_path):
    said = succeeded(
        without("inference.py", "--checkpoint", run, "--data", data, "--device", "cpu")
    )
    assert "in 3 images" in said
    assert "checked, and ready to submit" in said
    succeeded(without("evaluate.py", run, "--data", data, "--json", tmp_path / "scores.json"))
    metrics = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert 0 <= metrics["AP50@100"]["mean of classes"]["value"] <= 1


def test_the_run_goes_on(without, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    said = succeeded(without("train.py", "--resume", copy, "SOLVER.MAX_ITER", 6))
    assert said.splitlines()[-1].startswith("finished; ")
    assert [line["iteration"] for line in curves(copy)] == [1, 3, 5]


def test_detectron2_wanted_all_the_same(without, flags, tmp_path):
    line = refused(without("train.py", "--engine", "detectron2", *flags, "--output_dir", tmp_path))
    assert line.startswith("train.py: error: --engine detectron2: can't be used here (No module")
    assert not list(tmp_path.iterdir())


def test_several_processes_are_refused_before_a_run_begins(without, flags, tmp_path):
    line = refused(without("train.py", *flags, "--num_gpus", 2, "--output_dir", tmp_path))
    assert "--num_gpus: several processes are started by Detectron2, which can't be used" in line
    assert not list(tmp_path.iterdir())


def test_several_processes_are_refused_before_a_prediction_begins(without, data, run, tmp_path):
    words = ("--checkpoint", run, "--data", data, "--output", tmp_path, "--device", "cpu")
    line = refused(without("inference.py", *words, "--num_gpus", 2))
    assert "--num_gpus: several processes are started by Detectron2, which can't be used" in line
    assert not list(tmp_path.iterdir())


def test_a_run_that_detectron2_made(without, data, run, tmp_path):
    copy = other_engines(run, tmp_path / "run")
    line = refused(without("inference.py", "--checkpoint", copy, "--data", data, "--device", "cpu"))
    assert str(copy) in line
    assert "made with --engine detectron2, which can't be used here (No module named" in line
    assert line.endswith("make setup builds it, or train a recipe anew with torchvision")
    # The same, whatever engine is wanted: the advice must not end in another refusal.
    for engine in ("torchvision", "detectron2"):
        command = ("inference.py", "--checkpoint", copy, "--data", data, "--engine", engine)
        assert refused(without(*command)) == line


@pytest.mark.parametrize("name", ["mapper", "masks", "prediction"])
def test_a_benchmark_of_what_detectron2_does(without, name):
    done = without(f"bench/{name}.py")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"{name}.py: error: the usual way is Detectron2's, which can't be used: "
        "No module named 'detectron2'"
    )


# --- the loop that stands in for Detectron2's


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def curves(run):
    """Return the lines of the curves without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k not in ("time", "data_share")} for x in lines]


@pytest.mark.detectron2
def test_both_loops_train_the_same_weights_bit_for_bit(flags, run, tmp_path):
    argv = ["--engine", "torchvision", *flags, "--output_dir", str(tmp_path), *OPTIONS]
    assert train.main(argv) == 0
    theirs = runs.find_newest_run(tmp_path)
    for name in (runs.FINAL, runs.BEST, runs.LAST):
        mine, expected = weights(run / name), weights(theirs / name)
        assert mine.keys() == expected.keys()
        assert all(torch.equal(mine[key], expected[key]) for key in mine), name
    assert curves(run) == curves(theirs)
    assert [line["iteration"] for line in curves(run)] == [1, 3]


# --- torchvision, of what is Detectron2's


@pytest.fixture
def zoo(tmp_path, tiny, monkeypatch):
    """A folder of Detectron2's: weights as in its zoo, and a config of its keys."""
    caffe2 = pickle.dumps({"conv1_w": np.zeros((8, 3, 7, 7), np.float32)}, protocol=2)
    (tmp_path / "caffe2.pkl").write_bytes(caffe2)
    # Where `detectron2://` is looked for before it is downloaded.
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    (tmp_path / "detectron2" / "ImageNet").mkdir(parents=True)
    (tmp_path / "detectron2" / "ImageNet" / "R-50.pkl").write_bytes(caffe2)
    own = {"model": {"backbone.stem.conv1.weight": torch.zeros(8, 3, 7, 7)}}
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # nothing is
    torch.save(own, tmp_path / "detectron2.pth")
    (tmp_path / "own.yaml").write_text(f"_BASE_: {tiny}\nMODEL: {{RPN: {{CONV_DIMS: [64]}}}}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--weights coco", "--weights coco: torchvision has none"),
        ("--weights {zoo}/detectron2.pth", "can't be loaded as weights (they are of Detectron2's"),
        ("--weights {zoo}/caffe2.pkl", "caffe2.pkl: in the form of Detectron2's zoo, which torchv"),
        ("--weights detectron2://ImageNet/R-50.pkl", "R-50.pkl: in the form of Detectron2's zoo"),
        ("--weights detectron2://no/where.pkl", "where.pkl: in the form of Detectron2's zoo"),
        (
            "--weights https://dl.fbaipublicfiles.com/detectron2/no/where.pth",
            "where.pth: in the form of Detectron2's zoo",
        ),
        ("MODEL.WEIGHTS {zoo}/caffe2.pkl", "caffe2.pkl: in the form of Detectron2's zoo"),
        ("MODEL.WEIGHTS detectron2://COCO/a.pkl", "a.pkl: in the form of Detectron2's zoo"),
        ("--config-file {zoo}/own.yaml", "own.yaml: there is no key MODEL.RPN.CONV_DIMS for "),
        ("MODEL.RPN.CONV_DIMS [64]", "torchvision (--engine detectron2 has more)"),
        ("MODEL.RESNETS.NORM GN", "only Detectron2 has it"),
        (
            "-m cascade_mask_rcnn_R_50_FPN",
            "MODEL.ROI_HEADS.NAME 'CascadeROIHeads': only Detectron2 has it",
        ),
        (
            "-m cascade_mask_rcnn_convnextv2_tiny_FPN",
            "MODEL.ROI_HEADS.NAME 'CascadeROIHeads': only Detectron2 has it",
        ),
    ],
)
def test_what_is_detectron2s_alone_is_one_line(words, expected, flags, zoo):
    root = zoo / "runs"
    argv = ["--engine", "torchvision", *flags, "--output_dir", str(root)]
    if words.startswith("-m "):
        argv = argv[:2] + argv[4:]
    with pytest.raises(InputError) as caught:
        train.main([*argv, *words.format(zoo=zoo).split()])
    assert expected in str(caught.value)
    assert not list(root.glob("*/*")), "a run folder was left behind"


@pytest.mark.parametrize(
    "engine", ["detectron2", pytest.param("torchvision", marks=pytest.mark.detectron2)]
)
def test_a_run_is_not_predicted_by_the_other_engine(engine, run, data, tmp_path):
    folder = other_engines(run, tmp_path / "run") if engine == "torchvision" else run
    argv = ["--checkpoint", str(folder), "--data", str(data), "--device", "cpu"]
    with pytest.raises(InputError) as caught:
        inference.main([*argv, "--engine", engine])
    made = "detectron2" if engine == "torchvision" else "torchvision"
    assert str(folder) in str(caught.value)
    assert f"made with --engine {made}, not {engine}" in str(caught.value)

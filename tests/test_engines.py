"""All commands without Detectron2, and errors for what an engine does not support."""

from __future__ import annotations

import json
import pickle
import re
import shutil

import numpy as np
import pytest
import torch

import inference
import train
from cellseg import runs
from cellseg.errors import InputError
from cellseg.learn import download
from tests.barred import bar
from tests.fork_server import forks
from tests.training import load, same


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """A function that runs a command where Detectron2 can't be imported."""
    folder = bar(tmp_path_factory.mktemp("barred"), "detectron2")
    with forks(folder, PYTHONPATH=str(folder)) as run:
        yield run


def succeeded(done):
    """Return the output of a command without warnings but those of the recipe's short lists."""
    assert done.returncode == 0, done.stderr
    warnings = done.stderr.splitlines()[:-1]  # the last line counts them
    assert bool(warnings) == bool(done.stderr)
    assert all("more cells than are kept" in warning for warning in warnings), done.stderr
    return done.stdout


def refused(done):
    """Return the one line of a command that failed."""
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


# The tiny training of 4 iterations is scored and saved twice.
OPTIONS = ["TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.EMA", "0.9"]


@pytest.fixture(scope="module")
def training(tmp_path_factory, without, flags):
    """A run that was trained without Detectron2, and its output."""
    root = tmp_path_factory.mktemp("runs_without")
    out = succeeded(without("train.py", *flags, "--output_dir", root, *OPTIONS))
    return runs.find_newest_run(root), out


@pytest.fixture(scope="module")
def run(training):
    return training[0]


def other_engines(run, folder):
    """Copy a run of torchvision to `folder`, as if made with Detectron2."""
    shutil.copytree(run, folder)
    config = (folder / runs.CONFIG).read_text()
    assert config.count("ENGINE: torchvision\n") == 1
    (folder / runs.CONFIG).write_text(config.replace("ENGINE: torchvision", "ENGINE: detectron2"))
    return folder


# --- without Detectron2


def test_training_prints_the_engine_and_the_reason(training):
    (line,) = (line for line in training[1].splitlines() if line.startswith("engine"))
    assert line.startswith("engine: torchvision (")
    assert "No module named 'detectron2'" in line


def test_the_run_is_predicted_and_scored(without, data, run, tmp_path):
    words = ["--checkpoint", run, "--data", data, "--device", "cpu"]
    out = succeeded(without("inference.py", *words))
    assert "in 3 images" in out
    assert "ready to submit" in out
    succeeded(without("evaluate.py", run, "--data", data, "--json", tmp_path / "scores.json"))
    metrics = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert 0 <= metrics["AP50@100"]["mean of classes"]["value"] <= 1


def test_the_run_is_resumed(without, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    out = succeeded(without("train.py", "--resume", copy, "SOLVER.MAX_ITER", 6))
    assert out.splitlines()[-1].startswith("finished; ")
    assert [line["iteration"] for line in curves(copy)] == [1, 3, 5]


def test_detectron2_is_requested_but_not_available(without, flags, tmp_path):
    line = refused(without("train.py", "--engine", "detectron2", *flags, "--output_dir", tmp_path))
    assert line.startswith("train.py: error: --engine detectron2: ")
    assert "No module named 'detectron2'" in line
    assert not list(tmp_path.iterdir())


def test_training_needs_detectron2_for_several_processes(without, flags, tmp_path):
    line = refused(without("train.py", *flags, "--num_gpus", 2, "--output_dir", tmp_path))
    assert line.startswith("train.py: error: --processes: ")
    assert "Detectron2" in line
    assert not list(tmp_path.iterdir())


def test_a_run_of_detectron2(without, data, run, tmp_path):
    copy = other_engines(run, tmp_path / "run")
    line = refused(without("inference.py", "--checkpoint", copy, "--data", data, "--device", "cpu"))
    assert str(copy) in line
    assert "--engine detectron2" in line
    assert "No module named 'detectron2'" in line
    # The same for any engine: the advice must not end in another error.
    for engine in ("torchvision", "detectron2"):
        command = ("inference.py", "--checkpoint", copy, "--data", data, "--engine", engine)
        assert refused(without(*command)) == line


@pytest.mark.parametrize("name", ["mapper", "masks", "prediction"])
def test_benchmarks_against_detectron2(without, name):
    done = without(f"bench/{name}.py")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"{name}.py: error: ")
    assert line.endswith("No module named 'detectron2'")


# --- the replacement of Detectron2's training loop


def curves(run):
    """Return the lines of the curves without times."""
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k not in ("time", "data_share")} for x in lines]


@pytest.mark.detectron2
def test_both_loops_train_the_same_weights_bit_for_bit(flags, run, tmp_path):
    argv = ["--engine", "torchvision", *flags, "--output_dir", str(tmp_path), *OPTIONS]
    assert train.main(argv) == 0
    theirs = runs.find_newest_run(tmp_path)
    for name in (runs.FINAL, runs.BEST, runs.LAST):
        assert same(load(run / name)["model"], load(theirs / name)["model"]), name
    assert curves(run) == curves(theirs)
    assert [line["iteration"] for line in curves(run)] == [1, 3]


# --- torchvision, with weights and keys of Detectron2


@pytest.fixture
def zoo(tmp_path, tiny, monkeypatch):
    """A folder with weights as in Detectron2's zoo, and a config with its keys."""
    caffe2 = pickle.dumps({"conv1_w": np.zeros((8, 3, 7, 7), np.float32)}, protocol=2)
    (tmp_path / "caffe2.pkl").write_bytes(caffe2)
    # The cache of `detectron2://`.
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    (tmp_path / "detectron2" / "ImageNet").mkdir(parents=True)
    (tmp_path / "detectron2" / "ImageNet" / "R-50.pkl").write_bytes(caffe2)
    own = {"model": {"backbone.stem.conv1.weight": torch.zeros(8, 3, 7, 7)}}
    monkeypatch.setattr(download, "urlopen", None)  # no downloads
    torch.save(own, tmp_path / "detectron2.pth")
    (tmp_path / "own.yaml").write_text(f"_BASE_: {tiny}\nMODEL: {{RPN: {{CONV_DIMS: [64]}}}}\n")
    return tmp_path


ZOO_URL = "https://dl.fbaipublicfiles.com/detectron2"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--weights coco", "--weights coco: torchvision has none"),
        ("--weights {zoo}/detectron2.pth", "can't be loaded as weights (weights of Detectron2's"),
        ("--weights {zoo}/caffe2.pkl", "caffe2.pkl: in the format of Detectron2's zoo"),
        ("--weights detectron2://ImageNet/R-50.pkl", "R-50.pkl: in the format of Detectron2's zoo"),
        ("--weights detectron2://no/where.pkl", "where.pkl: in the format of Detectron2's zoo"),
        (f"--weights {ZOO_URL}/no/where.pth", "where.pth: in the format of Detectron2's zoo"),
        ("MODEL.WEIGHTS {zoo}/caffe2.pkl", "caffe2.pkl: in the format of Detectron2's zoo"),
        ("MODEL.WEIGHTS detectron2://COCO/a.pkl", "a.pkl: in the format of Detectron2's zoo"),
        ("--config-file {zoo}/own.yaml", "MODEL.RPN.CONV_DIMS"),
        ("MODEL.RPN.CONV_DIMS [64]", "--engine detectron2"),
        ("MODEL.RESNETS.NORM GN", "only Detectron2 has it"),
        ("-m cascade_mask_rcnn_R_50_FPN", "'CascadeROIHeads': only Detectron2 has it"),
        ("-m cascade_mask_rcnn_convnextv2_tiny_FPN", "'CascadeROIHeads': only Detectron2 has it"),
    ],
)
def test_what_only_detectron2_has_is_one_line(words, expected, flags, zoo):
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
    assert str(folder) in str(caught.value)
    assert {"detectron2", "torchvision"} <= {*re.findall(r"\w+", str(caught.value))}

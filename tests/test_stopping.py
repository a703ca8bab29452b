"""A training that is killed, at any moment, goes on; a terminal's Ctrl-C is clean."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from cellseg import runs

HERE = Path(__file__).resolve().parents[1]

# Dies as by kill -9: in the middle of writing the n-th of the run's checkpoints, or of its
# n-th step, between the optimizer and the averaged weights.
DIE = """\
import io, os, signal, sys, torch, train
from torch.optim.swa_utils import AveragedModel
moment, left = sys.argv.pop(1), [int(sys.argv.pop(1))]
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def save(value, file, save=torch.save):
    left[0] -= 1
    if left[0]:
        return save(value, file)
    whole = io.BytesIO()
    save(value, whole)
    file.write(whole.getvalue()[:50000])
    file.flush()
    die()
def average(self, network, update=AveragedModel.update_parameters):
    left[0] -= 1
    update(self, network) if left[0] else die()
if moment == "save":
    torch.save = save
else:
    AveragedModel.update_parameters = average
train.main()
"""


def words(tiny, cells, root, *more):
    argv = ["--config-file", tiny, "--data", cells, "--output_dir", root, "--device", "cpu", *more]
    return [str(word) for word in argv]


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def same(one, other):
    """Whether two states are equal, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


OPTIONS = ["--val_fraction", "0.4", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "2"]
OPTIONS += ["SOLVER.EMA", "0.9", "SOLVER.MAX_ITER", "4"]


@pytest.fixture(scope="module")
def uninterrupted(tiny, cells, tmp_path_factory):
    """The folder of a run that nothing stops."""
    root = tmp_path_factory.mktemp("uninterrupted")
    assert train.main([*words(tiny, cells, root), *OPTIONS]) == 0
    return runs.find_newest_run(root)


# Saved in this order: best and last after 2 iterations, best or not after 4, final and last.
@pytest.mark.parametrize(
    ("moment", "number"),
    [("save", 1), ("save", 2), ("save", 3), ("save", 4), ("step", 2), ("step", 3), ("step", 4)],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    tiny, cells, tmp_path, uninterrupted, moment, number
):
    argv = [*words(tiny, cells, tmp_path), *OPTIONS]
    done = subprocess.run(
        [sys.executable, "-c", DIE, moment, str(number), *argv],
        cwd=HERE, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    (run,) = tmp_path.glob("*/*")
    for path in run.glob("*.pth"):  # whole, or absent
        assert load(path)["model"]
    assert bool(list(run.glob(".*"))) == (moment == "save")
    assert train.main(["--resume", str(run), "--device", "cpu"]) == 0
    assert not list(run.glob(".*"))
    for name in (runs.LAST, runs.FINAL, runs.BEST):  # weights, averages, optimizer, schedule
        assert same(load(run / name), load(uninterrupted / name)), name


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_in_a_terminal(tiny, cells, tmp_path, workers):
    """It reaches the whole group of processes, those that load images too."""
    argv = words(tiny, cells, tmp_path, "--num_workers", workers)
    argv += ["SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "2"]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "train.py"), *argv], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        limit = time.monotonic() + 120
        while not list(tmp_path.glob(f"*/*/{runs.LAST}")) and time.monotonic() < limit:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "stopping after this iteration; once more to stop at once" in err
    assert "Traceback" not in err
    (run,) = tmp_path.glob("tiny/*")
    # Where it is said to have stopped is where the checkpoint is; the path as to be typed there.
    stopped = load(run / runs.LAST)["trainer"]["iteration"]
    assert f"stopped after iteration {stopped} of 100000; go on with: " in out
    assert out.rstrip().endswith(f"python train.py --resume {run.relative_to(tmp_path)}")


def test_exit_code_and_line_of_bad_input(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "train.py"), "--lr", "-1"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("train.py: error: --lr (SOLVER.BASE_LR) -1.0: a positive number")
    assert done.stderr.count("\n") == 1

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

# Dies in the middle of writing the given checkpoint, of those of the run, as by kill -9.
DIE = """\
import io, os, signal, sys, torch, train
save, left = torch.save, [int(sys.argv.pop(1))]
def die(value, file):
    left[0] -= 1
    if left[0]:
        return save(value, file)
    whole = io.BytesIO()
    save(value, whole)
    file.write(whole.getvalue()[:50000])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = die
train.main()
"""


def words(tiny, cells, root, *more):
    argv = ["--config-file", tiny, "--data", cells, "--output_dir", root, "--device", "cpu", *more]
    return [str(word) for word in argv]


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


# Written in this order: best and last after 2 iterations, best or not after 4, final and last.
@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_killed_while_it_saves(tiny, cells, tmp_path, moment):
    argv = words(tiny, cells, tmp_path, "--val_fraction", 0.4)
    argv += ["SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "2"]
    done = subprocess.run(
        [sys.executable, "-c", DIE, str(moment), *argv], cwd=HERE, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (run,) = tmp_path.glob("*/*")
    for path in run.glob("*.pth"):  # whole, or absent
        assert load(path)["model"]
    best_before = load(run / runs.BEST)["AP50"] if (run / runs.BEST).is_file() else 0.0
    assert train.main(["--resume", str(run), "--device", "cpu"]) == 0
    last = load(run / runs.LAST)
    assert last["trainer"]["iteration"] == 4
    assert last["step"]["schedule"]["last_epoch"] == 4
    optimizer = last["step"]["optimizer"]
    assert {float(state["step"]) for state in optimizer["state"].values()} == {4.0}
    assert load(run / runs.FINAL)["iteration"] == 4
    assert load(run / runs.BEST)["AP50"] >= best_before


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

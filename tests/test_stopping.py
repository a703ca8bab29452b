"""A training killed at any moment can be resumed; Ctrl-C in a terminal stops it cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from cellseg import runs
from tests.processes import default_signals, is_gone
from tests.training import load, same

PROJECT = Path(__file__).resolve().parents[1]

# Each run ends itself as kill -9 does: while it writes its n-th checkpoint, or in its n-th step,
# between the optimizer and the averaged weights. They are forks of a process that has imported all.
DIE = """\
import io, json, os, signal, sys, torch, train, trainer
import cellseg.learn.session, cellseg.network.torchvision, scipy.stats, torch._dynamo
from cellseg.learn.step import MovingAverage
cases, left = json.loads(sys.argv.pop(1)), [0]
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
def average(self, update=MovingAverage.update):
    left[0] -= 1
    update(self) if left[0] else die()
for moment, number, argv in cases:
    process = os.fork()
    if process:
        print("ended with", os.waitpid(process, 0)[1], flush=True)
        continue
    left[0] = number
    if moment == "save":
        torch.save = save
    else:
        MovingAverage.update = average
    train.main(argv)
    os._exit(0)
"""

# Gets a signal when it is about to start its processes, or when they load the libraries.
STOP_EARLY = """\
import multiprocessing, os, signal, sys, threading, time, train, utils
from detectron2 import engine
moment, launch = sys.argv.pop(1), engine.launch
def interrupt():
    while not multiprocessing.active_children():
        time.sleep(0.01)
    time.sleep(0.2)
    os.killpg(0, signal.SIGINT)
def stopped(*args, **keywords):
    if moment == "before":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        threading.Thread(target=interrupt, daemon=True).start()
    launch(*args, **keywords)
engine.launch = stopped
utils.run_command(train.main)
"""


def words(tiny, cells, root, *more):
    argv = ["--config-file", tiny, "--data", cells, "--output_dir", root, "--device", "cpu", *more]
    return [str(word) for word in argv]


OPTIONS = ["--val_fraction", "0.4", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "2"]
OPTIONS += ["SOLVER.EMA", "0.9", "SOLVER.MAX_ITER", "4"]


@pytest.fixture(scope="module")
def uninterrupted(tiny, cells, tmp_path_factory):
    """The folder of a run that was not stopped."""
    root = tmp_path_factory.mktemp("uninterrupted")
    assert train.main([*words(tiny, cells, root), *OPTIONS]) == 0
    return runs.find_newest_run(root)


# Saved in this order: best and last after 2 iterations; best (if better), final and last after 4.
MOMENTS = [("save", n) for n in (1, 2, 3, 4)] + [("step", n) for n in (2, 3, 4)]


@pytest.fixture(scope="module")
def killed(tiny, cells, tmp_path_factory):
    """The folders of runs that were killed, by the moment."""
    root = tmp_path_factory.mktemp("killed")
    folders = {moment: root / f"{moment[0]}{moment[1]}" for moment in MOMENTS}
    cases = [
        (*moment, [*words(tiny, cells, folder), *OPTIONS]) for moment, folder in folders.items()
    ]
    argv = [sys.executable, "-c", DIE, json.dumps(cases)]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"ended with {int(signal.SIGKILL)}\n") == len(cases), done.stderr
    return folders


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_killed_run_is_resumed(killed, uninterrupted, moment):
    (run,) = killed[moment].glob("*/*")
    for path in run.glob("*.pth"):  # complete or absent
        assert load(path)["model"]
    assert bool(list(run.glob(".*"))) == (moment[0] == "save")
    assert train.main(["--resume", str(run), "--device", "cpu"]) == 0
    assert not list(run.glob(".*"))
    for name in (runs.LAST, runs.FINAL, runs.BEST):
        assert same(load(run / name), load(uninterrupted / name)), name


def press_ctrl_c(group):
    """Signal as a terminal does: the whole process group, data loading workers included."""
    os.killpg(group, signal.SIGINT)


def time_out(group):
    """Signal as `timeout` does: its child, and then the whole process group."""
    os.kill(group, signal.SIGTERM)
    time.sleep(0.1)
    os.killpg(group, signal.SIGTERM)


@pytest.mark.parametrize(
    ("stop", "workers", "processes"),
    [
        (press_ctrl_c, 0, 1),
        (press_ctrl_c, 1, 1),
        (time_out, 1, 1),
        pytest.param(time_out, 0, 2, marks=pytest.mark.detectron2),
    ],
)
def test_stopped_from_outside(tiny, cells, tmp_path, stop, workers, processes):
    argv = words(tiny, cells, tmp_path, "--num_workers", workers, "--processes", processes)
    argv += ["SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "2"]
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "train.py"), *argv], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        limit = time.monotonic() + 120
        while not list(tmp_path.glob(f"*/*/{runs.LAST}")) and time.monotonic() < limit:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        stop(process.pid)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "stopping after this iteration" in err
    assert "Traceback" not in err
    (run,) = tmp_path.glob("tiny/*")
    stopped = load(run / runs.LAST)["trainer"]["iteration"]
    assert f"stopped after iteration {stopped} of 100000" in out
    # The path is relative to the working directory.
    assert out.rstrip().endswith(f"python train.py --resume {run.relative_to(tmp_path)}")


@pytest.mark.detectron2
@pytest.mark.parametrize("moment", ["before", "while"])
def test_stopped_while_processes_are_started(tiny, cells, tmp_path, moment):
    argv = words(tiny, cells, tmp_path, "--processes", 2, "SOLVER.MAX_ITER", "100000")
    process = subprocess.Popen(
        [sys.executable, "-c", STOP_EARLY, moment, *argv], cwd=PROJECT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=default_signals,
    )  # fmt: skip
    try:
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.count("interrupted") == 1
    (run,) = tmp_path.glob("tiny/*")
    assert err.endswith(f"python train.py --resume {run}\n")
    assert "Traceback" not in err
    assert is_gone(process.pid)


def test_exit_code_and_line_of_bad_input(forked, tmp_path):
    done = forked(PROJECT / "train.py", "--lr", "-1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("train.py: error: --lr (SOLVER.BASE_LR) -1.0: ")
    assert done.stderr.count("\n") == 1

"""Workers of a Dask cluster: results, order, errors, warnings, memory; GPUs and cores."""

from __future__ import annotations

import functools
import importlib
import multiprocessing.synchronize
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from cellseg import config
from cellseg.errors import InputError
from cellseg.messages import warn
from cellseg.predict import workers
from cellseg.predict.inputs import TileJob
from cellseg.predict.predictor import Predictor
from cellseg.predict.tiles import plan_tiles
from cellseg.predict.workers import Workers, local_workers
from cellseg.predictions import Predictions
from tests.processes import default_signals, is_gone

HERE = Path(__file__).resolve().parents[2]
PLAN = plan_tiles((100, 90), 20, 4)
N_TILES = len(PLAN)


class FakePredictor(Predictor):
    """Detects one cell in each tile, whose box says which."""

    def __init__(self, name: str = ""):
        super().__init__([], [config.default_config("torchvision")])
        self.name = name

    def predict_tiles(self, jobs, brightness=None):  # noqa: ARG002
        for job in jobs:
            if job.image.name == "broken":
                raise KeyError("a bug")
            if job.image.name == "torn":
                yield InputError(f"{job.image}: torn")
                continue
            warn(f"{job.image.name} is unusual")
            box = np.array([job.tile.window], np.float32)
            score, class_ = np.ones(1, np.float32), np.zeros(1, np.int64)
            yield Predictions(job.tile.size, box, score, class_, [{"size": [1, 1], "counts": "1"}])


def fail(why):
    raise InputError(why)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def tiles_of(name, n=N_TILES):
    """Return tiles of an image, with a key each."""
    return [((name, i), TileJob(Path(name), 0, PLAN.size, PLAN[i])) for i in range(n)]


def check(results, groups):
    """Check that the results are those of the tiles in the groups, in any order."""
    expected = {key: job for group in groups for key, job in group}
    assert len(results) == len(expected)
    for key, result in results:
        assert result.boxes.tolist() == [list(expected.pop(key).tile.window)]


def test_every_tile_is_predicted_once(client, caplog):
    groups = [tiles_of("a"), [], tiles_of("b", 1), tiles_of("c", 3)]
    check([*Workers(client, FakePredictor).predict(groups)], groups)
    # Of many tiles of an image, each warning once.
    assert sorted(caplog.messages) == ["a is unusual", "b is unusual", "c is unusual"]
    assert [*Workers(client, FakePredictor).predict([])] == []


def test_groups_are_taken_when_they_are_needed(client):
    taken, n = [], 0

    def groups():
        for number in range(40):
            taken.append(number)
            yield tiles_of(str(number), 1)

    for _ in Workers(client, FakePredictor).predict(groups()):
        n += 1
        assert len(taken) <= n + 2 * 2 + 2
    assert n == 40


def test_errors_of_tiles_and_bugs_are_results(client):
    groups = [tiles_of("a", 2), tiles_of("torn", 2), tiles_of("broken", 2), tiles_of("b", 2)]
    results = dict(Workers(client, FakePredictor, remote=True).predict(groups))
    for key, result in results.items():
        expected = {"torn": InputError, "broken": KeyError}.get(key[0], Predictions)
        assert isinstance(result, expected)
    # The worker's machine has another path to the images, or none.
    assert os.fspath(Path("torn").absolute()) in str(results["torn", 0])
    assert f"(on {os.uname().nodename})" in str(results["torn", 0])
    assert len(results) == 8


def test_a_run_that_workers_can_not_load(client):
    load = functools.partial(fail, "/run/model.pth: no such file")
    with pytest.raises(InputError, match=rf"^/run/model.pth: .* \(on {os.uname().nodename}\)"):
        [*Workers(client, load, remote=True).predict([tiles_of("a")])]


def test_other_versions_on_the_workers(client, monkeypatch):
    monkeypatch.setattr(workers, "_versions", version_by_thread)
    with pytest.raises(InputError, match=r"^--scheduler: .*torch 2.* 1"):
        [*Workers(client, FakePredictor).predict([tiles_of("a", 1)])]


def version_by_thread():
    return {"torch": "1" if threading.current_thread() is threading.main_thread() else "2"}


def load_from_nowhere() -> Predictor:
    importlib.import_module("nowhere")
    return FakePredictor()


def test_workers_that_lack_a_package(client, monkeypatch):
    """Without this one, a worker fails in its task, not before it, which would end the worker."""
    sent = []
    submit = client.submit

    def note(*arguments, **keywords):
        sent.append(arguments)
        return submit(*arguments, **keywords)

    monkeypatch.setattr(client, "submit", note)
    with pytest.raises(InputError, match=r"lacks a package .*'nowhere'.*; start the workers"):
        [*Workers(client, load_from_nowhere).predict([tiles_of("a", 1)])]
    task = "import pickle, sys; f, *a = pickle.load(sys.stdin.buffer); print('begun'); f(*a)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", task], input=pickle.dumps(sent[0]), capture_output=True
    )
    assert done.stdout.strip() == b"begun"
    assert done.stderr.strip().endswith(b"No module named 'cellseg'")


def test_the_workers_keep_the_networks(client):
    loaded = []

    def load():
        loaded.append(1)
        return FakePredictor()

    # Pickled by its name.
    globals()["load_counted"] = load
    load.__qualname__ = load.__name__ = "load_counted"
    predict = Workers(client, load).predict
    for _ in range(2):
        assert len([*predict([tiles_of("a")])]) == N_TILES
    assert len(loaded) == 1


def test_workers_that_are_always_killed(monkeypatch):
    """As when a tile needs more memory than there is; those of other images are predicted."""
    monkeypatch.setattr(workers, "_ATTEMPTS", 1)
    with local_workers(2, "cpu", die) as started:
        ((key, error),) = started.predict([tiles_of("a", 1)])
    assert key == ("a", 0)
    assert isinstance(error, InputError)
    assert str(error).startswith("a: 1 worker ended")


@pytest.mark.parametrize(
    ("cause", "error", "message"),
    [
        (OSError, InputError, "^--workers 2: .*no semaphores"),
        (ValueError, RuntimeError, "failed to start"),
    ],
)
def test_workers_that_the_system_refuses(monkeypatch, cause, error, message):
    """As with a read-only /dev/shm; a bug stays one."""

    def refuse(*_, **__):
        raise cause("no semaphores")

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    with pytest.raises(error, match=message), local_workers(2, "cpu", FakePredictor):
        pass


def test_each_worker_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices = [e["CUDA_VISIBLE_DEVICES"] for e in workers._environments(2, "cuda")]
    assert devices == ["0", "1"]
    for n, device in ((3, "cuda"), (2, "cuda:1")):
        with pytest.raises(InputError, match=rf"--workers {n}: .*{device}.*2"):
            workers._environments(n, device)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-7,5")
    devices = [e["CUDA_VISIBLE_DEVICES"] for e in workers._environments(2, "cuda")]
    assert devices == ["3", "MIG-7"]


def test_workers_on_the_cpu_see_no_gpu_and_share_the_cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    for environment in workers._environments(2, "cpu"):
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
        assert environment["OMP_NUM_THREADS"] == "2"


# Stopped while two workers start, or while they predict.
STOPPED = """\
if __name__ in ("__main__", "__mp_main__"):
    from cellseg import process
    process.prepare()
import os
import time
from pathlib import Path
import utils
from cellseg.predict.inputs import TileJob
from cellseg.predict.tiles import Tile
from cellseg.predict.workers import local_workers
def wait():
    os.write(1, b"waiting\\n")  # at once: the other worker writes it at the same time
    time.sleep(60)
def main(argv):
    print("starting", flush=True)
    with local_workers(2, "cpu", wait) as workers:
        tile = Tile((0, 0, 9, 9), (False,) * 4)
        list(workers.predict([[(0, TileJob(Path("x"), 0, (9, 9), tile))]]))
if __name__ == "__main__":
    utils.run_command(main)
"""


@pytest.mark.parametrize(
    ("number", "to_all", "when"),
    [(signal.SIGINT, True, "waiting"), (signal.SIGTERM, False, "starting")],
)
def test_stopping_is_one_line_and_no_worker_is_left(tmp_path, number, to_all, when):
    """Ctrl-C in a terminal is sent to all processes, other signals to the first."""
    script = tmp_path / "it.py"
    script.write_text(STOPPED)
    process = subprocess.Popen(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": str(HERE)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=default_signals,
    )  # fmt: skip
    assert process.stdout is not None
    while process.stdout.readline() != f"{when}\n":
        assert process.poll() is None, process.communicate()
    (os.killpg if to_all else os.kill)(process.pid, number)
    err = process.communicate(timeout=60)[1]
    assert (process.returncode, err) == (130, "it.py: interrupted\n")
    assert is_gone(process.pid)


@pytest.mark.parametrize("allowed", [16, 40])
def test_too_few_open_files(monkeypatch, allowed):
    """With so few, Dask may wait for workers that can't start."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    message = rf"--workers 2: only {allowed} .* ulimit -n"
    with pytest.raises(InputError, match=message), local_workers(2, "cpu", FakePredictor):
        pass


def test_more_open_files_are_allowed_if_the_system_lets(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no semaphores")

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    allowed = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (40, 100))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: allowed.append(limits))
    with pytest.raises(InputError, match="no semaphores"), local_workers(2, "cpu", FakePredictor):
        pass
    ((soft, hard),) = allowed
    assert 56 <= soft <= hard == 100  # two workers use 56

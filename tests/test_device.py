"""The choice of the device, the memory that is available, and a simulated GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

from cellseg import device
from cellseg.device import choose_device
from cellseg.errors import InputError


@pytest.mark.parametrize("cuda", [False, True])
def test_a_gpu_is_used_if_available(monkeypatch, capsys, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert choose_device(None) == ("cuda" if cuda else "cpu")
    assert ("no CUDA GPU" in capsys.readouterr().out) is not cuda


def test_the_requested_device_is_used(capsys):
    assert choose_device("cpu") == "cpu"
    assert choose_device(None, ["SEED", "1", "MODEL.DEVICE", "cpu"]) == "cpu"
    assert choose_device(None, recipe="cpu") == "cpu"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "meta", "cpu:x", "hip hop"])
def test_a_device_that_is_not_available(name):
    for arguments in ((name,), (None, ["MODEL.DEVICE", name])):
        with pytest.raises(InputError, match=f"--device {name}: not available .*--device cpu"):
            choose_device(*arguments)


def test_available_memory_of_this_machine():
    assert device.available_memory() > 2**20


def write_group(folder, limit, used, cached=0, names=("memory.max", "memory.current")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon {used}\ninactive_file {cached}\n")


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (("max", 900, 0), ("max", 500, 0), []),
        (("max", 900, 0), (2000, 500, 100), [1600]),
        ((1000, 900, 0), (2000, 500, 0), [1500, 100]),
        ((1000, 900, 0), (100, 500, 0), [0, 100]),
    ],
)
def test_memory_left_in_control_groups(tmp_path, outer, inner, expected):
    write_group(tmp_path / "job", *outer)
    write_group(tmp_path / "job" / "step", *inner)
    left = device._left_in_groups(tmp_path, "/job/step", "memory.max", "memory.current")
    assert left == expected


def test_a_group_that_is_not_mounted_has_no_limit(tmp_path):
    assert device._left_in_groups(tmp_path, "/job", "memory.max", "memory.current") == []


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch can't register a device in Python",
)
def test_training_and_prediction_on_a_simulated_gpu(run, tmp_path, forked):
    # In another process, since torch can't unregister a device.
    done = forked(Path(__file__).with_name("pretended_gpu.py"), run, tmp_path)
    assert done.returncode == 0, done.stderr

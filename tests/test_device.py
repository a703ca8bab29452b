"""The choice of the device, the memory that is available, and a simulated GPU."""

from __future__ import annotations

import os
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


# The root of the groups, a line of /proc/self/cgroup, and the files of limits, by version.
VERSIONS = {
    2: ("", "0::", ("memory.max", "memory.current")),
    1: ("memory", "4:memory:", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
}


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Return a root of control groups; its file `own` has the lines of this process."""
    monkeypatch.setattr(device, "_CGROUPS", tmp_path)
    own = tmp_path / "own"
    monkeypatch.setattr(device, "_OWN_CGROUPS", own)
    own.write_text("")
    return tmp_path


def write_group(folder, names, numbers):
    limit, used, cached = numbers
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon {used}\ninactive_file {cached}\n")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (("max", 900, 0), ("max", 500, 0), None),
        (("max", 900, 0), (2000, 500, 100), 1600),
        ((1000, 900, 0), (2000, 500, 0), 100),
        ((1000, 900, 0), (100, 500, 0), 0),
        ((3000, 900, 0), (2000, 500, 0), 1500),
    ],
)
def test_memory_left_in_control_groups(groups, version, outer, inner, expected):
    root, line, names = VERSIONS[version]
    write_group(groups / root / "job", names, outer)
    write_group(groups / root / "job" / "step", names, inner)
    (groups / "own").write_text(f"9:name=systemd:/\n{line}/job/step\n")
    left = device.available_memory()
    assert left > 2**20 if expected is None else left == expected


@pytest.mark.parametrize("own", ["0::/job\n4:memory:/job\n1:cpu,cpuacct:/job\n", ""])
def test_a_group_that_is_not_mounted_has_no_limit(groups, monkeypatch, own):
    (groups / "own").write_text(own)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert device.available_memory() > 2**20
    assert device.count_cores() == len(os.sched_getaffinity(0))
    assert "OMP_NUM_THREADS" not in device.thread_variables()


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("max 100000", "250000 100000", 3),  # --cpus 2.5
        ("100000 100000", "400000 100000", 1),
        ("10000 100000", "max 100000", 1),  # less than a core
        ("max 100000", "1600000 100000", 8),
        ("max 100000", "max 100000", 8),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_cores_of_a_container(groups, monkeypatch, version, outer, inner, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {*range(8)})
    monkeypatch.delenv("OMP_NUM_THREADS")
    for folder, limit in (("job", outer), ("job/step", inner)):
        path = groups / ("" if version == 2 else "cpu") / folder
        path.mkdir(parents=True)
        if version == 2:
            (path / "cpu.max").write_text(f"{limit}\n")
        else:
            quota, period = limit.replace("max", "-1").split()
            (path / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (path / "cpu.cfs_period_us").write_text(f"{period}\n")
    (groups / "own").write_text(f"{'0::' if version == 2 else '1:cpu,cpuacct:'}/job/step\n")
    assert device.count_cores() == expected
    variables = device.thread_variables()
    assert variables.get("OMP_NUM_THREADS") == (None if expected == 8 else str(expected))
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "OMP_NUM_THREADS" not in device.thread_variables()


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch can't register a device in Python",
)
def test_training_and_prediction_on_a_simulated_gpu(run, tmp_path, forked):
    # In another process, since torch can't unregister a device.
    done = forked(Path(__file__).with_name("pretended_gpu.py"), run, tmp_path)
    assert done.returncode == 0, done.stderr

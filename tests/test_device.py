"""Memory that is available, with and without the limits of control groups."""

from __future__ import annotations

import pytest

from cellseg import device


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

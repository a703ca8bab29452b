"""Warnings of commands, and numbers with their nouns."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from cellseg.messages import listed, plural, warn

HERE = Path(__file__).resolve().parents[1]
COMMAND = """
import logging
import utils
from cellseg.errors import InputError
from cellseg.messages import warn
from tqdm import tqdm

def main(argv):
    print("first")
    for n in tqdm(range({n})):
        warn(f"a\\nb {{n}}")
    logging.getLogger("cellseg.any").info("not this")
    logging.getLogger("detectron2.any").warning("a %s too", "library's")
    {end}

utils.run_command(main)
"""


def command(n, end):
    code = COMMAND.format(n=n, end=end)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_command_counts_its_warnings():
    done = command(2, "return 0")
    lines = [line.rpartition("\r")[2].strip() for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert lines[0] == "first"
    assert [line for line in lines if line.startswith("warning: ")] == [
        "warning: a b 0", "warning: a b 1", "warning: a library's too",
    ]  # fmt: skip
    assert lines[-1] == "3 warnings (see above)"


def test_an_error_comes_after_the_count():
    done = command(0, "raise InputError('x.tif: bad')")
    assert done.returncode == 2
    assert done.stdout.splitlines()[-2:] == ["1 warning (see above)", "-c: error: x.tif: bad"]


def test_in_python_warnings_are_log_records(caplog):
    with caplog.at_level(logging.WARNING):
        warn("cells: 3")
    assert [record.getMessage() for record in caplog.records] == ["cells: 3"]


@pytest.mark.parametrize(("count", "expected"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_a_number_with_its_noun(count, expected):
    assert plural(count, "image") == expected
    assert plural(count, "class", "classes") == f"{count} class{'es' * (count != 1)}"


def test_long_lists_are_cut():
    assert [listed(range(n)) for n in (0, 1, 3, 4)] == ["", "0", "0, 1, 2", "0, 1, 2, …"]

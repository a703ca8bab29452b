"""The Makefile, the installer of Detectron2 and the self-check."""

import subprocess
import sys
from pathlib import Path

import pytest

from cellseg import doctor

PROJECT = Path(__file__).resolve().parents[1]


def install(source):
    return subprocess.run(
        ["sh", "setup-detectron2.sh", sys.executable, source],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "source",
    [
        "git+file:///nowhere/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833",
        "git+file:///nowhere/detectron2.git",
        "/nowhere/detectron2-0.6-cp311-cp311-linux_x86_64.whl",
    ],
)
def test_a_source_out_of_reach_is_said_with_the_way_round_it(source):
    done = install(source)
    assert done.returncode == 2
    assert "can't be reached" in done.stderr
    assert source.removeprefix("git+").rpartition("@")[0] in done.stderr
    assert "make setup DETECTRON2=/path/to/detectron2" in done.stderr


def test_what_does_not_build_is_said(tmp_path):
    (tmp_path / "setup.py").write_text("raise SystemExit('no compiler')")
    done = install(str(tmp_path))
    assert done.returncode == 2
    assert "could not be built" in done.stderr


def test_help_lists_every_target():
    done = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {"help", "setup", "doctor", "demo", "test", "lint", "clean", "distclean"} <= listed


def test_the_wrong_python_is_refused_by_name(tmp_path):
    old = tmp_path / "python3.9"
    # A stand-in that says 3.9 where it is asked for its version.
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); '
        'exec(sys.argv[1])" "$2"\n'
    )
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "is Python 3.9; 3.10, 3.11 or 3.12 is needed" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_the_self_check_finds_this_installation_whole(capsys):
    assert doctor.main() == 0
    said = capsys.readouterr().out
    assert "ok  detectron2's compiled operators load" in said
    assert "torch 2" in said
    assert "CUDA" in said


def test_the_self_check_says_what_is_missing(monkeypatch, capsys):
    def broken(_name):
        raise ImportError("libc10.so: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    monkeypatch.setattr(doctor, "versions", lambda: {"python": "3.11", "detectron2": "missing"})
    assert doctor.main() == 2
    said = capsys.readouterr().out
    assert "NO  detectron2 missing\n     run make setup" in said
    assert "NO  torchvision's compiled operators: libc10.so" in said
    assert "make setup DETECTRON2=" in said

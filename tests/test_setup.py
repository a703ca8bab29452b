"""The Makefile, the installer of Detectron2 and the self-check."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cellseg import doctor

PROJECT = Path(__file__).resolve().parents[1]


def install(source, **environment):
    return subprocess.run(
        ["sh", "setup-detectron2.sh", sys.executable, source],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if k != "CI"} | environment,
    )


NOWHERE = [
    "git+file:///nowhere/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833",
    "git+file:///nowhere/detectron2.git",
]


@pytest.mark.parametrize("source", [*NOWHERE, "/nowhere/detectron2-0.6-cp311-linux_x86_64.whl"])
def test_a_source_out_of_reach_is_said_with_the_way_round_it(source):
    done = install(source)
    assert "can't be reached" in done.stderr
    assert source.removeprefix("git+").rpartition("@")[0] in done.stderr
    assert "make setup DETECTRON2=/path/to/detectron2" in done.stderr
    # The project goes on without it, unless the user named a file, which must be there.
    assert done.returncode == (1 if source in NOWHERE else 2)
    assert ("Going on without it" in done.stderr) == (source in NOWHERE)


@pytest.mark.parametrize("source", NOWHERE)
def test_ci_does_not_go_on_without_it(source):
    done = install(source, CI="true")
    assert done.returncode == 2
    assert "Going on" not in done.stderr


def test_what_does_not_build_is_said(tmp_path):
    (tmp_path / "setup.py").write_text("raise SystemExit('no compiler')")
    done = install(str(tmp_path))
    assert done.returncode == 2
    assert "could not be built" in done.stderr


def make(venv, *words):
    return subprocess.run(
        ["make", *words, f"VENV={venv}", f"DETECTRON2={NOWHERE[0]}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if k != "CI"},
    )


def test_without_detectron2_setup_alone_tries_again(tmp_path):
    (tmp_path / ".requirements").touch()
    ready = str(tmp_path / ".ready")
    assert make(tmp_path, "--question", ready).returncode == 1
    for _ in range(2):
        done = make(tmp_path, "setup")
        assert done.returncode == 0, done.stderr
        assert "Going on without it" in done.stderr
    assert make(tmp_path, "--question", ready).returncode == 0
    assert not (tmp_path / ".detectron2").exists()


def test_any_target_sets_up_first(tmp_path):
    (tmp_path / ".requirements").touch()
    done = make(tmp_path, str(tmp_path / ".ready"))
    assert (done.returncode, done.stderr.count("Going on without it")) == (0, 1)


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


@pytest.mark.detectron2
def test_the_self_check_finds_this_installation_whole(capsys):
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert re.search(r"ok  detectron2 \S+: its compiled operators load", said)
    assert "ok  torchvision's compiled operators load" in said
    assert "torch 2" in said
    assert "CUDA" in said


@pytest.mark.parametrize("ci", [False, True])
def test_the_self_check_says_what_is_missing(monkeypatch, capsys, ci):
    monkeypatch.setattr(doctor, "detectron2_problem", lambda: "No module named 'detectron2'")
    monkeypatch.setattr(
        doctor, "package_versions", lambda: {"python": "3.11", "detectron2": "missing"}
    )
    monkeypatch.setenv("CI", "true" if ci else "")
    # It can be done without, but not in CI.
    assert doctor.main([]) == (2 if ci else 0)
    said = capsys.readouterr().out
    mark = "NO " if ci else "-  "
    assert f"{mark} detectron2 missing: No module named 'detectron2'\n     all but casc" in said
    assert "make setup DETECTRON2=" in said


def test_the_self_check_says_which_package_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor,
        "package_versions",
        lambda: {"python": "3.11", "numpy": "missing", "detectron2": "0.6"},
    )
    assert doctor.main([]) == 2
    assert "NO  numpy missing\n     run make setup" in capsys.readouterr().out

"""The Makefile, the installation of Detectron2 and `make doctor`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cellseg import doctor

PROJECT = Path(__file__).resolve().parents[1]


OUTER = ("CI", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # where make runs the tests, it says so


def run(*words, **environment):
    return subprocess.run(
        words, cwd=PROJECT, capture_output=True, text=True, timeout=60,
        env={k: v for k, v in os.environ.items() if k not in OUTER} | environment,
    )  # fmt: skip


def install(source, **environment):
    return run("sh", "setup-detectron2.sh", sys.executable, source, **environment)


NOWHERE = [
    "git+file:///nowhere/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833",
    "git+file:///nowhere/detectron2.git",
]


@pytest.mark.parametrize("source", [*NOWHERE, "/nowhere/detectron2-0.6-cp311-linux_x86_64.whl"])
def test_unreachable_source(source):
    done = install(source)
    assert "can't be reached" in done.stderr
    assert source.removeprefix("git+").rpartition("@")[0] in done.stderr
    assert "make setup DETECTRON2=/path/to/detectron2" in done.stderr
    # The project works without it, but a file that the user passes must exist.
    assert done.returncode == (1 if source in NOWHERE else 2)
    assert ("Continuing without it" in done.stderr) == (source in NOWHERE)


@pytest.mark.parametrize("source", NOWHERE)
def test_ci_needs_detectron2(source):
    done = install(source, CI="true")
    assert done.returncode == 2
    assert "Continuing" not in done.stderr


def test_failed_build(tmp_path):
    (tmp_path / "setup.py").write_text("raise SystemExit('no compiler')")
    done = install(str(tmp_path))
    assert done.returncode == 2
    assert "could not be built" in done.stderr


def make(venv, *words):
    return run("make", *words, f"VENV={venv}", f"DETECTRON2={NOWHERE[0]}")


@pytest.mark.parametrize("venv", ["my env", "", " "])
def test_a_folder_that_make_can_not_name_is_one_line(tmp_path, venv):
    done = make(tmp_path / venv if venv.strip() else venv, "setup")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "VENV=" in done.stderr
    assert not any(tmp_path.iterdir())


def test_only_setup_tries_to_build_detectron2_again(tmp_path):
    (tmp_path / ".requirements").touch()
    ready = str(tmp_path / ".ready")
    assert make(tmp_path, "--question", ready).returncode == 1
    for _ in range(2):
        done = make(tmp_path, "setup")
        assert done.returncode == 0, done.stderr
        assert "Continuing without it" in done.stderr
    assert make(tmp_path, "--question", ready).returncode == 0
    assert not (tmp_path / ".detectron2").exists()


def test_targets_run_setup_first(tmp_path):
    (tmp_path / ".requirements").touch()
    done = make(tmp_path, str(tmp_path / ".ready"))
    assert (done.returncode, done.stderr.count("Continuing without it")) == (0, 1)


def test_help_lists_every_target():
    lines = run("make", "help").stdout.splitlines()
    listed = {line.split()[0] for line in lines if line.startswith("  ")}
    assert {"help", "setup", "doctor", "demo", "test", "lint", "clean", "distclean"} <= listed


def test_unsupported_python(tmp_path):
    old = tmp_path / "python3.9"
    # A replacement that reports version 3.9.
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); '
        'exec(sys.argv[1])" "$2"\n'
    )
    old.chmod(0o755)
    done = run("make", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "is Python 3.9; 3.10 to 3.14 is needed" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.detectron2
def test_doctor_of_this_installation(capsys):
    assert doctor.main([]) == 0
    output = capsys.readouterr().out
    assert re.search(r"ok  detectron2 \S+: its compiled operators load", output)
    assert "ok  torchvision's compiled operators load" in output
    assert "torch 2" in output
    assert "CUDA" in output


@pytest.mark.parametrize("ci", [False, True])
def test_doctor_without_detectron2(monkeypatch, capsys, ci):
    monkeypatch.setattr(doctor, "detectron2_problem", lambda: "No module named 'detectron2'")
    versions = {"python": "3.11", "detectron2": "missing"}
    monkeypatch.setattr(doctor, "package_versions", lambda: versions)
    monkeypatch.setenv("CI", "true" if ci else "")
    # It is optional except in CI.
    assert doctor.main([]) == (2 if ci else 0)
    output = capsys.readouterr().out
    mark = "NO " if ci else "-  "
    assert f"{mark} detectron2 missing: No module named 'detectron2'\n     " in output
    assert "make setup DETECTRON2=" in output


def test_doctor_with_a_missing_package(monkeypatch, capsys):
    versions = {"python": "3.11", "numpy": "missing", "detectron2": "0.6"}
    monkeypatch.setattr(doctor, "package_versions", lambda: versions)
    assert doctor.main([]) == 2
    assert "NO  numpy missing\n     run make setup" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--help"]])
def test_doctor_on_a_full_disk(flags):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    command = [sys.executable, "-m", "cellseg.doctor", *flags]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=PROJECT)
    assert done.returncode == 2
    assert "error: the standard output can't be written (" in done.stderr
    assert done.stderr.count("\n") == 1

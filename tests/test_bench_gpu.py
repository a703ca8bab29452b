"""bench/gpu.py end to end on the CPU, with tiny networks and images."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

import utils
from bench import gpu, gpu_sizes
from cellseg.device import detectron2_problem
from cellseg.errors import InputError


@pytest.fixture
def rehearse(tmp_path):
    """Run with flags; return the exit code, the table's rows of five columns, and the file."""

    def go(*words):
        argv = ["--device", "cpu", "--tiny", "--output", str(tmp_path), *words]
        code = gpu.main([str(word) for word in argv])
        text = (tmp_path / "table.md").read_text()
        lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
        return code, [[cell.strip() for cell in line.strip("|").split("|")] for line in lines], text

    return go


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Detectron2's
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # Detectron2's
def test_all_parts_on_the_cpu(rehearse, cells, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PROFILED", 1)
    parts = ["tests", "training", "prediction", "learning", "slide"]
    words = ["--data", cells, "--profile", "--cells", 20, "--minutes", 0.01]
    code, rows, text = rehearse("--parts", *parts, *words)
    out, err = capsys.readouterr()
    assert code == 0, text
    assert re.match(r"## \d{4}-\d\d-\d\d, CPU\n\npython 3\.\d+\.\d+, torch 2\.", text)
    assert "    python bench/gpu.py --device cpu --tiny" in text
    tests, *training = rows[:16]
    plain, flips, *scores, slide = rows[16:]
    assert re.match(r"\d+ passed", tests[2])
    assert training[0][4] == "≥ 1.5 ×"
    assert plain[4] == "≥ 3 ×"
    compared = [row for row in training if "images/s" in row[0] or "excluding" in row[0]]
    for what, baseline, here, ratio, _ in (*compared, plain, flips):
        assert float(here) > 0, what
        if detectron2_problem():
            assert (baseline, ratio) == ("–", "")
        else:
            # All three are rounded.
            expected = pytest.approx(float(here) / float(baseline), abs=0.06, rel=0.02)
            assert float(ratio.removesuffix(" ×")) == expected
    assert len(compared) == 6
    for _, waiting, _, filled, memory in zip(*[iter(training)] * 5, strict=True):
        assert 0 <= float(waiting[2].removesuffix("%")) <= 100
        assert 0 < float(filled[2].removesuffix("%")) <= 100
        assert memory[2] == "–"
    assert float(slide[2]) > 0
    assert [row[4] for row in scores] == ["≥ 0.45", "", "", ""]
    for row in scores:
        value, low, high = map(float, re.findall(r"[\d.]+", row[2]))
        assert 0 <= low <= value <= high <= 1
    for row in rows:  # the table is printed too
        assert row[0] in out
    assert "training, profiled:" in err
    assert "prediction, profiled:" in err


def test_other_parts_run_after_a_failure(rehearse, monkeypatch):
    def fail(_args):
        raise RuntimeError("no such kernel\nand more")
        yield

    monkeypatch.setitem(gpu.RUN, "training", fail)
    row = gpu.Row("a", "1", "2", "2.0 ×")
    monkeypatch.setitem(gpu.RUN, "prediction", lambda _args: iter([row]))
    code, rows, _ = rehearse("--parts", "training", "prediction")
    assert code == 1
    assert rows[0][2] == "failed: RuntimeError: no such kernel"
    assert rows[1] == ["a", "1", "2", "2.0 ×", ""]


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("print('== 1 failed, 2 passed ==')\nsys.exit(1)", "failed, exit code 1: 1 failed, 2 pas"),
        ("sys.exit('python: No module named pytest')", "failed, exit code 1: python: No module na"),
        ("sys.exit(5)", "failed, exit code 5:"),
        ("time.sleep(60)", "failed: "),
    ],
)
def test_tests_that_fail_or_do_not_run(rehearse, monkeypatch, code, outcome):
    run = subprocess.run

    def other(_command, *, timeout, **options):
        command = [sys.executable, "-c", f"import sys, time\n{code}"]
        return run(command, **options, timeout=2 if "sleep" in code else timeout)

    monkeypatch.setattr(subprocess, "run", other)
    exit_code, (row,), _ = rehearse("--parts", "tests")
    assert exit_code == 1
    assert row[2].startswith(outcome)


def test_too_little_memory_for_the_baseline(rehearse, monkeypatch):
    def fail(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(gpu, "train_detectron2", fail)
    monkeypatch.setattr(gpu, "train_here", lambda *_: gpu.Pace(3.0, 0.25, 0.8, "1.0 GiB"))
    code, rows, _ = rehearse("--parts", "training", "--minutes", 0.01)
    assert code == 0
    assert [row[1:4] for row in rows[:5]] == [
        ["–", "3.00", ""], ["–", "25.0%", ""], ["–", "4.00", ""], ["–", "80%", ""],
        ["–", "1.0 GiB", ""],
    ]  # fmt: skip


@pytest.mark.detectron2
def test_settings_for_new_sizes_detect_the_same(capfd):
    rows = ["as it is", "cuDNN off but in the mask head, with multiples of 100"]
    words = ["--device", "cpu", "--tiny", "--images", "3", "--cells", "20", "--only", *rows]
    assert gpu_sizes.main(words) == 0
    lines = capfd.readouterr().out.splitlines()[-2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == rows
    counts = [int(line.split(" | ")[4].strip("| ")) for line in lines]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("main", [gpu.main, gpu_sizes.main])
def test_no_gpu(main, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA GPU"):
        main([])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--parts", "learning"], "--data DIR"),
        (["--minutes", "0"], "--minutes 0.0"),
        (["--parts", "driving"], "invalid choice: 'driving'"),
    ],
)
def test_invalid_flags(words, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(expected)):
        gpu.main(words)
    assert not list(tmp_path.iterdir())


def test_an_error_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench/gpu.py"])
    with pytest.raises(SystemExit) as left:
        utils.run_command(gpu.main)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gpu.py: error: no CUDA GPU")
    assert "--device cpu --tiny" in line

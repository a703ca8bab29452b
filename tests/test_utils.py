"""Shared by the commands: one-line errors, exit codes, flags, help, paths."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import utils
from cellseg import process
from cellseg.errors import InputError
from cellseg.files import display_path

HERE = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def handlers():
    """Restore the handlers of signals, which `run_command` sets."""
    former = {number: signal.getsignal(number) for number in process.SIGNALS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def exit_code(monkeypatch, main):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py"])
    with pytest.raises(SystemExit) as left:
        utils.run_command(main)
    return left.value.code


def start(code, *arguments):
    """Start Python code from the checkout; return the process, with its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def raising(error):
    def main(_argv):
        raise error

    return main


@pytest.mark.parametrize("code", [0, 2, 130])
def test_exit_code_of_main(monkeypatch, code):
    assert exit_code(monkeypatch, lambda _argv: code) == code


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (InputError("x.tif: no\nsuch file"), 2, "train.py: error: x.tif: no such file\n"),
        (OSError(errno.ENOSPC, "x"), 2, "train.py: error: writing failed ("),
        *((OSError(number, "x", "events.out"), 2, "train.py: error: events.out: writing failed (")
          for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        *((OSError(number, "x", "some/where"), 2, "train.py: error: some/where: can't be used (")
          for number in (errno.ENAMETOOLONG, errno.EACCES, errno.EROFS, errno.ELOOP)),
    ],
    ids=repr,
)  # fmt: skip
def test_errors_are_one_line(monkeypatch, capsys, error, code, expected):
    assert exit_code(monkeypatch, raising(error)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(expected)
    assert err.lstrip("\n").count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(PermissionError):
        utils.run_command(raising(PermissionError(errno.EACCES, "x")))
    with pytest.raises(ZeroDivisionError):
        utils.run_command(raising(ZeroDivisionError()))


def test_closed_or_ascii_output(tmp_path):
    code = (
        "import sys, utils\n"
        "def main(argv):\n"
        "    print('100 – 200 µm')\n"
        "    print('é', file=sys.stderr)\n"
        "    return 0\n"
        "utils.run_command(main)"
    )
    (tmp_path / "it.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONIOENCODING": "ascii"}
    for closed in ("", ">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f'"$0" it.py {closed}', sys.executable],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == ("" if ">&-" in closed.split() else "100 ? 200 ?m\n")


def test_parser_errors_are_one_line():
    parser = utils.CommandParser("Does it.", "python it.py")
    parser.add_argument("--number", type=int)
    cases = {"invalid int value": ["--number", "x"], "unrecognized": ["--num", "1"]}
    for expected, argv in cases.items():
        with pytest.raises(InputError, match=f"{expected}.*--help"):
            parser.parse_args(argv)


COMMANDS = (
    "annotation", "check_submission", "demo", "evaluate", "export", "inference", "report", "train",
)  # fmt: skip


def parser_of(command, monkeypatch):
    """Return the parser of a command."""
    seen = []

    def stop(self, *_):
        seen.append(self)
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(utils.CommandParser, "parse_args", stop)
        with pytest.raises(InterruptedError):
            __import__(command).main([])
    return seen[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_with_underscores_or_dashes(command, monkeypatch):
    monkeypatch.setenv("CELLSEG_MAX_IMAGE_GB", "2")  # set by a flag, and restored
    parser = parser_of(command, monkeypatch)
    shown = set(re.findall(r"--[\w-]+", parser.format_help()))
    flags = {flag: action for action in parser._actions for flag in action.option_strings}
    flags = {flag: flags[flag] for flag in flags if flag.startswith("--") and flag != "--help"}
    assert flags
    described = {flag for flag, action in flags.items() if action.help != argparse.SUPPRESS}
    assert shown == {"--help", *described}
    needed = ["x" for a in parser._actions if not a.option_strings and a.nargs is None]
    for flag, action in flags.items():
        assert "-" not in flag[2:]
        dashed = "--" + flag[2:].replace("_", "-")
        is_text = action.type in (None, Path) and not action.choices
        value = next(iter(action.choices)) if action.choices else "a-b_c" if is_text else "1"
        values = [value] * {0: 0, 2: 2}.get(action.nargs, 1)
        plain = vars(parser.parse_args([*needed, flag, *values]))
        assert plain == vars(parser.parse_args([*needed, dashed, *values]))
        assert plain[action.dest] != parser.get_default(action.dest) or not is_text
        if is_text and len(values) == 1:
            assert value in str(plain[action.dest])
            for spelling in (flag, dashed):  # a value that looks like a flag
                args = parser.parse_args([*needed, f"{spelling}=--batch-size=a-b_c"])
                assert "--batch-size=a-b_c" in str(getattr(args, action.dest))


def test_values_keep_their_dashes_and_underscores(monkeypatch):
    parser = parser_of("evaluate", monkeypatch)
    args = parser.parse_args(["--only-annotated", "--", "--score-threshold"])
    assert (args.results, args.only_annotated) == (Path("--score-threshold"), True)
    parser = parser_of("inference", monkeypatch)
    words = ["--weight-name", "TEST.A_B-C", "--images", "a-b_c.tif"]
    words += ["TEST.TILE", "--max-detections"]
    args = parser.parse_with_keys(words)
    assert args.weight_name == "TEST.A_B-C"
    assert args.images == [Path("a-b_c.tif")]
    assert args.options == ["TEST.TILE", "--max-detections"]


def test_a_key_without_a_section_ends_the_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parser = parser_of("inference", monkeypatch)
    args = parser.parse_with_keys(["--images", "a.tif", "b.tif", "SEED", "3", "TEST.TILE", "9"])
    assert args.images == [Path("a.tif"), Path("b.tif")]
    assert args.options == ["SEED", "3", "TEST.TILE", "9"]
    args = parser.parse_with_keys(["--images", "a.tif", "TEST.TILE", "9", "SEED", "3"])
    assert args.options == ["TEST.TILE", "9", "SEED", "3"]
    # Values and files are no keys, and neither are other words.
    args = parser.parse_with_keys(["--images", "SEED", "--weight_name", "SEED"])
    assert (args.images, args.weight_name, args.options) == ([Path("SEED")], "SEED", [])
    (tmp_path / "SEED").touch()
    for words in (["a.tif", "SEED", "3"], ["a.tif", "SEED_3"]):
        args = parser.parse_with_keys(["--images", *words])
        assert (args.images, args.options) == ([Path(word) for word in words], [])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_explains_every_flag(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    module = __import__(command)
    with pytest.raises(SystemExit) as left:
        module.main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  python {command}.py" in text
    # Every flag is explained, behind it or in the line below.
    lines = text.splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("  -"):
            assert "  " in line.strip() or below.startswith(" " * 20), line


@pytest.mark.parametrize("command", ["train", "inference", "check_submission"])
def test_help_needs_no_torch(command):
    code = (
        f"import sys, {command}\n"
        f"try: {command}.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    assert start(code).communicate()[0].endswith("False\n")


def test_display_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert display_path(tmp_path / "a" / "b") == "a/b"
    assert display_path("a") == "a"
    assert display_path(tmp_path.parent) == str(tmp_path.parent)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert display_path(tmp_path) == str(tmp_path)
    assert display_path("a") == "a"

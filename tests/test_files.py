"""Atomic writes, and one-line errors for unreadable JSON."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cellseg import files
from cellseg.errors import InputError
from cellseg.files import read_json, safe_name, shell_path, write_atomic, write_json

root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


def test_parents_and_utf8(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with write_atomic(path) as file:
        file.write("é\n")
        assert not path.exists()
    assert path.read_bytes() == "é\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_an_exception_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail():
        with write_atomic(path, "wb") as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_new_files(tmp_path):
    with write_atomic(tmp_path / "a"):
        pass
    (tmp_path / "b").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert modes[0] == modes[1]


def test_a_folder_of_that_name_fails_before_the_block(tmp_path):
    (tmp_path / "taken").mkdir()
    error = pytest.raises(InputError, match=r"taken: can't be written \(Is a directory\)")
    with error, write_atomic(tmp_path / "taken"):
        pytest.fail("the block ran")


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    error = pytest.raises(InputError, match=r"pipe: can't be written \(not an ordinary file\)")
    with error, write_atomic(tmp_path / "pipe"):
        pytest.fail("the block ran")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("name", ["é \u202f", os.fsdecode(b"caf\xe9")])
def test_file_names_round_trip(tmp_path, name):
    write_json(tmp_path / "a.json", {"name": name})
    assert read_json(tmp_path / "a.json", "names", "fix it") == {"name": name}


def test_the_parent_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be written"), write_atomic(tmp_path / "file" / "a"):
        pass


@root
def test_no_permission_to_write(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"), write_atomic(tmp_path / "a"):
        pass


def test_full_disk(tmp_path):
    """A limit on the size of files acts as a full disk."""
    path = tmp_path / "a"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match=r"File too large.*make room"), write_atomic(path) as f:
            f.write("x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_keeps_the_old_file(tmp_path):
    path = tmp_path / "a*"  # also a glob pattern
    path.write_text("old")
    mine = tmp_path / ".a*.settings"
    mine.touch()
    code = (
        "import sys, time\nfrom cellseg.files import write_atomic\n"
        "with write_atomic(sys.argv[1]) as file:\n"
        "    file.write('x' * 100000); file.flush(); print('half', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        with write_atomic(path) as file:  # keeps the file of the running process
            file.write("later")
        (unfinished,) = tmp_path.glob(".*.part")
        process.kill()
    assert path.read_text() == "later"
    with write_atomic(path):
        assert not unfinished.exists()
    assert sorted(tmp_path.iterdir()) == [mine, path]


def test_concurrent_writers_do_not_remove_files_of_each_other(tmp_path, monkeypatch):
    """One cleans up just before a new file is locked, and just before it is renamed."""
    path = tmp_path / "a"
    lock, replace = files._lock, os.replace

    def clear_and_lock(file):
        monkeypatch.setattr(files, "_lock", lock)
        files.remove_unfinished(path)
        lock(file)

    def clear_and_replace(*names):
        files.remove_unfinished(path)
        replace(*names)

    monkeypatch.setattr(files, "_lock", clear_and_lock)
    monkeypatch.setattr(os, "replace", clear_and_replace)
    with write_atomic(path) as file:
        file.write("mine")
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_another_process_is_removing(tmp_path, monkeypatch):
    lock = files._lock

    def be_late(file):
        monkeypatch.setattr(files, "_lock", lock)
        (made,) = tmp_path.iterdir()
        with open(made) as held:
            lock(held.fileno())
            try:
                lock(file)
            finally:
                made.unlink()

    monkeypatch.setattr(files, "_lock", be_late)
    with write_atomic(tmp_path / "a") as file:
        file.write("mine")
    assert (tmp_path / "a").read_text() == "mine"


def test_links_are_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "a", tmp_path / "link"
    link.symlink_to(Path("disk", "a"))
    for text in ("through a link that leads nowhere", "again"):
        with write_atomic(link) as file:
            file.write(text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["a" * 255, "𝛼" * 63], ids=["255", "63 of 4 bytes"])
def test_names_of_maximum_length(tmp_path, name):
    left = tmp_path / f".{name[:60]}.12345678.part"
    left.touch()
    with write_atomic(tmp_path / name) as file:
        file.write("text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
)  # fmt: skip


@given(values, st.sampled_from([None, 1]))
def test_json_round_trip(tmp_path_factory, value, indent):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value, indent)
    assert read_json(path, "thing", "fix it") == value


def test_nan_is_an_error_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", [float("nan")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file, expected the thing; fix it"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 5000, "not JSON"),
    ],
)
def test_unreadable_json(tmp_path, content, expected):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path, "thing", "fix it")
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_not_json(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        read_json(tmp_path, "thing", "fix it")


@pytest.mark.parametrize(
    "name", ["a", "image 1", "é µ", ".hidden", "a.b", "50%", "console", "ab:c", "-x", "x" * 200]
)
def test_ordinary_names_are_safe(name):
    assert safe_name(name) == name


@given(st.text(max_size=300) | st.text("./\\ :C\0n", max_size=6), st.text(max_size=6))
@example("0:", "0")
@example("::", ":")
@example("a::b", "a:b")
@example("/:", "/")
def test_any_name_becomes_one_safe_part_of_a_path(name, other):
    safe = safe_name(name)
    assert Path("a", safe).parts == ("a", safe)
    assert PureWindowsPath("a", safe).parts == ("a", safe)
    assert len(safe.encode()) <= 220
    assert safe.rstrip(". ") == safe
    assert safe_name(safe) == safe
    assert (safe_name(other) == safe) == (other == name) or other == safe


def test_errors_are_one_line():
    assert str(InputError("a\n  b\tc")) == "a b c"
    assert json.dumps(str(InputError(ValueError("x\ny")))) == '"x y"'


@pytest.mark.parametrize("name", ["a b", "ü (1)", "it's $HOME", "100%"])
def test_shell_path_is_one_word_of_a_shell(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert subprocess.check_output(["sh", "-c", f"printf %s {shell_path(name)}"], text=True) == name
    assert shell_path(tmp_path / "runs" / "20250401-120000") == "runs/20250401-120000"

"""The process of a command: signals at any moment, closed output, a deleted working folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import SIGNALS, default_signals, is_gone

HERE = Path(__file__).resolve().parents[1]

# The beginning of each command.
PREPARE = """\
if __name__ in ("__main__", "__mp_main__"):
    from cellseg import process

    process.prepare()
"""


def start(folder, code, *arguments, **keywords):
    """Start a command of this code, `it.py`, in a session of its own."""
    path = folder / "it.py"
    path.write_text(PREPARE + code, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(path), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(HERE)}, text=True, start_new_session=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | keywords,
        preexec_fn=default_signals,
    )  # fmt: skip


def ended(process, timeout=60):
    """Return the exit code and what was written to the standard error."""
    try:
        err = process.communicate(timeout=timeout)[1]
    finally:
        process.kill()
    return process.returncode, err


INTERRUPTED = (130, "it.py: interrupted\n")

# Each waits where an exception would be lost, or end in a traceback or with an aborted thread.
PLACES = {
    "import": "import slow",
    "main": "import utils\ndef main(argv):\n    wait()\nutils.run_command(main)",
    "deletion": "class X:\n    def __del__(self):\n        wait()\nX()\nwait()",
    "thread": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(1) as pool:\n    pool.submit(time.sleep, 60)\n    wait()"
    ),
    "exit": "import atexit\natexit.register(wait)",
    "handler": "try:\n    wait()\nexcept BaseException:\n    wait()",
}
# In short steps: a signal just before the system call does not end a sleep.
WAIT = """\
import time
def wait():
    print("waiting", flush=True)
    for _ in range(600):
        time.sleep(0.1)
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_is_one_line(tmp_path, place, number):
    (tmp_path / "slow.py").write_text(
        WAIT + "try:\n    wait()\nexcept BaseException as error:\n    raise ImportError from error"
    )
    process = start(tmp_path, WAIT + PLACES[place])
    assert process.stdout.readline() == "waiting\n"
    os.killpg(process.pid, number)
    assert ended(process) == INTERRUPTED


def test_many_signals_are_one_line(tmp_path):
    process = start(tmp_path, WAIT + "wait()")
    assert process.stdout.readline() == "waiting\n"
    for number in SIGNALS * 5:
        process.send_signal(number)
    assert ended(process) == INTERRUPTED


def test_the_line_says_how_to_continue_and_what_was_printed_is_shown(tmp_path):
    process = start(tmp_path, "process.advise('do it again')\nprint(1)\n" + WAIT + "wait()")
    assert process.stdout.readline() == "1\n"
    assert process.stdout.readline() == "waiting\n"
    process.terminate()
    assert ended(process) == (130, "it.py: interrupted; do it again\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_unfinished_files_are_removed(tmp_path, number):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a").write_text("former")
    code = (
        "import sys\nfrom cellseg.files import write_atomic\n"
        "with write_atomic(sys.argv[1]) as file:\n    file.write('half')\n    wait()"
    )
    process = start(tmp_path, WAIT + code, folder / "a")
    assert process.stdout.readline() == "waiting\n"
    assert len(list(folder.iterdir())) == 2
    process.send_signal(number)
    assert ended(process) == INTERRUPTED
    assert [path.read_text() for path in folder.iterdir()] == ["former"]


def test_ignored_signals_stay_ignored():
    """As of nohup, or of a job in the background of a script."""
    code = WAIT.replace("600", "10") + "wait()"
    for number in SIGNALS:
        script = f'trap \'\' {number.value}; exec "$0" -c "$1"'
        process = subprocess.Popen(
            ["bash", "-c", script, sys.executable, PREPARE + code],
            cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        assert ended(process) == (0, "")


SEVERAL = """
import os, time, utils
from cellseg.distributed import launch
def wait():
    os.write(1, b'waiting\\n')  # in one piece
    for _ in range(600):
        time.sleep(0.1)
def main(argv):
    print('starting', flush=True)
    launch(2, wait)
if __name__ == "__main__":
    utils.run_command(main)
"""


@pytest.mark.detectron2
@pytest.mark.parametrize(
    ("number", "to_all", "when"),
    [(signal.SIGINT, True, "working"), (signal.SIGTERM, False, "starting")],
)
def test_several_processes_say_it_once(tmp_path, number, to_all, when):
    """Ctrl-C in a terminal is sent to all of them, other signals to the first."""
    process = start(tmp_path, SEVERAL)
    assert process.stdout.readline() == "starting\n"
    if when == "working":
        assert [process.stdout.readline() for _ in range(2)] == ["waiting\n"] * 2
    else:
        time.sleep(0.5)
    (os.killpg if to_all else os.kill)(process.pid, number)
    assert ended(process) == INTERRUPTED
    assert is_gone(process.pid)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("which", ["stdout", "stderr"])
def test_a_closed_pipe_ends_the_output_but_not_the_work(tmp_path, monkeypatch, which, unbuffered):
    code = """
import logging, sys, utils
from pathlib import Path
from tqdm import tqdm
def main(argv):
    stream = getattr(sys, sys.argv[2])
    log = logging.getLogger()
    log.addHandler(logging.StreamHandler(stream))
    for number in tqdm(range(2000), file=stream, mininterval=0):
        print("x" * 100, number, file=stream)
        log.warning("y")
    Path(sys.argv[1]).write_text("done")
    return 3
utils.run_command(main)
"""
    path = tmp_path / "file"
    read, write = os.pipe()
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with start(tmp_path, code, path, which, **{which: write}) as process:
        os.close(write)
        assert os.read(read, 1)
        os.close(read)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out or "", err or "") == (3, "", "")
    assert path.read_text() == "done"


OUTPUTS = {
    "text": "print(1)",
    "help": "utils.CommandParser('x', 'y').parse_args(['--help'])",
    "while writing": "with write_atomic(sys.argv[1]):\n        print(1, flush=True)",
    "before an error": "print(1)\n    raise InputError('other')",
}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_output_on_a_full_disk_is_an_error(tmp_path, monkeypatch, output, unbuffered):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    code = f"""
import sys, utils
from cellseg.errors import InputError
from cellseg.files import write_atomic
def main(argv):
    {OUTPUTS[output]}
    return 0
utils.run_command(main)
"""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        returned, err = ended(start(tmp_path, code, tmp_path / "file", stdout=full))
    assert returned == 2
    assert err.startswith("it.py: error: the standard output can't be written (")
    assert err.count("\n") == 1


def test_an_error_that_can_not_be_written_keeps_its_exit_code(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    code = """
import utils
from cellseg.errors import InputError
def main(argv):
    raise InputError("x")
utils.run_command(main)
"""
    with open("/dev/full", "w") as full:
        assert ended(start(tmp_path, code, stderr=full))[0] == 2


COMMANDS = sorted(
    path.name for path in HERE.glob("*.py") if "run_command(main)" in path.read_text()
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_prepared_before_their_imports(command):
    text = (HERE / command).read_text(encoding="utf-8")
    assert "process.prepare()" in text.partition("\nimport ")[0].partition("\nfrom collections")[0]


@pytest.mark.parametrize("command", ["annotation.py", "check_submission.py"])
def test_a_deleted_working_folder(tmp_path, command):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$1" && rmdir "$1" && exec "$2" "$3" --data x'
    done = subprocess.run(
        ["bash", "-c", script, "-", gone, sys.executable, HERE / command],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"{command}: error: the working folder ")
    assert done.stderr.count("\n") == 1


ORPHAN = """
import multiprocessing, os, time
def wait():
    os.write(1, b"waiting\\n")
    time.sleep(60)
def main(argv):
    multiprocessing.get_context("spawn").Process(target=wait).start()
    time.sleep(60)
if __name__ == "__main__":
    import utils
    utils.run_command(main)
"""


FORKED = """
import multiprocessing, sys
def work():
    print("working", flush=True)
def start(method, target, *arguments):
    started = multiprocessing.get_context(method).Process(target=target, args=arguments)
    started.start()
    started.join()
    print(started.exitcode, flush=True)
def main(prepared):
    if prepared:
        process.prepare()
    start("spawn", work)
if __name__ == "__main__":
    start("fork", main, len(sys.argv) > 1)
"""


@pytest.mark.parametrize("arguments", [(), ("prepared",)])
def test_a_process_that_a_forked_one_has_started_works(tmp_path, arguments):
    process = start(tmp_path, FORKED, *arguments)
    assert process.communicate(timeout=60) == ("working\n0\n0\n", "")


def test_a_started_process_ends_with_a_killed_one(tmp_path):
    process = start(tmp_path, ORPHAN)
    assert process.stdout.readline() == "waiting\n"
    process.kill()
    assert ended(process, 30)[0] == -signal.SIGKILL  # at the end of the pipes, which both have


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "None 3000"),
        ({"GOMP_SPINCOUNT": "7"}, "None 7"),
        ({"OMP_WAIT_POLICY": "active"}, "active None"),
    ],
)
def test_threads_leave_their_cores_while_they_wait_unless_chosen(
    tmp_path, monkeypatch, chosen, expected
):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    code = f"import os\nprint(*map(os.environ.get, {names}))"
    assert start(tmp_path, code).communicate(timeout=60)[0].split("\n")[0] == expected

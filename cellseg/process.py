"""The process of a command: signals, output that nobody reads, a deleted working folder.

A command calls `prepare` before its imports, which take seconds; so this module imports little.
"""

# ruff: noqa: SIM105 (contextlib imports much)
from __future__ import annotations

# Without the enums of signal, whose import takes as long as the start of Python.
import _signal as signal  # type: ignore[import-not-found]
import errno
import io
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = 130  # exit code of a command that was stopped

unfinished: set[str] = set()
"""Temporary files, which are removed when the process is stopped."""

_PARENT = "CELLSEG_PARENT"  # environment variable: the process that has started this one
_state = {"advice": "", "pid": 0, "parent": 0}


def prepare() -> None:
    """Prepare the process of a command, or one that it has started. Later calls do nothing.

    Ctrl-C and SIGTERM end it at any moment (see `stop`), unless they are ignored (`nohup`). A
    reader that goes away (`| head -1`) or a terminal that is closed ends the output, not the work.
    A process that another has started ends with it. The environment gets the variables for
    torch's threads. Exits if the working folder was deleted, which libraries fail at.
    """
    if _state["pid"] == os.getpid():
        return
    _state["pid"] = os.getpid()
    started_by = sys.modules.get("multiprocessing.process")
    # Not getppid(), as that process may have ended before this one comes here. A forked one has
    # noted itself.
    noted = int(os.environ.get(_PARENT) or os.getpid())
    parent = os.getppid() if noted == os.getpid() else noted
    _note_process()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_note_process)
    if started_by and ("__mp_main__" in sys.modules or started_by.parent_process()):
        import threading

        _state["parent"] = parent
        threading.Thread(target=_end_with_parent, daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    if hasattr(signal, "pthread_sigmask"):  # `cellseg.distributed.launch` starts it with a mask
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed: `… >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _lasting(stream))
    try:
        os.getcwd()  # noqa: PTH109 that of pathlib imports more
    except FileNotFoundError:
        say(f"{command_name()}: error: the working folder was deleted; change to another (cd)")
        sys.exit(2)
    from cellseg.device import thread_variables

    os.environ.update(thread_variables())


def _note_process() -> None:
    """Say to the processes that this one starts which one it is."""
    os.environ[_PARENT] = str(os.getpid())


def command_name() -> str:
    """Return the name of the command for messages."""
    return os.path.basename(sys.argv[0])  # noqa: PTH119


def stop(number: int, _frame: object = None) -> None:
    """End this process at once, with a line and exit code 130: the handler of the signals.

    An exception instead would be lost in a callback, become another one or a traceback in an
    import, and wait for threads. Processes that this one has started are ended too. They say
    nothing, and ignore Ctrl-C, which a terminal sends to all, while this one decides.
    """
    if os.getpid() != _state["pid"]:  # forked
        os._exit(STOPPED)
    if _state["parent"]:
        if number == signal.SIGINT and os.getppid() == _state["parent"]:
            return
    else:
        _kill_children()
        try:
            sys.stdout.flush()
        except Exception:  # noqa: BLE001 closed, full, or in use
            pass
        say(stopped_message())
    _end()


def _end() -> NoReturn:
    """Remove the temporary files, and end this process at once."""
    for path in list(unfinished):  # other threads go on
        try:
            os.unlink(path)
        except OSError:
            pass
    os._exit(STOPPED)


def _end_with_parent() -> None:
    """End this process when the one that started it has, which may be killed at any moment."""
    while os.getppid() == _state["parent"]:
        time.sleep(0.5)
    _end()


def is_repeated(number: int, first: float) -> bool:
    """Return whether a signal is part of the request whose first one came at `first`.

    `timeout` sends SIGTERM to its child, and at once to all of the child's group. `first` is in
    seconds of `time.monotonic`.
    """
    return bool(number == signal.SIGTERM and time.monotonic() - first < 1)


def advise(text: str) -> None:
    """Set what the line about a stopped command ends with, such as how to continue."""
    _state["advice"] = text


def stopped_message() -> str:
    """Return the line about a stopped command."""
    advice = f"; {_state['advice']}" if _state["advice"] else ""
    return f"{command_name()}: interrupted{advice}"


def say(line: str) -> None:
    """Write a line to the standard error, also within a signal handler."""
    before = "\n" if os.isatty(2) else ""  # ^C or a progress bar
    try:
        os.write(2, f"{before}{line}\n".encode(errors="backslashreplace"))
    except OSError:
        pass


def _kill_children() -> None:
    started = sys.modules.get("multiprocessing")
    for child in started.active_children() if started else ():
        try:
            child.kill()
        except OSError:
            pass


class _Output(io.FileIO):
    """The descriptor of a standard stream, which drops what nobody can read any more.

    Other errors, as of a full disk, are an InputError: an OSError would be taken for one of the
    file that is read or written meanwhile. What is written after it is dropped.
    """

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if error.errno in (errno.EPIPE, errno.EIO):
                return super().write(data)  # type: ignore[arg-type]
            from cellseg.errors import InputError

            name = "output" if self.fileno() == 1 else "error"
            raise InputError(
                f"the standard {name} can't be written ({error.strerror}); make room or send it "
                "elsewhere, then run it again (a training goes on with --resume)"
            ) from None


def _lasting(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return a standard stream that outlasts its reader, and replaces what it can't encode."""
    if stream.errors != "backslashreplace":
        stream.reconfigure(errors="replace")
    raw = getattr(stream.buffer, "raw", stream.buffer)  # unbuffered with python -u
    if type(raw) is not io.FileIO:  # the console of Windows
        return stream
    output = _Output(raw.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        output if stream.write_through else io.BufferedWriter(output),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )

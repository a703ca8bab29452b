"""Run the commands in processes forked from one that has loaded the libraries.

A start of Python with PyTorch takes seconds; a fork does not.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import resource
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def load_libraries() -> None:
    """Import everything that the commands do, so that forked processes have it."""
    import annotation  # noqa: F401
    import check_submission  # noqa: F401
    import evaluate  # noqa: F401
    import export  # noqa: F401
    import inference  # noqa: F401
    import report  # noqa: F401
    import train  # noqa: F401
    import trainer  # noqa: F401
    from cellseg.learn import cross_validation, session  # noqa: F401
    from cellseg.look import batch  # noqa: F401
    from cellseg.network import torchvision  # noqa: F401
    from cellseg.predict import job  # noqa: F401
    from cellseg.score import summary  # noqa: F401

    gc.collect()
    gc.freeze()  # pages that forked processes share


def call(function: Callable[..., object], *arguments: Any, **keywords: Any) -> None:
    """Call a function in a forked process, of which this one gets no threads and no locks.

    Threads can't be forked. The lock of tqdm, once this process has it, is one for all that are
    forked, and is never free again if one of them is killed while it holds it. Raises SystemExit if
    the call fails.
    """
    process = multiprocessing.get_context("fork").Process(
        target=function, args=arguments, kwargs=keywords
    )
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed")


def start(argv: Sequence[str], place: Path, output: Path, gigabytes: float = 0.0) -> int:
    """Start a command in a process group of its own; return the id of its process.

    Parameters
    ----------
    argv
        The script and its arguments.
    place
        Its working folder.
    output
        The file for all that it prints.
    gigabytes
        Memory that it can have more than this process, 0 for any.
    """
    pid = os.fork()
    with contextlib.suppress(OSError):  # both do it, whichever comes first
        os.setpgid(pid, pid)
    if pid:
        return pid
    try:
        os.chdir(place)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if gigabytes:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            limit = used + int(gigabytes * 1e9)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        import utils

        main = importlib.import_module(argv[0].removesuffix(".py")).main
        sys.argv = list(argv)
        utils.run_command(main)
    except SystemExit as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    except BaseException:  # noqa: BLE001 the exit code tells
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def has_ended(pid: int, seconds: float | None = None) -> bool:
    """Wait for a process, at most so long; return whether it has ended. It can be waited for."""
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)

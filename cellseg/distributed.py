"""Distributed runs on one or more machines: launch, rank, barrier."""

from __future__ import annotations

import contextlib
import datetime
import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from cellseg.device import detectron2_problem
from cellseg.errors import InputError
from cellseg.messages import HANDLER, print_warnings
from cellseg.process import SIGNALS, is_repeated, prepare

_OTHER_PROCESS_ENDED = "--processes: another process failed; see its message"


def world_size() -> int:
    """Return the number of processes of a distributed run, else 1."""
    return int(distributed.get_world_size()) if distributed.is_initialized() else 1


def rank() -> int:
    """Return this process's rank in a distributed run, else 0; rank 0 writes the files."""
    return int(distributed.get_rank()) if distributed.is_initialized() else 0


def any_process(flag: bool, device: str) -> bool:
    """Return whether a flag is set in any process; the same in all of them."""
    if world_size() == 1:
        return flag
    value = torch.tensor(float(flag), device=device)
    distributed.all_reduce(value)
    return bool(value)


def check_launch(n_processes: int, device: str) -> None:
    """Check that several processes can be started on this machine.

    Raise InputError if Detectron2, which starts them, can't be used, or there are too few GPUs.
    """
    if detectron2_problem():
        raise InputError(
            "--processes: several processes need Detectron2, which can't be used here "
            f"({detectron2_problem()}); use one"
        )
    kind = torch.device(device)
    if kind.type == "cuda" and (n_processes > torch.cuda.device_count() or kind.index is not None):
        raise InputError(
            f"--processes {n_processes}: one GPU per process is needed, but there are fewer on "
            f"{device} (this machine has {torch.cuda.device_count()} GPUs); use fewer, and choose "
            "them with CUDA_VISIBLE_DEVICES instead of --device"
        )


def launch(
    n_processes: int,
    work: Callable[..., object],
    *args: Any,
    device: str = "cpu",
    n_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> None:
    """Run a function in several processes, started and connected by Detectron2.

    Parameters
    ----------
    n_processes
        Number of processes on this machine.
    work
        Function called in each with `args`, which are pickled.
    device
        "cuda" for one GPU per process; on "cpu" they see none.
    n_machines, machine_rank, dist_url
        Number of machines, rank of this one, and address of rank 0.

    Raises
    ------
    InputError
        As `check_launch` does, or if a process raises it or is killed.
    """
    check_launch(n_processes, device)
    from detectron2 import engine

    # Of each process: without a lock, which Python would report as leaked if this one is killed.
    n_warnings = torch.multiprocessing.get_context("spawn").RawArray("i", n_processes)
    # By default each process would use all cores.
    values = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // n_processes))}
    if torch.device(device).type == "cpu":
        values["CUDA_VISIBLE_DEVICES"] = ""  # else Detectron2 connects them by NCCL
    signals = _ForwardSignals()
    # It warns of each process that it ends; one message is enough.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        # From a thread without signals, which the processes inherit until they are prepared.
        with (
            environment(values),
            signals,
            ThreadPoolExecutor(1, initializer=_block_signals) as pool,
        ):
            launched = pool.submit(
                engine.launch, _run_in_process, n_processes, n_machines, machine_rank, dist_url,
                args=(work, args, n_warnings),
            )  # fmt: skip
            while not wait([launched], timeout=0.2).done:
                signals.pass_on()
            launched.result()
    except ProcessRaisedException as error:
        if signals.received is not None:
            raise KeyboardInterrupt from None
        lost = "gloo" in str(error) and any(sign in str(error) for sign in _CONNECTION_LOST)
        if lost or _OTHER_PROCESS_ENDED in str(error):
            raise _process_ended_error("another lost the connection to it") from None
        _, found, message = str(error).rpartition("InputError: ")
        if not found:
            raise
        raise InputError(message.strip()) from None
    except ProcessExitedException as error:
        if signals.received is not None:
            raise KeyboardInterrupt from None
        raise _process_ended_error(str(error)) from None
    finally:
        HANDLER.count += sum(n_warnings)


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within a block."""
    former = os.environ.copy()
    os.environ.update(values)
    try:
        yield
    finally:
        for key in values:
            del os.environ[key]
        os.environ.update(former)


class _ForwardSignals:
    """Context in which Ctrl-C and SIGTERM are passed on to the processes of a launch.

    A terminal sends Ctrl-C to all of them, a scheduler SIGTERM to the first; they listen only to
    this process. A training stops after its step; a second request is handled as before.
    """

    def __init__(self) -> None:
        self.received: float | None = None  # when, in seconds of `time.monotonic`
        self._told: set[int | None] = set()
        self._former: dict[int, Any] = {}

    def pass_on(self) -> None:
        """Pass a signal that was received on to processes that have started since."""
        if self.received is not None:
            for process in multiprocessing.active_children():
                if process.pid not in self._told:
                    self._told.add(process.pid)
                    process.terminate()

    def _forward(self, number: int, _frame: object) -> None:
        if self.received is None:
            self.received = time.monotonic()
            self.pass_on()
        elif not is_repeated(number, self.received):
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._former = {s: signal.signal(s, self._forward) for s in SIGNALS}

    def __exit__(self, *_: object) -> None:
        self._restore()


def _block_signals() -> None:
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # started later, it would unblock them
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


# Errors of a process that waits for one which has ended; usually that one is reported first.
_CONNECTION_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def _process_ended_error(how: str) -> InputError:
    return InputError(
        f"--processes: a process was killed ({how}), perhaps out of memory; resume, with fewer "
        "processes if it happens again"
    )


def _run_in_process(work: Callable[..., object], args: tuple[Any, ...], n_warnings: Any) -> None:
    """Call `work` in this process, add its warnings to `n_warnings`, leave the process group.

    The group's threads need the interpreter to release tensors: a group that still exists when
    it exits aborts the process.
    """
    prepare()
    from detectron2.utils import comm

    print_warnings()
    try:
        work(*args)
    finally:
        n_warnings[comm.get_local_rank()] = HANDLER.count
    if distributed.is_initialized():
        gc.collect()  # objects that refer to a group, such as DistributedDataParallel
        comm._LOCAL_PROCESS_GROUP = None
        distributed.destroy_process_group()
    gc.freeze()  # the process ends without looking for garbage in all of torch


def make_barrier() -> Callable[[], None]:
    """Return a function that waits until all processes of the launch have called it.

    It has no practical timeout, and raises InputError if a process has ended. All processes must
    call `make_barrier`; a single one does not wait.
    """
    if world_size() == 1:
        return lambda: None
    group = distributed.new_group(backend="gloo", timeout=datetime.timedelta(days=30))

    def barrier() -> None:
        try:
            distributed.barrier(group)
        except RuntimeError:
            raise InputError(_OTHER_PROCESS_ENDED) from None

    return barrier

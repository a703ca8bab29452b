"""Several processes that work together, on one machine or more: launch, rank, barrier."""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from cellseg.device import detectron2_problem
from cellseg.errors import InputError

_OTHER_PROCESS_ENDED = "--num_gpus: one of the other processes has ended; its own message says why"


def world_size() -> int:
    """Count the processes of a distributed run; 1 without one."""
    return int(distributed.get_world_size()) if distributed.is_initialized() else 1


def rank() -> int:
    """Return this process's number in a distributed run, 0 for the one that writes."""
    return int(distributed.get_rank()) if distributed.is_initialized() else 0


def any_process(flag: bool, device: str) -> bool:
    """Whether a flag is set in any process of a distributed run; all get the same answer."""
    if world_size() == 1:
        return flag
    value = torch.tensor(float(flag), device=device)
    distributed.all_reduce(value)
    return bool(value)


def check_launch(n_processes: int, device: str) -> None:
    """Raise InputError for several processes on this machine where they can't be had.

    Raises
    ------
    InputError
        If Detectron2 can't be used, which starts them, or not each has a GPU of its own
        where they are to work on some.
    """

    if detectron2_problem():
        raise InputError(
            "--num_gpus: several processes are started by Detectron2, which can't be used here "
            f"({detectron2_problem()}); take one"
        )
    kind = torch.device(device)
    if kind.type == "cuda" and (n_processes > torch.cuda.device_count() or kind.index is not None):
        raise InputError(
            f"--num_gpus {n_processes}: each process takes a GPU of its own, but on {device} there "
            f"are not as many ({torch.cuda.device_count()} GPUs are in this machine); take fewer, "
            "and choose among them with CUDA_VISIBLE_DEVICES, not --device"
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
    """Let several processes work at the same time, which Detectron2 starts and connects.

    Parameters
    ----------
    n_processes
        How many on this machine.
    work
        Called in each with `args`, which are pickled.
    device
        "cuda" for a GPU of its own for each process; on "cpu" they see none.
    n_machines, machine_rank, dist_url
        How many machines take part, this one's number, and where number 0 is to be found.

    Raises
    ------
    InputError
        As `check_launch` does, or if one of the processes raises it or is killed.
    """
    check_launch(n_processes, device)
    from detectron2 import engine

    # Each would take all cores, and all would wait for each other.
    values = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // n_processes))}
    if torch.device(device).type == "cpu":
        values["CUDA_VISIBLE_DEVICES"] = ""  # Detectron2 would connect them by their GPUs
    try:
        with _environment_variables(values):
            engine.launch_processes(
                _run_in_process, n_processes, n_machines, machine_rank, dist_url, args=(work, args)
            )
    except ProcessRaisedException as error:
        lost = "gloo" in str(error) and any(sign in str(error) for sign in _CONNECTION_LOST)
        if lost or _OTHER_PROCESS_ENDED in str(error):
            raise _process_ended_error("another has lost it") from None
        _, found, message = str(error).rpartition("InputError: ")
        if not found:
            raise
        raise InputError(message.strip()) from None
    except ProcessExitedException as error:
        raise _process_ended_error(str(error)) from None


# What a process says that waits for one which has ended. That one is mostly seen first.
_CONNECTION_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def _process_ended_error(how: str) -> InputError:
    return InputError(
        f"--num_gpus: one of the processes was ended from outside ({how}), perhaps for want of "
        "memory; go on, with fewer of them if it happens again"
    )


def _run_in_process(work: Callable[..., object], args: tuple[Any, ...]) -> None:
    """Do this process's work, and then leave the others in good order.

    The threads of a process group let go of tensors, for which they need the interpreter:
    one that is still there when it ends aborts the process.
    """
    from detectron2.utils import comm

    work(*args)
    if distributed.is_initialized():
        gc.collect()  # of what may hold a group, as a network that shares its gradients
        comm._LOCAL_PROCESS_GROUP = None
        distributed.destroy_process_group()


def make_barrier() -> Callable[[], None]:
    """Return a function that returns when all processes have called it that `launch` started.

    It waits for the slowest, however long that takes, and raises InputError if one of them
    has ended. So all of them must ask for it.
    """
    group = distributed.new_group(backend="gloo", timeout=datetime.timedelta(days=30))

    def barrier() -> None:
        try:
            distributed.barrier(group)
        except RuntimeError:
            raise InputError(_OTHER_PROCESS_ENDED) from None

    return barrier


@contextlib.contextmanager
def _environment_variables(values: dict[str, str]) -> Iterator[None]:
    """Set variables of the environment for the processes that are started within."""
    former = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in former.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value

"""Threads that run the networks, each on tiles of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from cellseg.device import available_gpu_memory, available_memory, count_cores
from cellseg.messages import warn
from cellseg.predict.memory import memory_name, unless_out_of_memory

T = TypeVar("T")

# Python lets one thread at a time prepare operators, and each needs memory for a view: 0.6 GB
# measured, 2 GB with 800 cells and features of 2,048 channels.
_MAX_THREADS = 4
_VIEW_BYTES = 2e9


def count_threads(devices: Sequence[torch.device], batch: int) -> int:
    """Return the number of threads for networks on some devices and batches of views.

    On a CPU, whole tiles are better split among cores than each operator, whose threads wait for
    each other; with other work on the cores, they mostly wait. On a CUDA GPU, cuDNN prepares each
    convolution for each new size of image, which takes longer than computing it and needs only a
    CPU.
    """
    kinds = {device.type for device in devices}
    if kinds == {"cpu"}:
        most, n_bytes = torch.get_num_threads(), available_memory()
    elif kinds == {"cuda"} and torch.cuda.is_available():
        most, n_bytes = count_cores(), min(map(available_gpu_memory, devices)) / batch
    else:
        return 1
    return int(max(1, min(most, _MAX_THREADS, n_bytes / _VIEW_BYTES)))


class Turns:
    """Lets threads run the networks at the same time, as far as memory allows."""

    def __init__(self, n_threads: int) -> None:
        self._n = n_threads
        self._free = threading.Semaphore(n_threads)
        self._lock = threading.Lock()

    def run(self, work: Callable[[], T], device: str) -> T | None:
        """Call `work`, again without other threads if memory is too small; then return None.

        `device` is the type of the device that it needs memory of.
        """
        with self._free:
            alone = self._n == 1
            result = unless_out_of_memory(work)
        if alone or result is not None:
            return result
        with self._lock:
            n = self._n
            for _ in range(n):
                self._free.acquire()
            try:
                result = unless_out_of_memory(work)
                if result is not None:
                    self._n = 1
            finally:
                self._free.release(self._n)
        if result is not None and n > 1:
            warn(
                f"{memory_name(device)} is too small for {n} tiles at once; continuing with one "
                "after the other"
            )
        return result


@contextlib.contextmanager
def start_threads(n_threads: int, devices: Sequence[torch.device]) -> Iterator[ThreadPoolExecutor]:
    """Start threads, each with an equal part of torch's own and, on a GPU, a stream of its own.

    Restores the number of torch's threads at the end.
    """
    former = torch.get_num_threads()
    gpus = {device for device in devices if device.type == "cuda"} if n_threads > 1 else ()
    callers = [torch.cuda.current_stream(gpu) for gpu in gpus]

    def begin() -> None:
        torch.set_num_threads(max(1, former // n_threads))
        for caller in callers:
            stream: Any = torch.cuda.Stream(caller.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(caller)  # where the weights may still be on their way
            torch.cuda.set_stream(stream)

    try:
        with ThreadPoolExecutor(n_threads, initializer=begin) as pool:
            yield pool
    finally:
        torch.set_num_threads(former)

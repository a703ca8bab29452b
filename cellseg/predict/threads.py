"""Threads that run the networks, each on tiles of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from cellseg.device import available_memory

# Python lets one thread at a time prepare operators, and each needs memory for a tile: 0.6 GB
# measured, 2 GB with 800 cells and features of 2,048 channels.
_MAX_THREADS = 4
_TILE_BYTES = 2e9


def count_threads(devices: Sequence[str], n_groups: int) -> int:
    """Return the number of threads for networks on some devices and `n_groups` groups of tiles.

    One on a GPU. On a CPU, whole tiles are better split among cores than each operator, whose
    threads wait for each other; with other work on the cores, they mostly wait.
    """
    if any(torch.device(device).type != "cpu" for device in devices):
        return 1
    in_memory = available_memory() / _TILE_BYTES
    return int(max(1, min(torch.get_num_threads(), _MAX_THREADS, n_groups, in_memory)))


@contextlib.contextmanager
def split_cores(n_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Create threads, each with an equal part of torch's own; restore their number at the end."""
    former = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            n_threads, initializer=torch.set_num_threads, initargs=(max(1, former // n_threads),)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(former)

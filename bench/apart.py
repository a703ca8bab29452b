"""Measure in a process of its own, whose peak memory is that of the measurement."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def call_apart(measure: Callable[..., T], *arguments: object) -> T:
    """Call a function in a new process; return its result, or raise its error."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()

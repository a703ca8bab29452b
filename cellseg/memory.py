"""Memory of the GPU or the CPU that is too small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import cv2
import torch

from cellseg.errors import InputError

T = TypeVar("T")

# torch has no exception type for these: its own allocator on a CPU, CUDA itself, and cuBLAS and
# cuDNN (CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED).
_NO_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "MPS backend out of memory",
)


# What cuBLAS and cuDNN say then, too, but not only then.
_PERHAPS_NO_MEMORY = (
    "_STATUS_NOT_INITIALIZED",
    "unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm",
)


def unless_out_of_memory(work: Callable[[], T], or_perhaps: bool = False) -> T | None:
    """Call `work`; return None if memory, of the GPU or the CPU, is too small.

    With `or_perhaps`, also if that is only probable: try again with less.
    """
    try:
        return work()
    except (RuntimeError, MemoryError, cv2.error) as error:
        perhaps = or_perhaps and any(words in str(error) for words in _PERHAPS_NO_MEMORY)
        if not (perhaps or is_out_of_memory(error)):
            raise
    # After the except block, which keeps the error's frames and their tensors alive.
    torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory, of the GPU or the CPU, was too small."""
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or any(words in str(error) for words in _NO_MEMORY)


def memory_name(device: str) -> str:
    """Return what messages call the memory of a type of device."""
    return "the memory" if device == "cpu" else "the GPU's memory"


def too_large_error(size: Sequence[int], device: str) -> InputError:
    """Return the error of `(h, w)` network pixels that don't fit into a device's memory."""
    height, width = size
    elsewhere = "" if device == "cpu" else "with --device cpu, "
    return InputError(
        f"{height} x {width} network pixels don't fit into {memory_name(device)}; use smaller "
        f"tiles (TEST.TILE), {elsewhere}or a smaller scale"
    )

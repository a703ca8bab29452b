"""Choice of the engine (Detectron2 or torchvision) and the device; cores and memory."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.compiler import without_compiler
from cellseg.errors import InputError
from cellseg.text import first_line

if TYPE_CHECKING:
    import torch

ENGINES = ("detectron2", "torchvision")

ANY_DEVICE = "auto"
"""`MODEL.DEVICE` of workers that each use their GPU, if they have one."""

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


@functools.cache
def detectron2_problem() -> str:
    """Return the reason why Detectron2 can't be used here, or "" if it can."""
    try:
        importlib.import_module("torch")  # loads libraries of the compiled operators
        with without_compiler():
            importlib.import_module("detectron2.engine")
            importlib.import_module("detectron2._C")
    except Exception as error:  # noqa: BLE001 a broken build may raise anything
        return first_line(error)
    return ""


def choose_engine(wanted: str) -> str:
    """Return the engine; "auto" is Detectron2 if it loads, else torchvision, and is printed.

    Raise InputError if the engine is unknown or can't be used here.
    """
    if wanted not in ("auto", *ENGINES):
        raise InputError(f"--engine {wanted}: unknown, expected auto, {' or '.join(ENGINES)}")
    problem = "" if wanted == "torchvision" else detectron2_problem()
    if problem and wanted == "detectron2":
        raise InputError(
            f"--engine detectron2: can't be used here ({problem}); make setup builds it, or use "
            "--engine torchvision"
        )
    if wanted != "auto":
        return wanted
    chosen = "torchvision" if problem else "detectron2"
    print(f"engine: {chosen}" + (f" (Detectron2 can't be used here: {problem})" if problem else ""))
    return chosen


def choose_device(
    wanted: str | None, options: Sequence[str] = (), recipe: str = "cuda", advice: str = ""
) -> str:
    """Return the device for the network, and print a note if there is no GPU.

    Parameters
    ----------
    wanted
        Value of `--device`, or None.
    options
        KEY VALUE pairs of the command line, which may set `MODEL.DEVICE`.
    recipe
        `MODEL.DEVICE` of the recipe; "cpu" if it is made for the CPU.
    advice
        End of the note.

    Raises
    ------
    InputError
        If the device is not available.
    """
    import torch

    pairs = dict(zip(options[::2], options[1::2], strict=False))
    wanted = wanted or pairs.get("MODEL.DEVICE")
    if wanted is None and recipe == "cpu":
        return recipe
    if wanted is None:
        if torch.cuda.is_available():
            return "cuda"
        print(f"no CUDA GPU available, using the CPU (much slower{advice})")
        return "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device).cpu()  # fails on "meta", which has no data
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise InputError(
            f"--device {wanted}: not available ({reason}); make doctor shows what is missing, "
            "--device cpu always works"
        ) from None
    return str(device)


def autocast_dtype(device: str, wanted: bool) -> torch.dtype | None:
    """Return the dtype of mixed precision: bfloat16 if the device has instructions for it.

    Otherwise float16 on "cuda" and None (no mixed precision) on "cpu", whose emulation is slow.
    """
    import torch

    if not wanted:
        return None
    if device == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float16
    # Older versions of torch lack this function.
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else None


def count_cores() -> int:
    """Return the number of CPU cores available to this process."""
    return min(_count_usable_cores(), _count_allowed_cores())


def _count_usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _count_allowed_cores() -> int:
    """Return the limit of a container's CPU time in cores, rounded up, such as 3 of `--cpus 2.5`.

    Without a limit (Linux control groups) it is very large.
    """
    counts = [2**31]
    for folder in _control_groups("cpu"):
        for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            with contextlib.suppress(OSError, ValueError):  # none, or "max"
                text = " ".join((folder / name).read_text() for name in names)
                quota, period = map(int, text.split())
                counts += [math.ceil(quota / period)] if quota > 0 else []  # -1: none
    return min(counts)


def thread_variables() -> dict[str, str]:
    """Return environment variables for torch's threads, to be set before it is imported.

    After each operator, torch's threads (GNU OpenMP) wait for each other. They keep their cores
    busy for up to some milliseconds, as if nothing else ran there; if one of two cores is busy, a
    network takes over 20 times as long as on idle ones. With fewer rounds of that wait it takes
    twice as long, and on two idle cores a tenth longer at most (`bench/threads.py`). Torch has a
    thread for each core, also if a container may use the time of fewer. What the user has set
    stays.
    """
    variables = {}
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        variables["GOMP_SPINCOUNT"] = "3000"
    allowed = _count_allowed_cores()
    if "OMP_NUM_THREADS" not in os.environ and allowed < _count_usable_cores():
        variables["OMP_NUM_THREADS"] = str(allowed)
    return variables


def available_memory() -> float:
    """Return the bytes of memory that this process can still use; infinity if that is unknown.

    Of the machine, or of a container or job with a limit (Linux control groups).
    """
    free = [math.inf]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(x for x in lines if x.startswith("MemAvailable")).split()[1]))
    for folder in _control_groups("memory"):
        for limit, usage in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with contextlib.suppress(OSError, ValueError):  # none, or "max"
                used = int((folder / usage).read_text())
                for line in (folder / "memory.stat").read_text().splitlines():
                    name, _, value = line.partition(" ")
                    used -= int(value) if name == "inactive_file" else 0  # a cache that makes room
                free.append(max(0, int((folder / limit).read_text()) - used))
    return min(free)


def _control_groups(controller: str) -> list[Path]:
    """Return the folders of this process's control groups that may limit a resource.

    They are those of version 2 and of the controller of version 1, each with all that contain it.
    """
    folders: list[Path] = []
    with contextlib.suppress(OSError):
        for line in _OWN_CGROUPS.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = _CGROUPS / controller if controllers else _CGROUPS
            folder = root / group.strip("/")
            folders += [each for each in (folder, *folder.parents) if each.is_relative_to(root)]
    return folders

"""What this machine has to compute with: Detectron2 or torchvision, a GPU or a CPU, cores."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cellseg.errors import InputError

if TYPE_CHECKING:
    import torch

ENGINES = ("detectron2", "torchvision")


@functools.cache
def detectron2_problem() -> str:
    """Return in a few words why Detectron2 can't be used here; empty if it can."""
    try:
        importlib.import_module("torch")  # whose libraries the compiled operators want
        importlib.import_module("detectron2.engine")
        importlib.import_module("detectron2._C")
    except Exception as error:  # noqa: BLE001 a broken build may raise anything
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def choose_engine(wanted: str) -> str:
    """Choose the engine; "auto" is Detectron2 where it loads, else torchvision, said aloud.

    Raises
    ------
    InputError
        If there is no such engine, or it can't be used here.
    """
    if wanted not in ("auto", *ENGINES):
        raise InputError(f"--engine {wanted}: unknown; auto, {' or '.join(ENGINES)} is expected")
    problem = "" if wanted == "torchvision" else detectron2_problem()
    if problem and wanted == "detectron2":
        raise InputError(
            f"--engine detectron2: can't be used here ({problem}); make setup builds it, or take "
            "--engine torchvision"
        )
    if wanted != "auto":
        return wanted
    chosen = "torchvision" if problem else "detectron2"
    print(f"engine: {chosen}" + (f" (Detectron2 can't be used here: {problem})" if problem else ""))
    return chosen


def choose_device(wanted: str | None, options: Sequence[str] = (), recipe: str = "cuda") -> str:
    """Choose where the network runs, and say so when it is not a GPU.

    Parameters
    ----------
    wanted
        What the user said with `--device`, or None.
    options
        KEY VALUE pairs of the command line, where `MODEL.DEVICE` may stand too.
    recipe
        What the config says; "cpu" there means that the recipe is made for one.

    Raises
    ------
    InputError
        If there is no such device here.
    """
    import torch

    pairs = dict(zip(options[::2], options[1::2], strict=False))
    wanted = wanted or pairs.get("MODEL.DEVICE")
    if wanted is None and recipe == "cpu":
        return recipe
    if wanted is None:
        if torch.cuda.is_available():
            return "cuda"
        print("no CUDA GPU here: using the CPU, which is much slower")
        return "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device).cpu()  # "meta" has devices, but no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--device {wanted}: not to be had here ({reason}); make doctor says what is missing, "
            "--device cpu always works"
        ) from None
    return str(device)


def autocast_dtype(device: str, wanted: bool) -> torch.dtype | None:
    """Choose the type of mixed precision: bfloat16 where the device computes in it.

    Else float16 on "cuda", and None, for none, on "cpu": a device without instructions for
    bfloat16 would only imitate them, and slowly.
    """
    import torch

    if not wanted:
        return None
    if device == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float16
    # Older versions of torch don't tell.
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else None


def count_cores() -> int:
    """Count the cores that this process may use, which can be fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Everything that is one engine's own: building the network, training it, asking it.

An engine is a module of this folder, `detectron2` or `torchvision`, with

- `default_keys()`: its config, before the project's own keys;
- `check(cfg)`, which refuses what the engine is known not to have;
- `build_network(cfg)`: the network of a config, on its device;
- `initial_weights(cfg, wanted)`: where the weights to begin with are, adapting `cfg` to them;
  it refuses what it can't read.

A network is a `torch.nn.Module`. In training, called with samples of
`cellseg.learn.mapper.CellMapper`, it gives a dict of losses; its `find` takes images and
gives a `Found` each; its `adapt_weights` gives what a file of weights holds under its own
names. All other rooms speak to these alone.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cellseg.errors import InputError

if TYPE_CHECKING:
    import torch
    from fvcore.common.config import CfgNode

ENGINES = ("detectron2", "torchvision")
_OTHERS_MESSAGE = "--num_gpus: one of the other processes has ended; its own message says why"
ZOO = ("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")  # short name, address


@dataclass(frozen=True)
class Found:
    """The N cells that a network finds in one image, in the network's pixels.

    Attributes
    ----------
    boxes
        `(N, 4)` float32, XYXY, right and bottom exclusive, none of them empty.
    scores
        `(N,)` float32 in 0…1.
    classes
        `(N,)` int64, 0…K−1.
    masks
        `(N, M, M)` float32: how likely each part of a grid over the box is the cell's.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    masks: torch.Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: torch.Tensor) -> Found:
        return Found(self.boxes[index], self.scores[index], self.classes[index], self.masks[index])


@functools.cache
def detectron2_problem() -> str:
    """Say in a few words why Detectron2 can't be used here; empty if it can."""
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


def engine(name: str) -> ModuleType:
    """Give the module of an engine."""
    return importlib.import_module(f"cellseg.network.{name}")


def default_keys(name: str) -> CfgNode:
    """Give the keys that an engine understands, with their default values."""
    return engine(name).default_keys()


def check_network(cfg: CfgNode) -> None:
    """Check that the config is one of a Mask R-CNN, which all steps rely on, as its engine has it.

    Raises
    ------
    InputError
        If it is not.
    """
    if not cfg.MODEL.MASK_ON or cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise InputError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} with MODEL.MASK_ON "
            f"{cfg.MODEL.MASK_ON}: GeneralizedRCNN with masks on is expected"
        )
    engine(cfg.ENGINE).check(cfg)


def build_network(cfg: CfgNode) -> torch.nn.Module:
    """Build the network of a config, on its device.

    Raises
    ------
    InputError
        As `check_network` does, or if the parts of the network don't fit together.
    """
    import torch

    check_network(cfg)
    network: torch.nn.Module = engine(cfg.ENGINE).build_network(cfg)
    # How the libraries of convolutions store them: in the other order they copy all the time.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def check_together(n_processes: int, device: str) -> None:
    """Refuse several processes on this machine where they can't be had.

    Raises
    ------
    InputError
        If Detectron2 can't be used, which starts them, or not each has a GPU of its own
        where they are to work on some.
    """
    import torch

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


def together(
    n_processes: int,
    work: Callable[..., object],
    *args: Any,
    device: str = "cpu",
    n_machines: int = 1,
    machine: int = 0,
    address: str = "auto",
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
    n_machines, machine, address
        How many machines take part, this one's number, and where number 0 is to be found.

    Raises
    ------
    InputError
        As `check_together` does, or if one of the processes raises it or is killed.
    """
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    check_together(n_processes, device)
    import torch
    from detectron2.engine import launch

    # Each would take all cores, and all would wait for each other.
    values = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // n_processes))}
    if torch.device(device).type == "cpu":
        values["CUDA_VISIBLE_DEVICES"] = ""  # Detectron2 would connect them by their GPUs
    try:
        with _environment(values):
            launch(_take_part, n_processes, n_machines, machine, address, args=(work, args))
    except ProcessRaisedException as error:
        lost = "gloo" in str(error) and any(sign in str(error) for sign in _CONNECTION_ENDED)
        if lost or _OTHERS_MESSAGE in str(error):
            raise _ended("another has lost it") from None
        _, found, message = str(error).rpartition("InputError: ")
        if not found:
            raise
        raise InputError(message.strip()) from None
    except ProcessExitedException as error:
        raise _ended(str(error)) from None


# What a process says that waits for one which has ended. That one is mostly seen first.
_CONNECTION_ENDED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def _ended(how: str) -> InputError:
    return InputError(
        f"--num_gpus: one of the processes was ended from outside ({how}), perhaps for want of "
        "memory; go on, with fewer of them if it happens again"
    )


def _take_part(work: Callable[..., object], args: tuple[Any, ...]) -> None:
    """Do this process's work, and then leave the others in good order.

    The threads of a process group let go of tensors, for which they need the interpreter:
    one that is still there when it ends aborts the process.
    """
    from detectron2.utils import comm
    from torch import distributed

    work(*args)
    if distributed.is_initialized():
        gc.collect()  # of what may hold a group, as a network that shares its gradients
        comm._LOCAL_PROCESS_GROUP = None
        distributed.destroy_process_group()


def meeting_point() -> Callable[[], None]:
    """Give a function that returns when all processes have called it that `together` started.

    It waits for the slowest, however long that takes, and raises InputError if one of them
    has ended. So all of them must ask for it.
    """
    from torch import distributed

    group = distributed.new_group(backend="gloo", timeout=datetime.timedelta(days=30))

    def meet() -> None:
        try:
            distributed.barrier(group)
        except RuntimeError:
            raise InputError(_OTHERS_MESSAGE) from None

    return meet


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
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

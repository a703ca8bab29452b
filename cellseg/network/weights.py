"""Read weights files, and load them into networks."""

from __future__ import annotations

import contextlib
import logging
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cellseg.errors import InputError
from cellseg.files import check_ordinary
from cellseg.messages import listed, plural
from cellseg.text import first_line

# Errors of torch and pickle for a damaged file.
DAMAGE = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, ImportError, pickle.UnpicklingError, ArithmeticError, MemoryError,
)  # fmt: skip


def reason(error: Exception) -> str:
    """Return the beginning of an error's message, or its type's name if it has none."""
    return first_line(error).partition(". ")[0]


class _ArrayUnpickler(pickle._Unpickler):
    """Reads pickles of numpy arrays, as in Detectron2's zoo; anything else could run code.

    In Python, as the C version allocates as much memory as a damaged index of an object asks for.
    """

    _ALLOWED = frozenset(
        {
            ("collections", "OrderedDict"),
            ("_codecs", "encode"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy._core.numeric", "_frombuffer"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, and not only arrays")
        return super().find_class(module, name)


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Load the weights of a run. Raise InputError if they are damaged or of another network."""
    with weights_errors(path):
        take_weights(network, read_weights(path)["model"], strict=True)


@contextlib.contextmanager
def weights_errors(
    path: Path,
    advice: str = "it may be truncated or of another network: download it again or choose another "
    "file",
) -> Iterator[None]:
    """Raise InputError for errors of a weights file, with what may be wrong and what to do."""
    try:
        yield
    except DAMAGE as error:
        raise InputError(
            f"{path}: can't be loaded as weights ({reason(error)}); {advice}"
        ) from error


def read_weights(path: Path) -> dict[str, Any]:
    """Read a weights file of torch, .safetensors, or a .pkl of Detectron2's zoo, as data only.

    Files of torch contain a sum (CRC-32) of each tensor, which torch does not check, but this
    function does.

    Raises
    ------
    Exception
        One of `DAMAGE`.
    """
    check_ordinary(path)
    try:
        loaded = _read(path)
    except DAMAGE:
        raise
    except Exception as error:
        raise ValueError(reason(error)) from error
    if not isinstance(loaded, dict):
        raise TypeError("not a checkpoint")
    return loaded


def _read(path: Path) -> Any:
    loaded: Any
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            loaded = _ArrayUnpickler(file, encoding="latin1").load()
    elif path.suffix == ".safetensors":
        loaded = _read_safetensors(path)
    else:
        _check_sums(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of damaged and old files
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, LookupError, EOFError):
            # torch's message ends in the advice to run the code.
            raise ValueError("truncated, or a pickle that can run code") from None
    return loaded


def _check_sums(path: Path) -> None:
    """Raise ValueError if a part of a weights file of torch, a zip, does not have its sum.

    Its parts are not compressed, so that they can't be much larger than the file.
    """
    if not zipfile.is_zipfile(path):
        return  # the format before torch 1.6, or damaged
    with zipfile.ZipFile(path) as archive:
        parts, size = archive.infolist(), path.stat().st_size
        unpacked = sum(part.file_size for part in parts)
        if unpacked > size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError(f"compressed, {size} bytes that unpack to {unpacked}")
        if damaged := archive.testzip():
            raise ValueError(f"its part {damaged} does not have the sum it was saved with")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Any] = load_file(path)
    except SafetensorError as error:
        raise ValueError(error) from error
    return state


def describe_taken(
    own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], source: str
) -> list[str]:
    """Return how many tensors of a file a network has, and a line for each reason why not more.

    `own` and `state` are the state dicts of the network and of the file, `source` its name. Their
    counters of batches, which have no effect, are not counted.
    """
    own, state = (
        {key: value for key, value in each.items() if not key.endswith("num_batches_tracked")}
        for each in (own, state)
    )

    def size(tensor: torch.Tensor) -> str:
        return " x ".join(map(str, tensor.shape)) or "one number"

    different = [
        f"{name} ({size(state[name])}, expected {size(own[name])})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    missing = [name for name in own if name not in state]
    unused = [name for name in state if name not in own]
    parts = dict.fromkeys(".".join(name.split(".")[:2]) for name in missing)
    lines = {
        "of another shape, so not taken": (different, different),
        "not in the file, so as initialised": (missing, list(parts)),
        "in the file, but not in the network": (unused, unused),
    }
    n_taken = len(own) - len(missing) - len(different)
    return [
        f"{n_taken} of the network's {len(own)} tensors from {source}",
        *(
            f"{plural(len(names), 'tensor')} {why}: {listed(shown)}"
            for why, (names, shown) in lines.items()
            if names
        ),
    ]


def take_weights(network: torch.nn.Module, state: dict[str, torch.Tensor], strict: bool) -> None:
    """Load the weights whose name and shape fit a network.

    Raises
    ------
    ValueError
        If `strict` and any weights of the network are missing, or if less than half of them fit.
    """
    own = network.state_dict()
    matching = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    network.load_state_dict(matching, strict=False)
    missing = [name for name in own if name not in matching]
    trainable = dict(network.named_parameters())
    if missing and (strict or trainable.keys() <= set(missing)):
        raise ValueError(
            f"{len(missing)} of the network's {len(own)} weights are missing or have another "
            f"shape, {missing[0]} first"
        )
    n_given, n_taken = (sum(v.numel() for v in values.values()) for values in (state, matching))
    if not strict and 2 * n_taken < n_given:  # some names occur in networks of all types
        raise ValueError(f"only {n_taken:,} of its {n_given:,} parameters match this network")
    log = logging.getLogger(__name__)
    for name in missing:
        log.info("%s is not in the initial weights", name)
    for name in state.keys() - matching.keys():
        log.info("%s of the initial weights is not used", name)

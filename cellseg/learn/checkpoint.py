"""Checkpoints that are whole or absent, in the run's folder."""

from __future__ import annotations

import contextlib
import logging
import math
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from cellseg.errors import InputError
from cellseg.files import write_atomic
from cellseg.learn.weights import local_weights
from cellseg.runs import BEST, LAST

_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ImportError,
    pickle.UnpicklingError,
)
"""What torch and pickle raise at a file that isn't what it should be."""


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]


class _ArraysAlone(pickle.Unpickler):
    """Reads the zoo's pickles, which hold numpy arrays; anything else could run code."""

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
            raise pickle.UnpicklingError(f"it holds {module}.{name}, not arrays alone")
        return super().find_class(module, name)


class Kept(Protocol):
    """What is saved beside the weights, and comes back on resuming."""

    def state_dict(self) -> dict[str, Any]:
        """Give the state."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take the state back."""


class RunCheckpointer:
    """A run's checkpoints: weights to predict with, and one to resume from that is replaced whole.

    A run killed while it saves keeps the former checkpoint; a full disk is one line.
    """

    def __init__(self, network: torch.nn.Module, folder: str | Path = "", **kept: Kept) -> None:
        """
        Parameters
        ----------
        network
            The network that learns.
        folder
            The run's.
        kept
            What else a resumable checkpoint has, by name.
        """
        self.network = network
        self.folder = Path(folder)
        self.kept = kept

    def save_weights(self, name: str, network: torch.nn.Module, **extra: Any) -> None:
        """Save a network's weights and `extra` to `name`, in the run's folder.

        Raises
        ------
        FloatingPointError
            If the weights are not finite, as after a step that went too far. Nothing is
            written then, so that the last good file stays.
        """
        self._write(name, {"model": _finite(network), **extra})

    def save_last(self) -> None:
        """Save all that `--resume` needs.

        Raises
        ------
        FloatingPointError
            As `save_weights` does.
        """
        state = {name: kept.state_dict() for name, kept in self.kept.items()}
        self._write(LAST, {"model": _finite(self.network), **state})

    def _write(self, name: str, data: dict[str, Any]) -> None:
        path = self.folder / name
        try:
            with write_atomic(path, "wb") as file:
                torch.save(data, file)
        except (InputError, RuntimeError) as error:
            # torch turns a failed write into a RuntimeError of its own.
            free = shutil.disk_usage(self.folder).free // 2**20
            raise InputError(
                f"{path}: the checkpoint can't be written, {free} MiB are free there; the former "
                "checkpoint, if any, is whole: make room, then go on with --resume "
                f"({error})"
            ) from error

    @property
    def last(self) -> Path:
        """Where the resumable checkpoint is, or will be."""
        return self.folder / LAST

    def resume(self) -> None:
        """Go on from the resumable checkpoint.

        Raises
        ------
        InputError
            If it is damaged or another network's.
        """
        with _loading(self.last):
            data = _load(self.last)
            lacking = {"model", *self.kept} - set(data)
            if lacking:
                raise ValueError(f"without {', '.join(sorted(lacking))}")
            _take(self.network, data["model"], whole=True)
            for name, kept in self.kept.items():
                kept.load_state_dict(data[name])

    def best_score(self) -> float:
        """Give the AP50, 0 to 100, of the run's best weights; minus infinity if it has none.

        Raises
        ------
        InputError
            If the file is damaged.
        """
        path = self.folder / BEST
        if not path.is_file():
            return -math.inf
        try:
            return float(_load(path)["AP50"])
        except _DAMAGE as error:
            raise InputError(
                f"{path}: damaged ({_reason(error)}), so the best score so far is not known; "
                "delete it to go on without"
            ) from error


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Load the weights of a run, which must be this very network's.

    Raises
    ------
    InputError
        If the file is not a checkpoint, is damaged, or doesn't fit the network.
    """
    with _loading(path):
        _take(network, _load(path)["model"], whole=True)


def load_initial_weights(network: torch.nn.Module, name: str) -> str:
    """Load weights to begin with, of which what fits is taken.

    A network may have a method `adapt_weights`, which turns what a file of its engine's
    zoo holds into a state dict of its own.

    Parameters
    ----------
    network
        The network.
    name
        A file, a URL or a short name, as `cellseg.learn.weights.local_weights` takes it.

    Returns
    -------
    How much of the network came from where.

    Raises
    ------
    InputError
        If it is neither there nor to be had, not a checkpoint or damaged, or less than half
        of it fits.
    """
    path = local_weights(name)
    with _loading(path):
        read = {".pkl": _load_arrays, ".safetensors": _load_safetensors}.get(path.suffix, _load)
        data = read(path)
        adapt: Any = getattr(network, "adapt_weights", None)
        if adapt:
            data = adapt(data)
        elif "model" in data:
            data = data["model"]
        state = {key: torch.as_tensor(value) for key, value in data.items()}
        taken = _take(network, state, whole=False)
    return f"{taken} of the network's {len(network.state_dict())} tensors from {path.name}"


@contextlib.contextmanager
def _loading(path: Path) -> Iterator[None]:
    """Say in one line what is wrong with a file of weights."""
    try:
        yield
    except _DAMAGE as error:
        raise InputError(
            f"{path}: can't be loaded as weights ({_reason(error)}); it may be cut off or "
            "not be a checkpoint of this network: fetch it again or name another"
        ) from error


def _load(path: Path) -> dict[str, Any]:
    # Weights are data: nothing in the file is run.
    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, LookupError, EOFError):
        # What torch says of such a file ends in advice to run it.
        raise ValueError("cut off, or not weights alone but a pickle that can run code") from None
    if not isinstance(loaded, dict):
        raise TypeError("not a checkpoint")
    return loaded


def _load_arrays(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArraysAlone(file, encoding="latin1").load()


def _load_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Any] = load_file(path)
    except SafetensorError as error:
        raise ValueError(error) from error
    return state


def _take(network: torch.nn.Module, state: dict[str, torch.Tensor], whole: bool) -> int:
    """Put the weights whose name and shape fit into a network, and give their number.

    All of the network's must be there, or half of the numbers must find a place.
    """
    own = network.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    network.load_state_dict(fitting, strict=False)
    missing = [name for name in own if name not in fitting]
    learnt = dict(network.named_parameters())
    if missing and (whole or learnt.keys() <= set(missing)):
        raise ValueError(
            f"{len(missing)} of the network's {len(own)} weights are missing or have another "
            f"shape, {missing[0]} first"
        )
    given, taken = (sum(v.numel() for v in values.values()) for values in (state, fitting))
    if not whole and 2 * taken < given:  # a few names are alike in networks of all kinds
        raise ValueError(f"only {taken:,} of its {given:,} numbers have a place in this network")
    log = logging.getLogger(__name__)
    for name in missing:
        log.info("%s is not in the initial weights", name)
    for name in state.keys() - fitting.keys():
        log.info("%s of the initial weights fits nowhere", name)
    return len(fitting)


def _finite(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = network.state_dict()
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise FloatingPointError(f"the weights {name} are not finite any more")
    return weights

"""Checkpoints that are whole or absent, in the run's folder."""

from __future__ import annotations

import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from cellseg.errors import InputError
from cellseg.files import write_atomic
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
"""What torch, pickle and Detectron2 raise at a file that isn't what it should be."""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


class RunCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with one resumable checkpoint that is replaced whole.

    A run killed while it saves keeps the former checkpoint; a full disk is one line.
    """

    def save_weights(self, name: str, **extra: Any) -> None:
        """Save the network's weights and `extra` to `name`, in the run's folder.

        Raises
        ------
        FloatingPointError
            If the weights are not finite, as after a step that went too far. Nothing is
            written then, so that the last good file stays.
        """
        self._write(name, {"model": self._weights(), **extra})

    def save_last(self) -> None:
        """Save all that `--resume` needs: weights, optimizer, schedule, iteration.

        Raises
        ------
        FloatingPointError
            As `save_weights` does.
        """
        state = {key: value.state_dict() for key, value in self.checkpointables.items()}
        self._write(LAST, {"model": self._weights(), **state})

    def best_score(self) -> float:
        """Give the AP50, 0 to 100, of the run's best weights; minus infinity if it has none.

        Raises
        ------
        InputError
            If the file is damaged.
        """
        path = Path(self.save_dir) / BEST
        if not path.is_file():
            return -math.inf
        try:
            return float(self._torch_load(str(path))["AP50"])
        except _DAMAGE as error:
            raise InputError(
                f"{path}: damaged ({_first_line(error)}), so the best score so far is not known; "
                "delete it to go on without"
            ) from error

    def _weights(self) -> dict[str, torch.Tensor]:
        weights: dict[str, torch.Tensor] = self.model.state_dict()
        for name, value in weights.items():
            if not torch.isfinite(value).all():
                raise FloatingPointError(f"the weights {name} are not finite any more")
        return weights

    def _write(self, name: str, data: dict[str, Any]) -> None:
        path = Path(self.save_dir) / name
        try:
            with write_atomic(path, "wb") as file:
                torch.save(data, file)
        except (InputError, RuntimeError) as error:
            # torch turns a failed write into a RuntimeError of its own.
            free = shutil.disk_usage(self.save_dir).free // 2**20
            raise InputError(
                f"{path}: the checkpoint can't be written, {free} MiB are free there; the former "
                "checkpoint, if any, is whole: make room, then go on with --resume "
                f"({error})"
            ) from error

    def has_checkpoint(self) -> bool:
        return (Path(self.save_dir) / LAST).is_file()

    def get_checkpoint_file(self) -> str:
        return str(Path(self.save_dir) / LAST)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint, as Detectron2 does.

        Parameters
        ----------
        path
            A file, a URL or a `detectron2://` name.
        checkpointables
            Empty for weights to begin with, of which what fits is taken; None for a
            checkpoint of this very network, which must fit as a whole.

        Raises
        ------
        InputError
            If the file is not a checkpoint, is damaged, or doesn't fit the network.
        """
        self._whole = checkpointables is None
        try:
            return super().load(path, checkpointables)
        except _DAMAGE as error:
            raise InputError(
                f"{path}: can't be loaded as weights ({_first_line(error)}); it may be cut off or "
                "not be a checkpoint of this network: fetch it again or name another"
            ) from error

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        lacking = set(self.checkpointables) - set(checkpoint)
        if self._whole and lacking:
            raise ValueError(f"weights alone, without {', '.join(lacking)}")
        result = super()._load_model(checkpoint)
        # Where the shape is another, the name counts as missing too.
        missing, learnt = result.missing_keys, dict(self.model.named_parameters())
        if missing and (self._whole or learnt.keys() <= set(missing)):
            raise ValueError(
                f"{len(missing)} of the network's {len(self.model.state_dict())} weights are "
                f"missing or have another shape, {missing[0]} first"
            )
        return result

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            with open(filename, "rb") as file:
                _ArraysAlone(file, encoding="latin1").load()
        loaded: dict[str, Any] = super()._load_file(filename)
        return loaded

    def _torch_load(self, f: str) -> Any:
        # Weights are data: nothing in the file is run.
        return torch.load(f, map_location="cpu", weights_only=True)

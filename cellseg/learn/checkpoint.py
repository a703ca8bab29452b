"""Checkpoints that are whole or absent, in the run's folder."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch

from cellseg.errors import InputError
from cellseg.files import write_atomic
from cellseg.network.weights import DAMAGE, read_weights, reason, take_weights, weights_errors
from cellseg.runs import BEST, LAST


class Checkpointable(Protocol):
    """What is saved beside the weights, and comes back on resuming."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take the state back."""


class RunCheckpointer:
    """A run's checkpoints: weights to predict with, and one to resume from that is replaced whole.

    A run killed while it saves keeps the former checkpoint; a full disk is one line.
    """

    def __init__(
        self, network: torch.nn.Module, folder: str | Path = "", **checkpointables: Checkpointable
    ) -> None:
        """
        Parameters
        ----------
        network
            The network that learns.
        folder
            The run's.
        checkpointables
            What else a resumable checkpoint has, by name.
        """
        self.network = network
        self.folder = Path(folder)
        self.checkpointables = checkpointables

    def save_weights(self, name: str, network: torch.nn.Module, **extra: Any) -> None:
        """Save a network's weights and `extra` to `name`, in the run's folder.

        Raises
        ------
        FloatingPointError
            If the weights are not finite, as after a step that went too far. Nothing is
            written then, so that the last good file stays.
        """
        self._write(name, {"model": _finite_state_dict(network), **extra})

    def save_last(self) -> None:
        """Save all that `--resume` needs.

        Raises
        ------
        FloatingPointError
            As `save_weights` does.
        """
        state = {
            name: checkpointable.state_dict()
            for name, checkpointable in self.checkpointables.items()
        }
        self._write(LAST, {"model": _finite_state_dict(self.network), **state})

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
        with weights_errors(self.last):
            data = read_weights(self.last)
            missing = {"model", *self.checkpointables} - set(data)
            if missing:
                raise ValueError(f"without {', '.join(sorted(missing))}")
            take_weights(self.network, data["model"], strict=True)
            for name, checkpointable in self.checkpointables.items():
                checkpointable.load_state_dict(data[name])

    def best_score(self) -> float:
        """Return the AP50, 0 to 100, of the run's best weights; minus infinity if it has none.

        Raises
        ------
        InputError
            If the file is damaged.
        """
        path = self.folder / BEST
        if not path.is_file():
            return -math.inf
        try:
            return float(read_weights(path)["AP50"])
        except DAMAGE as error:
            raise InputError(
                f"{path}: damaged ({reason(error)}), so the best score so far is not known; "
                "delete it to go on without"
            ) from error


def _finite_state_dict(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = network.state_dict()
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise FloatingPointError(f"the weights {name} are not finite any more")
    return weights

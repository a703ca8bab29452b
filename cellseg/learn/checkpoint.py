"""Checkpoints in the run folder, written atomically."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch

from cellseg.errors import InputError
from cellseg.files import write_atomic
from cellseg.network.weights import DAMAGE, read_weights, reason, take_weights, weights_errors
from cellseg.runs import BEST, LAST, check_run_folder, rescale_score
from cellseg.text import show


class Checkpointable(Protocol):
    """State that is saved with the weights and restored when a run is resumed."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


def take_number(
    state: dict[str, Any], name: str, low: float, high: float = math.inf, whole: bool = False
) -> Any:
    """Return a number of a checkpoint. Raise ValueError if it is none, or not in its range."""
    value = state[name]
    types = (int,) if whole else (int, float)
    if type(value) not in types or not low <= value <= high:
        number = "a whole number" if whole else "a number"
        raise ValueError(f"its {name} is {show(value)}, expected {number} from {low} to {high}")
    return value


class RunCheckpointer:
    """Saves and restores the checkpoints of a run.

    A process killed while saving leaves the previous checkpoint intact.

    Parameters
    ----------
    network
        The trained network.
    folder
        The run folder.
    checkpointables
        Further state in the resumable checkpoint, by name.
    """

    def __init__(
        self, network: torch.nn.Module, folder: str | Path = "", **checkpointables: Checkpointable
    ) -> None:
        self.network = network
        self.folder = Path(folder)
        self.checkpointables = checkpointables

    def save_weights(self, name: str, network: torch.nn.Module, **extra: Any) -> None:
        """Save the weights of a network, and `extra`, to the file `name`.

        Raises FloatingPointError, and writes nothing, if the weights are not finite.
        """
        self._write(name, {"model": _finite_state_dict(network), **extra})

    def save_last(self) -> None:
        """Save the resumable checkpoint. Raises FloatingPointError as `save_weights` does."""
        state = {name: part.state_dict() for name, part in self.checkpointables.items()}
        self._write(LAST, {"model": _finite_state_dict(self.network), **state})

    def _write(self, name: str, data: dict[str, Any]) -> None:
        path = self.folder / name
        check_run_folder(self.folder)  # which would be created, without the config
        try:
            with write_atomic(path, "wb") as file:
                torch.save(data, file)
        except (InputError, RuntimeError) as error:
            # torch raises a RuntimeError when a write fails.
            free = shutil.disk_usage(self.folder).free // 2**20
            raise InputError(
                f"{path}: the checkpoint can't be written ({free} MiB free); the previous one, if "
                f"any, is intact: free disk space, then resume with --resume ({error})"
            ) from error

    @property
    def last(self) -> Path:
        """Path of the resumable checkpoint, which need not exist."""
        return self.folder / LAST

    def resume(self) -> None:
        """Load the resumable checkpoint. Raise InputError if damaged or of another network."""
        advice = (
            "if keys of the network were changed, leave them as they were; if the file is damaged, "
            "start a new run without --resume"
        )
        with weights_errors(self.last, advice):
            data = read_weights(self.last)
            missing = {"model", *self.checkpointables} - set(data)
            if missing:
                raise ValueError(f"without {', '.join(sorted(missing))}")
            take_weights(self.network, data["model"], strict=True)
            for name, part in self.checkpointables.items():
                part.load_state_dict(data[name])

    def best_score(self) -> float:
        """Return the AP50, 0 to 1, of the best weights; minus infinity if there are none.

        Raises InputError if the file is damaged.
        """
        path = self.folder / BEST
        if not path.is_file():
            return -math.inf
        try:
            saved = read_weights(path)
            return rescale_score(take_number(saved, "AP50", 0, 100), saved)
        except DAMAGE as error:
            raise InputError(
                f"{path}: damaged ({reason(error)}), the best score can't be read; delete the file "
                "to continue without it"
            ) from error


def _finite_state_dict(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = network.state_dict()
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise FloatingPointError(f"the weights {name} are not finite")
    return weights

"""Checkpoints that are whole or absent, in the run's folder."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from cellseg.errors import InputError
from cellseg.files import write_atomic
from cellseg.runs import LAST


class RunCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with one resumable checkpoint that is replaced whole.

    A run killed while it saves keeps the former checkpoint; a full disk is one line.
    """

    def save_weights(self, name: str, **extra: Any) -> None:
        """Save the network's weights and `extra` to `name`, in the run's folder."""
        self._write(name, {"model": self.model.state_dict(), **extra})

    def save_last(self) -> None:
        """Save all that `--resume` needs: weights, optimizer, schedule, iteration."""
        state = {key: value.state_dict() for key, value in self.checkpointables.items()}
        self._write(LAST, {"model": self.model.state_dict(), **state})

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

        Raises
        ------
        InputError
            If the file is not a checkpoint, or is damaged.
        """
        try:
            return super().load(path, checkpointables)
        except (
            OSError,
            EOFError,
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            AssertionError,
            pickle.UnpicklingError,
        ) as error:
            reason = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise InputError(
                f"{path}: can't be loaded as weights ({reason}); it may be cut off or not be a "
                "checkpoint: fetch it again or name another"
            ) from error

    def _torch_load(self, f: str) -> Any:
        # Weights are data: nothing in the file is run.
        return torch.load(f, map_location="cpu", weights_only=True)

"""What is predicted is kept tile by tile, so that a prediction that was stopped goes on.

A folder beside the results holds what the tiles gave, a line each, in as many files as
processes wrote: `{"image", "tile", "cells" or "error"}`. When all tiles are there, they are
merged into the results, and the folder goes.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from fvcore.common.config import CfgNode

from cellseg.errors import InputError
from cellseg.files import read_json, write_json
from cellseg.learn.config import flatten
from cellseg.predict.images import ListedImage
from cellseg.predictions import Predictions

_SIGNATURE = "made-from.json"

Key = tuple[int, int]  # the number of an image, and that of its tile


class Journal:
    """The tiles of a prediction that are done."""

    def __init__(self, folder: Path, signature: dict[str, Any], begin: bool = True) -> None:
        """
        Parameters
        ----------
        folder
            Where it is kept. What is there goes, if it has another signature.
        signature
            All that decides what the tiles give.
        begin
            Whether the folder is to be made; otherwise another process does that.
        """
        self.folder = folder
        # A sum of it: JSON itself has neither infinity nor every file's name.
        self._signature = hashlib.sha256(json.dumps(signature).encode()).hexdigest()
        if begin and _read_signature(folder) != self._signature:
            self.remove()
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                raise InputError(
                    f"{folder}: can't be made ({error.strerror}); choose another --output"
                ) from None
            write_json(folder / _SIGNATURE, self._signature)

    def check(self) -> None:
        """Check that the folder is there, and is of this signature.

        Raises
        ------
        InputError
            If not.
        """
        if _read_signature(self.folder) != self._signature:
            raise InputError(
                f"{self.folder}: not what machine 0 began; all machines need the same command, "
                "and the runs, images and results at the same place of a disk that they share"
            )

    def done(self) -> set[Key]:
        """Tell which tiles are there."""
        return {key for key, _ in self._entries()}

    def faults(self) -> dict[int, str]:
        """Tell what is wrong with the images of which a tile could not be had."""
        faults: dict[int, str] = {}
        for (number, _), line in self._entries():
            if "error" in line:
                faults.setdefault(number, line["error"])
        return faults

    def append(self, key: Key, found: Predictions | InputError, file: IO[str]) -> None:
        """Write what a tile gave to a file that `open` gave."""
        line: dict[str, Any] = {"image": key[0], "tile": key[1]}
        if isinstance(found, InputError):
            line["error"] = str(found)
        else:
            line["cells"] = {
                "size": found.size,
                "boxes": found.boxes.tolist(),
                "scores": found.scores.tolist(),
                "classes": found.classes.tolist(),
                "masks": [mask["counts"] for mask in found.masks],
            }
        file.write(json.dumps(line) + "\n")
        file.flush()

    def open(self, process: int) -> IO[str]:
        """Open a file for one process to append to."""
        number = len(list(self.folder.glob("*.jsonl")))
        return (self.folder / f"{number:04d}-{process}.jsonl").open("x", encoding="utf-8")

    def entries(self) -> Iterator[tuple[Key, Predictions | InputError]]:
        """Give what the tiles gave, by image and tile; one image's at a time is held."""
        last: Key | None = None
        for key, line in self._entries():
            if key != last:  # a tile may have been done twice
                yield key, _parsed(line)
            last = key

    def _entries(self) -> Iterator[tuple[Key, dict[str, Any]]]:
        # Each file is in the order of the tiles.
        return heapq.merge(*map(_lines, sorted(self.folder.glob("*.jsonl"))), key=lambda e: e[0])

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def signature(
    weights: Sequence[Path], cfgs: Sequence[CfgNode], images: Sequence[ListedImage]
) -> dict[str, Any]:
    """Give all that decides what is found: weights, configs, images and how they are listed."""
    configs = [flatten(cfg) for cfg in cfgs]
    for keys in configs:
        for key in ("TEST.BATCH", "OUTPUT_DIR"):
            del keys[key]
        # One GPU finds what another does, but a CPU rounds in its own way.
        keys["MODEL.DEVICE"] = keys["MODEL.DEVICE"].partition(":")[0]
    return {
        "weights": list(map(_state, weights)),
        "configs": configs,
        "images": [[_state(image.path), image.level, image.size] for image in images],
    }


def _state(path: Path) -> list[Any]:
    """Give a file's place, and what changes when it is written anew."""
    try:
        stat = path.stat()
    except OSError:
        return [str(path.absolute())]
    # The time of change can't be set back, as a copy does with that of modification.
    return [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read_signature(folder: Path) -> Any:
    try:
        return read_json(folder / _SIGNATURE, "signature", "predict again")
    except InputError:
        return None


def _lines(path: Path) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Read the whole lines of a file.

    A process that was killed may have left a part of one, and a machine that lost its power
    a damaged one.
    """
    with path.open("rb") as file:
        for text in file:
            if not text.endswith(b"\n"):
                continue
            try:
                line = json.loads(text)
            except ValueError:
                continue
            yield (line["image"], line["tile"]), line


def _parsed(line: dict[str, Any]) -> Predictions | InputError:
    if "error" in line:
        return InputError(line["error"])
    cells = line["cells"]
    height, width = cells["size"]
    return Predictions(
        (height, width),
        np.array(cells["boxes"], np.float32).reshape(-1, 4),
        np.array(cells["scores"], np.float32),
        np.array(cells["classes"], np.int64),
        [{"size": [height, width], "counts": counts} for counts in cells["masks"]],
    )

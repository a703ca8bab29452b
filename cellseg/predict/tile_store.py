"""What is predicted is kept tile by tile, so that a prediction that was stopped goes on.

A folder beside the results holds what the tiles gave, a line each, in as many files as
processes wrote: `{"image", "tile", "cells" or "error"}`. When all tiles are there, they are
merged into the results, and the folder goes. What has an error is tried again the next time:
memory or a network's disk may have been short for that moment alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from fvcore.common.config import CfgNode

from cellseg.config import flatten
from cellseg.errors import InputError
from cellseg.files import read_json, write_json
from cellseg.images import ImageRecord
from cellseg.predictions import Predictions

_FINGERPRINT_FILE = "made-from.json"

# The fingerprint, one that was not finished, and what the tiles gave.
_OWN_FILES = re.compile(
    rf"{re.escape(_FINGERPRINT_FILE)}|\.{re.escape(_FINGERPRINT_FILE)}\..*|\d+-\d+\.jsonl"
)

TileKey = tuple[int, int]  # the number of an image, and that of its tile


class TileStore:
    """The tiles of a prediction that are done."""

    def __init__(self, folder: Path, fingerprint: dict[str, Any], create: bool = True) -> None:
        """
        Parameters
        ----------
        folder
            Where it is kept. What is there goes, if it has another fingerprint.
        fingerprint
            All that decides what the tiles give.
        create
            Whether the folder is to be made; otherwise another process does that.

        Raises
        ------
        InputError
            If the folder can't be made, or holds what no tile store has.
        """
        self.folder = folder
        # A sum of it: JSON itself has neither infinity nor every file's name.
        self._fingerprint = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()
        if create and _read_fingerprint(folder) != self._fingerprint:
            other_files = sorted(
                p.name for p in folder.glob("*") if not _OWN_FILES.fullmatch(p.name)
            )
            if other_files:
                raise InputError(
                    f"{folder}: holds {other_files[0]}, but is where inference.py keeps the tiles "
                    "that are done; move it away, or choose another --output"
                )
            self.remove()
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                raise InputError(
                    f"{folder}: can't be made ({error.strerror}); choose another --output"
                ) from None
            write_json(folder / _FINGERPRINT_FILE, self._fingerprint)

    def check(self) -> None:
        """Check that the folder is there, and is of this fingerprint.

        Raises
        ------
        InputError
            If not.
        """
        if _read_fingerprint(self.folder) != self._fingerprint:
            raise InputError(
                f"{self.folder}: not what machine 0 began; all machines need the same command, "
                "and the runs, images and results at the same place of a disk that they share"
            )

    def done(self) -> set[TileKey]:
        """Return which tiles are there, without those that could not be had."""
        return {key for key, line in self._entries() if "error" not in line}

    def errors(self) -> dict[TileKey, str]:
        """Return why the tiles that could not be had could not, by image and tile."""
        return {key: line["error"] for key, line in self._entries() if "error" in line}

    def append(self, key: TileKey, result: Predictions | InputError, file: IO[str]) -> None:
        """Write what a tile gave to a file that `open` gave."""
        line: dict[str, Any] = {"image": key[0], "tile": key[1]}
        if isinstance(result, InputError):
            line["error"] = str(result)
        else:
            line["cells"] = {
                "size": result.size,
                "boxes": result.boxes.tolist(),
                "scores": result.scores.tolist(),
                "classes": result.classes.tolist(),
                "masks": [mask["counts"] for mask in result.masks],
            }
        file.write(json.dumps(line) + "\n")
        file.flush()

    def open(self, process: int) -> IO[str]:
        """Open a file for one process to append to."""
        number = len(list(self.folder.glob("*.jsonl")))
        return (self.folder / f"{number:04d}-{process}.jsonl").open("x", encoding="utf-8")

    def entries(self) -> Iterator[tuple[TileKey, Predictions | InputError]]:
        """Return what the tiles gave, by image and tile; one image's at a time is held."""
        return ((key, _parse_line(line)) for key, line in self._entries())

    def _entries(self) -> Iterator[tuple[TileKey, dict[str, Any]]]:
        """Return a line for each tile, which may have been tried, and even done, several times."""
        # Each file is in the order of the tiles, and the files in that of time.
        files = map(_read_lines, sorted(self.folder.glob("*.jsonl")))
        for key, attempts in itertools.groupby(heapq.merge(*files, key=_key), key=_key):
            line: dict[str, Any] = {}
            for _, line in attempts:
                if "error" not in line:
                    break
            yield key, line

    def remove(self) -> None:
        """Remove the folder, and nothing in it that is not its own."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*"):
                if _OWN_FILES.fullmatch(path.name):
                    path.unlink()
            self.folder.rmdir()


def fingerprint(
    weights: Sequence[Path], cfgs: Sequence[CfgNode], images: Sequence[ImageRecord]
) -> dict[str, Any]:
    """Return all that decides what is found: weights, configs, images and how they are listed."""
    configs = [flatten(cfg) for cfg in cfgs]
    for keys in configs:
        for key in ("TEST.BATCH", "OUTPUT_DIR"):
            del keys[key]
        # One GPU finds what another does, but a CPU rounds in its own way.
        keys["MODEL.DEVICE"] = keys["MODEL.DEVICE"].partition(":")[0]
    return {
        "weights": list(map(_file_state, weights)),
        "configs": configs,
        "images": [[_file_state(image.path), image.level, image.size] for image in images],
    }


def _file_state(path: Path) -> list[Any]:
    """Return a file's place, and what changes when it is written again."""
    try:
        stat = path.stat()
    except OSError:
        return [str(path.absolute())]
    # The time of change can't be set back, as a copy does with that of modification.
    return [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read_fingerprint(folder: Path) -> Any:
    try:
        return read_json(folder / _FINGERPRINT_FILE, "signature", "predict again")
    except InputError:
        return None


def _key(entry: tuple[TileKey, dict[str, Any]]) -> TileKey:
    return entry[0]


def _read_lines(path: Path) -> Iterator[tuple[TileKey, dict[str, Any]]]:
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


def _parse_line(line: dict[str, Any]) -> Predictions | InputError:
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

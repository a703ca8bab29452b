"""Store predicted tiles on disk, so that a stopped prediction can resume.

A folder next to the results holds a JSON line for each tile, `{"image", "tile", "cells" or
"error"}`, in one file per process. When all tiles are stored, they are merged into the results
and the folder is removed. Tiles with an error are retried the next time: memory or a network
disk may have failed temporarily.
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

# The fingerprint, an unfinished one, and the tiles.
_OWN_FILES = re.compile(
    rf"{re.escape(_FINGERPRINT_FILE)}|\.{re.escape(_FINGERPRINT_FILE)}\..*|\d+-\d+\.jsonl"
)

TileKey = tuple[int, int]  # indices of the image and of its tile


class TileStore:
    """Store of the predicted tiles of a job."""

    def __init__(self, folder: Path, fingerprint: dict[str, Any], create: bool = True) -> None:
        """
        Parameters
        ----------
        folder
            Folder of the store. A store with another fingerprint is removed.
        fingerprint
            Everything that the predictions depend on.
        create
            Whether to create the folder; otherwise another process does.

        Raises
        ------
        InputError
            If the folder can't be created, or holds other files.
        """
        self.folder = folder
        # Stored as a hash: JSON can hold neither infinity nor every file name.
        self._fingerprint = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()
        if create and _read_fingerprint(folder) != self._fingerprint:
            other_files = sorted(
                p.name for p in folder.glob("*") if not _OWN_FILES.fullmatch(p.name)
            )
            if other_files:
                raise InputError(
                    f"{folder}: holds {other_files[0]}, but is the tile store of inference.py; "
                    "move it away or choose another --output"
                )
            self.remove()
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                raise InputError(
                    f"{folder}: can't be created ({error.strerror}); choose another --output"
                ) from None
            write_json(folder / _FINGERPRINT_FILE, self._fingerprint)

    def check(self) -> None:
        """Raise InputError unless the folder exists and has this fingerprint."""
        if _read_fingerprint(self.folder) != self._fingerprint:
            raise InputError(
                f"{self.folder}: not the tile store that machine 0 created; all machines need the "
                "same command and a shared disk with runs, images and results at the same paths"
            )

    def done(self) -> set[TileKey]:
        """Return the keys of the predicted tiles."""
        return {key for key, line in self._entries() if "error" not in line}

    def errors(self) -> dict[TileKey, str]:
        """Return the errors of failed tiles, by key."""
        return {key: line["error"] for key, line in self._entries() if "error" in line}

    def append(self, key: TileKey, result: Predictions | InputError, file: IO[str]) -> None:
        """Write the result of a tile to a file from `open`."""
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
        """Create a file for one process to append to."""
        number = len(list(self.folder.glob("*.jsonl")))
        return (self.folder / f"{number:04d}-{process}.jsonl").open("x", encoding="utf-8")

    def entries(self) -> Iterator[tuple[TileKey, Predictions | InputError]]:
        """Yield the results of the tiles, sorted by key, one at a time in memory."""
        return ((key, _parse_line(line)) for key, line in self._entries())

    def _entries(self) -> Iterator[tuple[TileKey, dict[str, Any]]]:
        """Yield one line per tile, of one or more attempts: the first success or the last error."""
        # Each file is sorted by tile, and the files by time.
        files = map(_read_lines, sorted(self.folder.glob("*.jsonl")))
        for key, attempts in itertools.groupby(heapq.merge(*files, key=_key), key=_key):
            line: dict[str, Any] = {}
            for _, line in attempts:
                if "error" not in line:
                    break
            yield key, line

    def remove(self) -> None:
        """Remove the store; other files in the folder are kept."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*"):
                if _OWN_FILES.fullmatch(path.name):
                    path.unlink()
            self.folder.rmdir()


def fingerprint(
    weights: Sequence[Path], cfgs: Sequence[CfgNode], images: Sequence[ImageRecord]
) -> dict[str, Any]:
    """Return everything that the predictions depend on: weights, configs and images."""
    configs = [flatten(cfg) for cfg in cfgs]
    for keys in configs:
        for key in ("TEST.BATCH", "OUTPUT_DIR"):
            del keys[key]
        # All GPUs give the same result, but a CPU rounds differently.
        keys["MODEL.DEVICE"] = keys["MODEL.DEVICE"].partition(":")[0]
    return {
        "weights": list(map(_file_state, weights)),
        "configs": configs,
        "images": [
            [_file_state(image.path), image.level, image.size, image.mpp] for image in images
        ],
    }


def _file_state(path: Path) -> list[Any]:
    """Return a file's path, size and times."""
    try:
        stat = path.stat()
    except OSError:
        return [str(path.absolute())]
    # Unlike the modification time, the change time can't be set back, for example by a copy.
    return [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read_fingerprint(folder: Path) -> Any:
    with contextlib.suppress(InputError):
        return read_json(folder / _FINGERPRINT_FILE, "fingerprint", "predict again")
    return None


def _key(entry: tuple[TileKey, dict[str, Any]]) -> TileKey:
    return entry[0]


def _read_lines(path: Path) -> Iterator[tuple[TileKey, dict[str, Any]]]:
    """Yield the complete lines of a file: a killed process or a power cut may damage some."""
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

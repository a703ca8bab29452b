"""Store predicted tiles on disk, so that a stopped prediction can resume.

A folder next to the results holds a line for each tile, `{"image", "tile", "cells" or "error"}` as
JSON after its CRC-32, in one file per process. When all tiles are stored, they are merged into the
results and the folder is removed. Tiles with an error are retried the next time: memory or a
network disk may have failed temporarily. So are tiles whose line is damaged.

One command at a time uses a store: it locks a file in the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import json
import os
import platform
import re
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from fvcore.common.config import CfgNode

from cellseg.config import flatten
from cellseg.errors import InputError
from cellseg.files import lock_file, read_json, write_json
from cellseg.images import ImageRecord
from cellseg.predictions import Predictions

_FINGERPRINT_FILE = "made-from.json"

_LOCK_FILE = "in-use-by"

# The lock, the fingerprint, an unfinished one, and the tiles.
_OWN_FILES = re.compile(
    rf"{_LOCK_FILE}|{re.escape(_FINGERPRINT_FILE)}|\.{re.escape(_FINGERPRINT_FILE)}\..*"
    r"|\d+-\d+\.jsonl"
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
            Whether to create and lock the folder; otherwise another process does.

        Raises
        ------
        InputError
            If the folder can't be created, holds other files, or another command uses it.
        """
        self.folder = folder
        # Stored as a hash: JSON can hold neither infinity nor every file name.
        self._fingerprint = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()
        self._unlock: Callable[[], object] | None = None
        if not create:
            return
        other_files = sorted(p.name for p in folder.glob("*") if not _OWN_FILES.fullmatch(p.name))
        if other_files and _read_fingerprint(folder) != self._fingerprint:
            raise InputError(
                f"{folder}: holds {other_files[0]}, but is the tile store of inference.py; "
                "move it away or choose another --output"
            )
        lock = _lock(folder)
        if lock is not None:
            self._unlock = weakref.finalize(self, os.close, lock)
        if _read_fingerprint(folder) != self._fingerprint:
            self._remove_tiles()
            write_json(folder / _FINGERPRINT_FILE, self._fingerprint)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process; the lock stays with this one."""
        return {**self.__dict__, "_unlock": None}

    def check(self) -> None:
        """Raise InputError unless the folder exists and has this fingerprint."""
        if _read_fingerprint(self.folder) != self._fingerprint:
            raise InputError(
                f"{self.folder}: not the tile store of this prediction; another one has replaced "
                "it, or of several machines, they need the same command and a shared disk with "
                "runs, images and results at the same paths"
            )

    def done(self) -> set[TileKey]:
        """Return the keys of the predicted tiles."""
        return {key for key, line in self._entries() if "error" not in line}

    def n_damaged(self) -> int:
        """Return the number of damaged lines, which are ignored."""
        return sum(line is None for path in self._files() for line in _read_lines(path))

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
                "limited_by": result.limited_by,
            }
        text = json.dumps(line)
        file.write(f"{zlib.crc32(text.encode()):08x} {text}\n")
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
        files = (filter(None, _read_lines(path)) for path in self._files())
        for key, attempts in itertools.groupby(heapq.merge(*files, key=_key), key=_key):
            line: dict[str, Any] = {}
            for _, line in attempts:
                if "error" not in line:
                    break
            yield key, line

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def remove(self) -> None:
        """Remove the store and its lock; other files in the folder are kept."""
        self._remove_tiles()
        with contextlib.suppress(OSError):
            (self.folder / _LOCK_FILE).unlink(missing_ok=True)
            self.folder.rmdir()
        if self._unlock:
            self._unlock()

    def _remove_tiles(self) -> None:
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*"):
                if _OWN_FILES.fullmatch(path.name) and path.name != _LOCK_FILE:
                    path.unlink()


def _lock(folder: Path) -> int | None:
    """Create a folder if needed, and lock it as `lock_file` does."""
    note = f"process {os.getpid()} on {platform.node()}"
    for _ in range(100):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return lock_file(folder / _LOCK_FILE, note)
        except FileNotFoundError:  # just removed by a command that has ended
            continue
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another prediction uses it ({error}); wait until it has ended, or "
                "choose another --output"
            ) from None
        except OSError as error:
            raise InputError(
                f"{folder}: can't be created ({error.strerror}); choose another --output"
            ) from None
    raise InputError(f"{folder}: can't be created; choose another --output")


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
        "store": 2,  # version of its format
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


def _read_lines(path: Path) -> Iterator[tuple[TileKey, dict[str, Any]] | None]:
    """Yield the lines of a file by key, None for a damaged one, and no truncated one at its end.

    A killed process truncates a line; a disk or a power cut damages it.
    """
    with path.open("rb") as file:
        for text in file:
            if not text.endswith(b"\n"):
                continue
            crc, _, content = text[:-1].partition(b" ")
            if crc != f"{zlib.crc32(content):08x}".encode():
                yield None
                continue
            line = json.loads(content)
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
        limited_by=tuple(cells["limited_by"]),
    )

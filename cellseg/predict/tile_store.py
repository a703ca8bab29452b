"""Store predicted tiles on disk, so that a stopped prediction can resume.

A folder next to the results holds a file with a line for each predicted tile,
`{"image", "tile", "cells"}` as JSON after its CRC-32, in the order in which they were predicted.
When all tiles are stored, they are merged into the results and the folder is removed. Tiles whose
line is damaged are predicted again.

One command at a time uses a store: it locks a file in the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import weakref
import zlib
from collections.abc import Callable, Iterator, KeysView, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from fvcore.common.config import CfgNode

from cellseg.config import flatten
from cellseg.errors import InputError
from cellseg.files import LOCK, lock_file, read_json, write_json
from cellseg.images import ImageRecord
from cellseg.messages import plural, warn
from cellseg.predict.tiles import TilePlan
from cellseg.predictions import Predictions

_FINGERPRINT_FILE = "made-from.json"
_TILES_FILE = "tiles.jsonl"

# The lock, the fingerprint, an unfinished one, and the tiles, also those of earlier versions.
_OWN_FILES = re.compile(
    rf"{LOCK}|{re.escape(_FINGERPRINT_FILE)}|\.{re.escape(_FINGERPRINT_FILE)}\..*"
    rf"|{re.escape(_TILES_FILE)}|\d+-\d+\.jsonl"
)

TileKey = tuple[int, int]  # indices of the image and of its tile


class TileStore:
    """Store of the predicted tiles of a job.

    Attributes
    ----------
    n_damaged
        Number of damaged lines found in it.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        """
        Parameters
        ----------
        folder
            Folder of the store, which is created and locked. Tiles with another fingerprint are
            removed, with a warning.
        fingerprint
            Everything that the predictions depend on: `tiles_fingerprint`.

        Raises
        ------
        InputError
            If the folder can't be created, holds other files, or another command uses it.
        """
        self.folder = folder
        self.n_damaged = 0
        # Stored as a hash: JSON can hold neither infinity nor every file name.
        made_from = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()
        other_files = sorted(p.name for p in folder.glob("*") if not _OWN_FILES.fullmatch(p.name))
        if other_files and _read_fingerprint(folder) != made_from:
            raise InputError(
                f"{folder}: holds {other_files[0]}, but is the tile store of inference.py; "
                "move it away or choose another --output"
            )
        self._unlock = lock_folder(folder)
        if _read_fingerprint(folder) != made_from:
            if n_tiles := _count_lines(folder / _TILES_FILE):
                n = plural(n_tiles, "predicted tile")
                warn(f"{folder}: {n} of other flags, weights or images removed")
            self._remove_tiles()
            write_json(folder / _FINGERPRINT_FILE, made_from)
        self._file = (folder / _TILES_FILE).open("a+b")
        self.close = weakref.finalize(self, _close, self._file, self._unlock)
        self._places: dict[TileKey, int] = {}  # where its line begins in the file
        self._read_places()

    def _read_places(self) -> None:
        """Find the lines of the tiles; remove a truncated one at the end, of a killed process."""
        place = 0
        self._file.seek(0)
        for text in self._file:
            if not text.endswith(b"\n"):
                self._file.truncate(place)
                break
            if (line := _parse_line(text)) is None:
                self.n_damaged += 1
            else:
                self._places.setdefault((line["image"], line["tile"]), place)
            place += len(text)

    def done(self) -> KeysView[TileKey]:
        """Return the keys of the predicted tiles."""
        return self._places.keys()

    def append(self, key: TileKey, predictions: Predictions) -> None:
        """Add the predictions of a tile; the first ones of a tile count."""
        line = {
            "image": key[0],
            "tile": key[1],
            "cells": {
                "size": predictions.size,
                "boxes": predictions.boxes.tolist(),
                "scores": predictions.scores.tolist(),
                "classes": predictions.classes.tolist(),
                "masks": [mask["counts"] for mask in predictions.masks],
                "limited_by": predictions.limited_by,
            },
        }
        text = json.dumps(line).encode()
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._file.flush()
        self._places.setdefault(key, place)

    def entries(self) -> Iterator[tuple[TileKey, Predictions]]:
        """Yield the predictions of the tiles, sorted by key, one at a time in memory.

        Raises InputError if a line was damaged meanwhile.
        """
        for key in sorted(self._places):
            self._file.seek(self._places[key])
            if (line := _parse_line(self._file.readline())) is None:
                raise InputError(
                    f"{self.folder}: damaged while it was in use; run the same command again"
                )
            yield key, _to_predictions(line["cells"])

    def remove(self) -> None:
        """Remove the store and its lock; other files in the folder are kept."""
        self._remove_tiles()
        remove_lock(self.folder)
        self.close()

    def _remove_tiles(self) -> None:
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*"):
                if _OWN_FILES.fullmatch(path.name) and path.name != LOCK:
                    path.unlink()


def _count_lines(path: Path) -> int:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return sum(1 for _ in file)
    return 0


def _close(file: IO[bytes], unlock: Callable[[], object]) -> None:
    try:
        with contextlib.suppress(OSError):  # a full disk, which append has said
            file.close()
    finally:
        unlock()


def lock_folder(folder: Path) -> Callable[[], object]:
    """Create a folder if needed, and lock it with a file in it; return what unlocks it.

    Raises InputError if the folder can't be created, or another command has locked it.
    """
    for _ in range(100):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return lock_file(folder / LOCK)
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


def remove_lock(folder: Path) -> None:
    """Remove the lock of a folder, and the folder if it is empty."""
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def tiles_fingerprint(
    weights: Sequence[Path],
    cfgs: Sequence[CfgNode],
    images: Sequence[ImageRecord],
    plans: Sequence[TilePlan],
) -> dict[str, Any]:
    """Return what the predictions of tiles depend on: weights, configs, images and tiles."""
    configs = _configs(cfgs, "TEST.MASK_IOU", "TEST.ACROSS_CLASSES")  # of merging them
    for keys in configs:
        # Tiles of a GPU and a CPU, which round differently, are not mixed in an image.
        keys["MODEL.DEVICE"] = keys["MODEL.DEVICE"].partition(":")[0]
    return {
        "store": 4,  # version of its format and of the tiles that follow from the rest
        "weights": list(map(file_state, weights)),
        "configs": configs,
        "images": [
            [file_state(image.path), image.level, image.size, image.mpp] for image in images
        ],
        # Without parts, they follow from the rest.
        "parts": [plan.parts for plan in plans if plan.parts is not None],
    }


def results_fingerprint(weights: Sequence[Path], cfgs: Sequence[CfgNode]) -> dict[str, Any]:
    """Return what the results of any image depend on: weights and configs, but not the device."""
    return {
        "weights": list(map(file_state, weights)),
        "configs": _configs(cfgs, "MODEL.DEVICE"),
    }


def _configs(cfgs: Sequence[CfgNode], *without: str) -> list[dict[str, Any]]:
    """Return the keys of configs on which results depend, without some more."""
    left_out = {"TEST.BATCH", "OUTPUT_DIR", *without}
    return [
        {key: value for key, value in flatten(cfg).items() if key not in left_out} for cfg in cfgs
    ]


def file_state(path: Path) -> list[Any]:
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


def _parse_line(text: bytes) -> dict[str, Any] | None:
    """Return a line of the file, None if it is damaged, as by a disk or a power cut."""
    crc, _, content = text[:-1].partition(b" ")
    if crc != b"%08x" % zlib.crc32(content):
        return None
    line: dict[str, Any] = json.loads(content)
    return line


def _to_predictions(cells: dict[str, Any]) -> Predictions:
    height, width = cells["size"]
    return Predictions(
        (height, width),
        np.array(cells["boxes"], np.float32).reshape(-1, 4),
        np.array(cells["scores"], np.float32),
        np.array(cells["classes"], np.int64),
        [{"size": [height, width], "counts": counts} for counts in cells["masks"]],
        limited_by=tuple(cells["limited_by"]),
    )

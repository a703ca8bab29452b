"""Cells as label maps: `class<K>.tif`, int32, zlib, in the layout that `annotation.py` reads.

Ids continue across the classes of an image; a class that does not occur has no file. Strips
are painted from RLE runs, so that memory follows the cells, not the pixels.

Where cells of one class overlap, pixels go to the cell with the higher score, at equal scores
and without scores to the earlier one. Cells of different classes are in different files.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.files import write_atomic
from cellseg.rle import RLE, Ints, MaskRuns, cut_at_columns, decode, ranges

_STRIP = 1 << 20  # pixels of a strip: 4 MB painted at a time
_SOFTWARE = "cellseg"
_CLASS_FILE = re.compile(r"class\d+\.tif", re.IGNORECASE)


def write_labels(
    folder: str | os.PathLike[str],
    size: tuple[int, int],
    masks: Sequence[RLE],
    classes: NDArray[Any],
    scores: NDArray[Any] | None = None,
) -> int:
    """Write the cells of one image as `class<K>.tif`; remove other class files of the folder.

    Parameters
    ----------
    folder
        The output folder; it is created if necessary.
    size
        Height and width of the image in pixels.
    masks
        N compressed RLEs.
    classes
        `(N,)` integers, 0…K−1; class k goes to `class<k + 1>.tif`. Ids begin with 1, in the
        order of class, then of `masks`.
    scores
        `(N,)`; overlapping pixels go to the highest score, of equal ones to the first.

    Returns
    -------
    The number of cells that are hidden under others.

    Raises
    ------
    InputError
        If a file can't be written, or the folder is one of a data set, with an image in it, or has
        class files of another program.
    ValueError
        If a mask isn't an RLE of this size.
    """
    folder = Path(folder)
    former = _former_class_files(folder)
    classes = np.asarray(classes)
    n_hidden, first_id = 0, 1
    written = set()
    for k in np.unique(classes).tolist():
        members = np.flatnonzero(classes == k).tolist()
        mask_runs = decode([masks[n] for n in members], size)
        rank = np.zeros(len(members)) if scores is None else -np.asarray(scores)[members]
        best_first = np.argsort(rank, kind="stable")
        path = folder / f"class{k + 1}.tif"
        n_hidden += len(members) - _write_tiff(path, mask_runs, best_first, first_id)
        first_id += len(members)
        written.add(path.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: can't be written ({error.strerror}); choose another --output"
        ) from error
    try:
        for path in former:
            if path.name not in written:
                path.unlink()
    except OSError as error:
        raise InputError(
            f"{folder}: a class file of an earlier export can't be removed "
            f"({error.strerror}); choose another --output"
        ) from error
    return n_hidden


def _former_class_files(folder: Path) -> list[Path]:
    """Return the class files of an earlier export; raise InputError if others are there."""
    for image in sorted(folder.glob("image.*")):
        raise InputError(
            f"{folder}: holds {image.name}, so its class files belong to a data set; "
            "choose another --output"
        )
    try:
        former = [path for path in folder.iterdir() if _CLASS_FILE.fullmatch(path.name)]
    except FileNotFoundError:
        former = []
    except OSError as error:
        raise InputError(
            f"{folder}: can't be written ({error.strerror}); choose another --output"
        ) from None
    for path in former:
        if not _is_own(path):
            raise InputError(
                f"{path}: exists, but was not written by this program, so it isn't replaced; "
                "move it away, or choose another place with --output"
            )
    return former


def _is_own(path: Path) -> bool:
    """Return whether a file is empty, or a label map that `write_labels` wrote."""
    try:
        if path.is_file() and not path.stat().st_size:
            return True
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            # Earlier versions wrote no name.
            named = page.software or _SOFTWARE
            return (
                len(tiff.pages) == 1
                and page.dtype == np.int32
                and page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
                and not page.description
                and named == _SOFTWARE
            )
    except (OSError, ValueError, LookupError, TypeError, struct.error, tifffile.TiffFileError):
        return False


def _write_tiff(path: Path, mask_runs: MaskRuns, best_first: Ints, first_id: int) -> int:
    """Write one label map; return the number of masks that have a pixel in it."""
    height, width = mask_runs.size
    rows = max(1, min(height, _STRIP // width))
    seen = np.zeros(len(mask_runs) + 1, bool)

    def compressed() -> Iterator[bytes | bytearray]:
        for strip in paint_strips(mask_runs, best_first, rows):
            seen[strip] = True
            strip[strip > 0] += first_id - 1
            # libdeflate writes the format of zlib in a third of the time.
            yield imagecodecs.deflate_encode(strip.tobytes(), level=6)

    with (
        write_atomic(path, "wb") as file,
        # A classic TIFF ends at 4 GB; the compressed size isn't known in advance.
        tifffile.TiffWriter(file, bigtiff=height * width * 4 >= 1 << 32) as tiff,
    ):
        tiff.write(
            compressed(),
            shape=(height, width),
            dtype=np.int32,
            compression="zlib",
            rowsperstrip=rows,
            photometric="minisblack",
            metadata=None,
            software=_SOFTWARE,
        )
    return int(seen[1:].sum())


def paint_strips(mask_runs: MaskRuns, best_first: Ints, rows: int) -> Iterator[NDArray[np.int32]]:
    """Yield strips of the label map of masks: `(rows, W)` int32, the last one lower if need be.

    Parameters
    ----------
    mask_runs
        N masks; mask n has the label n + 1, background is 0.
    best_first
        `(N,)` order of the masks; overlapping pixels go to the first.
    rows
        Height of a strip in pixels.
    """
    height, width = mask_runs.size
    # The last ones first: of several assignments to one pixel, numpy keeps the last.
    order = best_first[::-1]
    rank = np.empty(len(mask_runs), np.int64)
    rank[order] = np.arange(len(mask_runs))
    strip, column, top, bottom, mask = _cut(mask_runs, rows)
    by_strip = np.lexsort((rank[mask], strip))
    bounds = np.searchsorted(strip[by_strip], np.arange(-(-height // rows) + 1))
    for number in range(len(bounds) - 1):
        begin = number * rows
        labels = np.zeros((min(rows, height - begin), width), np.int32)
        pieces = by_strip[bounds[number] : bounds[number + 1]]
        # In portions of about a strip's pixels, however many masks overlap.
        length = bottom[pieces] - top[pieces]
        part = np.cumsum(length) // _STRIP
        for some in np.split(pieces, np.flatnonzero(np.diff(part)) + 1):
            length = bottom[some] - top[some]
            at = ranges(top[some] - begin, length) * width + np.repeat(column[some], length)
            labels.reshape(-1)[at] = np.repeat(mask[some] + 1, length)
        yield labels


def _cut(mask_runs: MaskRuns, rows: int) -> tuple[Ints, ...]:
    """Cut runs at columns and strips; return strip, column, top, bottom and mask of each."""
    mask, column, top, bottom = cut_at_columns(mask_runs)
    first = top // rows
    n_strips = (bottom - 1) // rows - first + 1
    owner = np.repeat(np.arange(len(mask)), n_strips)
    strip = ranges(first, n_strips)
    top = np.maximum(top[owner], strip * rows)
    bottom = np.minimum(bottom[owner], (strip + 1) * rows)
    return strip, column[owner], top, bottom, mask[owner]

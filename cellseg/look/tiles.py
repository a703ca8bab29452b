"""Tiles of slides for the report page: a pyramid of their pixels, and their cells.

A page that is opened from disk can't fetch other files, but it can load scripts. So each tile is a
script that passes its content to the page, in the form in which the page itself contains small
images.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cellseg import rle
from cellseg.coarse import reduce_pixels
from cellseg.errors import InputError
from cellseg.files import safe_name
from cellseg.look.gallery import data_uri, encode_outlines
from cellseg.outline import trace
from cellseg.png import encode_jpeg
from cellseg.read.window import WindowedImage

PICTURE = 512  # px, sides of a tile of pixels
CELLS = 1024  # px, sides of a tile of cells at full resolution

_QUALITY = 82  # of JPEG


def tile_sizes() -> dict[str, int]:
    """Return the sides of the tiles for the page."""
    return {"picture": PICTURE, "cells": CELLS}


class TileFolder:
    """The tiles of a page, in `<page>-files/<hash of their content>` beside it.

    They are written into a temporary folder first, and a page names the hash: so a page always has
    its own tiles, also if the next one is never finished.
    """

    def __init__(self, page: Path) -> None:
        self._parent = page.parent / safe_name(f"{page.stem}-files")
        self._temporary: Path | None = None
        self._hash = hashlib.sha256()

    def __enter__(self) -> TileFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._parent.rmdir()  # if it is empty

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a tile, `<name>.js`. Raises InputError if that is not possible."""
        text = f'cellsegTile("{name}",{json.dumps(content, separators=(",", ":"))});\n'
        try:
            if self._temporary is None:
                self._parent.mkdir(parents=True, exist_ok=True)
                self._temporary = Path(tempfile.mkdtemp(".part", dir=self._parent))
                self._temporary.chmod(self._parent.stat().st_mode)  # mkdtemp makes private ones
            path = self._temporary / f"{name}.js"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="ascii")
        except OSError as error:
            raise InputError(
                f"{self._parent}: can't be written ({error.strerror or error}); make room or "
                "choose another place with --output"
            ) from error
        self._hash.update(text.encode("ascii"))

    def finish(self) -> str | None:
        """Give the folder its final name; return its path from the page, None without tiles."""
        if self._temporary is None:
            return None
        final = self._parent / self._hash.hexdigest()[:16]
        if not final.exists():
            self._temporary.rename(final)
            self._temporary = None
        return f"{self._parent.name}/{final.name}"

    def remove_former(self) -> None:
        """Remove the tiles of former pages, after the page was written, but no other files."""
        keep = self._hash.hexdigest()[:16]
        for folder in self._parent.glob("*"):
            named = re.fullmatch(r"[0-9a-f]{16}|tmp\w+\.part", folder.name)
            if not named or folder.name == keep:
                continue
            if all(path.suffix == ".js" for path in folder.rglob("*") if not path.is_dir()):
                shutil.rmtree(folder, ignore_errors=True)


def n_levels(size: tuple[int, int]) -> int:
    """Return the number of levels of a pyramid, each half the one before, the last in one tile."""
    return 1 + max(0, math.ceil(math.log2(max(size) / PICTURE)))


def write_pyramid(tiles: TileFolder, name: str, image: WindowedImage) -> NDArray[np.uint8]:
    """Write all levels of an image but the last, as `<name>/<level>/<column>_<row>`.

    The image is read in bands of the height of a tile, and of each level at most a band is in
    memory. Level l has `ceil(side / 2^l)` pixels a side; a tile has `PICTURE`, fewer at the right
    and bottom edge. Returns the last level, `(h, w, 3)` uint8 RGB.

    Raises InputError if the image can't be read or a tile can't be written.
    """
    height, width = image.size
    last = n_levels(image.size) - 1
    waiting: list[NDArray[np.uint8] | None] = [None] * (last + 1)

    def add(level: int, row: int, band: NDArray[np.uint8], is_end: bool) -> None:
        if level == last:
            waiting[last] = band
            return
        for column, left in enumerate(range(0, band.shape[1], PICTURE)):
            picture = data_uri(encode_jpeg(band[:, left : left + PICTURE], _QUALITY))
            tiles.write(f"{name}/{level}/{column}_{row}", {"picture": picture})
        half = reduce_pixels(band, 2)
        above = waiting[level]
        if row % 2 == 0 and not is_end:
            waiting[level] = half
            return
        waiting[level] = None
        joined = half if above is None else np.vstack([above, half])
        add(level + 1, row // 2, joined, is_end)

    bar = tqdm(
        range(0, height, PICTURE), desc="tiles", unit="row", leave=False, disable=None, position=1
    )
    for row, top in enumerate(bar):
        bottom = min(top + PICTURE, height)
        add(0, row, image.read((0, top, width, bottom)), bottom == height)
    picture = waiting[last]
    assert picture is not None
    return picture


def write_cells(tiles: TileFolder, name: str, sides: Sequence[rle.MaskRuns]) -> list[int]:
    """Write the outlines of an image's cells as `<name>/cells/<number>`.

    Tile `row * columns + column` has all cells that reach into its `CELLS` x `CELLS` pixels, as
    `{"cells": [{"ids": indices, "outlines": text}, …]}` for each of `sides`, the masks of the
    ground truth and of each of the results. Returns the numbers of the tiles with cells.
    """
    columns = math.ceil(sides[0].size[1] / CELLS)
    members = [_by_tile(rle.boxes_xyxy(masks), columns) for masks in sides]
    numbers = sorted({int(number) for tile, _ in members for number in np.unique(tile)})
    bar = tqdm(numbers, desc="outlines", unit="tile", leave=False, disable=None, position=1)
    for number in bar:
        cells = []
        for masks, (tile, cell) in zip(sides, members, strict=True):
            begin, end = np.searchsorted(tile, [number, number + 1])
            ids = cell[begin:end]
            outlines = encode_outlines(trace(rle.select_masks(masks, ids)))
            cells.append({"ids": ids.tolist(), "outlines": outlines})
        tiles.write(f"{name}/cells/{number}", {"cells": cells})
    return numbers


def _by_tile(boxes: NDArray[np.int64], columns: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each tile that a box reaches into, rising, and the index of the box there."""
    first, last = boxes[:, :2] // CELLS, (boxes[:, 2:] - 1) // CELLS
    n_wide, n_high = (last - first + 1).T  # of a box without pixels 0
    cell = np.repeat(np.arange(len(boxes)), n_wide * n_high)
    place = rle.ranges(np.zeros_like(n_wide), n_wide * n_high)
    row, column = np.divmod(place, n_wide[cell])
    tile = (first[cell, 1] + row) * columns + first[cell, 0] + column
    order = np.argsort(tile, kind="stable")
    return tile[order], cell[order]

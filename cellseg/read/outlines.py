"""Convert drawn outlines to the masks of an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.draw
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.read.layout import CLASS_NAMES
from cellseg.rle import MaskRuns, areas, join_runs

MONUSAC = ("epithelial", "lymphocyte", "neutrophil", "macrophage")
"""MoNuSAC's names of NYCU HW3's classes (Verma et al. 2021, doi 10.1109/TMI.2021.3085712)."""

Polygon = list[NDArray[np.float64]]


@dataclass(frozen=True)
class Outline:
    """One drawn outline.

    Attributes
    ----------
    where
        Its place in the file, for error messages.
    class_name
        Its class or None.
    polygons
        Its pieces: an outer ring each, then its holes. A ring is a `(V, 2)` float64 array of x,
        y in pixels; integers are pixel centres. Empty if it isn't a cell.
    """

    where: str
    class_name: str | None
    polygons: list[Polygon]


def to_ring(where: str, points: Sequence[Sequence[object]]) -> NDArray[np.float64]:
    """Return a `(V, 2)` float64 array of the x and y of each point.

    Raises InputError if a point isn't two numbers, or is far outside any image.
    """
    for point in points:
        for value in point[:2] if isinstance(point, list | tuple) and len(point) >= 2 else [None]:
            # Excludes NaN. TIFF images have at most 2^32 pixels a side.
            if type(value) not in (int, float) or not abs(value) < 2**32:
                raise InputError(
                    f"{where}: point {str(point)[:60]}, expected x and y in pixels; fix it"
                )
    return np.array([point[:2] for point in points], np.float64).reshape(-1, 2)


def fill_outlines(
    path: Path, outlines: Sequence[Outline], size: tuple[int, int], class_names: Sequence[str]
) -> tuple[dict[int, MaskRuns], Counter[str]]:
    """Return the masks of outlines, class by class.

    Class names are compared ignoring case. MoNuSAC's names are accepted for NYCU HW3's
    classes; a single class needs no name. Outlines of the class "Ambiguous" (MoNuSAC) and of
    classes that end in an asterisk (ignored in QuPath) are ignored.

    Parameters
    ----------
    path
        The outlines' file, for error messages.
    outlines
        The outlines; parts outside the image are cut off.
    size
        Height and width of the image in pixels.
    class_names
        The K classes.

    Returns
    -------
    cells
        The masks of each class that occurs, by class 1…K, ascending; those of a class in the
        order of `outlines`. Masks may overlap.
    warnings
        Number of ignored outlines of each type.

    Raises
    ------
    InputError
        If a class is unknown or missing, or an outline is outside the image.
    """
    numbers = {name.strip().casefold(): n for n, name in enumerate(class_names, 1)}
    if tuple(class_names) == CLASS_NAMES:
        numbers |= {name: n for n, name in enumerate(MONUSAC, 1)}
    if len(class_names) == 1:
        numbers[""] = 1
    by_class: dict[int, list[list[Polygon]]] = {}
    warnings: Counter[str] = Counter()
    for outline in outlines:
        if not outline.polygons:
            warnings["negative regions or fewer than 3 points, ignored"] += 1
            continue
        name = (outline.class_name or "").strip().casefold()
        if name not in numbers and (name == "ambiguous" or name.endswith("*")):
            warnings["ambiguous or ignored outlines"] += 1
            continue
        if name not in numbers:
            found = f"class {outline.class_name!r}" if name else "no class"
            raise InputError(
                f"{path}: {outline.where} has {found}, expected one of {', '.join(class_names)}; "
                "fix it, or set the class names with --class_names"
            )
        if not _overlaps_image(outline.polygons, size):
            raise InputError(
                f"{path}: {outline.where} is outside the image of {size[0]} x {size[1]} pixels "
                "(height x width); draw it on that image"
            )
        by_class.setdefault(numbers[name], []).append(outline.polygons)
    cells = {}
    for number in sorted(by_class):
        mask_runs = fill_polygons(by_class[number], size)
        empty = int((areas(mask_runs) == 0).sum())
        warnings["outlines that contain no pixel centre, ignored"] += empty
        cells[number] = _drop_empty(mask_runs)
    return cells, warnings


def _overlaps_image(polygons: list[Polygon], size: tuple[int, int]) -> bool:
    """Return whether a cell's box and the image share more than an edge."""
    points = np.concatenate([polygon[0] for polygon in polygons]) + 0.5
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return bool(left < size[1] and top < size[0] and right > 0 and bottom > 0)


def fill_polygons(cells: Sequence[list[Polygon]], size: tuple[int, int]) -> MaskRuns:
    """Return the N masks of cells, given as polygons of `Outline`, in an image of `size` (H, W).

    A mask has the pixels whose centres are inside or exactly on the outline, as in
    `skimage.draw.polygon`, with which NYCU HW3's masks were drawn.
    """
    height = size[0]
    positions = []
    for polygons in cells:
        position = np.zeros(0, np.int64)
        for outer, *holes in polygons:
            rows, columns = skimage.draw.polygon(outer[:, 1], outer[:, 0], size)
            piece = columns * height + rows
            for hole in holes:
                rows, columns = skimage.draw.polygon(hole[:, 1], hole[:, 0], size)
                piece = np.setdiff1d(piece, columns * height + rows)
            position = np.union1d(position, piece)
        positions.append(position)
    owner = np.repeat(np.arange(len(cells)), [len(position) for position in positions])
    starts = np.concatenate([np.zeros(0, np.int64), *positions])
    return join_runs(size, len(cells), owner, starts, starts + 1)


def _drop_empty(mask_runs: MaskRuns) -> MaskRuns:
    offsets = np.append(0, np.unique(mask_runs.offsets[1:][np.diff(mask_runs.offsets) > 0]))
    return MaskRuns(mask_runs.size, mask_runs.starts, mask_runs.ends, offsets)

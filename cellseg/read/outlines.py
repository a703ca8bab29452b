"""From outlines that people drew to the cells of an image."""

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
"""What MoNuSAC, whose images these are, calls them (Verma et al. 2021,
doi 10.1109/TMI.2021.3085712)."""

Polygon = list[NDArray[np.float64]]


@dataclass(frozen=True)
class Outline:
    """One cell as it was drawn.

    Attributes
    ----------
    where
        Its place in the file, for the errors' text.
    class_name
        Its class, None if it has none.
    polygons
        Its pieces: an outer ring each, then its holes. A ring is a `(V, 2)` float64
        array of x, y in pixels; whole numbers are the centres of pixels. None at all
        for what is no cell.
    """

    where: str
    class_name: str | None
    polygons: list[Polygon]


def to_ring(where: str, points: Sequence[Sequence[object]]) -> NDArray[np.float64]:
    """Make a `(V, 2)` float64 array of the x and y of each point.

    Raises
    ------
    InputError
        If a point isn't two numbers, or lies nowhere near any image.
    """
    for point in points:
        for value in point[:2] if isinstance(point, list | tuple) and len(point) >= 2 else [None]:
            # Also refuses NaN. TIFF images end at 2^32 pixels a side.
            if type(value) not in (int, float) or not abs(value) < 2**32:
                raise InputError(
                    f"{where}: the point {str(point)[:60]} is not an x and a y in pixels; mend it"
                )
    return np.array([point[:2] for point in points], np.float64).reshape(-1, 2)


def fill_outlines(
    path: Path, outlines: Sequence[Outline], size: tuple[int, int], class_names: Sequence[str]
) -> tuple[dict[int, MaskRuns], Counter[str]]:
    """Fill outlines, class by class.

    Class names are compared without regard to case. MoNuSAC's names stand for the
    homework's classes; a sole class needs no name. Outlines of the class "Ambiguous"
    (MoNuSAC) and of those that end in an asterisk (QuPath's sign for what to ignore) are
    left out.

    Parameters
    ----------
    path
        The outlines' file, for the errors' text.
    outlines
        The cells.
    size
        Height and width of the image in pixels. What juts out is cut off.
    class_names
        The K classes.

    Returns
    -------
    cells
        The masks of each class that occurs, by class, 1…K, rising; those of a class in
        the order of `outlines`. Masks may overlap.
    warnings
        What was left out, by kind, with how many.

    Raises
    ------
    InputError
        If a class is unknown or missing, or an outline lies off the image.
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
            warnings["regions that cut away, or of fewer than 3 points, left out"] += 1
            continue
        name = (outline.class_name or "").strip().casefold()
        if name not in numbers and (name == "ambiguous" or name.endswith("*")):
            warnings["ambiguous or ignored outlines, left out"] += 1
            continue
        if name not in numbers:
            found = f"the class {outline.class_name!r}" if name else "no class"
            raise InputError(
                f"{path}: {outline.where} has {found}, but the classes are "
                f"{', '.join(class_names)}; mend it, or name the classes with --class_names"
            )
        if not _overlaps_image(outline.polygons, size):
            raise InputError(
                f"{path}: {outline.where} lies off the image, which has {size[0]} x {size[1]} "
                "pixels (height x width); draw it on that image"
            )
        by_class.setdefault(numbers[name], []).append(outline.polygons)
    cells = {}
    for number in sorted(by_class):
        mask_runs = fill_polygons(by_class[number], size)
        empty = int((areas(mask_runs) == 0).sum())
        warnings["outlines without the centre of a pixel in them, left out"] += empty
        cells[number] = _drop_empty(mask_runs)
    return cells, warnings


def _overlaps_image(polygons: list[Polygon], size: tuple[int, int]) -> bool:
    """Whether a cell's box and the image's square share more than an edge."""
    points = np.concatenate([polygon[0] for polygon in polygons]) + 0.5
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return bool(left < size[1] and top < size[0] and right > 0 and bottom > 0)


def fill_polygons(cells: Sequence[list[Polygon]], size: tuple[int, int]) -> MaskRuns:
    """Draw each cell as the mask of the pixels whose centres its polygons hold.

    As `skimage.draw.polygon` does, which NYCU HW3's masks were drawn with: a centre
    on the very outline is inside.

    Parameters
    ----------
    cells
        N cells, their polygons as in `Outline`.
    size
        Height and width of the image in pixels.
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

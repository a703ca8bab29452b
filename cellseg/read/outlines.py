"""Convert drawn outlines to the masks of an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import skimage.measure
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.read.cell_checks import SMALL
from cellseg.read.classes import match_classes
from cellseg.read.fill import Polygon, check_lengths, fill_polygons, outline_box, ring_area
from cellseg.rle import MaskRuns, areas, select_masks
from cellseg.text import show


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
    kind
        What it is if it isn't a cell, such as `POINTS`; "annotation" or "detection" in QuPath.
    id
        Its id in the file, a text, or None.
    error
        Why it can't be used, as a whole message; empty if it can.
    has_nucleus
        Whether the file has the outline of its nucleus, too.
    """

    where: str
    class_name: str | None
    polygons: list[Polygon]
    kind: str = ""
    id: str | None = None
    error: str = ""
    has_nucleus: bool = False


_REGION = 4  # times the area of the box of each cell in it
_MANY = 5  # pieces of an outline of several cells
_FAR = 5  # length of such an outline in diameters of a cell

POINTS = "points, lines and outlines of fewer than 3 points"
AROUND = "outlines around two or more cells, taken for cells (remove those that are regions)"
REGIONS = "regions around cells, ignored (what is not outlined counts as background everywhere)"


def to_ring(where: str, points: Sequence[Sequence[object]]) -> NDArray[np.float64]:
    """Return a `(V, 2)` float64 array of the x and y of each point.

    Raises InputError if a point isn't two numbers, or is far outside any image.
    """
    for point in points:
        for value in point[:2] if isinstance(point, list | tuple) and len(point) >= 2 else [None]:
            # Excludes NaN. TIFF images have at most 2^32 pixels a side.
            if type(value) not in (int, float) or not abs(value) < 2**32:
                raise InputError(
                    f"{where}: point {show(point)}, expected x and y in pixels; fix it"
                )
    return np.array([point[:2] for point in points], np.float64).reshape(-1, 2)


def fill_outlines(
    path: Path,
    outlines: Sequence[Outline],
    size: tuple[int, int],
    class_names: Sequence[str],
    skip_bad: bool = False,
) -> tuple[dict[int, MaskRuns], Counter[str]]:
    """Return the masks of outlines, class by class.

    Classes are matched by `match_classes`. Outlines that are no cells are left out: points and
    lines, regions around cells, and those that contain no pixel centre.

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
    skip_bad
        Leave out single outlines that would be errors, unless all are.

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
        If an outline can't be read or is outside the image, a class is unknown or missing, or
        there are only points and lines.
    """
    broken = [outline.error for outline in outlines if outline.error]
    if broken and not (skip_bad and any(outline.polygons for outline in outlines)):
        others = f" (and {len(broken) - 1} more of {len(outlines)} outlines can't be used)"
        raise InputError(broken[0] + others * (len(broken) > 1))
    outlines = [outline for outline in outlines if not outline.error]
    warnings = Counter(f"{o.kind}, ignored" for o in outlines if not o.polygons)
    warnings["outlines that can't be read, ignored"] = len(broken)
    if outlines and warnings[f"{POINTS}, ignored"] == len(outlines):
        raise InputError(
            f"{path}: only {POINTS} ({len(outlines)}), expected the cells' outlines; draw them, or "
            "remove the file if the image has no cells"
        )
    outlines = [outline for outline in outlines if outline.polygons]
    is_region, is_around = _find_regions(outlines)
    warnings[REGIONS] = int(is_region.sum())
    around = [o for o, marked in zip(outlines, is_around & ~is_region, strict=True) if marked]
    outlines = [o for o, region in zip(outlines, is_region, strict=True) if not region]
    outlines, n_split, n_pieces = _split(outlines)
    warnings["outlines of several cells, used as a cell each"] = n_split
    warnings["outlines of several pieces, used as one cell each"] = n_pieces
    warnings["cells with a nucleus, of which the cell's outline is used"] = sum(
        outline.has_nucleus for outline in outlines
    )

    places = [(outline.where, outline.class_name) for outline in outlines]
    numbers, unused = match_classes(path, places, class_names, skip_bad)
    warnings += unused
    used = [(n, outline) for n, outline in zip(numbers, outlines, strict=True) if n]
    inside = [(n, o) for n, o in used if _overlaps_image(o.polygons, size)]
    outside = [o.where for _, o in used if not _overlaps_image(o.polygons, size)]
    if outside and not (skip_bad and inside):
        more = f" and {len(outside) - 1} more of {len(used)}" if len(outside) > 1 else ""
        raise InputError(
            f"{path}: {outside[0]}{more} is outside the image of {size[0]} x {size[1]} pixels "
            "(height x width); draw it on that image"
        )
    warnings["outlines outside the image, ignored"] = len(outside)
    warnings[AROUND] = sum(any(o is each for each in around) for _, o in inside)

    check_lengths(path, [outline.polygons for _, outline in inside], size)
    cells = {}
    for number in sorted({n for n, _ in inside}):
        mask_runs = fill_polygons([o.polygons for n, o in inside if n == number], size)
        kept = np.flatnonzero(areas(mask_runs))
        warnings["outlines that contain no pixel centre, ignored"] += len(mask_runs) - len(kept)
        cells[number] = select_masks(mask_runs, kept)
    return cells, warnings


def _find_regions(outlines: Sequence[Outline]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return, for each of N outlines, whether it is a region around cells, as in QuPath.

    It is several times as large as the outlines in it, two or more, or one that has a class. It is
    no detection, and has no class, or is an annotation and they are detections.

    The second array says whether it is no detection and around two or more others so much smaller.
    """
    is_region, is_around = np.zeros((2, len(outlines)), bool)
    boxes = np.array([outline_box(outline.polygons) for outline in outlines]).reshape(-1, 4)
    extents = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    has_class = np.array([bool((o.class_name or "").strip()) for o in outlines])
    is_detection = np.array([outline.kind == "detection" for outline in outlines], bool)
    # Most outlines are too small.
    enough = _REGION * np.sort(extents)[len(extents) // 4] if len(extents) else 0
    for n in np.flatnonzero((extents >= enough) & ~is_detection).tolist():
        left, top, right, bottom = boxes[n]
        inside = (centres > (left, top)).all(axis=1) & (centres < (right, bottom)).all(axis=1)
        inside &= _REGION * extents <= extents[n]
        others = np.flatnonzero(inside)
        if not len(others):
            continue
        within = np.zeros(len(others), bool)
        for outer, *_ in outlines[n].polygons:
            within |= skimage.measure.points_in_poly(centres[others], outer)
        others = others[within]
        is_around[n] = len(np.unique(boxes[others], axis=0)) >= 2  # some occur twice
        if not has_class[n]:
            is_region[n] = len(others) >= 2 or has_class[others].any()
        elif outlines[n].kind == "annotation":
            is_region[n] = is_detection[others].sum() >= 2
    return is_region, is_around


def _split(outlines: Sequence[Outline]) -> tuple[list[Outline], int, int]:
    """Split outlines of several cells, such as CellViT's of all cells of a class.

    Such an outline has five or more pieces of more than `SMALL` pixels, or two that are far apart:
    all pieces fill less than half of their box, and it is longer than five diameters, where a
    diameter is the root of the largest piece's area.

    Returns
    -------
    outlines, n_split, n_pieces
        The outlines, the number of those that were split, and of the others with several pieces
        of more than `SMALL` pixels.
    """
    split, n_split, n_pieces = [], 0, 0
    for outline in outlines:
        sizes = [ring_area(polygon[0]) for polygon in outline.polygons]
        n_large = sum(size > SMALL for size in sizes)
        is_several = n_large >= _MANY or (n_large > 1 and _is_far(outline.polygons, sizes))
        n_split += is_several
        n_pieces += n_large > 1 and not is_several
        parts = [replace(outline, polygons=[p], id=None) for p in outline.polygons]
        split += parts if is_several else [outline]
    return split, n_split, n_pieces


def _is_far(polygons: Sequence[Polygon], sizes: Sequence[float]) -> bool:
    left, top, right, bottom = outline_box(polygons)
    is_sparse = 2 * sum(sizes) < (right - left) * (bottom - top)
    return bool(is_sparse and max(right - left, bottom - top) > _FAR * max(sizes) ** 0.5)


def _overlaps_image(polygons: list[Polygon], size: tuple[int, int]) -> bool:
    """Return whether a cell's box and the image share more than an edge."""
    left, top, right, bottom = outline_box(polygons) + 0.5
    return bool(left < size[1] and top < size[0] and right > 0 and bottom > 0)

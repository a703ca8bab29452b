"""Where drawn outlines run: along the edges of pixels, or through their centres.

Programs differ by half a pixel on each side. Along edges, the area of a polygon is the number of
its pixels (QuPath, pycocotools); through centres (OpenCV's `findContours`), it is smaller.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cellseg.messages import warn
from cellseg.read.coco import check_polygons, is_polygon, to_points
from cellseg.read.fill import fill_polygons, ring_area
from cellseg.read.outlines import Outline
from cellseg.rle import MaskRuns, areas, encode

EDGES, CENTRES = "edges", "centres"
CONVENTIONS = (EDGES, CENTRES)

_SHIFT = {EDGES: -0.5, CENTRES: 0.0}  # to coordinates in which integers are centres
_TOLERANCE = 0.05  # of the area

Size = tuple[int, int]


def move_outlines(
    outlines: Sequence[Outline], read_as: str, convention: str | None
) -> list[Outline]:
    """Return outlines that were read by one convention by another; None keeps them."""
    shift = _SHIFT[convention or read_as] - _SHIFT[read_as]
    if not shift:
        return list(outlines)
    return [
        replace(o, polygons=[[ring + shift for ring in polygon] for polygon in o.polygons])
        for o in outlines
    ]


def settle_polygons(
    path: object,
    annotations: Sequence[dict[str, Any]],
    sizes: dict[int, Size],
    convention: str | None = None,
) -> None:
    """Replace COCO polygons that run through centres by their masks.

    Parameters
    ----------
    path
        The file, for messages.
    annotations
        COCO annotations, which are changed; those that are no usable polygons stay.
    sizes
        Height and width of the images by id.
    convention
        What is known. None decides by the annotations' `area`, if it differs from that of the
        polygons by more than 5 % in all: then it says how many pixels a cell had, and filling the
        polygons by the right convention gives it. A warning says what was found. Areas of the
        polygons' boxes don't count.

    Raises
    ------
    InputError
        If the polygons are too long to be filled.
    """
    if convention == EDGES:
        return
    polygons = [a for a in annotations if _is_usable(a, sizes)]
    if convention is None:
        polygons, found = _find_convention(path, polygons, sizes)
        if found:
            warn(f"{path}: {found}")
    for members, masks in _fill_through_centres(path, polygons, sizes):
        for annotation, mask in zip(members, encode(masks), strict=True):
            annotation["segmentation"] = mask


def run_through_centres(
    path: object, annotations: Sequence[dict[str, Any]], sizes: dict[int, Size]
) -> bool:
    """Return whether `settle_polygons` would find that polygons run through centres."""
    polygons = [a for a in annotations if _is_usable(a, sizes)]
    return bool(_find_convention(path, polygons, sizes)[0])


def _find_convention(
    path: object, polygons: list[dict[str, Any]], sizes: dict[int, Size]
) -> tuple[list[dict[str, Any]], str]:
    """Return the polygons that run through centres, by their stated areas, and what was found.

    An area that is the polygon's box says nothing, as some programs write that for all.
    """
    polygons = [a for a in polygons if _stated_area(a) and not _is_area_of_box(a)]
    stated = sum(map(_stated_area, polygons))
    drawn = sum(ring_area(to_points(part)) for a in polygons for part in a["segmentation"])
    if abs(drawn - stated) <= _TOLERANCE * stated:
        return [], ""
    filled = _fill_through_centres(path, polygons, sizes)
    total = sum(int(areas(masks).sum()) for _, masks in filled)
    text = f"the areas of {len(polygons)} polygons are {stated:.0f} px, but theirs {drawn:.0f}"
    if abs(total - stated) > _TOLERANCE * stated:
        return [], f"{text}; the polygons are used, along the pixels' edges"
    return (
        polygons,
        f"{text}; they run through the pixels' centres, and are filled so to {total} px",
    )


def _fill_through_centres(
    path: object, polygons: list[dict[str, Any]], sizes: dict[int, Size]
) -> list[tuple[list[dict[str, Any]], MaskRuns]]:
    """Return the annotations of each image, and their masks."""
    check_polygons(path, polygons)
    by_image: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in polygons:
        by_image[annotation["image_id"]].append(annotation)
    filled = []
    for id_, members in by_image.items():
        cells = [[[to_points(part)] for part in each["segmentation"]] for each in members]
        filled.append((members, fill_polygons(cells, sizes[id_])))
    return filled


def _is_usable(annotation: dict[str, Any], sizes: dict[int, Size]) -> bool:
    id_, parts = annotation.get("image_id"), annotation.get("segmentation")
    return (
        type(id_) is int
        and id_ in sizes
        and isinstance(parts, list)
        and bool(parts)
        and all(is_polygon(part, sizes[id_]) for part in parts)
    )


def _stated_area(annotation: dict[str, Any]) -> float:
    area: Any = annotation.get("area")
    return float(area) if type(area) in (int, float) and 0 < area < 1e12 else 0.0


def _is_area_of_box(annotation: dict[str, Any]) -> bool:
    points = np.concatenate([to_points(part) for part in annotation["segmentation"]])
    box = float(np.prod(np.ptp(points, axis=0)))
    return abs(_stated_area(annotation) - box) <= 0.01 * box

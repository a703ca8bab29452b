"""Outlines from the GeoJSON that QuPath exports (File > Export objects as GeoJSON)."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from cellseg.errors import InputError
from cellseg.files import file_start, read_json
from cellseg.limits import GZIP_BYTES
from cellseg.read.fill import Polygon
from cellseg.read.outlines import POINTS, Outline, to_ring
from cellseg.text import show

CLASS_KEYS = ("classification", "class", "class_name", "className", "cell_type", "label", "type")
"""Properties that name a feature's class, QuPath's first; the letters' case doesn't matter."""

_REMEDY = "export the cells from QuPath as GeoJSON"


# JSON of other programs, by a key at its top: what it is, and what to do if cells are expected.
_OTHERS = {
    "annotations": ("COCO annotations", "pass the file with --coco"),
    "shapes": ("LabelMe's JSON, which is not read", "convert it to COCO, and use --coco"),
    "nuc": ("HoVer-Net's JSON, which is not read", "export GeoJSON for QuPath with its tools"),
}


def read_geojson(
    path: Path, what: str = "cells' outlines", remedy: str | None = None
) -> list[Outline]:
    """Read the outlines in a GeoJSON file, which may be compressed with gzip.

    It has a FeatureCollection, a list of features or one feature; each is a Polygon or a
    MultiPolygon, in pixels from the image's top left corner, with its class in
    `properties.classification.name`, or `names` for derived classes such as "Immune: Positive";
    other programs' files may have a text there, or in another of `CLASS_KEYS`.
    Points, lines, and polygons of fewer than 3 points give outlines without polygons; of a
    GeometryCollection, the polygons are used; of a cell with a nucleus, the cell's. A broken
    feature gives an outline with its error.

    `what` and `remedy` are parts of the messages, as for `open_json`; without a remedy, it is that
    for cells.

    Raises InputError if the file is missing, damaged or something else.
    """
    value = features = (_read_gzip if _is_gzip(path) else read_json)(path, what, remedy or _REMEDY)
    if isinstance(value, dict):
        features = value.get("features") if value.get("type") == "FeatureCollection" else [value]
        for key, (found, advice) in _OTHERS.items():
            if key in value and value.get("type") not in ("Feature", "FeatureCollection"):
                raise InputError(f"{path}: {found}, expected the {what}; {remedy or advice}")
    remedy = remedy or _REMEDY
    if not isinstance(features, list):
        raise InputError(f"{path}: no GeoJSON features in it, expected the {what}; {remedy}")
    return [_try_outline(path, f"feature {n}", each, remedy) for n, each in enumerate(features, 1)]


def _is_gzip(path: Path) -> bool:
    start = file_start(path, 2)
    return start is not None and (start == b"\x1f\x8b" or path.suffix.lower() == ".gz")


def _read_gzip(path: Path, what: str, remedy: str) -> Any:
    try:
        with gzip.open(path) as file:
            data = file.read(GZIP_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a complete gzip file ({error}); {remedy}") from None
    if len(data) > GZIP_BYTES:
        raise InputError(
            f"{path}: more than {GZIP_BYTES >> 20} MiB of JSON, expected one image's outlines; cut "
            "the image into smaller ones"
        )
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not JSON ({error}) within gzip, expected the {what}; {remedy}"
        ) from None


def _try_outline(path: Path, where: str, feature: Any, remedy: str) -> Outline:
    try:
        return _outline(path, where, feature, remedy)
    except InputError as error:
        return Outline(where, None, [], error=str(error))


def _outline(path: Path, where: str, feature: Any, remedy: str) -> Outline:
    place = f"{path}: {where}"
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise InputError(f"{place} is not a GeoJSON Feature; {remedy}")
    polygons = _polygons(place, feature.get("geometry"), remedy)
    # QuPath's origin is the corner of the first pixel, that of rings its centre.
    rings: list[Polygon] = [
        [to_ring(place, ring) - 0.5 for n, ring in enumerate(polygon) if n == 0 or len(ring) >= 3]
        for polygon in polygons
        if len(polygon[0]) >= 3
    ]
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    # In QuPath before 0.3 the id is the type of the object.
    id_ = feature.get("id")
    kind = properties.get("objectType") or _FORMER_TYPES.get(str(id_), "")
    if kind in ("cell", "tile"):
        kind = "detection"
    kind = str(kind) if rings else POINTS
    id_ = str(id_) if type(id_) in (str, int) and id_ not in _FORMER_TYPES else None
    return Outline(
        where,
        _class_name(place, properties, remedy),
        rings,
        kind,
        id_,
        has_nucleus=bool(rings and feature.get("nucleusGeometry")),
    )


_FORMER_TYPES = {
    "PathAnnotationObject": "annotation",
    "PathCellObject": "cell",
    "PathDetectionObject": "detection",
    "PathRootObject": "root",
    "PathTileObject": "tile",
    "PathTMACoreObject": "tma core",
}


def _polygons(place: str, geometry: Any, remedy: str) -> list[list[list[Any]]]:
    """Return the polygons of a geometry, lists of rings; none for points and lines."""
    geometry = geometry if isinstance(geometry, dict) else {}
    shape, coordinates = geometry.get("type"), geometry.get("coordinates")
    if shape in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        return []
    if shape == "GeometryCollection" and isinstance(geometry.get("geometries"), list):
        parts = [_polygons(place, part, remedy) for part in geometry["geometries"]]
        return [polygon for part in parts for polygon in part]
    if shape not in ("Polygon", "MultiPolygon"):
        raise InputError(
            f"{place} has the geometry {show(shape)}, expected a Polygon or MultiPolygon; remove it"
        )
    polygons = [coordinates] if shape == "Polygon" else coordinates
    if not _is_nested_list(polygons):
        raise InputError(
            f"{place} is a broken {shape}, expected lists of rings of points as "
            f"coordinates; {remedy}"
        )
    return list(polygons)


def _is_nested_list(polygons: Any) -> bool:
    """Return whether coordinates are polygons of rings, whose points are checked later."""
    return (
        isinstance(polygons, list)
        and all(isinstance(polygon, list) and polygon for polygon in polygons)
        and all(isinstance(ring, list) for polygon in polygons for ring in polygon)
    )


def _class_name(place: str, properties: dict[str, Any], remedy: str) -> str | None:
    of_key = {str(key).lower(): value for key, value in properties.items()}
    for key in CLASS_KEYS:
        value = of_key.get(key.lower())
        if value is None or value == "":
            continue
        name = value.get("name") if isinstance(value, dict) else value
        names = value.get("names") if isinstance(value, dict) else None
        if name is None and isinstance(names, list) and all(isinstance(n, str) for n in names):
            name = ": ".join(names)
        if isinstance(name, str):
            return name
        if key == CLASS_KEYS[0]:  # others, such as a number as label, may be something else
            raise InputError(f"{place}: {key} {show(value)} has no name; {remedy}")
    return None

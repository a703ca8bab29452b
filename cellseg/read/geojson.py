"""Cells drawn in QuPath, from the GeoJSON that it exports (File > Export objects as GeoJSON)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cellseg.errors import InputError
from cellseg.files import read_json
from cellseg.read.outlines import Outline, Polygon, to_ring

_REMEDY = "export the cells from QuPath as GeoJSON"


def read_geojson(path: Path) -> list[Outline]:
    """Read the outlines in a GeoJSON file.

    A FeatureCollection, a list of features or one feature; each a Polygon or a
    MultiPolygon, in pixels from the image's top left corner, its class in
    `properties.classification.name` (or `names`, which QuPath writes of derived classes
    such as "Immune: Positive").

    Raises
    ------
    InputError
        If the file is missing, damaged or something else.
    """
    value = read_json(path, "cells' outlines", _REMEDY)
    features = value
    if isinstance(value, dict):
        features = value.get("features") if value.get("type") == "FeatureCollection" else [value]
    if not isinstance(features, list):
        raise InputError(f"{path}: no GeoJSON features in it; {_REMEDY}")
    return [_outline(path, number, feature) for number, feature in enumerate(features, 1)]


def _outline(path: Path, number: int, feature: Any) -> Outline:
    where = f"feature {number}"
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise InputError(f"{path}: {where} is not a GeoJSON Feature; {_REMEDY}")
    geometry = feature.get("geometry")
    geometry = geometry if isinstance(geometry, dict) else {}
    kind = geometry.get("type")
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(
            f"{path}: {where} has the geometry {str(kind)[:60]}, but a cell is a Polygon or a "
            "MultiPolygon; remove it"
        )
    coordinates: Any = geometry.get("coordinates")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not _is_nested_list(polygons):
        raise InputError(
            f"{path}: {where} is a broken {kind}: its coordinates are not lists of rings of 3 or "
            f"more points; {_REMEDY}"
        )
    # A pixel's centre is at half past its corner.
    drawn: list[Polygon] = [
        [to_ring(f"{path}: {where}", ring) - 0.5 for ring in polygon] for polygon in polygons
    ]
    return Outline(where, _class_name(path, where, feature.get("properties")), drawn)


def _is_nested_list(polygons: Any) -> bool:
    """Whether the coordinates are polygons of rings; a ring's points are checked later."""
    return (
        isinstance(polygons, list)
        and bool(polygons)
        and all(isinstance(polygon, list) and polygon for polygon in polygons)
        and all(isinstance(ring, list) and len(ring) >= 3 for p in polygons for ring in p)
    )


def _class_name(path: Path, where: str, properties: Any) -> str | None:
    classification = properties.get("classification") if isinstance(properties, dict) else None
    if classification is None:
        return None
    if isinstance(classification, dict):
        name = classification.get("name")
        names = classification.get("names")
        if name is None and isinstance(names, list) and all(isinstance(n, str) for n in names):
            name = ": ".join(names)
        if isinstance(name, str):
            return name
    raise InputError(
        f"{path}: {where}: classification {str(classification)[:60]} has no name; {_REMEDY}"
    )

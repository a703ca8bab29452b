"""Outlines from the GeoJSON that QuPath exports (File > Export objects as GeoJSON)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cellseg.errors import InputError
from cellseg.files import read_json
from cellseg.read.outlines import Outline, Polygon, to_ring

_REMEDY = "export the cells from QuPath as GeoJSON"


def read_geojson(path: Path) -> list[Outline]:
    """Read the outlines in a GeoJSON file.

    It has a FeatureCollection, a list of features or one feature; each is a Polygon or a
    MultiPolygon, in pixels from the image's top left corner, with its class in
    `properties.classification.name`, or `names` for derived classes such as "Immune: Positive".

    Raises InputError if the file is missing, damaged or something else.
    """
    value = features = read_json(path, "cells' outlines", _REMEDY)
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
    shape = geometry.get("type")
    if shape not in ("Polygon", "MultiPolygon"):
        raise InputError(
            f"{path}: {where} has the geometry {str(shape)[:60]}, expected a Polygon or "
            "MultiPolygon; remove it"
        )
    coordinates: Any = geometry.get("coordinates")
    polygons = [coordinates] if shape == "Polygon" else coordinates
    if not _is_nested_list(polygons):
        raise InputError(
            f"{path}: {where} is a broken {shape}, expected lists of rings of 3 or more points as "
            f"coordinates; {_REMEDY}"
        )
    # QuPath's origin is the corner of the first pixel, that of rings its centre.
    rings: list[Polygon] = [
        [to_ring(f"{path}: {where}", ring) - 0.5 for ring in polygon] for polygon in polygons
    ]
    return Outline(where, _class_name(path, where, feature.get("properties")), rings)


def _is_nested_list(polygons: Any) -> bool:
    """Return whether coordinates are polygons of rings, whose points are checked later."""
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

"""Cells as GeoJSON that QuPath opens (File > Import objects from file).

One feature per cell, in image pixels: the outline along the pixels' edges, the class with
its colour, the score as a measurement. `objectType`, `classification` and `measurements`
follow QuPath (qupath.readthedocs.io, "Exporting annotations"); except for the coordinates,
which are pixels, the files follow RFC 7946.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from cellseg.files import check_own, to_json, write_atomic
from cellseg.outline import trace
from cellseg.rle import RLE, decode

Feature = dict[str, Any]
Colour = tuple[int, int, int]

_BLOCK = 2048  # cells traced at once


def cell_features(
    image: str,
    size: tuple[int, int],
    masks: Sequence[RLE],
    classes: NDArray[Any],
    names: Sequence[str],
    colours: Sequence[Colour],
    scores: NDArray[Any] | None = None,
    object_type: Literal["detection", "annotation"] = "detection",
    scale: tuple[float, float] = (1, 1),
) -> Iterator[Feature]:
    """Yield a GeoJSON feature for each cell of an image.

    Parameters
    ----------
    image
        The image's name; with the index of a cell it determines the feature's id, a UUID.
    size
        Height and width of the image in pixels.
    masks
        N compressed RLEs. Empty masks give no feature.
    classes
        `(N,)` integers, 0…K−1.
    names, colours
        K class names, and K colours as red, green, blue of 0…255.
    scores
        `(N,)` in 0…1, the measurement "score", or None.
    object_type
        QuPath's type: detections are light, annotations can be edited.
    scale
        Factors of x and y, from the level of the masks to full resolution.

    Yields
    ------
    Features with a Polygon, or a MultiPolygon for cells in several pieces: x, y in pixels,
    integers unless scaled, origin at the image's top left corner, y downwards.

    Raises
    ------
    ValueError
        If a mask isn't an RLE of this size.
    """
    classifications = [
        {"name": name, "color": list(colour)} for name, colour in zip(names, colours, strict=True)
    ]
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, image)
    for begin in range(0, len(masks), _BLOCK):
        outlines = trace(decode(masks[begin : begin + _BLOCK], size))
        for index, polygons in enumerate(outlines, start=begin):
            if not polygons:
                continue
            properties: dict[str, Any] = {
                "objectType": object_type,
                "classification": classifications[classes[index]],
            }
            if scores is not None:
                properties["measurements"] = {"score": round(float(scores[index]), 6)}
            coordinates = [
                [(ring if scale == (1, 1) else ring * scale).tolist() for ring in polygon]
                for polygon in polygons
            ]
            geometry = (
                {"type": "Polygon", "coordinates": coordinates[0]}
                if len(coordinates) == 1
                else {"type": "MultiPolygon", "coordinates": coordinates}
            )
            yield {
                "type": "Feature",
                "id": str(uuid.uuid5(namespace, str(index))),
                "geometry": geometry,
                "properties": properties,
            }


def write_geojson(path: str | os.PathLike[str], features: Iterable[Feature]) -> int:
    """Write features as a FeatureCollection, one per line; return their number.

    Raises InputError if the file can't be written.
    """
    count = 0
    start = '{"type":"FeatureCollection","features":['
    check_own(Path(path), re.escape(f"{start}\n".encode()), "outlines")
    with write_atomic(path) as file:
        file.write(start)
        for feature in features:
            text = to_json(feature, separators=(",", ":"))
            file.write(("," if count else "") + "\n" + text)
            count += 1
        file.write("\n]}\n")
    return count

"""Cells as GeoJSON that QuPath opens (File > Import objects from file).

One feature per cell, in image pixels: the outline along the pixels' edges, the class with
its colour, the score as a measurement. `objectType`, `classification` and `measurements`
follow QuPath (qupath.readthedocs.io, "Exporting annotations"); except for the coordinates,
which are pixels, the files follow RFC 7946.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cellseg.colours import class_colour
from cellseg.errors import InputError
from cellseg.files import check_own, to_json, write_atomic
from cellseg.images import ImageCells
from cellseg.outline import trace_masks
from cellseg.read.cells import scale_to_full_resolution
from cellseg.write.ids import cell_ids
from cellseg.write.measured import Measure, measurements

Feature = dict[str, Any]


def cell_features(
    image: ImageCells,
    names: Sequence[str],
    object_type: str = "detection",
    scale: tuple[float, float] = (1, 1),
    ids: Sequence[str] | None = None,
    measurements: Sequence[Mapping[str, float | None]] | None = None,
) -> Iterator[Feature]:
    """Yield a GeoJSON feature for each cell of an image.

    Parameters
    ----------
    image
        The image with its N cells. Empty masks give no feature, scores the measurement "score".
    names
        The K class names.
    object_type
        QuPath's type: "detection" is light, "annotation" can be edited.
    scale
        Factors of x and y, from the level of the masks to full resolution.
    ids
        N unique ids; by default those of `cell_ids`.
    measurements
        N numbers by name; None is left out.

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
        {"name": name, "color": list(class_colour(k))} for k, name in enumerate(names)
    ]
    ids = cell_ids(image.name, image.masks) if ids is None else ids
    scores = image.scores
    for index, polygons in enumerate(trace_masks(image.masks, image.size)):
        if not polygons:
            continue
        properties: dict[str, Any] = {
            "objectType": object_type,
            "classification": classifications[image.classes[index]],
        }
        measured = {} if scores is None else {"score": round(float(scores[index]), 6)}
        if measurements is not None:
            more = measurements[index].items()
            measured |= {name: value for name, value in more if value is not None}
        if measured:
            properties["measurements"] = measured
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
            "id": ids[index],
            "geometry": geometry,
            "properties": properties,
        }


@dataclass(frozen=True)
class GeoJSONOptions:
    """How the cells of images are written.

    Attributes
    ----------
    object_type
        As for `cell_features`; None for detections of results, and annotations otherwise.
    measure
        `measure_cells` or the like, to write the columns of the table too; None for no more than
        the score.
    use_gzip
        Whether to compress the file, and end its name in `.gz`.
    """

    object_type: str | None = None
    measure: Measure | None = None
    use_gzip: bool = False


def export_geojson(
    folder: Path,
    image: ImageCells,
    names: Sequence[str],
    options: GeoJSONOptions,
    progress: Callable[[int], object],
    unreadable: list[InputError],
) -> int:
    """Write the cells of an image in the pixels of its full resolution; return their number.

    The file is `<image>.geojson` in the folder. `progress` is called with the number of cells that
    were written, and `unreadable` is as for `measure_cells`.
    """
    measured = None
    if options.measure:
        measured = measurements(options.measure(image, names, unreadable=unreadable))
    object_type = options.object_type or ("annotation" if image.scores is None else "detection")
    scale = scale_to_full_resolution(image)
    features = cell_features(image, names, object_type, scale, measurements=measured)

    def counted() -> Iterator[Feature]:
        for feature in features:
            progress(1)
            yield feature

    path = folder / f"{image.name}.geojson{'.gz' * options.use_gzip}"
    return write_geojson(path, counted())


def write_geojson(path: str | os.PathLike[str], features: Iterable[Feature]) -> int:
    """Write features as a FeatureCollection, one per line; return their number.

    A path that ends in `.gz` is compressed with gzip, always to the same bytes.

    Raises InputError if the file can't be written, or is somebody else's.
    """
    path = Path(path)
    count = 0
    start = '{"type":"FeatureCollection","features":['
    is_gzip = path.suffix == ".gz"
    own = _GZIP if is_gzip else re.escape(f"{start}\n".encode())
    check_own(path, own, "outlines")
    with write_atomic(path, "wb") as raw, _as_text(raw, is_gzip) as file:
        file.write(start)
        for feature in features:
            text = to_json(feature, separators=(",", ":"))
            file.write(("," if count else "") + "\n" + text)
            count += 1
        file.write("\n]}\n")
    return count


_NAME = "cellseg.geojson"
# The header of gzip: magic bytes, deflate, with a name, no time, level and system, the name.
_GZIP = re.escape(b"\x1f\x8b\x08\x08\0\0\0\0") + b".." + re.escape(_NAME.encode() + b"\0")


@contextlib.contextmanager
def _as_text(raw: Any, is_gzip: bool) -> Iterator[IO[str]]:
    """Yield a text file in UTF-8 that writes into another, which stays open."""
    with contextlib.ExitStack() as stack:
        if is_gzip:
            raw = stack.enter_context(gzip.GzipFile(_NAME, "wb", 6, raw, mtime=0))
        text = io.TextIOWrapper(raw, "utf-8", newline="\n")
        yield text
        text.flush()
        text.detach()

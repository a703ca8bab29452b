"""The formats of export.py, each for all images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cellseg.errors import InputError
from cellseg.images import ImageCells
from cellseg.look.overlay import write_overlay
from cellseg.messages import listed, plural, warn
from cellseg.write.coco import write_coco
from cellseg.write.geojson import GeoJSONOptions, export_geojson
from cellseg.write.label_studio import write_label_studio
from cellseg.write.labels import write_labels
from cellseg.write.measured import warn_of_unreadable

FORMATS = ("geojson", "labels", "overlay", "coco", "label-studio", "label-studio-brush")
DEFAULT_FORMATS = FORMATS[:3]

FORMATS_HELP = """\
  geojson  <output>/geojson/<image>.geojson: outlines along the pixels' edges with class,
           colour and score; QuPath opens them with File > Import objects from file. --as
           annotations to edit them there, --as detections for many
  labels   <output>/labels/<image>/class<K>.tif: label maps (int32, zlib), as annotation.py
           and evaluate.py read them. Where cells of one class overlap, pixels go to the cell
           with the higher score, at equal scores to the earlier one
  overlay  <output>/overlay/<image>.png: outlines drawn on the image. Images of more than 4096
           pixels a side are left out unless --format names overlay, and then reduced to
           --max_side, <image>.jpg; with --max_side 0, <image>/x<left>_y<top>.png for each
           window of 4096 x 4096 at full size
  coco     <output>/coco.json: polygons, for CVAT, Roboflow and others
  label-studio, label-studio-brush
           <output>/<format>.json: predictions for Label Studio, as polygons or brush masks
"""


def write_format(
    name: str,
    images: Sequence[ImageCells],
    names: Sequence[str],
    output: Path,
    progress: Callable[[int], object],
    geojson: GeoJSONOptions,
    max_side: int,
) -> tuple[Path, int]:
    """Write the cells of all images in one format.

    Parameters
    ----------
    name
        One of `FORMATS`.
    images
        Images with their cells.
    names
        The K class names.
    output
        The folder of all formats.
    progress
        Called with the number of cells that were written since the last call.
    geojson
        For GeoJSON: how it is written.
    max_side
        For overlays: the longest side in pixels, 0 for full size.

    Returns
    -------
    place, n_hidden
        The file or folder, and the number of cells that are not visible there.

    Raises
    ------
    InputError
        If a file can't be written, or is somebody else's; for overlays, if an image can't be read.
    """
    if name == "coco":
        write_coco(output / "coco.json", images, names, progress)
        return output / "coco.json", 0
    if name.startswith("label-studio"):
        path = output / f"{name}.json"
        write_label_studio(path, images, names, name.endswith("brush"), progress)
        return path, 0
    folder, n_hidden = output / name, 0
    before = _files(folder)
    unreadable: list[InputError] = []
    for image in images:
        if name == "geojson":
            n_hidden += len(image.masks) - export_geojson(
                folder, image, names, geojson, progress, unreadable
            )
            continue
        if name == "labels":
            cells = image.masks, image.classes, image.scores
            n_hidden += write_labels(folder / image.name, image.size, *cells)
        else:
            write_overlay(image, names, folder, max_side)
        progress(len(image.masks))
    warn_of_unreadable(unreadable)
    after = _files(folder)
    if same := sorted(path for path, state in before.items() if after.get(path) == state):
        n, found = plural(len(same), "file"), listed([path.relative_to(folder) for path in same])
        warn(f"{folder}: {n} of earlier exports left there: {found}; remove what is out of date")
    return folder, n_hidden


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return what changes in each file of a folder when it is written again."""
    states = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (state.st_ino, state.st_mtime_ns) for path, state in states.items()}

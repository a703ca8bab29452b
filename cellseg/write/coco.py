"""Cells as a COCO file with polygons, for CVAT, Roboflow and other labelling tools.

https://cocodataset.org/#format-data. Polygons run along the pixels' edges, the convention of
pycocotools, which fills them to the same masks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from cellseg.files import check_own, to_json, write_atomic
from cellseg.images import ImageCells
from cellseg.read.cells import scale_to_full_resolution
from cellseg.read.fill import ring_area
from cellseg.write.polygons import traced_rings

_START = '{"info":{"description":"Cells as polygons (export.py)"},\n'


def write_coco(
    path: Path,
    images: Sequence[ImageCells],
    names: Sequence[str],
    progress: Callable[[int], object] = lambda _: None,
) -> int:
    """Write the cells of all images into one COCO file, line by line; return their number.

    Parameters
    ----------
    path
        The file.
    images
        Images with their cells; coordinates are in pixels of the full resolution. Masks without
        pixels are left out.
    names
        The K class names, with the category ids 1…K.
    progress
        Called with the number of cells that were written.

    Raises
    ------
    InputError
        If the file can't be written, or is somebody else's.
    """
    check_own(path, re.escape(_START.encode()), "polygons")
    categories = [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(names, 1)]
    count = 0
    with write_atomic(path) as file:
        file.write(f'{_START}"licenses":[],\n"images":[')
        file.write(",".join(f"\n{_compact(entry)}" for entry in _image_entries(images)))
        file.write(f'\n],\n"categories":{_compact(categories)},\n"annotations":[')
        for image in images:
            for entry in _annotations(image, count):
                count += 1
                file.write(("," if count > 1 else "") + "\n" + _compact(entry))
            progress(len(image.masks))
        file.write("\n]}\n")
    return count


def task_names(images: Sequence[ImageCells]) -> list[str]:
    """Return the images' names for a labelling tool: as listed, of absolute paths the last part.

    Absolute paths of which several end in one name are kept.
    """
    short = [PurePath(image.file_name).name for image in images]
    if len(set(short)) == len(short) and any(PurePath(i.file_name).is_absolute() for i in images):
        return short
    return [image.file_name for image in images]


def _image_entries(images: Sequence[ImageCells]) -> Iterator[dict[str, Any]]:
    for image, name in zip(images, task_names(images), strict=True):
        scale = scale_to_full_resolution(image)
        height, width = (round(n * f) for n, f in zip(image.size, scale[::-1], strict=True))
        entry = {"id": image.id, "file_name": name, "height": height, "width": width}
        if image.mpp:
            entry["mpp"] = float(f"{image.mpp / np.sqrt(scale[0] * scale[1]):.6g}")
        yield entry


def _annotations(image: ImageCells, n_before: int) -> Iterator[dict[str, Any]]:
    scale = scale_to_full_resolution(image)
    for n, rings in enumerate(traced_rings(image.masks, image.size)):
        if not rings:
            continue
        points = [ring if scale == (1, 1) else (ring * scale).round(3) for ring in rings]
        every = np.concatenate(points)
        low, high = every.min(axis=0), every.max(axis=0)
        n_before += 1
        entry = {
            "id": n_before,
            "image_id": image.id,
            "category_id": int(image.classes[n]) + 1,
            "segmentation": [ring.reshape(-1).tolist() for ring in points],
            "area": sum(map(_area, points)),
            "bbox": [*low.tolist(), *(high - low).tolist()],
            "iscrowd": 0,
        }
        if image.scores is not None:
            entry["score"] = round(float(image.scores[n]), 6)
        yield entry


def _area(ring: Any) -> float:
    area = ring_area(ring)
    return int(area) if area.is_integer() else round(area, 3)


def _compact(value: Any) -> str:
    return to_json(value, separators=(",", ":"))

"""COCO files of other programs: repair what they write differently, and keep every cell."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.errors import InputError
from cellseg.files import read_json
from cellseg.images import ImageCells
from cellseg.messages import plural
from cellseg.read.cell_checks import scattered
from cellseg.read.coco import (
    COCO,
    COCO_REMEDY,
    EmptyMaskError,
    annotated_cells,
    check_coco,
    class_names,
    is_degenerate,
    is_numbers,
    select_images,
)
from cellseg.read.names import is_outside
from cellseg.read.window import image_size
from cellseg.rle import decode

_CROWD = 10
"""Area of a crowd region in median cells of its category; smaller ones are single cells."""

Warnings = defaultdict[int, Counter[str]]  # by image id


@dataclass(frozen=True, kw_only=True)
class CocoImage(ImageCells):
    """An image of a COCO file, with its cells.

    Attributes
    ----------
    warnings
        Number of its annotations that were repaired or left out, by kind.
    """

    warnings: Counter[str] = field(default_factory=Counter)


def read_coco_images(
    path: Path, data: Path, skip_bad: bool = False
) -> tuple[list[str], list[CocoImage], list[str]]:
    """Read a COCO file of any program, whose file names are relative to `data`.

    What has one meaning is repaired: backslashes and absolute paths below `data`, sizes that are
    missing or floats, coordinates from 0 to 1, and single cells that are marked as crowds, as
    brush masks are in CVAT. Polygons of fewer than 3 points or without area, and cells without a
    pixel, are left out.

    Returns
    -------
    names
        The K class names, by category id.
    images
        The images, by file name.
    skipped
        With `skip_bad`, a message for each image of which no cell can be used.

    Raises
    ------
    InputError
        If `check_coco` does; without `skip_bad`, if a cell can't be used, or none of an image's.
    """
    coco = read_json(path, "annotations", COCO_REMEDY)
    warnings: Warnings = defaultdict(Counter)
    skipped = []
    if isinstance(coco, dict):
        skipped = _repair(path, data, coco, warnings, skip_bad)
    before = Counter(_image_ids(coco))
    unusable: list[tuple[int, InputError]] = []
    coco = check_coco(path, coco, unusable)
    after = Counter(_image_ids(coco))
    bad = set()
    for image_id, error in unusable:
        warnings[image_id][_EMPTY] += isinstance(error, EmptyMaskError)
        warnings[image_id]["unusable cells, left out"] += not isinstance(error, EmptyMaskError)
    for image_id, error in unusable:
        if after[image_id] and (skip_bad or isinstance(error, EmptyMaskError)):
            continue
        if not skip_bad:
            raise InputError(f"{error} (or skip what can't be used with --skip_bad)")
        if image_id not in bad:
            bad.add(image_id)
            skipped.append(f"{error} ({plural(before[image_id], 'cell')}, none of them usable)")
    coco = select_images(coco, {image["id"] for image in coco["images"]} - bad)
    _mark_single_cells(coco, warnings)
    names = [image["file_name"] for image in coco["images"]]
    images = []
    for image in annotated_cells(coco, data, names):
        warnings[image.id]["crowd regions (iscrowd), ignored"] = image.n_crowds
        values = {each.name: getattr(image, each.name) for each in fields(image)}
        images.append(CocoImage(**values, warnings=+warnings[image.id]))
    return class_names(coco), sorted(images, key=lambda image: image.file_name), skipped


_EMPTY = "cells without a pixel, left out"


def _image_ids(coco: Any) -> list[int]:
    """Return the image id of every annotation, as far as the file is COCO."""
    annotations = coco.get("annotations") if isinstance(coco, dict) else None
    return [
        annotation["image_id"]
        for annotation in (annotations if isinstance(annotations, list) else ())
        if isinstance(annotation, dict) and type(annotation.get("image_id")) is int
    ]


def _repair(path: Path, data: Path, coco: COCO, warnings: Warnings, skip_bad: bool) -> list[str]:
    """Repair the parts of a file that have the right types; the others are left to `check_coco`.

    Returns a message for each image that was removed, with its annotations, as it has no size.
    """
    images = _dicts(coco.get("images"))
    annotations = _dicts(coco.get("annotations"))
    without_size: dict[int, InputError] = {}
    for image in images:
        if isinstance(image.get("file_name"), str):
            image["file_name"] = _relative(image["file_name"], data)
        try:
            _repair_size(image, data)
        except InputError as error:
            if not skip_bad or type(image.get("id")) is not int:
                raise InputError(f"{error} (or skip what can't be used with --skip_bad)") from None
            without_size[image["id"]] = error
    n_cells = Counter(_image_ids(coco))
    skipped = [
        f"{error} ({plural(n_cells[image_id], 'cell')} not used with it)"
        for image_id, error in without_size.items()
    ]
    if skipped:
        images = [image for image in images if not _is_in(without_size, image.get("id"))]
        annotations = [a for a in annotations if not _is_in(without_size, a.get("image_id"))]
        coco |= {"images": images, "annotations": annotations}
        if not images:
            raise InputError(f"{path}: none of the images is usable; the first: {skipped[0]}")
    sizes = {
        image["id"]: (image["width"], image["height"])
        for image in images
        if type(image.get("id")) is int
        and all(type(image.get(key)) is int for key in ("width", "height"))
    }
    polygons = [
        (annotation, [part for part in annotation["segmentation"] if is_numbers(part)])
        for annotation in annotations
        if isinstance(annotation.get("segmentation"), list)
        and _is_in(sizes, annotation.get("image_id"))
    ]
    if _are_fractions([part for _, parts in polygons for part in parts]):
        for annotation, parts in polygons:
            for part in parts:
                width, height = sizes[annotation["image_id"]]
                part[::2] = [x * width for x in part[::2]]
                part[1::2] = [y * height for y in part[1::2]]
            kind = "cells with coordinates from 0 to 1, scaled to pixels"
            warnings[annotation["image_id"]][kind] += 1
    for annotation, _ in polygons:
        good = [part for part in annotation["segmentation"] if not is_degenerate(part)]
        n_stray = len(annotation["segmentation"]) - len(good)
        if good and n_stray:
            kind = "parts of cells of fewer than 3 points or without area, left out"
            warnings[annotation["image_id"]][kind] += n_stray
            annotation["segmentation"] = good
    return skipped


def _is_in(ids: Mapping[int, object], value: Any) -> bool:
    return type(value) is int and value in ids


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


def _relative(file_name: str, data: Path) -> str:
    """Return a file name with forward slashes and relative to the data folder, if it is in it."""
    # Path.exists raises an error for long names.
    if "\\" in file_name and not os.path.exists(data / file_name):  # noqa: PTH110
        file_name = file_name.replace("\\", "/")
    if Path(file_name).is_absolute():
        for folder in (data.absolute(), data.resolve()):
            if Path(file_name).is_relative_to(folder):
                return Path(file_name).relative_to(folder).as_posix()
    return file_name.removeprefix("./")


def _repair_size(image: dict[str, Any], data: Path) -> None:
    """Set the size of an image: integers for floats, that of the file if it is missing."""
    for key in ("height", "width"):
        value = image.get(key)
        if type(value) is float and value.is_integer():
            image[key] = int(value)
    name = image.get("file_name")
    has_size = image.get("height") and image.get("width")
    if isinstance(name, str) and name.strip() and not has_size:
        check_inside(name)
        image["height"], image["width"] = image_size(data / name)


def check_inside(file_name: str) -> None:
    """Raise InputError if an image is outside the data folder."""
    if is_outside(file_name):
        raise InputError(
            f"{file_name}: outside the data folder; write the COCO file's file_name relative to it"
        )


def _are_fractions(parts: list[list[float]]) -> bool:
    """Return whether all polygons of a file are in fractions of their images."""
    return all(0 <= value <= 1 for part in parts for value in part) and any(
        0 < value < 1 for part in parts for value in part
    )


def _mark_single_cells(coco: COCO, warnings: Warnings) -> None:
    """Set `iscrowd` to 0 for regions of the size of a cell, in one place."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    for category in coco["categories"]:
        members = [a for a in coco["annotations"] if a["category_id"] == category["id"]]
        crowds = [a for a in members if a["iscrowd"]]
        if not crowds:
            continue
        limit = _CROWD * float(np.median([a["area"] for a in members]))
        for annotation in crowds:
            image_id = annotation["image_id"]
            mask = decode([annotation["segmentation"]], sizes[image_id])
            if annotation["area"] <= limit and not scattered(mask).any():
                annotation["iscrowd"] = 0
                warnings[image_id]["crowd regions (iscrowd) as large as a cell, used as cells"] += 1

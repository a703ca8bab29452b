"""COCO files of other programs: repair what they write differently, and keep every cell."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.errors import InputError
from cellseg.files import exists, find_in_another_case, read_json
from cellseg.images import ImageCells
from cellseg.messages import in_images, listed, plural, warn
from cellseg.read.cell_checks import scattered
from cellseg.read.coco import (
    COCO,
    COCO_REMEDY,
    EmptyMaskError,
    FractionsError,
    UnknownReferenceError,
    annotated_cells,
    are_fractions,
    check_coco,
    class_names,
    is_degenerate,
    is_numbers,
    select_images,
)
from cellseg.read.convention import run_through_centres, settle_polygons
from cellseg.read.names import is_outside, path_parts, relative_name, short_name
from cellseg.read.resolution import MPP_RANGE, is_plausible
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
    path: Path, data: Path, skip_bad: bool = False, convention: str | None = None
) -> tuple[list[str], list[CocoImage], list[str]]:
    """Read a COCO file of any program, whose file names are relative to `data`.

    What has one meaning is repaired: backslashes and absolute paths below `data`, sizes that are
    missing, floats or text, ids and `mpp` that are text, polygons outside a list, coordinates from
    0 to 1, and single cells that are marked as crowds, as brush masks are in CVAT. Polygons of
    fewer than 3 points or without area, and cells without a pixel, are left out. `convention` is
    where polygons run, see `cellseg.read.convention`.

    Returns
    -------
    names
        The K class names, by category id.
    images
        The images, by file name.
    skipped
        With `skip_bad`, a message for each image of which no cell can be used, and for the cells
        of images that are not in the file.

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
        sizes = _sizes(_dicts(coco.get("images")))
        settle_polygons(path, _dicts(coco.get("annotations")), sizes, convention)
    before = Counter(_image_ids(coco))
    unusable: list[tuple[Any, InputError]] = []
    coco = check_coco(path, coco, unusable)
    after = {image["id"]: 0 for image in coco["images"]} | Counter(_image_ids(coco))
    bad: dict[int, InputError] = {}
    stray: list[InputError] = []
    for image_id, error in unusable:
        is_empty = isinstance(error, EmptyMaskError)
        if not (skip_bad or (is_empty and after[image_id])):
            raise InputError(f"{error} (or skip what can't be used with --skip_bad)")
        if not _is_in(after, image_id):
            stray.append(error)
        elif not after[image_id]:
            bad.setdefault(image_id, error)
        else:
            warnings[image_id][_kind(error)] += 1
    file_names = {image["id"]: image["file_name"] for image in coco["images"]}
    skipped += [
        f"{error} ({file_names[image_id]}: {plural(before[image_id], 'cell')}, none of them usable)"
        for image_id, error in bad.items()
    ]
    if stray:
        n_stray = plural(len(stray), "cell")
        skipped.append(f"{stray[0]} ({n_stray} of images that are not in the file)")
    coco = select_images(coco, set(after) - set(bad))
    _mark_single_cells(coco, warnings)
    _warn_of_groups(path, coco)
    names = [image["file_name"] for image in coco["images"]]
    _check_folder(path, data, names)
    images = []
    for image in annotated_cells(coco, data, names):
        warnings[image.id]["crowd regions (iscrowd), ignored"] = image.n_crowds
        images.append(CocoImage(**vars(image), warnings=+warnings[image.id]))
    return class_names(coco), sorted(images, key=lambda image: image.file_name), skipped


def _check_folder(path: Path, data: Path, file_names: Sequence[str]) -> None:
    """Raise InputError if no image is in the data folder, with the place of one that is found."""
    names = [name for name in file_names if not is_outside(name)]
    if not names or any(exists(data / name) for name in names):
        return
    if other := find_in_another_case(data / names[0]):
        raise InputError(
            f"{path}: no image is found in {data}, such as {names[0]}; {other} differs from it "
            "only in case: use one name"
        )
    last = path_parts(names[0])[-1:]
    others = data.rglob(glob.escape(last[0])) if last and data.is_dir() else iter(())
    found = next(others, None)
    place = f"; {found} has that name: choose --data so that file_name is relative to it"
    raise InputError(
        f"{path}: no image is found in {data}, such as {names[0]}"
        + (place if found else "; put them there, or choose their folder with --data")
    )


def _kind(error: InputError) -> str:
    """Return a warning for cells that can't be used because of an error."""
    if isinstance(error, FractionsError):
        return (
            "cells with coordinates from 0 to 1 beside others in pixels, left out (multiply them "
            "by the image's width and height)"
        )
    if isinstance(error, EmptyMaskError):
        return "cells without a pixel, left out"
    if isinstance(error, UnknownReferenceError):
        return "cells of unknown categories, left out"
    return "unusable cells, left out"


def _warn_of_groups(path: Path, coco: COCO) -> None:
    """Warn of categories that only name a group of others, as in Roboflow's files."""
    used = {annotation["category_id"] for annotation in coco["annotations"]}
    groups = {
        group
        for category in coco["categories"]
        if isinstance(group := category.get("supercategory"), str) and group != category["name"]
    }
    empty = [c["name"] for c in coco["categories"] if c["id"] not in used and c["name"] in groups]
    if empty:
        warn(
            f"{path}: {listed(empty)} is a class without a cell, as it is a category of its own "
            "and the supercategory of others; remove it from the categories if it is only that"
        )


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
    _repair_ids(images, annotations, _dicts(coco.get("categories")))
    without_size: dict[int, InputError] = {}
    for image in images:
        if isinstance(image.get("file_name"), str):
            image["file_name"] = _relative(image["file_name"], data)
        mpp = _to_number(image.get("mpp"))
        if mpp is not None and not is_plausible(mpp):
            mpp = None
            if type(image.get("id")) is int:
                warnings[image["id"]][f"images whose mpp is not {MPP_RANGE}, ignored"] += 1
        image["mpp"] = mpp
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
    _repair_polygons(annotations, _sizes(images), warnings)
    return skipped


def _sizes(images: Sequence[COCO]) -> dict[int, tuple[int, int]]:
    """Return height and width of each image by its id, if all of these are integers."""
    return {
        image["id"]: (image["height"], image["width"])
        for image in images
        if all(type(image.get(key)) is int for key in ("id", "height", "width"))
    }


def _repair_polygons(
    annotations: Sequence[COCO], sizes: Mapping[int, tuple[int, int]], warnings: Warnings
) -> None:
    """Put single polygons into lists, scale fractions to pixels, leave out degenerate parts."""
    for annotation in annotations:
        part = annotation.get("segmentation")
        if isinstance(part, list) and len(part) >= 6 and is_numbers(part):
            annotation["segmentation"] = [part]  # a polygon alone, as older versions of VIA write
    polygons = [
        (annotation, [part for part in annotation["segmentation"] if is_numbers(part)])
        for annotation in annotations
        if isinstance(annotation.get("segmentation"), list)
        and _is_in(sizes, annotation.get("image_id"))
    ]
    if are_fractions([part for _, parts in polygons for part in parts]):
        for annotation, parts in polygons:
            for part in parts:
                height, width = sizes[annotation["image_id"]]
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


def _repair_ids(
    images: Sequence[COCO], annotations: Sequence[COCO], categories: Sequence[COCO]
) -> None:
    """Set ids that are text or whole floats to integers; number annotations that lack their own."""
    for entry in (*images, *annotations, *categories):
        for key in ("id", "image_id", "category_id"):
            value = _to_number(entry.get(key))
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if type(value) is int:
                entry[key] = value
    ids = [annotation.get("id") for annotation in annotations]
    # Merged files repeat them, and nothing refers to them.
    if not all(type(id_) is int for id_ in ids) or len(set(ids)) < len(ids):
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number


def _to_number(value: Any) -> Any:
    """Return the number that a text is, else the value."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,15}(\.[0-9]{0,15})?\s*", value):
        return float(value) if "." in value else int(value)
    return value


def _is_in(ids: Mapping[int, object], value: Any) -> bool:
    return type(value) is int and value in ids


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


def _relative(file_name: str, data: Path) -> str:
    """Return a file name with forward slashes and relative to the data folder, if it is in it."""
    if "\\" in file_name and not exists(data / file_name):
        file_name = file_name.replace("\\", "/")
    return relative_name(file_name, data).removeprefix("./")


def _repair_size(image: dict[str, Any], data: Path) -> None:
    """Set the size of an image: integers for floats, that of the file if it is missing."""
    for key in ("height", "width"):
        value = _to_number(image.get(key))
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is int:
            image[key] = value
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


def _mark_single_cells(coco: COCO, warnings: Warnings) -> None:
    """Set `iscrowd` to 0 for regions of the size of a cell, in one place."""
    for annotation in crowds_like_cells(coco):
        annotation["iscrowd"] = 0
        kind = "crowd regions (iscrowd) as large as a cell, used as cells"
        warnings[annotation["image_id"]][kind] += 1


def crowds_like_cells(coco: COCO) -> list[dict[str, Any]]:
    """Return the crowd regions of the size of a cell, in one place."""
    sizes = _sizes(coco["images"])
    found = []
    for category in coco["categories"]:
        members = [a for a in coco["annotations"] if a["category_id"] == category["id"]]
        crowds = [a for a in members if a["iscrowd"]]
        if not crowds:
            continue
        limit = _CROWD * float(np.median([a["area"] for a in members]))
        for annotation in crowds:
            mask = decode([annotation["segmentation"]], sizes[annotation["image_id"]])
            if annotation["area"] <= limit and not scattered(mask).any():
                found.append(annotation)
    return found


def _remove_copies(path: str | os.PathLike[str], coco: COCO) -> None:
    """Remove annotations of which image, category and mask are those of an earlier one, and warn.

    RLEs are compared as text, since decoding costs more, and a program writes a mask in one way.
    """
    first: dict[tuple[Any, ...], COCO] = {}
    copies: Counter[int] = Counter()
    for annotation in coco["annotations"]:
        image_id, counts = annotation["image_id"], annotation["segmentation"]["counts"]
        key = image_id, annotation["category_id"], annotation["iscrowd"], counts
        copies[image_id] += first.setdefault(key, annotation) is not annotation
    if n_copies := copies.total():
        coco["annotations"] = list(first.values())
        where = [short_name(i["file_name"]) for i in coco["images"] if copies[i["id"]]]
        what = "cells that occur twice in a class, used once"
        warn(f"{path}: {what}: {n_copies}, {in_images(where)}")


def load_coco_as_written(path: str | os.PathLike[str]) -> COCO:
    """Load a COCO file by the rules of COCO, as `load_coco` does, and with its errors.

    Annotations that occur twice are used once, with a warning. Warns of crowd regions that are
    probably cells and polygons that probably run through the centres of pixels: `read_coco_images`
    reads these otherwise.
    """
    coco = read_json(path, "annotations", COCO_REMEDY)
    polygons = [
        {key: annotation.get(key) for key in ("image_id", "segmentation", "area")}
        for annotation in _dicts(coco.get("annotations") if isinstance(coco, dict) else None)
        if isinstance(annotation.get("segmentation"), list)
    ]
    coco = check_coco(path, coco)
    _remove_copies(path, coco)
    sizes = _sizes(coco["images"])
    found = []
    if crowds := crowds_like_cells(coco):
        n, ids = plural(len(crowds), "crowd region"), {crowd["image_id"] for crowd in crowds}
        where = in_images([short_name(i["file_name"]) for i in coco["images"] if i["id"] in ids])
        found.append(f"{n} (iscrowd) as large as a cell, not used as cells, {where}")
    if polygons and run_through_centres(path, polygons, sizes):
        found.append("polygons that run through the pixels' centres, used as if along their edges")
    for what in found:
        warn(f"{path}: {what}; to use them as meant, convert the file with annotation.py --coco")
    return coco

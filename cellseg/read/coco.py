"""Annotation files in COCO's instance format.

`images` have `file_name` relative to the data folder; `annotations` have a compressed RLE
(`counts` a str), `area` in pixels, `bbox` XYWH and `iscrowd`.
https://cocodataset.org/#format-data
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.files import read_json
from cellseg.images import ImageCells, ImageRecord
from cellseg.limits import check_outline_length
from cellseg.read.fill import ring_area
from cellseg.read.layout import ANNOTATIONS, CLASS_NAMES
from cellseg.read.names import check_class_names, check_image_name
from cellseg.read.resolution import MPP_RANGE, is_plausible
from cellseg.rle import (
    MaskRuns,
    areas,
    boxes_xyxy,
    concatenate,
    decode,
    encode,
    select_masks,
    xyxy_to_xywh,
)
from cellseg.text import json_type, show

COCO = dict[str, Any]

MAX_SIDE = 65535  # pycocotools counts pixels in 32 bits

COCO_REMEDY = "create it with annotation.py, or export it as COCO instance segmentation"


@dataclass(frozen=True)
class AnnotatedImage:
    """The cells of one image.

    Attributes
    ----------
    file_name
        The image, relative to the data folder, with forward slashes.
    size
        Height and width in pixels.
    cells
        The masks of each class with a file, by class 1…K, ascending; those of a class by label,
        or in the order of the file.
    warnings
        Number of each type of unusual content.
    mpp
        Micrometres per pixel, None if unknown.
    """

    file_name: str
    size: tuple[int, int]
    cells: dict[int, MaskRuns]
    warnings: Counter[str]
    mpp: float | None = None


def split_by_class(mask_runs: MaskRuns, classes: NDArray[np.int64]) -> dict[int, MaskRuns]:
    """Return `AnnotatedImage.cells` of N masks with the classes `(N,)`, 0…K−1."""
    return {
        class_ + 1: select_masks(mask_runs, np.flatnonzero(classes == class_))
        for class_ in np.unique(classes).tolist()
    }


_DESCRIPTION = "Cells by class, one annotation a cell (annotation.py)"
OWN_START = re.escape(f'{{"info": {{"description": "{_DESCRIPTION}"'.encode())
"""Regular expression for the beginning of an annotation file that this project wrote."""


def build_coco(
    images: Iterable[AnnotatedImage], class_names: Sequence[str], ids: Iterable[int] | None = None
) -> COCO:
    """Build a COCO dict from annotated images.

    Images have the given ids, else 1…n in their order; annotations 1…m, by image, class,
    label; categories 1…K in the order of `class_names`.
    """
    coco: COCO = {
        "info": {"description": _DESCRIPTION},
        "images": [],
        "annotations": [],
        "categories": [{"id": n, "name": name} for n, name in enumerate(class_names, 1)],
    }
    for image_id, image in zip(ids or itertools.count(1), images, strict=False):
        height, width = image.size
        entry = {"id": image_id, "file_name": image.file_name, "height": height, "width": width}
        if image.mpp:
            entry["mpp"] = float(f"{image.mpp:.6g}")
        coco["images"].append(entry)
        categories = [
            number for number, mask_runs in image.cells.items() for _ in range(len(mask_runs))
        ]
        mask_runs = concatenate(image.size, list(image.cells.values()))
        cells = zip(categories, encode(mask_runs), *_area_and_bbox(mask_runs), strict=True)
        for category, rle, area, bbox in cells:
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "segmentation": rle,
                    "area": area,
                    "bbox": bbox,
                    "iscrowd": 0,
                }
            )
    return coco


def _area_and_bbox(mask_runs: MaskRuns) -> tuple[list[int], list[list[int]]]:
    return areas(mask_runs).tolist(), xyxy_to_xywh(boxes_xyxy(mask_runs)).tolist()


def contiguous_classes(coco: COCO) -> dict[int, int]:
    """Return the class 0…K−1 of each category id, in the order of the ids, which can be any."""
    return {id_: n for n, id_ in enumerate(sorted(c["id"] for c in coco["categories"]))}


def class_names(coco: COCO) -> list[str]:
    """Return the K class names, in the order of `contiguous_classes`."""
    return [c["name"] for c in sorted(coco["categories"], key=lambda c: c["id"])]


def data_categories(data: Path, annotations: Path | None = None) -> list[dict[str, Any]]:
    """Return the categories of a data folder, `{"id", "name"}` by id.

    They are those of `annotations`, by default the folder's own; NYCU HW3's if it has none.
    Raises InputError if `load_coco` does.
    """
    own = data / ANNOTATIONS
    if annotations is None and not own.exists():
        return [{"id": id_, "name": name} for id_, name in enumerate(CLASS_NAMES, 1)]
    categories = load_coco(annotations or own)["categories"]
    return sorted(({k: c[k] for k in ("id", "name")} for c in categories), key=lambda c: c["id"])


def select_images(coco: COCO, image_ids: Container[int]) -> COCO:
    """Return the COCO dict of some of the images, with their annotations."""
    return {
        **coco,
        "images": [image for image in coco["images"] if image["id"] in image_ids],
        "annotations": [a for a in coco["annotations"] if a["image_id"] in image_ids],
    }


def image_records(coco: COCO, folder: Path) -> list[ImageRecord]:
    """Return the images of an annotation file, whose file names are relative to `folder`."""
    return [
        ImageRecord(
            image["id"],
            image["file_name"],
            folder / image["file_name"],
            (image["height"], image["width"]),
            mpp=image.get("mpp"),
        )
        for image in coco["images"]
    ]


def annotations_by_image(coco: COCO) -> dict[int, list[dict[str, Any]]]:
    """Return the annotations of each image by image id, both in the order of the file."""
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    return by_image


def annotated_cells(coco: COCO, folder: Path, names: Sequence[str]) -> list[ImageCells]:
    """Return the images of a COCO dict of `load_coco`, with their cells except crowd regions.

    File names are relative to `folder`; `names` are the names of the images, in their order.
    """
    class_of = contiguous_classes(coco)
    by_image = annotations_by_image(coco)
    images = []
    for name, image in zip(names, coco["images"], strict=True):
        annotations = by_image[image["id"]]
        cells = [annotation for annotation in annotations if not annotation["iscrowd"]]
        boxes = np.array([cell["bbox"] for cell in cells], np.int64).reshape(-1, 4)
        images.append(
            ImageCells(
                id=image["id"],
                file_name=image["file_name"],
                path=folder / image["file_name"],
                size=(image["height"], image["width"]),
                mpp=image.get("mpp"),
                name=name,
                masks=[cell["segmentation"] for cell in cells],
                classes=np.array([class_of[cell["category_id"]] for cell in cells], np.int64),
                boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
                n_crowds=len(annotations) - len(cells),
            )
        )
    return images


class EmptyMaskError(InputError):
    """A mask has no pixel."""


class FractionsError(EmptyMaskError):
    """A polygon has no pixel, as its coordinates are probably fractions of the image."""


class UnknownReferenceError(InputError):
    """An annotation has an image or a category that is not in the file."""


def load_coco(path: str | os.PathLike[str]) -> COCO:
    """Load an annotation file, and check all that training and scoring use with `check_coco`.

    Raises InputError if the file is missing or not JSON, or `check_coco` does.
    """
    return check_coco(path, read_json(path, "annotations", COCO_REMEDY))


def check_coco(
    path: object,
    coco: Any,
    unusable: list[tuple[Any, InputError]] | None = None,
) -> COCO:
    """Check all that training and scoring use in annotations, and convert their masks.

    Parameters
    ----------
    path
        The file, for messages.
    coco
        Its content, which is changed. Masks may be polygons or RLEs, with compressed counts or a
        list; category ids can be any integers.
    unusable
        If given, annotations that can't be used are removed, and their image ids, which may be
        anything, and errors added here, instead of an error. For empty masks, these are
        `EmptyMaskError`, for images and categories that are not in the file
        `UnknownReferenceError`.

    Returns
    -------
    The COCO dict of the file, in its order. Every `segmentation` is a compressed RLE of its
    image's size, `counts` a str; `area` and `bbox` (XYWH) are those of the mask, not of the
    file; `iscrowd` is 0 or 1.

    Raises
    ------
    InputError
        If the file is not COCO; an id occurs twice; an annotation has an unknown image or
        category; a mask has another size than its image, no pixel, or broken counts.
    """
    if not isinstance(coco, dict):
        raise InputError(f"{path}: not COCO ({json_type(coco)} at the top); {COCO_REMEDY}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco.get(key), list):
            raise InputError(f'{path}: not COCO (no list "{key}"); {COCO_REMEDY}')
        if not coco[key] and key != "annotations":
            raise InputError(f'{path}: "{key}" is empty, expected at least one; {COCO_REMEDY}')
        _check_ids(path, key, coco[key])

    for image in coco["images"]:
        where = f"{path}: image {image['id']}"
        _check(where, image, "file_name", _is_text, "a file's name")
        check_image_name(path, image["file_name"])
        for key in ("height", "width"):
            _check(where, image, key, _is_side, f"an integer of pixels, 1 to {MAX_SIDE}")
        if image.get("mpp") is not None:
            _check(where, image, "mpp", is_plausible, MPP_RANGE)
    _check_unique(path, "file_name", [image["file_name"] for image in coco["images"]])
    for category in coco["categories"]:
        _check(f"{path}: category {category['id']}", category, "name", _is_text, "a name")
    check_class_names(path, [category["name"] for category in coco["categories"]])

    images = {image["id"]: image for image in coco["images"]}
    categories = {category["id"] for category in coco["categories"]}
    by_image: dict[int, list[dict[str, Any]]] = {id_: [] for id_ in images}
    for annotation in coco["annotations"]:
        try:
            _check_annotation(
                f"{path}: annotation {annotation['id']}", annotation, images, categories
            )
        except InputError as error:
            if unusable is None:
                raise
            unusable.append((annotation.get("image_id"), error))
        else:
            by_image[annotation["image_id"]].append(annotation)
    check_polygons(path, coco["annotations"])
    usable = set()
    for image_id, of_image in by_image.items():
        usable |= _normalise_usable(path, images[image_id], of_image, unusable)
    coco["annotations"] = [a for a in coco["annotations"] if a["id"] in usable]
    return coco


def _check_annotation(
    where: str, annotation: dict[str, Any], images: Container[int], categories: Container[int]
) -> None:
    """Check all of an annotation but its mask, and set `iscrowd` to 0 or 1."""
    for key, known in (("image_id", images), ("category_id", categories)):
        value = annotation.get(key)
        if type(value) is not int or value not in known:
            raise UnknownReferenceError(
                f"{where}: {key} {show(value)} is not in the file; add it or remove the annotation"
            )
    crowd = annotation.get("iscrowd")
    if crowd not in (0, 1, None):  # includes true and false
        raise InputError(f"{where}: iscrowd {show(crowd)} is not 0 or 1; fix it")
    annotation["iscrowd"] = int(bool(crowd))


def _check_ids(path: object, key: str, entries: list[Any]) -> None:
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int:
            raise InputError(
                f'{path}: entry {number} of "{key}" is not an object with an integer id; '
                f"{COCO_REMEDY}"
            )
    _check_unique(path, f"id in {key}", [entry["id"] for entry in entries])


def _check_unique(path: object, what: str, values: list[Any]) -> None:
    if len(set(values)) < len(values):
        seen: set[Any] = set()
        twice = next(v for v in values if v in seen or seen.add(v))  # type: ignore[func-returns-value]
        raise InputError(f"{path}: the {what} {show(twice)} occurs twice; make it unique")


def _check(where: str, entry: dict[str, Any], key: str, is_valid: Any, expected: str) -> None:
    if not is_valid(entry.get(key)):
        raise InputError(f"{where}: {key} {show(entry.get(key))} is not {expected}; fix it")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e100 < value < 1e100  # not NaN


def _normalise(path: object, image: dict[str, Any], annotations: list[dict[str, Any]]) -> None:
    """Replace the masks of an image by compressed RLEs, and set their areas and boxes."""
    size = (image["height"], image["width"])
    for annotation in annotations:
        annotation["segmentation"] = _compressed(
            f"{path}: annotation {annotation['id']}", annotation.get("segmentation"), size
        )
    try:
        mask_runs = decode([annotation["segmentation"] for annotation in annotations], size)
    except ValueError as error:
        index, _, reason = str(error).partition(": ")
        raise InputError(
            f"{path}: annotation {annotations[int(index)]['id']}: broken mask ({reason}); "
            f"{COCO_REMEDY}"
        ) from None
    for annotation, area, bbox in zip(annotations, *_area_and_bbox(mask_runs), strict=True):
        if not area:
            raise EmptyMaskError(f"{path}: annotation {annotation['id']}: empty mask; remove it")
        annotation["area"], annotation["bbox"] = area, bbox


def _normalise_usable(
    path: object,
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    unusable: list[tuple[Any, InputError]] | None,
) -> set[int]:
    """Normalise the annotations of an image; return the ids of those that can be used."""
    usable = {annotation["id"] for annotation in annotations}
    try:
        _normalise(path, image, annotations)
    except InputError:  # rare, so that all others are normalised at once
        if unusable is None:
            raise
        for annotation in annotations:
            try:
                _normalise(path, image, [annotation])
            except InputError as error:
                usable.remove(annotation["id"])
                unusable.append((image["id"], error))
    return usable


def _compressed(where: str, mask: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return a polygon or RLE as a compressed RLE with `counts` a str."""
    if isinstance(mask, dict):
        if mask.get("size") != list(size):
            raise InputError(
                f"{where}: mask of size {show(mask.get('size'))} in an image of {list(size)} "
                "(height, width); draw it on that image"
            )
        counts = mask.get("counts")
        if isinstance(counts, str):
            return {"size": list(size), "counts": counts}
        if isinstance(counts, list) and all(type(c) is int and c >= 0 for c in counts):
            if sum(counts) != size[0] * size[1]:
                raise InputError(
                    f"{where}: counts of {sum(counts)} pixels in an image of {list(size)} "
                    "(height, width); draw the mask on that image"
                )
            rle = pycocotools.mask.frPyObjects({"size": list(size), "counts": counts}, *size)
            return {"size": list(size), "counts": rle["counts"].decode("ascii")}
    elif isinstance(mask, list) and mask and all(is_polygon(part, size) for part in mask):
        if not any(_overlaps(part, size) for part in mask):
            raise InputError(
                f"{where}: polygon outside the image of {list(size)} (height, width); draw it on "
                "that image"
            )
        rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(mask, *size))
        if are_fractions(mask) and not pycocotools.mask.area(rle):
            raise FractionsError(
                f"{where}: coordinates from 0 to 1, which are no pixel; multiply them by the "
                "image's width and height if they are fractions of it, or remove it"
            )
        return {"size": list(size), "counts": rle["counts"].decode("ascii")}
    if mask is None or mask == []:
        raise InputError(
            f"{where}: no segmentation, only a box?; export the cells with their masks or polygons"
        )
    if isinstance(mask, list) and all(map(is_degenerate, mask)):
        raise EmptyMaskError(f"{where}: polygon of fewer than 3 points or without area; remove it")
    raise InputError(
        f"{where}: segmentation {show(mask)} is neither an RLE with size and counts nor a list "
        "of polygons [x1, y1, x2, y2, x3, y3, …] on the image; fix it"
    )


def check_polygons(path: object, annotations: list[dict[str, Any]]) -> None:
    """Raise InputError if the polygons of a file are too long to be filled; others pass."""
    length, n_points = 0.0, 0
    for annotation in annotations:
        mask = annotation.get("segmentation")
        for part in mask if isinstance(mask, list) else ():
            usable = isinstance(part, list) and len(part) % 2 == 0
            if usable and all(_is_number(n) and abs(n) < 2**32 for n in part):
                points = to_points(part)
                length += float(np.abs(np.diff(points, axis=0)).max(axis=1, initial=0).sum())
                n_points += len(points)
    check_outline_length(path, length, n_points)


def to_points(part: Sequence[float]) -> NDArray[np.float64]:
    """Return a polygon, x, y, …, as `(V, 2)` points."""
    return np.array(part, np.float64).reshape(-1, 2)


def is_numbers(part: Any) -> bool:
    """Return whether a value is a list of finite numbers."""
    return isinstance(part, list) and all(map(_is_number, part))


def are_fractions(parts: Sequence[Sequence[float]]) -> bool:
    """Return whether polygons seem to be in fractions of their images, not in pixels."""
    return all(0 <= value <= 1 for part in parts for value in part) and any(
        0 < value < 1 for part in parts for value in part
    )


def is_degenerate(part: Any) -> bool:
    """Return whether a polygon has fewer than 3 points or no area; not if it is something else."""
    if not is_numbers(part) or len(part) % 2:
        return False
    return len(part) < 6 or ring_area(to_points(part)) < 5e-7


def is_polygon(value: Any, size: tuple[int, int]) -> bool:
    """Return whether a value is a list of x, y, … of three points or more around the image."""
    if not (isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0):
        return False
    # pycocotools allocates a polygon's whole outline, however far off it is.
    reach = 2 * max(size)
    return is_numbers(value) and all(abs(number) <= reach for number in value)


def _overlaps(polygon: list[float], size: tuple[int, int]) -> bool:
    x, y = polygon[::2], polygon[1::2]
    return max(x) >= 0 and max(y) >= 0 and min(x) <= size[1] and min(y) <= size[0]

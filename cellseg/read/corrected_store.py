"""The corrected windows of a data folder, and how they join the training images.

`<data>/corrected/` has a PNG of each window, cropped to what was looked through, and a COCO file
whose images have, beside COCO's keys, a `source` (`Source`), a `corner` (`Corrected.corner`) and a
`region`, the RLE of what was looked through. Pixels outside it are white, as slides are where there
is no tissue, so that neither cells nor background there are learned from.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.files import check_own, display_path, write_json
from cellseg.messages import listed, warn
from cellseg.png import write_png
from cellseg.read.classes import advise_class_names, class_numbers
from cellseg.read.coco import (
    AnnotatedImage,
    annotations_by_image,
    build_coco,
    load_coco,
    split_by_class,
)
from cellseg.read.names import comparable_name, image_name, is_outside, path_parts
from cellseg.read.window import open_image, read_image, wrong_size
from cellseg.rle import (
    RLE,
    MaskRuns,
    areas,
    boxes_xyxy,
    concatenate,
    crop_runs,
    decode,
    encode,
    label_map_to_runs,
    place_runs,
    select_masks,
    subtract_masks,
    unite_masks,
)

STORE = "corrected"
"""In the data folder: the corrected windows."""
STORED = "annotations.json"
"""In `STORE`: their cells."""
SAME_CELL = 0.5
"""IoU of two versions of a cell, where there are no ids."""

Bools = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

_WHITE = 255
_LEAST = 64 * 64  # pixels that are left of a window without cells


@dataclass(frozen=True)
class Source:
    """Where a window comes from.

    Attributes
    ----------
    file_name, path
        The image as its list names it, and its absolute path.
    x, y, width, height
        The window in pixels of the level.
    level
        Level of the image's pyramid.
    held_out
        Whether the image is in the validation set of the run that predicted it.
    """

    file_name: str
    path: str
    x: int
    y: int
    width: int
    height: int
    level: int = 0
    held_out: bool = False

    @property
    def window(self) -> tuple[str, int, int, int, int, int]:
        """What is equal for two corrections of the same window."""
        return self.path, self.level, self.x, self.y, self.width, self.height


class Cell(NamedTuple):
    """A cell of a window: its id ("" if it has none), class 0…K−1 and RLE."""

    id: str
    class_: int
    mask: RLE


@dataclass(frozen=True)
class Corrected:
    """A window that was corrected, cropped to what was looked through.

    Attributes
    ----------
    name
        Name of its files.
    source
        The exported window in its image.
    pixels
        `(H, W, 3)` uint8 RGB, white outside `region`.
    region
        `(H, W)` bool: what was looked through, and whole cells at its border.
    cells
        Its cells, within the region.
    mpp
        Micrometres per pixel, None if unknown.
    corner
        Left and top of the crop in the exported window.
    """

    name: str
    source: Source
    pixels: Pixels
    region: Bools
    cells: list[Cell]
    mpp: float | None
    corner: tuple[int, int] = (0, 0)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.region.shape[0], self.region.shape[1]


def read_source(path: Path, image: dict[str, Any]) -> Source:
    """Return the source of a window in a COCO file of this module."""
    try:
        source = Source(**image["source"])
        numbers = (source.x, source.y, source.width, source.height, source.level)
        valid = all(type(n) is int and n >= 0 for n in numbers) and min(numbers[2:4]) > 0
        valid &= isinstance(source.file_name, str) and isinstance(source.path, str)
        valid &= type(source.held_out) is bool and image["file_name"].endswith(".png")
        valid &= not is_outside(image["file_name"])
    except (TypeError, KeyError):
        valid = False
    if not valid:
        raise InputError(
            f"{path}: image {image['id']} has no valid source; export the windows again with "
            "export.py --to_correct"
        )
    return source


def crop(window: Corrected) -> Corrected | None:
    """Crop a window to its region, and make all other pixels white; None if it is empty.

    Cells that are not mostly within the region are left out, and their pixels of it are white too.
    """
    region = window.region
    kept = mostly_inside([cell.mask for cell in window.cells], region)
    if not kept.all():
        gone = [c.mask for c, inside in zip(window.cells, kept, strict=True) if not inside]
        region = region & ~union(gone, window.size)
    if not region.any():
        return None
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    left, top, right, bottom = box
    region = region[top:bottom, left:right]
    pixels = window.pixels[top:bottom, left:right].copy()
    pixels[~region] = _WHITE
    cells = [cell for cell, inside in zip(window.cells, kept, strict=True) if inside]
    masks = encode(crop_runs(decode([cell.mask for cell in cells], window.size), box))
    return replace(
        window,
        corner=(window.corner[0] + left, window.corner[1] + top),
        pixels=pixels,
        region=region,
        cells=[cell._replace(mask=mask) for cell, mask in zip(cells, masks, strict=True)],
    )


def add_windows(
    windows: Sequence[Corrected], corrected: Sequence[Corrected], data: Path
) -> list[Corrected]:
    """Return the windows of a data folder with corrected ones added, sorted by name.

    These replace former corrections where they overlap, the later ones also the earlier ones.
    A window of a corrected window is one of the image that this was of.
    """
    stored = {os.path.realpath(data / STORE / f"{window.name}.png"): window for window in windows}
    used = {window.name.casefold() for window in windows}
    joined = list(windows)
    for window in corrected:
        new = _of_source(window, stored.get(os.path.realpath(window.source.path)))
        if new is None:
            continue
        rests = [(old, _without(old, new)) for old in joined]
        key = new.source.window
        free = [old.name for old, rest in rests if not rest and old.source.window == key]
        joined = [rest for _, rest in rests if rest]
        joined.append(replace(new, name=free[0] if free else unused_name(new.name, used)))
    return sorted(joined, key=lambda window: window.name)


def unused_name(name: str, used: set[str]) -> str:
    """Return a name, with a number if it is used, and add it to the `used` ones, in lower case."""
    numbered = (f"{name}-{n}" for n in itertools.count(2))
    free = next(n for n in itertools.chain([name], numbered) if n.casefold() not in used)
    used.add(free.casefold())
    return free


def _of_source(window: Corrected, stored: Corrected | None) -> Corrected | None:
    """Return a window of a stored window as one of that one's source, None if it is all white."""
    if stored is None:
        return window
    place, left, top = window.source, *_place(window)
    height, width = window.size
    region = window.region & stored.region[top : top + height, left : left + width]
    x, y = _place(stored)
    source = replace(
        stored.source, x=x + place.x, y=y + place.y, width=place.width, height=place.height
    )
    return crop(replace(window, source=source, region=region))


def write_store(
    data: Path,
    windows: Sequence[Corrected],
    names: Sequence[str],
    former: Sequence[Corrected] = (),
) -> None:
    """Write the images and cells of the corrected windows of a data folder.

    The images of `former` windows that are no longer there are removed. Raises InputError if a
    file can't be written.
    """
    path = data / STORE / STORED
    check_own(path, _STORE_START, "corrected cells", "--data")
    coco = build_coco([_annotated(window) for window in windows], names)
    coco["info"]["description"] = _STORE_DESCRIPTION
    for image, window in zip(coco["images"], windows, strict=True):
        image["source"] = asdict(window.source)
        image["corner"] = list(window.corner)
        image["region"] = region_rle(window.region)
        write_png(data / image["file_name"], window.pixels)
    write_json(path, coco)
    for name in {window.name for window in former} - {window.name for window in windows}:
        (data / STORE / f"{name}.png").unlink(missing_ok=True)  # others cover it completely


_STORE_DESCRIPTION = "Corrected windows (annotation.py --corrected)"
_STORE_START = re.escape(f'{{"info": {{"description": "{_STORE_DESCRIPTION}"'.encode())


def is_corrected(file_name: str) -> bool:
    """Return whether an image of an annotation file is a corrected window."""
    return path_parts(file_name)[:1] == (STORE,)


def load_store(data: Path, names: Sequence[str]) -> list[Corrected]:
    """Load the corrected windows of a data folder, with the classes of `names`; or none.

    Raises InputError if files are missing or damaged, or cells have other classes.
    """
    path = data / STORE / STORED
    if not path.is_file():
        return []
    remedy = f"restore it, or remove {display_path(path.parent)} and take the windows back again"
    try:
        coco = load_coco(path)
        sources = [read_source(path, image) for image in coco["images"]]
        pixels_of = [read_image(data / image["file_name"]) for image in coco["images"]]
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
    numbers = class_numbers(names)
    theirs = {c["id"]: c["name"] for c in coco["categories"]}
    of_image = annotations_by_image(coco)
    used = {theirs[a["category_id"]] for a in coco["annotations"]}
    if bad := sorted(name for name in used if comparable_name(name) not in numbers):
        raise InputError(
            f"{path}: has cells of the classes {', '.join(bad)}, expected {', '.join(names)}; "
            f"{advise_class_names(names, bad)}; or remove {display_path(path.parent)}, if these "
            "corrections are not to be used"
        )
    windows = []
    for image, source, pixels in zip(coco["images"], sources, pixels_of, strict=True):
        size = image["height"], image["width"]
        try:
            region = union([image["region"]], size)
            left, top = image["corner"]
            valid = bool(region.any()) and type(left) is type(top) is int and left >= 0 and top >= 0
        except (KeyError, TypeError, ValueError):
            valid = False
        if not valid:
            raise InputError(f"{path}: image {image['id']} has no valid region; {remedy}")
        if pixels.shape[:2] != size:
            raise wrong_size(data / image["file_name"], pixels.shape, size, f"; {remedy}")
        cells = [
            Cell("", numbers[comparable_name(theirs[a["category_id"]])] - 1, a["segmentation"])
            for a in of_image[image["id"]]
        ]
        name = Path(image["file_name"]).stem
        windows.append(
            Corrected(name, source, pixels, region, cells, image.get("mpp"), (left, top))
        )
    return windows


def _annotated(window: Corrected) -> AnnotatedImage:
    """Return a corrected window as a training image."""
    size = window.size
    masks = decode([cell.mask for cell in window.cells], size)
    classes = np.array([cell.class_ for cell in window.cells], np.int64)
    cells = split_by_class(masks, classes)
    return AnnotatedImage(f"{STORE}/{window.name}.png", size, cells, Counter(), window.mpp)


def _without(window: Corrected, other: Corrected) -> Corrected | None:
    """Return a window without the region of another of the same image.

    None if nothing is left, or only a little background.
    """
    one, two = window.source, other.source
    if (one.path, one.level) != (two.path, two.level):
        return window
    left = two.x + other.corner[0] - one.x - window.corner[0]
    top = two.y + other.corner[1] - one.y - window.corner[1]
    height, width = window.region.shape
    rows = slice(max(top, 0), min(top + other.region.shape[0], height))
    columns = slice(max(left, 0), min(left + other.region.shape[1], width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return window
    region = window.region.copy()
    region[rows, columns] &= ~other.region[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
    rest = crop(replace(window, region=region))
    return rest if rest and (rest.cells or rest.region.sum() >= _LEAST) else None


def join(
    images: Sequence[AnnotatedImage], windows: Sequence[Corrected], data: Path
) -> list[AnnotatedImage]:
    """Return the training images with the corrected windows of the data folder.

    A window of one of the images replaces that part of it; others are images of their own, after
    these. Prints how many there are of each. Raises InputError if one has the name of another
    image.
    """
    joined = list(images)
    by_path = {os.path.realpath(data / image.file_name): n for n, image in enumerate(images)}
    by_name: dict[str, list[int]] = {}
    for number, image in enumerate(images):
        by_name.setdefault(image_name(image.file_name), []).append(number)
    own, held_out, levels = [], [], []
    n_replaced = 0
    for window in windows:
        source = window.source
        same = by_path.get(os.path.realpath(source.path))
        # Of that name, if it was moved.
        candidates = by_name.get(image_name(source.file_name), []) if same is None else [same]
        n = next((n for n in candidates if _is_part(window, images[n], data)), None)
        if n is not None:
            joined[n] = replace_part(joined[n], window)
            n_replaced += 1
        elif source.held_out:
            held_out.append(window.name)
        elif same is not None and source.level:
            levels.append(window.name)
        else:
            own.append(_annotated(window))
    if n_replaced:
        print(f"corrected windows that replace a part of a training image: {n_replaced}")
    if own:
        print(f"corrected windows that are training images of their own: {len(own)}")
    if held_out:
        warn(
            f"corrected windows of validation images that are not in {display_path(data)}, not "
            f"used: {len(held_out)}: {listed(held_out)}"
        )
    if levels:  # the same tissue twice, and perhaps in the validation set
        warn(
            f"corrected windows of a pyramid level of a training image, not used: {len(levels)}: "
            f"{listed(levels)}; correct its full resolution (inference.py --level 0)"
        )
    stems = {image_name(image.file_name).casefold(): image for image in images}
    for image in own:
        if other := stems.get(image_name(image.file_name).casefold()):
            raise InputError(
                f"{data / image.file_name}: has the name of {other.file_name}; rename that image"
            )
    return [*joined, *own]


def _is_part(window: Corrected, image: AnnotatedImage, data: Path) -> bool:
    """Return whether a window has the pixels of an image at its place."""
    left, top = _place(window)
    height, width = window.region.shape
    if window.source.level or left + width > image.size[1] or top + height > image.size[0]:
        return False
    with open_image(data / image.file_name) as opened:
        pixels = opened.read((left, top, left + width, top + height))
    return bool((pixels[window.region] == window.pixels[window.region]).all())


def _place(window: Corrected) -> tuple[int, int]:
    """Return left and top of a window in its image."""
    return window.source.x + window.corner[0], window.source.y + window.corner[1]


def replace_part(image: AnnotatedImage, window: Corrected) -> AnnotatedImage:
    """Return an image with the cells of a corrected window in the region looked through.

    Of cells of the image, what is outside the region stays, if it is at least half of the cell. A
    corrected cell that ends at the border of the exported window, as it was cut there, gets the
    rest of the image's cell that it overlaps.
    """
    size, source = image.size, window.source
    corner = _place(window)
    new = _annotated(window)
    region = place_runs(_region_runs(window.region), size, corner)
    whole = _region_runs(np.ones((source.height, source.width), bool))
    box = (source.x, source.y, source.x + source.width, source.y + source.height)
    exported = place_runs(whole, size, box[:2])
    corrected = {number: place_runs(masks, size, corner) for number, masks in new.cells.items()}
    flat = concatenate(size, list(corrected.values()))
    of_flat = encode(flat)
    rests: list[MaskRuns] = []
    of_rests: list[int] = []  # the corrected cells that they belong to
    cells: dict[int, list[MaskRuns]] = {}
    for number, masks in image.cells.items():
        boxes, area = boxes_xyxy(masks), areas(masks)
        kept = []
        for n in range(len(masks)):
            one = select_masks(masks, np.array([n]))
            if (boxes[n, :2] < box[2:]).all() and (boxes[n, 2:] > box[:2]).all():
                is_cut = (boxes[n, :2] < box[:2]).any() or (boxes[n, 2:] > box[2:]).any()
                if is_cut and len(flat):
                    beyond = subtract_masks(one, exported)
                    iou = iou_matrix(encode(subtract_masks(one, beyond)), of_flat)[0]
                    if iou.max() >= SAME_CELL:
                        rests.append(beyond)
                        of_rests.append(int(iou.argmax()))
                        continue
                one = subtract_masks(one, region)
                if 2 * areas(one)[0] < area[n]:
                    continue
            kept.append(one)
        cells[number] = kept
    parts, owners = concatenate(size, [flat, *rests]), [*range(len(flat)), *of_rests]
    whole_cells = unite_masks(parts, np.array(owners, np.int64), len(flat))
    first = 0
    for number, masks in corrected.items():
        of_class = select_masks(whole_cells, np.arange(first, first + len(masks)))
        cells.setdefault(number, []).append(of_class)
        first += len(masks)
    joined = {n: concatenate(size, masks) for n, masks in sorted(cells.items()) if masks}
    return replace(image, cells=joined)


def iou_matrix(first: Sequence[RLE], second: Sequence[RLE]) -> NDArray[np.float64]:
    """Return the intersection over union of each of N and each of M masks, `(N, M)`."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    return np.asarray(pycocotools.mask.iou(first, second, [0] * len(second)))


def mostly_inside(masks: Sequence[RLE], region: Bools) -> Bools:
    """Return whether more than half of each mask is in a region."""
    if not masks or not region.any():
        return np.zeros(len(masks), bool)
    # With a crowd: the intersection over the area of the mask.
    share = pycocotools.mask.iou(list(masks), [region_rle(region)], [1])
    return np.asarray(share[:, 0] > 0.5)


def union(masks: Sequence[RLE], size: tuple[int, int]) -> Bools:
    """Return the pixels in any of some masks of an image of `size` (H, W), `(H, W)` bool."""
    runs = decode(masks, size)
    change = np.zeros(size[0] * size[1] + 1, np.int64)
    np.add.at(change, runs.starts, 1)
    np.add.at(change, runs.ends, -1)
    return np.asarray(np.cumsum(change[:-1]).reshape(size[::-1]).T > 0)


def region_rle(region: Bools) -> RLE:
    """Return the RLE of a region, `(H, W)` bool with at least one pixel."""
    return encode(_region_runs(region))[0]


def _region_runs(region: Bools) -> MaskRuns:
    return label_map_to_runs(region)[1]

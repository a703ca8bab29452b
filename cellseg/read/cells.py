"""The cells of every image, from a results file or an annotation file."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.files import file_start
from cellseg.images import ImageCells, ImageRecord, distinct_detections
from cellseg.messages import in_images, plural, warn
from cellseg.messages import listed as listed_names
from cellseg.read.coco import annotated_cells, class_names, image_records, load_coco
from cellseg.read.copies import checked_for_copies
from cellseg.read.foreign_coco import crowds_like_cells, load_coco_as_written
from cellseg.read.image_lists import ListedImages, list_entry, read_listed_images, read_test_list
from cellseg.read.layout import CLASS_NAMES, TEST_LIST
from cellseg.read.names import check_class_names, name_outputs
from cellseg.read.pairs import iter_pairs
from cellseg.read.results import (
    OWN_RESULTS_FILE,
    check_same_classes,
    find_sidecar_ground_truth,
    is_cohort,
    read_result_categories,
    read_results,
    results_file,
    sidecar_path,
)
from cellseg.read.window import open_image, open_image_of_size
from cellseg.rle import PackedMasks, boxes_xyxy


def is_annotations(path: Path) -> bool:
    """Return whether a file is COCO annotations, an object, and not results, a list or a zip.

    Raises InputError for a device or a pipe.
    """
    start = file_start(path, 64) or b""
    return start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


def read_annotated_cells(path: Path, data: Path) -> tuple[list[str], list[ImageCells]]:
    """Read an annotation file: the K class names, and the cells of each image except crowds.

    Warns of crowds, and as `load_coco_as_written`, which names those that are as large as a cell:
    they are named once if there are no others. Raises InputError if that does, image names
    clash or are outside `data`.
    """
    coco = load_coco_as_written(path)
    names = name_outputs(path, [image["file_name"] for image in coco["images"]], data)
    images = _check_clashes(path, annotated_cells(coco, data, names))
    n_crowds = sum(image.n_crowds for image in images)
    if n_crowds > len(crowds_like_cells(coco)):
        where = in_images([image.name for image in images if image.n_crowds])
        warn(f"{path}: crowd regions (iscrowd), left out: {n_crowds}, {where}")
    return class_names(coco), images


def read_predicted_cells(
    path: Path, data: Path, annotations: Path | None = None, names: list[str] | None = None
) -> tuple[list[str], Iterable[ImageCells]]:
    """Read results: the K class names, and the cells of each image, each once.

    A cell may have several detections, of which `distinct_detections` keeps one, best score first.
    Warns of detections that occur twice.
    Image ids refer to the list that `inference.py --images` wrote next to the results, else to
    the annotations, else to the data folder's test list. Those of many slides are 1, 2, … in the
    order of their table.

    Parameters
    ----------
    path
        A results file, a zip, a folder with one, or a folder of many slides.
    data
        The data folder.
    annotations
        A COCO file that defines the classes and, without such a list, the images. None uses the
        one that `inference.py --dataset train` or `val` wrote next to the results, if any.
    names
        Class names, in the order of the category ids; by default those of the annotations, else
        of the run as inference.py wrote them, else NYCU HW3's four.

    Returns
    -------
    The names, and a list of the images; of many slides, an iterator that reads one at a time.

    Raises
    ------
    InputError
        If results are missing or don't fit the images or classes, or the number of names is
        not that of the classes.
    """
    listed = read_listed_images(path)
    if listed and is_cohort(path):
        return _read_slides(listed, data, names)
    results = read_results(path)
    truth = annotations or find_sidecar_ground_truth(path)
    coco = load_coco(truth) if truth else None
    if listed:
        source, images = listed.source, listed.images
    elif truth and coco:
        source, images = truth, image_records(coco, data)
        if annotations:
            _warn_of_empty(annotations, images, results)
    else:
        source, images = data / TEST_LIST, _read_test_images(path, data)
    known = coco["categories"] if coco else read_result_categories(path)
    if coco:
        check_same_classes([path], coco["categories"], truth)
    categories = _named(known, names)
    outputs = listed.names if listed else name_outputs(source, [i.file_name for i in images], data)
    of_id = {image.id: (image, output) for image, output in zip(images, outputs, strict=True)}
    _check_known(
        path, results, "image_id", set(of_id), f"the images of {source}", "--data or --annotations"
    )
    ids = {category["id"] for category in categories}
    flag = "--class_names" if known is None else "--annotations"
    _check_known(path, results, "category_id", ids, "the classes", flag)
    without_gt = {
        "images": [list_entry(image) for image in images],
        "categories": categories,
        "annotations": [],
    }
    eval_images = checked_for_copies(path, iter_pairs(without_gt, results, path))
    cells = [
        ImageCells(
            id=eval_image.id,
            file_name=eval_image.file_name,
            path=record.path,
            size=eval_image.size,
            level=record.level,
            mpp=record.mpp,
            tissue_px=record.tissue_px,
            name=output,
            masks=eval_image.masks,
            classes=eval_image.classes,
            boxes=boxes_xyxy(eval_image.mask_runs),
            scores=eval_image.scores,
            hidden=eval_image.hidden,
        )
        for eval_image in map(distinct_detections, eval_images)
        for record, output in [of_id[eval_image.id]]
    ]
    return class_names(without_gt), _check_clashes(source, cells)


def _read_test_images(path: Path, data: Path) -> list[ImageRecord]:
    """Read the test list for results. Raises InputError if the ids are those of another list."""
    if results_file(path).name == OWN_RESULTS_FILE:
        list_path = sidecar_path(path, "list")
        raise InputError(
            f"{list_path}: no such file, expected the list of the images, which inference.py "
            f"writes beside {OWN_RESULTS_FILE}; copy it too, or predict again"
        )
    return read_test_list(data)


def _warn_of_empty(annotations: Path, images: Sequence[ImageRecord], results: list[Any]) -> None:
    """Warn of images without detections, which perhaps were not predicted."""
    entries = [entry for entry in results if isinstance(entry, dict)]
    with_results = {e["image_id"] for e in entries if type(e.get("image_id")) is int}
    if n_empty := sum(image.id not in with_results for image in images):
        warn(
            f"{annotations}: {n_empty} of {plural(len(images), 'image')} without detections count "
            "as images without cells; leave those out that were not predicted"
        )


def _read_slides(
    slides: ListedImages, data: Path, names: list[str] | None
) -> tuple[list[str], Iterator[ImageCells]]:
    """Read the results of many slides, of the same classes, one after the other."""
    first = slides.parts[0][0]
    expected = class_names({"categories": _named(read_result_categories(first), names)})

    def read() -> Iterator[ImageCells]:
        listed = zip(slides.parts, slides.images, slides.names, strict=True)
        bar = tqdm(listed, "reading", len(slides.images), unit="slide", disable=None)
        for (folder, _), record, name in bar:
            theirs, (image,) = read_predicted_cells(folder, data, names=names)
            if theirs != expected:
                raise InputError(
                    f"{folder}: has the classes {', '.join(theirs)}, but {first} "
                    f"{', '.join(expected)}; predict them with one run"
                )
            yield replace(image, id=record.id, name=name)

    return expected, read()


def select_by_score(images: Iterable[ImageCells], threshold: float) -> tuple[list[ImageCells], int]:
    """Return images with the detections of this score or more, and the number of the others."""
    selected, n_below = [], 0
    for image in images:
        assert image.scores is not None
        keep = np.flatnonzero(image.scores >= threshold)
        n_below += len(image.scores) - len(keep)
        selected.append(
            replace(
                image,
                masks=PackedMasks([image.masks[n] for n in keep], image.size),
                classes=image.classes[keep],
                boxes=image.boxes[keep],
                scores=image.scores[keep],
            )
        )
    return selected, n_below


def with_resolution(images: Sequence[ImageCells], mpp: float | None) -> list[ImageCells]:
    """Return images with the micrometres per pixel of their level.

    That is `mpp` at full resolution, if given, else what the annotations or the list say, else the
    image file; None where none of these does. Warns of pixels that are not square in the file.
    Raises InputError if `mpp` can't be converted to a level, as the file can't be read.
    """
    oblong: list[str] = []
    found = [_with_resolution(image, mpp, oblong) for image in images]
    if oblong:
        warn(
            f"images whose pixels are not square: {len(oblong)}: {listed_names(oblong)}; lengths "
            "in µm are as if they were, areas and densities right"
        )
    return found


def _with_resolution(image: ImageCells, mpp: float | None, oblong: list[str]) -> ImageCells:
    """Return an image with its resolution; append its name to `oblong` if pixels are not square."""
    if mpp and not image.level:
        return replace(image, mpp=mpp)
    try:
        with open_image_of_size(image.path, image.size, image.level) as opened:
            scale = math.sqrt(math.prod(opened.levels[0]) / math.prod(opened.size))
            if opened.resolution and not opened.resolution.is_square:
                oblong.append(image.name)
            return replace(image, mpp=mpp * scale if mpp else image.mpp or opened.mpp)
    except InputError as error:  # without the file, or of another size, nothing is known
        if mpp:
            raise InputError(
                f"{error}; --mpp is that of full resolution, of which the file of a level "
                f"({image.level}) says the size: put it back, or leave --mpp out"
            ) from None
        return image


def scale_to_full_resolution(image: ImageCells) -> tuple[float, float]:
    """Return the factors of x and y from an image's level to full resolution."""
    if not image.level:
        return 1, 1
    with open_image(image.path) as full:
        return full.size[1] / image.size[1], full.size[0] / image.size[0]


def _named(
    categories: list[dict[str, Any]] | None, names: list[str] | None
) -> list[dict[str, Any]]:
    """Return the known categories, or 1…K, with the given names."""
    check_class_names("--class_names", names or ())
    if categories is None:
        return [{"id": n, "name": name} for n, name in enumerate(names or CLASS_NAMES, 1)]
    if names is None:
        return categories
    if len(names) != len(categories):
        theirs = ", ".join(class_names({"categories": categories}))
        raise InputError(
            f"--class_names: {plural(len(names), 'name')} for "
            f"{plural(len(categories), 'class', 'classes')} ({theirs}); give "
            "each class one name, in this order"
        )
    ids = sorted(category["id"] for category in categories)
    return [{"id": id_, "name": name} for id_, name in zip(ids, names, strict=True)]


def _check_known(
    path: Path, results: list[Any], key: str, known: set[int], what: str, flag: str
) -> None:
    """Check that the ids of valid entries are known; invalid entries are reported later."""
    for n, entry in enumerate(results):
        value = entry.get(key) if isinstance(entry, dict) else None
        if type(value) is int and value not in known:
            raise InputError(
                f"{path}: entry {n}: {key} {value} is not among {what} ({min(known)} to "
                f"{max(known)}); set the right ones with {flag}"
            )


def _check_clashes(source: Path, images: list[ImageCells]) -> list[ImageCells]:
    seen: dict[str, str] = {}
    for image in images:
        if image.name in seen:
            raise InputError(
                f"{source}: {seen[image.name]} and {image.file_name} have the same output "
                f"name, {image.name}; rename one of the images"
            )
        seen[image.name] = image.file_name
    return images

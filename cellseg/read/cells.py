"""The cells of every image, from a results file or from an annotation file alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cellseg import runs
from cellseg.errors import InputError
from cellseg.images import ImageCells
from cellseg.read.coco import annotated_cells, class_names, image_records, load_coco
from cellseg.read.images import list_entry, read_image_list, read_test_list
from cellseg.read.layout import CLASS_NAMES, TEST_LIST
from cellseg.read.names import name_outputs, name_outputs_uniquely
from cellseg.read.results import (
    find_sidecar_ground_truth,
    pair_by_image,
    read_results,
    sidecar_path,
)
from cellseg.rle import boxes_xyxy


def is_annotations(path: Path) -> bool:
    """Whether a file is COCO annotations, an object, and not results, a list or a zip."""
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip().startswith(b"{")
    except OSError:
        return False  # whoever reads it says why


def read_annotated_cells(path: Path, data: Path) -> tuple[list[str], list[ImageCells]]:
    """Read an annotation file: the K class names, and the cells of each image.

    Regions of many cells (`iscrowd` 1) are left out.

    Raises
    ------
    InputError
        If the file is not what `load_coco` takes, or image names clash or lead out of
        `data`.
    """
    coco = load_coco(path)
    names = name_outputs(path, [image["file_name"] for image in coco["images"]])
    return class_names(coco), _check_clashes(path, annotated_cells(coco, data, names))


def read_predicted_cells(
    path: Path, data: Path, annotations: Path | None = None, names: list[str] | None = None
) -> tuple[list[str], list[ImageCells]]:
    """Read results: the K class names, and the cells of each image.

    Parameters
    ----------
    path
        A results file, a zip that holds one, or a run folder that does.
    data
        The data folder. Its test list tells the images by id, unless `inference.py
        --images` left a list of its own beside the results, or there are annotations.
    annotations
        A COCO file that tells images and classes by id instead, or the classes alone of
        images that have such a list; of its images, those without a result are left out.
        None takes the one that `inference.py --dataset train` or `val` left beside the
        results, if there is one.
    names
        What to call the classes, in the order of their ids. These are the annotations',
        else those of the run that the results lie in, else 1…K, with NYCU HW3's four
        names if there are none here.

    Raises
    ------
    InputError
        If there are no results, they don't fit the images or classes, or there are not as
        many names as classes.
    """
    results = read_results(path)
    list_path, source = sidecar_path(path, "list"), annotations or find_sidecar_ground_truth(path)
    known = None
    if source is not None:
        coco = load_coco(source)
        known, images = coco["categories"], image_records(coco, data)
    if list_path.is_file():  # whose ids are places in it
        images = read_image_list(list_path, "predict again with inference.py")
        source = list_path
    elif source is None:
        images, source = read_test_list(data), data / TEST_LIST
    elif annotations is not None:
        result_image_ids = {
            entry["image_id"]
            for entry in results
            if isinstance(entry, dict) and type(entry.get("image_id")) is int
        }
        images = [image for image in images if image.id in result_image_ids] or images
    run = path if path.is_dir() else path.parent
    if known is None and (run / runs.RECORD).is_file():
        known = runs.read_record(run)["categories"]
    categories = _named(known, names)
    name = name_outputs_uniquely if source == list_path else name_outputs
    outputs = name(source, [image.file_name for image in images])
    of_id = {image.id: (image, output) for image, output in zip(images, outputs, strict=True)}
    _check_known(
        path, results, "image_id", set(of_id), f"the images of {source}", "--data or --annotations"
    )
    ids = {category["id"] for category in categories}
    flag = "--class_names" if known is None else "--annotations"
    _check_known(path, results, "category_id", ids, "the classes", flag)
    coco = {
        "images": [list_entry(image) for image in images],
        "categories": categories,
        "annotations": [],
    }
    cells = [
        ImageCells(
            id=eval_image.id,
            file_name=eval_image.file_name,
            path=of_id[eval_image.id][0].path,
            size=eval_image.size,
            level=of_id[eval_image.id][0].level,
            name=of_id[eval_image.id][1],
            masks=eval_image.masks,
            classes=eval_image.classes,
            boxes=boxes_xyxy(eval_image.mask_runs),
            scores=eval_image.scores,
        )
        for eval_image in pair_by_image(coco, results, path)
    ]
    return class_names(coco), _check_clashes(source, cells)


def _named(
    categories: list[dict[str, Any]] | None, names: list[str] | None
) -> list[dict[str, Any]]:
    """Return the known categories, or 1…K, the names that are wanted."""
    if categories is None:
        return [{"id": n, "name": name} for n, name in enumerate(names or CLASS_NAMES, 1)]
    if names is None:
        return categories
    if len(names) != len(categories):
        theirs = ", ".join(class_names({"categories": categories}))
        raise InputError(
            f"--class_names: {len(names)} for {len(categories)} classes ({theirs}); give each its "
            "name, in this order"
        )
    ids = sorted(category["id"] for category in categories)
    return [{"id": id_, "name": name} for id_, name in zip(ids, names, strict=True)]


def _check_known(
    path: Path, results: list[Any], key: str, known: set[int], what: str, flag: str
) -> None:
    """Return what to do where results are sound but don't fit; what isn't sound shows later."""
    for n, entry in enumerate(results):
        value = entry.get(key) if isinstance(entry, dict) else None
        if type(value) is int and value not in known:
            raise InputError(
                f"{path}: entry {n}: {key} {value} is not among {what} ({min(known)} to "
                f"{max(known)}); name the right ones with {flag}"
            )


def _check_clashes(source: Path, images: list[ImageCells]) -> list[ImageCells]:
    seen: dict[str, Path] = {}
    for image in images:
        if image.name in seen:
            raise InputError(
                f"{source}: {seen[image.name].name} and {image.path.name} would both be written as "
                f"{image.name}; rename one of the images"
            )
        seen[image.name] = image.path
    return images

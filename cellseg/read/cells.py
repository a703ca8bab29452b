"""The cells of every image, from a results file or from an annotation file alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg import runs
from cellseg.errors import InputError
from cellseg.files import read_json
from cellseg.read.coco import class_names, contiguous_classes, load_coco
from cellseg.read.layout import (
    CLASS_NAMES,
    TEST_LIST,
    TestImage,
    find_test_folder,
    is_printable,
    read_test_list,
)
from cellseg.read.results import beside, own_truth, read_results
from cellseg.rle import RLE
from cellseg.score.match import side_by_side


@dataclass(frozen=True)
class ImageCells:
    """The N cells of one image.

    Attributes
    ----------
    name
        What to call the image's outputs: its folder's name for `…/<name>/image.tif`,
        otherwise its path below the data folder without the ending; of an image from
        anywhere, the end of its path that tells it from the others. Forward slashes, never
        out of a folder.
    path
        The image file, which need not be there.
    size
        Height and width in pixels.
    masks
        N compressed RLEs of that size.
    classes
        `(N,)` int64, 0…K−1.
    scores
        `(N,)` float64, or None for annotations.
    level
        Of a file with a pyramid, the level that the cells lie in.
    """

    name: str
    path: Path
    size: tuple[int, int]
    masks: list[RLE]
    classes: NDArray[np.int64]
    scores: NDArray[np.float64] | None
    level: int = 0


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
    classes = contiguous_classes(coco)
    of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        if not annotation["iscrowd"]:
            of_image[annotation["image_id"]].append(annotation)
    images = []
    for image in coco["images"]:
        annotations = of_image[image["id"]]
        images.append(
            ImageCells(
                name=_output_name(path, image["file_name"]),
                path=data / image["file_name"],
                size=(image["height"], image["width"]),
                masks=[annotation["segmentation"] for annotation in annotations],
                classes=np.array([classes[a["category_id"]] for a in annotations], np.int64),
                scores=None,
            )
        )
    return class_names(coco), _without_clash(path, images)


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
        else those of the run that the results lie in, else 1…K, with the homework's four
        names if there are none here.

    Raises
    ------
    InputError
        If there are no results, they don't fit the images or classes, or there are not as
        many names as classes.
    """
    results = read_results(path)
    own_list, source, folder = beside(path, "list"), annotations or own_truth(path), data
    known = None
    if source is not None:
        coco = load_coco(source)
        known, images = coco["categories"], coco["images"]
    if own_list.is_file():  # whose ids are places in it
        images = read_image_list(own_list, "predict again with inference.py")
        source = own_list
        folder = Path()
    elif source is not None:
        if annotations is not None:
            found = {
                entry["image_id"]
                for entry in results
                if isinstance(entry, dict) and type(entry.get("image_id")) is int
            }
            images = [image for image in images if image["id"] in found] or images
    else:
        images, source = [_entry(image) for image in read_test_list(data)], data / TEST_LIST
        folder = find_test_folder(data)
    run = path if path.is_dir() else path.parent
    if known is None and (run / runs.RECORD).is_file():
        known = runs.read_record(run)["categories"]
    categories = _named(known, names)
    levels = {image["id"]: image.get("level", 0) for image in images}
    files = [image["file_name"] for image in images]
    if source == own_list:
        outputs = _own_names(source, files)
    else:
        outputs = [_output_name(source, file) for file in files]
    output_of = dict(zip(levels, outputs, strict=True))
    _check_known(
        path, results, "image_id", set(levels), f"the images of {source}", "--data or --annotations"
    )
    ids = {category["id"] for category in categories}
    flag = "--class_names" if known is None else "--annotations"
    _check_known(path, results, "category_id", ids, "the classes", flag)
    coco = {"images": images, "categories": categories, "annotations": []}
    cells = [
        ImageCells(
            name=output_of[scene.id],
            path=folder / scene.name,
            size=scene.size,
            masks=scene.masks,
            classes=scene.classes,
            scores=scene.scores,
            level=levels[scene.id] if source == own_list else 0,
        )
        for scene in side_by_side(coco, results, path)
    ]
    return class_names(coco), _without_clash(source, cells)


def _named(
    categories: list[dict[str, Any]] | None, names: list[str] | None
) -> list[dict[str, Any]]:
    """Give the known categories, or 1…K, the names that are wanted."""
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


def _entry(image: TestImage) -> dict[str, Any]:
    return {
        "id": image.id,
        "file_name": image.file_name,
        "height": image.height,
        "width": image.width,
    }


def read_image_list(path: Path, remedy: str) -> list[dict[str, Any]]:
    """Read a list of images, which need not be there: the test list, or that of `--images`.

    Each has `file_name`, `id`, `height` and `width`, perhaps a `level`.

    Raises
    ------
    InputError
        If it is missing or broken; `remedy` says what to do then.
    """
    images = read_json(path, "list of images", remedy)
    if (
        not isinstance(images, list)
        or not images
        or not all(
            isinstance(image, dict)
            and isinstance(image.get("file_name"), str)
            and type(image.get("id")) is int
            and all(type(image.get(k)) is int and image[k] > 0 for k in ("height", "width"))
            and type(image.get("level", 0)) is int
            and image.get("level", 0) >= 0
            for image in images
        )
        or len({image["id"] for image in images}) < len(images)
    ):
        raise InputError(f"{path}: not the list of images that the results are of; {remedy}")
    return images


def _check_known(
    path: Path, results: list[Any], key: str, known: set[int], what: str, flag: str
) -> None:
    """Say what to do where results are sound but don't fit; what isn't sound shows later."""
    for n, entry in enumerate(results):
        value = entry.get(key) if isinstance(entry, dict) else None
        if type(value) is int and value not in known:
            raise InputError(
                f"{path}: entry {n}: {key} {value} is not among {what} ({min(known)} to "
                f"{max(known)}); name the right ones with {flag}"
            )


def _output_name(source: Path, file_name: str) -> str:
    """Name the outputs of an image in the data folder."""
    path = PurePosixPath(file_name.replace("\\", "/"))
    if path.is_absolute() or not path.name or ".." in path.parts or not is_printable(file_name):
        raise InputError(
            f"{source}: the image {file_name!r} lies outside the data folder; write its name "
            "relative to it"
        )
    named = _without_ending(path.parts)
    return named[-1] if len(named) < len(path.parts) else "/".join(named)


def _own_names(source: Path, file_names: list[str]) -> list[str]:
    """Name the outputs of images anywhere: with as many folders as tell them apart."""
    paths = [
        tuple(part for part in PurePosixPath(name.replace("\\", "/")).parts if part.strip("/."))
        for name in file_names
    ]
    short = [_without_ending(path) if path else () for path in paths]
    alike = Counter(short)
    # Two of one folder may have endings alone to tell them apart.
    kept = [path if alike[its] > 1 else its for path, its in zip(paths, short, strict=True)]
    names = [parts[-1:] for parts in kept]
    while True:
        times = Counter(names)
        longer = [
            parts[-len(name) - (times[name] > 1) :] for name, parts in zip(names, kept, strict=True)
        ]
        if longer == names:
            break
        names = longer
    outputs = list(map("/".join, names))
    for output, file_name in zip(outputs, file_names, strict=True):
        if not output or not is_printable(output):
            raise InputError(
                f"{source}: the image {file_name!r} has no name that can be printed; rename it and "
                "predict again"
            )
    return outputs


def _without_ending(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Name an image by its path without the ending, `…/<name>/image.tif` by its folder."""
    *folders, name = parts
    stem = PurePosixPath(name).stem
    return tuple(folders) if folders and stem.lower() == "image" else (*folders, stem)


def _without_clash(source: Path, images: list[ImageCells]) -> list[ImageCells]:
    seen: dict[str, Path] = {}
    for image in images:
        if image.name in seen:
            raise InputError(
                f"{source}: {seen[image.name].name} and {image.path.name} would both be written as "
                f"{image.name}; rename one of the images"
            )
        seen[image.name] = image.path
    return images

"""Pair images of two lists by name, and ground truth with results or predictions by image."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, takewhile
from numbers import Integral, Real
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.images import EvalImage, ImageRecord
from cellseg.predictions import Predictions
from cellseg.read.coco import COCO, annotations_by_image, contiguous_classes
from cellseg.read.names import path_parts
from cellseg.rle import decode
from cellseg.text import show


def pair_by_image(
    ground_truth: COCO, results: Iterable[Any], source: object = "results", first: int = 0
) -> list[EvalImage]:
    """Return all images of `iter_pairs`."""
    return list(iter_pairs(ground_truth, results, source, first))


def iter_pairs(
    ground_truth: COCO, results: Iterable[Any], source: object = "results", first: int = 0
) -> Iterator[EvalImage]:
    """Pair ground truth and results by image, and yield one image at a time.

    All results are read and checked before the first image; of each, little more than the text of
    its mask is kept.

    Parameters
    ----------
    ground_truth
        A COCO dict as of `cellseg.read.coco`, with compressed RLEs.
    results
        Detections in COCO's results format, `{image_id, category_id, segmentation, score}`
        each; they are checked here.
    source
        The results' file, for error messages.
    first
        Index in that file of the first of `results`, for error messages.

    Yields
    ------
    All images of the ground truth, by ascending image id.

    Raises
    ------
    InputError
        If a result is not valid, or its image, size or class is not the ground truth's.
    """
    images = sorted(ground_truth["images"], key=lambda image: image["id"])
    sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in images}
    classes = contiguous_classes(ground_truth)
    annotations = annotations_by_image(ground_truth)
    detections = {id_: _Detections() for id_ in sizes}
    for index, entry in enumerate(results):
        problem = _entry_problem(entry, sizes, classes)
        if problem:
            raise InputError(f"{source}: entry {first + index}: {problem}")
        of_image = detections[entry["image_id"]]
        of_image.indices.append(index)
        of_image.counts.append(entry["segmentation"]["counts"])
        of_image.classes.append(classes[entry["category_id"]])
        of_image.scores.append(entry["score"])

    for image in images:
        size, of_image = sizes[image["id"]], detections.pop(image["id"])
        masks = [{"size": [*size], "counts": text} for text in of_image.counts]
        try:
            mask_runs = decode(masks, size)
        except ValueError as error:
            at, _, problem = str(error).partition(": ")
            raise InputError(
                f"{source}: entry {first + of_image.indices[int(at)]}: segmentation: {problem};"
                " the file is damaged or was not written by inference.py: write it again"
            ) from None
        yield replace(
            _without_detections(image, annotations[image["id"]], classes),
            masks=masks,
            mask_runs=mask_runs,
            classes=np.array(of_image.classes, np.int64),
            scores=np.array(of_image.scores, np.float64),
            entries=np.array(of_image.indices, np.int64),
        )


@dataclass(frozen=True)
class _Detections:
    """The detections of an image: indices in the results, texts of masks, classes and scores."""

    indices: list[int] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def pair_predictions(ground_truth: COCO, predictions: Mapping[int, Predictions]) -> list[EvalImage]:
    """Pair ground truth and predictions by image id, as `pair_by_image` does for results.

    Returns the images with predictions, by ascending image id.
    """
    classes = contiguous_classes(ground_truth)
    annotations = annotations_by_image(ground_truth)
    images = {image["id"]: image for image in ground_truth["images"]}
    return [
        replace(
            _without_detections(images[id_], annotations[id_], classes),
            masks=each.masks,
            mask_runs=decode(each.masks, each.size),
            classes=each.classes,
            scores=each.scores.astype(np.float64),
            entries=np.arange(len(each)),
        )
        for id_, each in sorted(predictions.items())
    ]


def _without_detections(
    image: dict[str, Any], annotations: list[dict[str, Any]], class_of: dict[int, int]
) -> EvalImage:
    """Return an image of a COCO dict with its ground truth; `class_of` are classes by id."""
    size = int(image["height"]), int(image["width"])
    gt_masks = [annotation["segmentation"] for annotation in annotations]
    none: NDArray[np.int64] = np.zeros(0, np.int64)
    return EvalImage(
        id=image["id"],
        file_name=image["file_name"],
        path=Path(image["file_name"]),
        size=size,
        mpp=image.get("mpp"),
        name=image["file_name"],
        gt_masks=gt_masks,
        gt_runs=decode(gt_masks, size),
        gt_classes=np.array([class_of[a["category_id"]] for a in annotations], np.int64),
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool),
        masks=[],
        mask_runs=decode([], size),
        classes=none,
        scores=np.zeros(0),
        entries=none,
    )


_KEYS = ("image_id", "category_id", "segmentation", "score")


def _entry_problem(
    entry: Any, sizes: dict[int, tuple[int, int]], classes: dict[int, int]
) -> str | None:
    """Return why an entry of the results can't be scored, as the end of a message, or None."""
    if not isinstance(entry, dict):
        return f"{show(entry)}, expected an object with image_id, category_id, …"
    if missing := [key for key in _KEYS if key not in entry]:
        return f"{' and '.join(missing)} missing; write the results again with inference.py"
    image_id, class_id, score = entry["image_id"], entry["category_id"], entry["score"]
    if not _is_int(image_id) or image_id not in sizes:
        return (
            f"image_id {show(image_id)} is none of the {len(sizes)} images of the test "
            "list or annotations; use those of the same images"
        )
    if not _is_int(class_id) or class_id not in classes:
        known = ", ".join(map(str, classes)) or "none"
        return (
            f"category_id {show(class_id)}, expected one of {known}; the classes must be "
            "those of the annotations"
        )
    # JSON integers can exceed the range of floats.
    if not _is_number(score) or not abs(score) <= sys.float_info.max:
        return f"score {show(score)}, expected a number"
    mask = entry["segmentation"]
    if (
        not isinstance(mask, dict)
        or not isinstance(mask.get("counts"), str)
        or not isinstance(mask.get("size"), (list, tuple))
        or not all(map(_is_int, mask["size"]))
    ):
        return 'segmentation is not a compressed RLE {"size": [height, width], "counts": text}'
    height, width = sizes[image_id]
    if list(mask["size"]) != [height, width]:
        return (
            f"segmentation of size {show(mask['size'])}, but image {image_id} is"
            f" [{height}, {width}] (height, width); predict the images that are annotated"
        )
    return None


def _is_int(value: object) -> bool:
    # `isinstance` of an abstract class is slow.
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def _is_number(value: object) -> bool:
    return type(value) is float or (isinstance(value, Real) and not isinstance(value, bool))


def select_annotated(results: Iterable[Any], ground_truth: COCO) -> Iterator[Any]:
    """Yield the detections without those in images that the ground truth doesn't have."""
    annotated = {image["id"] for image in ground_truth["images"]}
    for entry in results:
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(image_id, int) or image_id in annotated:
            yield entry


def pair_by_name(
    listed: Sequence[ImageRecord], list_path: Path, images: Sequence[ImageRecord], source: Path
) -> dict[int, int]:
    """Return the ids in `images` of the `listed` images, for those in both.

    Images are paired by file name, or `<folder>/image.tif`; several of one name by the longest
    common end of their paths. Raises InputError if that is ambiguous.
    """
    by_name: dict[tuple[str, ...], list[ImageRecord]] = {}
    for image in images:
        by_name.setdefault(_last_parts(image), []).append(image)
    pairs = [
        (_n_common_parts(listed_image, gt_image), listed_image, gt_image)
        for listed_image in listed
        for gt_image in by_name.get(_last_parts(listed_image), ())
    ]
    ids: dict[int, int] = {}
    taken: set[int] = set()
    pairs.sort(key=lambda pair: -pair[0])
    for _, same_length in groupby(pairs, key=lambda pair: pair[0]):
        for _, listed_image, gt_image in [
            p for p in same_length if p[1].id not in ids and p[2].id not in taken
        ]:
            if listed_image.id in ids or gt_image.id in taken:
                raise InputError(
                    f"{list_path}: {listed_image.file_name} may be {gt_image.file_name} of "
                    f"{source}, but others have the same name; name the images with their folders "
                    "in both"
                )
            ids[listed_image.id] = gt_image.id
            taken.add(gt_image.id)
    return ids


def _last_parts(image: ImageRecord) -> tuple[str, ...]:
    parts = path_parts(image.file_name)
    return parts[-2:] if PurePosixPath(*parts).stem == "image" else parts[-1:]


def _n_common_parts(one: ImageRecord, other: ImageRecord) -> int:
    """Count the parts at the ends of two file names that are equal."""
    ends = zip(
        reversed(path_parts(one.file_name)), reversed(path_parts(other.file_name)), strict=False
    )
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))

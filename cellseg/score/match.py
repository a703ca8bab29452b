"""Truth and results side by side, image by image, and which detection finds which cell."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from cellseg import rle
from cellseg.errors import InputError
from cellseg.read.coco import COCO, contiguous_classes


@dataclass(frozen=True)
class Scene:
    """One image: its N true cells and its M detections, both in the order of their files.

    Attributes
    ----------
    id, name, size
        The image's id and file name in the truth; height and width in pixels.
    truth_masks, masks
        N and M compressed RLEs of the image's size.
    truth_runs, runs
        The same masks as runs.
    truth_classes, classes
        `(N,)` and `(M,)` int64, 0…K−1: places in the truth's categories, by rising id.
    crowd
        `(N,)` bool: regions of many cells that are not told apart (COCO's `iscrowd`).
    scores
        `(M,)` float64.
    entries
        `(M,)` int64: the place of each detection in the results.
    """

    id: int
    name: str
    size: tuple[int, int]
    truth_masks: list[rle.RLE]
    truth_runs: rle.Runs
    truth_classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    masks: list[rle.RLE]
    runs: rle.Runs
    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    entries: NDArray[np.int64]


def side_by_side(
    truth: COCO, results: Sequence[Any], source: object = "results", first: int = 0
) -> list[Scene]:
    """Sort truth and results by image.

    Parameters
    ----------
    truth
        A COCO dict as `cellseg.read.coco` gives it: compressed RLEs throughout.
    results
        Detections in COCO's result form, `{image_id, category_id, segmentation, score}`
        each. They are checked here against the truth, whoever asks.
    source
        The results' file, for the errors' text.
    first
        The place of `results[0]` in that file, for the errors' text.

    Returns
    -------
    The scenes of all images of the truth, by rising image id, also those with nothing
    in them.

    Raises
    ------
    InputError
        If an entry of the results isn't one, or its image, size or class isn't the truth's.
    """
    images = sorted(truth["images"], key=lambda image: image["id"])
    place = {image["id"]: i for i, image in enumerate(images)}
    sizes = [(int(image["height"]), int(image["width"])) for image in images]
    classes = contiguous_classes(truth)

    annotations: list[list[dict[str, Any]]] = [[] for _ in images]
    for annotation in truth["annotations"]:
        annotations[place[annotation["image_id"]]].append(annotation)
    entries: list[list[int]] = [[] for _ in images]
    for index, entry in enumerate(results):
        problem = _entry_problem(entry, place, sizes, classes)
        if problem:
            raise InputError(f"{source}: entry {first + index}: {problem}")
        entries[place[entry["image_id"]]].append(index)

    scenes = []
    for image, size, true, found in zip(images, sizes, annotations, entries, strict=True):
        masks = [results[index]["segmentation"] for index in found]
        truth_masks = [annotation["segmentation"] for annotation in true]
        try:
            runs = rle.decode(masks, size)
        except ValueError as error:
            at, _, problem = str(error).partition(": ")
            raise InputError(
                f"{source}: entry {first + found[int(at)]}: segmentation: {problem};"
                " the file is damaged or was not written by inference.py: write it again"
            ) from None
        scenes.append(
            Scene(
                id=image["id"],
                name=str(image["file_name"]),
                size=size,
                truth_masks=truth_masks,
                truth_runs=rle.decode(truth_masks, size),
                truth_classes=np.array([classes[a["category_id"]] for a in true], np.int64),
                crowd=np.array([bool(a.get("iscrowd", 0)) for a in true], bool),
                masks=masks,
                runs=runs,
                classes=np.array([classes[results[i]["category_id"]] for i in found], np.int64),
                scores=np.array([results[i]["score"] for i in found], np.float64),
                entries=np.array(found, np.int64),
            )
        )
    return scenes


def _entry_problem(
    entry: Any, place: dict[int, int], sizes: list[tuple[int, int]], classes: dict[int, int]
) -> str | None:
    """What keeps one entry of the results from being scored, as the end of an error line."""
    if not isinstance(entry, dict):
        return f"a {type(entry).__name__}, expected an object with image_id, category_id, …"
    missing = [
        key for key in ("image_id", "category_id", "segmentation", "score") if key not in entry
    ]
    if missing:
        return f"{' and '.join(missing)} missing; write the results again with inference.py"
    image_id, class_id, score = entry["image_id"], entry["category_id"], entry["score"]
    if not _is_int(image_id) or image_id not in place:
        return (
            f"image_id {reprlib.repr(image_id)} is none of the truth's {len(place)} images;"
            " score against the annotations of the same images"
        )
    if not _is_int(class_id) or class_id not in classes:
        known = ", ".join(map(str, classes)) or "none"
        return (
            f"category_id {reprlib.repr(class_id)}, but the truth has {known};"
            " the classes must be the same"
        )
    # JSON may hold a whole number that no float can.
    number = isinstance(score, Real) and not isinstance(score, bool)
    if not number or not abs(score) <= sys.float_info.max:
        return f"score {reprlib.repr(score)}, expected a number"
    mask = entry["segmentation"]
    if (
        not isinstance(mask, dict)
        or not isinstance(mask.get("counts"), str)
        or not isinstance(mask.get("size"), (list, tuple))
        or not all(map(_is_int, mask["size"]))
    ):
        return 'segmentation is not a compressed RLE {"size": [height, width], "counts": text}'
    height, width = sizes[place[image_id]]
    if list(mask["size"]) != [height, width]:
        return (
            f"segmentation of size {reprlib.repr(list(mask['size']))}, but image {image_id} is"
            f" [{height}, {width}] (height, width); predict on the images that the truth is of"
        )
    return None


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class Candidates:
    """The true cells and the detections of one class in one image, and who could match whom.

    Attributes
    ----------
    truths
        `(G,)` int64: the true cells' places in the scene.
    detections
        `(D,)` int64: the detections' places in the scene, best score first, equal
        scores in the order of the file.
    pairs
        `(detection, truth, IoU)` with places in the two arrays above, for each pair of
        at least the least IoU asked for; by detection, then by truth.
    """

    truths: NDArray[np.int64]
    detections: NDArray[np.int64]
    pairs: list[tuple[int, int, float]]


# IoUs computed at a time: 128 MB, so that a slide with 100,000 cells doesn't fill the memory.
_MOST_IOUS = 1 << 24


def candidates(scene: Scene, class_index: int, least_iou: float) -> Candidates:
    """Compare each detection of a class with each true cell of it.

    IoU is of the masks as they are, also where they overlap one another; for a crowd
    region it is the part of the detection inside the region, as COCO defines it.
    """
    truths = np.flatnonzero(scene.truth_classes == class_index)
    detections = np.flatnonzero(scene.classes == class_index)
    detections = detections[np.argsort(-scene.scores[detections], kind="stable")]
    if not len(truths) or not len(detections):
        return Candidates(truths, detections, [])
    true_masks = [scene.truth_masks[g] for g in truths]
    crowd = scene.crowd[truths].tolist()
    pairs: list[tuple[int, int, float]] = []
    n_rows = max(1, _MOST_IOUS // len(truths))
    for start in range(0, len(detections), n_rows):
        masks = [scene.masks[d] for d in detections[start : start + n_rows]]
        iou = pycocotools.mask.iou(masks, true_masks, crowd)
        d, g = np.nonzero(iou >= least_iou)
        pairs += zip((start + d).tolist(), g.tolist(), iou[d, g].tolist(), strict=True)
    return Candidates(truths, detections, pairs)


def match_greedily(
    pairs: Sequence[tuple[int, int, float]],
    n_detections: int,
    ignored: Sequence[bool] | NDArray[np.bool_],
    crowd: Sequence[bool] | NDArray[np.bool_],
    thresholds: Sequence[float] | NDArray[np.float64],
) -> NDArray[np.int64]:
    """Give each detection, best score first, the free true cell of greatest IoU.

    The rule of `pycocotools.cocoeval.COCOeval.evaluateImg`: a cell that counts comes
    before one that is ignored; of equal IoUs the later cell; a crowd region can be
    given any number of times.

    Parameters
    ----------
    pairs
        As in `Candidates`, from the least threshold up.
    n_detections
        D.
    ignored, crowd
        `(G,)`: true cells that count neither as found nor as missed; crowd regions.
    thresholds
        `(T,)` least IoUs of a match, rising.

    Returns
    -------
    `(T, D)` int64: the matched true cell, −1 where there is none.
    """
    matched = np.full((len(thresholds), n_detections), -1, np.int64)
    # COCO lets rounding pass: an IoU of 1 − 1e-10 is enough for a threshold of 1.
    floors = [min(float(t), 1 - 1e-10) for t in thresholds]
    taken = [bytearray(len(ignored)) for _ in floors]
    order = sorted(pairs, key=lambda pair: (pair[0], bool(ignored[pair[1]]), pair[1]))
    begin = 0
    while begin < len(order):
        detection = order[begin][0]
        end = begin
        while end < len(order) and order[end][0] == detection:
            end += 1
        for t, floor in enumerate(floors):
            best, best_iou = -1, floor
            for _, truth, iou in order[begin:end]:
                if taken[t][truth] and not crowd[truth]:
                    continue
                if best >= 0 and ignored[truth] and not ignored[best]:
                    break
                if iou >= best_iou:
                    best, best_iou = truth, iou
            if best >= 0:
                taken[t][best] = 1
                matched[t, detection] = best
        begin = end
    return matched

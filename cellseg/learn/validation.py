"""Score a network on the validation set, by the same steps as prediction and evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cellseg.images import EvalImage, ImageCells
from cellseg.learn.samples import TrainingData
from cellseg.network.limits import warn_of_limits
from cellseg.predictions import Predictions
from cellseg.read.pairs import pair_predictions
from cellseg.read.window import read_image

T = TypeVar("T")

_N_PICTURES = 4  # the first images, drawn at each validation
_MAX_DETECTIONS = 100  # of an image and class, COCO's


class Scores(Protocol):
    """Mask AP of the validation set from 0 to 1, or NaN: see `cellseg.score.ap`."""

    @property
    def ap(self) -> float: ...

    @property
    def ap50(self) -> float: ...

    @property
    def ap75(self) -> float: ...

    @property
    def class_ap50(self) -> NDArray[np.float64]: ...  # (K,)


def choose_max_detections(data: TrainingData, all_images: bool = False) -> int | None:
    """Return how many detections of an image and class AP has at most: 100, or None for all.

    All if a validation image has more cells of a class, as `evaluate.py` then prints first; with
    `all_images` if any image has, so that all folds of a cross-validation have the same rule.
    """
    ids = {sample.id for sample in data.validation}
    counts = Counter(
        (cell["image_id"], cell["category_id"])
        for cell in data.coco["annotations"]
        if (all_images or cell["image_id"] in ids) and not cell.get("iscrowd")
    )
    return None if max(counts.values(), default=0) > _MAX_DETECTIONS else _MAX_DETECTIONS


def describe_max_detections(max_detections: int | None) -> str:
    """Return which detections AP has, for messages."""
    return f"at most {max_detections} per image and class" if max_detections else "all detections"


def validate(
    predict: Callable[[NDArray[np.uint8], float | None], Predictions],
    score: Callable[[list[EvalImage]], T],
    data: TrainingData,
    samples: Sequence[ImageCells],
    add_picture: Callable[[ImageCells, NDArray[np.uint8], Predictions], None] | None = None,
    warn: bool = True,
) -> T:
    """Predict `samples` of `data`, and return their score.

    Parameters
    ----------
    predict
        Detects the cells of an `(H, W, 3)` uint8 RGB image of some micrometres per pixel, None if
        unknown.
    score
        Scores the samples, given ground truth and detections.
    data, samples
        The data, and the images of it to predict.
    add_picture
        Called for the first few samples with the image and its detections.
    warn
        Warn of limits that left out cells.
    """
    detections: dict[int, Predictions] = {}
    progress = tqdm(samples, desc="validation", unit="image", leave=False, disable=None)
    for number, sample in enumerate(progress):
        image = read_image(sample.path)
        detections[sample.id] = predict(image, sample.mpp)
        if add_picture and number < _N_PICTURES:
            add_picture(sample, image, detections[sample.id])
    if warn:
        limited = {sample.name: [detections[sample.id].limited_by] for sample in samples}
        warn_of_limits(limited, of_training=True)
    return score(pair_predictions(data.coco, detections))

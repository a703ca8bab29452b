"""Score a network on the validation set, by the same steps as prediction and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cellseg.learn.samples import Sample, TrainingData
from cellseg.predictions import Predictions
from cellseg.read.tiff import read_image

T = TypeVar("T")

_PICTURES = 4  # images that are shown at each validation, always the same


class Scores(Protocol):
    """Mask AP of the validation set, each number from 0 to 1 or NaN."""

    @property
    def ap(self) -> float:
        """The mean over IoU 0.50 to 0.95, and over classes."""

    @property
    def ap50(self) -> float:
        """At IoU 0.5."""

    @property
    def ap75(self) -> float:
        """At IoU 0.75."""

    @property
    def class_ap50(self) -> NDArray[np.float64]:
        """`(K,)`, at IoU 0.5."""


def as_results(
    image_id: int, predictions: Predictions, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Give the predictions of an image as entries of COCO's results, without their boxes."""
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[class_],
            "segmentation": mask,
            "score": score,
        }
        for class_, mask, score in zip(
            predictions.classes.tolist(),
            predictions.masks,
            predictions.scores.tolist(),
            strict=True,
        )
    ]


def validate(
    predict: Callable[[NDArray[np.uint8]], Predictions],
    score: Callable[[dict[str, Any], list[dict[str, Any]]], T],
    data: TrainingData,
    samples: Sequence[Sample],
    show: Callable[[Sample, NDArray[np.uint8], Predictions], None] | None = None,
) -> T:
    """Predict `samples` of `data` and score them.

    Parameters
    ----------
    predict
        Detects the cells of an `(H, W, 3)` uint8 RGB image.
    score
        Takes the ground truth of the samples as a COCO dict, and the detections as COCO
        results without boxes; what it returns is returned.
    data, samples
        The images, and what they are part of.
    show
        Called for the first few samples with the image and its detections.
    """
    ids = [category["id"] for category in data.categories]
    results: list[dict[str, Any]] = []
    wanted = set()
    progress = tqdm(samples, desc="validation", unit="image", leave=False, disable=None)
    for number, sample in enumerate(progress):
        image = read_image(sample["file_name"])
        detections = predict(image)
        wanted.add(sample["image_id"])
        results += as_results(sample["image_id"], detections, ids)
        if show and number < _PICTURES:
            show(sample, image, detections)
    gt = {
        "images": [image for image in data.coco["images"] if image["id"] in wanted],
        "annotations": [a for a in data.coco["annotations"] if a["image_id"] in wanted],
        "categories": data.coco["categories"],
    }
    return score(gt, results)

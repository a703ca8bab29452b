"""Scores a network on the held-out images, by the same steps as prediction and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cellseg.learn.samples import Sample, TrainingData
from cellseg.predictions import Predictions
from cellseg.read.tiff import read_image
from cellseg.score.ap import AveragePrecision, mask_ap


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
    data: TrainingData,
    samples: Sequence[Sample],
) -> AveragePrecision:
    """Predict `samples` of `data` and score them by mask AP, at COCO's 100 detections."""
    ids = [category["id"] for category in data.categories]
    results: list[dict[str, Any]] = []
    wanted = set()
    for sample in tqdm(samples, desc="validation", unit="image", leave=False, disable=None):
        wanted.add(sample["image_id"])
        results += as_results(sample["image_id"], predict(read_image(sample["file_name"])), ids)
    truth = {
        "images": [image for image in data.coco["images"] if image["id"] in wanted],
        "annotations": [a for a in data.coco["annotations"] if a["image_id"] in wanted],
        "categories": data.coco["categories"],
    }
    return mask_ap(truth, results, (100,))[100]

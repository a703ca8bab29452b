"""Scores a network on the held-out images, by the same steps as prediction and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cellseg.learn.samples import Sample, TrainingData
from cellseg.look.overlay import draw_comparison
from cellseg.predictions import Predictions
from cellseg.read.tiff import read_image
from cellseg.rle import RLE, areas, crop_runs, decode, encode
from cellseg.score.ap import AveragePrecision, mask_ap

_PICTURES = 4  # images that are shown at each validation, always the same
_SHOWN = 512  # px, the side of the window in the middle of each that is drawn


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
    show: Callable[[str, NDArray[np.uint8]], None] | None = None,
) -> AveragePrecision:
    """Predict `samples` of `data` and score them by mask AP, at COCO's 100 detections.

    Parameters
    ----------
    predict
        Finds the cells of an `(H, W, 3)` uint8 RGB image.
    data, samples
        The images, and what they are part of.
    show
        Called for the first few images with a name and a picture of truth and prediction.
    """
    ids = [category["id"] for category in data.categories]
    names = [category["name"] for category in data.categories]
    results: list[dict[str, Any]] = []
    wanted = set()
    progress = tqdm(samples, desc="validation", unit="image", leave=False, disable=None)
    for number, sample in enumerate(progress):
        image = read_image(sample["file_name"])
        found = predict(image)
        wanted.add(sample["image_id"])
        results += as_results(sample["image_id"], found, ids)
        if show and number < _PICTURES:
            show(f"held out/{sample['name']}", draw_middle(image, sample, found, names))
    truth = {
        "images": [image for image in data.coco["images"] if image["id"] in wanted],
        "annotations": [a for a in data.coco["annotations"] if a["image_id"] in wanted],
        "categories": data.coco["categories"],
    }
    return mask_ap(truth, results, (100,))[100]


def draw_middle(
    image: NDArray[np.uint8], sample: Sample, found: Predictions, names: Sequence[str]
) -> NDArray[np.uint8]:
    """Draw truth and prediction side by side, of a large image its middle alone.

    Of the predictions, those with a score of 0.5 or more are drawn: AP wants many more
    than are of use to look at.

    Parameters
    ----------
    image
        `(H, W, 3)` uint8 RGB.
    sample, found
        Its annotations, and the predictions for it.
    names
        The K classes' names.

    Returns
    -------
    `(H', W', 3)` uint8 RGB.
    """
    height, width = image.shape[:2]
    left, top = max(0, (width - _SHOWN) // 2), max(0, (height - _SHOWN) // 2)
    box = (left, top, min(left + _SHOWN, width), min(top + _SHOWN, height))
    annotations = sample["annotations"]
    of_truth, truth = _cut([a["segmentation"] for a in annotations], (height, width), box)
    likely = np.flatnonzero(found.scores >= 0.5)
    inside, masks = _cut([found.masks[n] for n in likely], (height, width), box)
    shown = likely[inside]
    return draw_comparison(
        image[box[1] : box[3], box[0] : box[2]],
        truth,
        np.array([a["class"] for a in annotations], np.int64)[of_truth],
        masks,
        found.classes[shown],
        names,
        found.scores[shown],
    )


def _cut(
    masks: Sequence[RLE], size: tuple[int, int], box: tuple[int, int, int, int]
) -> tuple[NDArray[np.int64], list[RLE]]:
    """Cut masks to a window; give the numbers of those that reach into it, and what is left."""
    cut = crop_runs(decode(masks, size), box)
    inside = np.flatnonzero(areas(cut))
    left = encode(cut)
    return inside, [left[n] for n in inside]

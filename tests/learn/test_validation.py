"""Scoring the held-out images: the truth itself scores full marks, nothing scores none."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cellseg.learn.samples import load_training_data
from cellseg.learn.validation import as_results, draw_middle, validate
from cellseg.look.overlay import draw_comparison
from cellseg.predictions import Predictions
from cellseg.read.tiff import read_image


@pytest.fixture
def data(cells):
    return load_training_data(str(cells), str(cells / "train__annot.json"), 0.4, "", 0)


def encode_masks(masks):
    """Encode `(N, H, W)` uint8 by pycocotools."""
    encoded = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in encoded]


def truth_of(samples):
    """A predictor that knows the images by their pixels."""
    known = {read_image(sample["file_name"]).tobytes(): sample for sample in samples}

    def predict(image):
        its = known[image.tobytes()]["annotations"]
        return Predictions(
            size=image.shape[:2],
            boxes=np.zeros((len(its), 4), np.float32),
            scores=np.ones(len(its), np.float32),
            classes=np.array([a["class"] for a in its], np.int64),
            masks=[a["segmentation"] for a in its],
        )

    return predict


def test_the_truth_scores_full_marks(data):
    result = validate(truth_of(data.held_out), data, data.held_out)
    assert result.ap == pytest.approx(1)
    assert result.ap50 == pytest.approx(1)


def test_nothing_scores_none(data):
    def predict(image):
        empty = np.zeros(0, np.float32)
        return Predictions(
            image.shape[:2], np.zeros((0, 4), np.float32), empty, np.zeros(0, int), []
        )

    assert validate(predict, data, data.held_out).ap50 == 0


def test_only_the_held_out_images_count(data):
    """Others would be misses: only what is predicted may be in the truth."""
    (one,) = data.held_out[:1]
    assert validate(truth_of([one]), data, [one]).ap50 == pytest.approx(1)


def test_ids_of_the_file():
    rle = {"size": [1, 1], "counts": "01"}
    found = Predictions(
        (1, 1), np.zeros((2, 4), np.float32), np.array([0.5, 0.25], np.float32), np.array([1, 0]),
        [rle, rle],
    )  # fmt: skip
    assert as_results(7, found, [3, 9]) == [
        {"image_id": 7, "category_id": 9, "segmentation": rle, "score": 0.5},
        {"image_id": 7, "category_id": 3, "segmentation": rle, "score": 0.25},
    ]


def test_pictures_of_the_first_images(data):
    samples = data.train + data.held_out
    shown = {}
    validate(truth_of(samples), data, samples, lambda name, picture: shown.update({name: picture}))
    assert list(shown) == [f"held out/{sample['name']}" for sample in samples[:4]]


def test_of_a_large_image_the_middle_is_drawn():
    """A cell in the middle, one cut by the window's edge, one outside, and an unlikely one."""
    image = np.full((600, 1000, 3), 200, np.uint8)
    corners = [(500, 300), (239, 300), (100, 300), (600, 300)]  # the window is from 244 and 44
    masks = np.zeros((4, 600, 1000), np.uint8)
    for mask, (x, y) in zip(masks, corners, strict=True):
        mask[y : y + 10, x : x + 10] = 1
    rles = encode_masks(masks)
    classes = np.array([0, 1, 0, 1])
    annotations = zip(rles, classes.tolist(), strict=True)
    sample = {"annotations": [{"segmentation": rle, "class": c} for rle, c in annotations]}
    scores = np.array([0.9, 0.8, 0.7, 0.4], np.float32)
    found = Predictions((600, 1000), np.zeros((4, 4), np.float32), scores, classes, rles)
    true, likely = [0, 1, 3], [0, 1]
    expected = draw_comparison(
        image[44:556, 244:756],
        encode_masks(masks[true, 44:556, 244:756]),
        classes[true],
        encode_masks(masks[likely, 44:556, 244:756]),
        classes[likely],
        ["a", "b"],
        scores[likely],
    )
    assert (draw_middle(image, sample, found, ["a", "b"]) == expected).all()

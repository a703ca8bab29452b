"""Scoring the held-out images: the truth itself scores full marks, nothing scores none."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg.learn.samples import load_training_data
from cellseg.learn.validation import as_results, validate
from cellseg.predictions import Predictions
from cellseg.read.tiff import read_image
from cellseg.score.ap import mask_ap


@pytest.fixture
def data(cells):
    return load_training_data(str(cells), str(cells / "train__annot.json"), 0.4, "", 0)


def score(gt, results):
    return mask_ap(gt, results, (100,))[100]


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
    result = validate(truth_of(data.held_out), score, data, data.held_out)
    assert result.ap == pytest.approx(1)
    assert result.ap50 == pytest.approx(1)


def test_nothing_scores_none(data):
    def predict(image):
        empty = np.zeros(0, np.float32)
        return Predictions(
            image.shape[:2], np.zeros((0, 4), np.float32), empty, np.zeros(0, int), []
        )

    assert validate(predict, score, data, data.held_out).ap50 == 0


def test_only_the_held_out_images_count(data):
    """Others would be misses: only what is predicted may be in the truth."""
    (one,) = data.held_out[:1]
    assert validate(truth_of([one]), score, data, [one]).ap50 == pytest.approx(1)


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


def test_the_first_images_are_shown(data):
    samples = data.train + data.held_out
    shown = []
    validate(truth_of(samples), score, data, samples, lambda *what: shown.append(what))
    assert [sample for sample, _, _ in shown] == samples[:4]
    for sample, image, detections in shown:
        assert image.shape == (sample["height"], sample["width"], 3)
        assert detections.masks == [a["segmentation"] for a in sample["annotations"]]

"""Scoring the validation images: the ground truth itself scores full marks, nothing scores none."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg.learn.samples import load_training_data, split_data
from cellseg.learn.validation import validate
from cellseg.predictions import Predictions
from cellseg.read.tiff import read_image
from cellseg.score.ap import mask_ap


@pytest.fixture
def data(cells):
    return split_data(load_training_data(str(cells), str(cells / "train__annot.json")), 0.4)


def score(scenes):
    return mask_ap(scenes, 4, (100,))[100]


def truth_of(samples):
    """A predictor that knows the images by their pixels."""
    known = {read_image(sample.path).tobytes(): sample for sample in samples}

    def predict(image):
        its = known[image.tobytes()]
        return Predictions(
            size=image.shape[:2],
            boxes=np.zeros((len(its.masks), 4), np.float32),
            scores=np.ones(len(its.masks), np.float32),
            classes=its.classes,
            masks=its.masks,
        )

    return predict


def test_the_ground_truth_has_an_ap_of_one(data):
    result = validate(truth_of(data.validation), score, data, data.validation)
    assert result.ap == pytest.approx(1)
    assert result.ap50 == pytest.approx(1)


def test_nothing_scores_none(data):
    def predict(image):
        empty = np.zeros(0, np.float32)
        return Predictions(
            image.shape[:2], np.zeros((0, 4), np.float32), empty, np.zeros(0, int), []
        )

    assert validate(predict, score, data, data.validation).ap50 == 0


def test_only_validation_images_count(data):
    """Others would be misses: only what is predicted may be in the ground truth."""
    (one,) = data.validation[:1]
    assert validate(truth_of([one]), score, data, [one]).ap50 == pytest.approx(1)


def test_the_first_images_are_shown(data):
    samples = data.train + data.validation
    shown = []
    validate(truth_of(samples), score, data, samples, lambda *what: shown.append(what))
    assert [sample for sample, _, _ in shown] == samples[:4]
    for sample, image, detections in shown:
        assert image.shape == (*sample.size, 3)
        assert detections.masks == sample.masks

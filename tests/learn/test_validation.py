"""Validation: the ground truth has an AP of 1, no detections have 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cellseg.learn.samples import load_training_data, split_data
from cellseg.learn.validation import validate
from cellseg.predictions import Predictions
from cellseg.read.window import read_image
from cellseg.score.ap import mask_ap


@pytest.fixture
def data(cells):
    return split_data(load_training_data(str(cells), str(cells / "train__annot.json")), 0.4)


def score(eval_images):
    return mask_ap(eval_images, 4, (100,))[100]


def ground_truth_predictor(samples):
    """Return a predictor that recognises the images by their pixels."""
    known = {read_image(sample.path).tobytes(): sample for sample in samples}

    def predict(image):
        sample = known[image.tobytes()]
        n = len(sample.masks)
        boxes, scores = np.zeros((n, 4), np.float32), np.ones(n, np.float32)
        return Predictions(image.shape[:2], boxes, scores, sample.classes, sample.masks)

    return predict


def test_the_ground_truth_has_an_ap_of_one(data):
    result = validate(ground_truth_predictor(data.validation), score, data, data.validation)
    assert result.ap == pytest.approx(1)
    assert result.ap50 == pytest.approx(1)


def test_no_detections_have_an_ap_of_zero(data):
    def predict(image):
        boxes, scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return Predictions(image.shape[:2], boxes, scores, np.zeros(0, int), [])

    assert validate(predict, score, data, data.validation).ap50 == 0


def test_only_the_given_images_count(data):
    """The cells of other images would be false negatives."""
    (one,) = data.validation[:1]
    assert validate(ground_truth_predictor([one]), score, data, [one]).ap50 == pytest.approx(1)


def test_pictures_of_the_first_images(data):
    samples = data.train + data.validation
    calls = []
    predict = ground_truth_predictor(samples)
    validate(predict, score, data, samples, lambda *arguments: calls.append(arguments))
    assert [sample for sample, _, _ in calls] == samples[:4]
    for sample, image, detections in calls:
        assert image.shape == (*sample.size, 3)
        assert detections.masks == sample.masks


@pytest.mark.parametrize("warn", [True, False])
def test_limits_that_leave_out_cells(data, caplog, warn):
    predict = ground_truth_predictor(data.validation)

    def limited(image):
        return replace(predict(image), limited_by=("MODEL.RPN.POST_NMS_TOPK_TEST",))

    validate(limited, score, data, data.validation, warn=warn)
    assert ("more cells than are kept" in caplog.text) is warn

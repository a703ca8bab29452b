"""Validation: the ground truth has an AP of 1, no detections have 0."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cellseg.config import load_recipe
from cellseg.learn.samples import TrainingData, load_training_data, split_data
from cellseg.learn.validation import choose_max_detections, validate
from cellseg.predict.predictor import Predictor
from cellseg.predictions import Predictions
from cellseg.read.window import read_image
from cellseg.rle import encode, label_map_to_runs
from cellseg.score.ap import mask_ap
from tests.learn.cell_cases import image_of
from trainer import Trainer


@pytest.fixture
def data(cells):
    return split_data(load_training_data(str(cells), str(cells / "train__annot.json")), 0.4)


def score(eval_images):
    return mask_ap(eval_images, 4, (100,))[100]


def ground_truth_predictor(samples):
    """Return a predictor that recognises the images by their pixels."""
    known = {read_image(sample.path).tobytes(): sample for sample in samples}

    def predict(image, mpp):
        sample = known[image.tobytes()]
        assert mpp == sample.mpp
        n = len(sample.masks)
        boxes, scores = np.zeros((n, 4), np.float32), np.ones(n, np.float32)
        return Predictions(image.shape[:2], boxes, scores, sample.classes, sample.masks)

    return predict


def test_the_ground_truth_has_an_ap_of_one(data):
    result = validate(ground_truth_predictor(data.validation), score, data, data.validation)
    assert result.ap == pytest.approx(1)
    assert result.ap50 == pytest.approx(1)


def test_no_detections_have_an_ap_of_zero(data):
    def predict(image, _mpp):
        boxes, scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return Predictions(image.shape[:2], boxes, scores, np.zeros(0, int), [])

    assert validate(predict, score, data, data.validation).ap50 == 0


def test_only_the_given_images_count(data):
    """The cells of other images would be false negatives."""
    (one,) = data.validation[:1]
    assert validate(ground_truth_predictor([one]), score, data, [one]).ap50 == pytest.approx(1)


def test_predictions_know_the_resolution_of_each_image(data):
    validation = [replace(s, mpp=mpp) for s, mpp in zip(data.validation, (0.25, None), strict=True)]
    # The predictor asserts it.
    assert validate(ground_truth_predictor(validation), score, data, validation).ap == 1


@pytest.mark.parametrize(
    ("counts", "held_out", "everywhere"),
    [
        ([[100, 100], [100, 0]], 100, 100),
        ([[101, 0], [3, 0]], 100, None),
        ([[0, 0], [101, 3]], None, None),
        ([[0, 0], [0, 0]], 100, 100),
    ],
)
def test_ap_has_as_many_detections_as_there_are_cells(counts, held_out, everywhere):
    """Cells of two classes, of a training and a validation image; crowds don't count."""
    one, other = (replace(image_of(name=name), id=n) for n, name in enumerate("ab"))
    cells = [
        {"image_id": n, "category_id": k, "iscrowd": 0}
        for n, of_image in enumerate(counts)
        for k, count in enumerate(of_image)
        for _ in range(count)
    ]
    crowds = [{"image_id": 1, "category_id": 0, "iscrowd": 1}] * 101
    data = TrainingData({"annotations": cells + crowds}, [], [one], [other])
    assert choose_max_detections(data) == held_out
    assert choose_max_detections(data, all_images=True) == everywhere
    assert choose_max_detections(replace(data, train=[one, other], validation=[])) == 100


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

    def limited(image, mpp):
        return replace(predict(image, mpp), limited_by=("MODEL.RPN.POST_NMS_TOPK_TEST",))

    validate(limited, score, data, data.validation, warn=warn)
    assert ("more cells than are kept" in caplog.text) is warn
    assert "--" not in caplog.text, "flags of another command"


def test_all_cells_of_a_dense_image_count(tmp_path, monkeypatch):
    """Perfect detections of 272 cells of a class have an AP of 1, and of 100 of them 100 / 272."""
    corners = [(4 + 8 * (n % 16), 4 + 8 * (n // 16)) for n in range(272)]
    label_map = np.zeros((160, 140), np.uint16)
    for n, (x, y) in enumerate(corners, 1):
        label_map[y : y + 4, x : x + 4] = n
    rles = encode(label_map_to_runs(label_map)[1])
    Image.fromarray(np.full((160, 140, 3), 255, np.uint8)).save(tmp_path / "x.png")
    coco = {
        "images": [{"id": 1, "file_name": "x.png", "height": 160, "width": 140, "mpp": 0.5}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "segmentation": rle, "area": 16,
             "bbox": [*corner, 4, 4], "iscrowd": 0}
            for n, (rle, corner) in enumerate(zip(rles, corners, strict=True), 1)
        ],
    }  # fmt: skip
    path = tmp_path / "train__annot.json"
    path.write_text(json.dumps(coco))
    data = split_data(load_training_data(str(tmp_path), str(path)), val_images=["x"])
    perfect, counts = ground_truth_predictor(data.validation), iter([272, 100, 272])

    def predict(_self, image, *, mpp, all_tiles):
        assert all_tiles
        return perfect(image, mpp)[: next(counts)]

    monkeypatch.setattr(Predictor, "predict", predict)
    cfg = load_recipe("demo", "torchvision")
    for expected in (1, 37 / 101):
        result = Trainer.test(cfg, torch.nn.Identity(), data)
        assert result.ap50 == pytest.approx(expected)
    cfg.DATA.FOLDS = 2
    assert Trainer.test(cfg, torch.nn.Identity(), data).max_detections is None

"""Results are checked against the ground truth, with one line for each error."""

import numpy as np
import pytest

from cellseg.predictions import Predictions
from cellseg.read.pairs import pair_by_image, pair_predictions
from tests.read.refusal import refusal
from tests.score.scoring_cases import entry, rectangle, rle, truth_of

SIZE = (4, 6)
CELL = rectangle(SIZE, 0, 0, 2, 2)


@pytest.fixture
def truth():
    return truth_of({5: (SIZE, [(1, CELL, 0)]), 3: ((2, 2), [])}, ["a", "b"])


def test_images_by_ascending_id(truth):
    results = [entry(5, 2, CELL, 0.5), entry(3, 1, np.ones((2, 2)), 0.25), entry(5, 1, CELL, 1)]
    eval_images = pair_by_image(truth, results)
    assert [eval_image.id for eval_image in eval_images] == [3, 5]
    assert [eval_image.size for eval_image in eval_images] == [(2, 2), SIZE]
    assert [eval_image.name for eval_image in eval_images] == ["3.tif", "5.tif"]
    assert eval_images[1].entries.tolist() == [0, 2]
    assert eval_images[1].scores.tolist() == [0.5, 1]
    assert eval_images[1].classes.tolist() == [1, 0]
    assert len(eval_images[0].gt_masks) == 0
    assert len(eval_images[0].mask_runs) == 1


def test_category_ids_may_be_any(truth):
    truth["categories"] = [{"id": 30, "name": "late"}, {"id": -2, "name": "early"}]
    truth["annotations"][0]["category_id"] = 30
    eval_images = pair_by_image(truth, [entry(5, -2, CELL, 0.5)])
    assert eval_images[1].gt_classes.tolist() == [1]
    assert eval_images[1].classes.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 4}, "image_id 4 is none"),
        ({"image_id": "5"}, 'image_id "5" is none'),
        ({"image_id": True}, "image_id true is none"),
        ({"image_id": 5.0}, "image_id 5.0 is none"),
        ({"image_id": [5]}, "image_id [5] is none"),
        ({"category_id": 0}, "category_id 0, expected one of 1, 2"),
        ({"category_id": 3}, "category_id 3, "),
        ({"category_id": None}, "category_id null, "),
        ({"category_id": {}}, "category_id {}, "),
        ({"score": "0.5"}, 'score "0.5", expected a number'),
        ({"score": float("nan")}, "score NaN"),
        ({"score": float("inf")}, "score Infinity"),
        ({"score": 10**400}, "score 1000"),
        ({"score": None}, "score null"),
        ({"score": True}, "score true"),
        ({"segmentation": [[0, 0, 1, 1, 1, 0]]}, "not a compressed RLE"),
        ({"segmentation": {"size": [4, 6]}}, "not a compressed RLE"),
        ({"segmentation": {"size": [4, 6], "counts": [4, 20]}}, "not a compressed RLE"),
        ({"segmentation": {"size": 24, "counts": "0"}}, "not a compressed RLE"),
        ({"segmentation": {"size": [4, "6"], "counts": "0"}}, "not a compressed RLE"),
        ({"segmentation": {"size": [6, 4], "counts": "h0"}}, "size [6, 4], but image 5 is [4, 6]"),
        ({"segmentation": {"size": [4, 6, 1], "counts": "h0"}}, "size [4, 6, 1], but"),
        ({"segmentation": {"size": [4, 6], "counts": "00"}}, "entry 1: segmentation: the counts"),
        ({"segmentation": {"size": [4, 6], "counts": "é"}}, "entry 1: segmentation: the counts"),
        ({"segmentation": {"size": [4, 6], "counts": "P"}}, "entry 1: segmentation: the counts"),
        ({"segmentation": {"size": [4, 6], "counts": ""}}, "entry 1: segmentation: the counts"),
    ],
)
def test_entries_that_do_not_fit(truth, change, message):
    results = [entry(5, 1, CELL, 0.5), {**entry(5, 1, CELL, 0.5), **change}]
    line = refusal(pair_by_image, truth, results, "results.json")
    assert line.startswith("results.json: entry 1: ")
    assert message in line


@pytest.mark.parametrize("key", ["image_id", "category_id", "segmentation", "score"])
def test_missing_keys(truth, key):
    broken = entry(5, 1, CELL, 0.5)
    del broken[key]
    assert f"entry 0: {key} missing" in refusal(pair_by_image, truth, [broken])


@pytest.mark.parametrize("broken", [None, 3, "text", [1]])
def test_entries_that_are_no_objects(truth, broken):
    assert "expected an object" in refusal(pair_by_image, truth, [broken])


def test_boxes_are_optional(truth):
    plain = entry(5, 1, CELL, 1)
    del plain["bbox"]
    assert len(pair_by_image(truth, [plain])[1].scores) == 1


def test_predictions_are_paired_like_results(truth):
    classes, scores = np.array([1, 0]), np.array([0.5, 0.25], np.float32)
    rles = [rle(CELL), rle(~CELL)]
    found = Predictions(SIZE, np.zeros((2, 4), np.float32), scores, classes, rles)
    (eval_image,) = pair_predictions(truth, {5: found})
    expected = pair_by_image(truth, [entry(5, 2, CELL, 0.5), entry(5, 1, ~CELL, 0.25)])[1]
    for key, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            assert getattr(eval_image, key).tolist() == value.tolist()
            assert getattr(eval_image, key).dtype == value.dtype
        elif "runs" not in key:
            assert getattr(eval_image, key) == value
    assert eval_image.mask_runs.starts.tolist() == expected.mask_runs.starts.tolist()
    both = pair_predictions(truth, {5: found, 3: Predictions.empty((2, 2))})
    assert [eval_image.id for eval_image in both] == [3, 5]

"""`Predictions`: repr, indexing, score threshold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cellseg import InputError, Predictions, Predictor
from tests.score.scoring_cases import rectangle
from tests.score.scoring_cases import rle as encode

NAMES = ("epithelial", "lymphocyte", "neutrophil")


def predictions(scores, classes, names=NAMES):
    boxes = np.arange(4 * len(scores), dtype=np.float32).reshape(-1, 4)
    masks = [{"size": [512, 768], "counts": str(n)} for n in range(len(scores))]
    return Predictions(
        (512, 768), boxes, np.array(scores, np.float32), np.array(classes, np.int64), masks, names
    )


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (
            predictions([0.9, 0.8, 0.7], [2, 0, 2]),
            "Predictions(3 detections in 512 x 768 px: 1 epithelial, 2 neutrophil)",
        ),
        (predictions([0.9], [1]), "Predictions(1 detection in 512 x 768 px: 1 lymphocyte)"),
        (predictions([0.9], [1], ()), "Predictions(1 detection in 512 x 768 px: 1 of class 1)"),
        (Predictions.empty((5, 7)), "Predictions(0 detections in 5 x 7 px)"),
    ],
)
def test_repr_is_one_line(shown, expected):
    assert repr(shown) == expected


def test_cells_are_detections_counted_once():
    """Two detections of one cell, and one of another."""
    twice = predictions([0.9, 0.8, 0.7], [0, 1, 1])
    masks = [(10, 30), (10, 30), (100, 120)]
    mask_rles = [encode(rectangle((512, 768), top, 5, bottom, 25)) for top, bottom in masks]
    twice = replace(twice, masks=mask_rles)
    assert repr(twice).startswith("Predictions(3 detections in ")
    assert repr(twice.distinct()).startswith("Predictions(2 cells in ")
    assert repr(twice.distinct()[:1]).startswith("Predictions(1 cell in ")


@pytest.mark.parametrize(
    "index", [np.array([2, 0]), np.array([True, False, True]), slice(1), slice(0, 0)], ids=str
)
def test_indexing(index):
    whole = predictions([0.9, 0.8, 0.7], [2, 0, 1])
    some = whole[index]
    assert some.scores.tolist() == whole.scores[index].tolist()
    assert some.boxes.tolist() == whole.boxes[index].tolist()
    assert some.classes.tolist() == whole.classes[index].tolist()
    assert some.masks == np.array(whole.masks)[index].tolist()
    assert (some.size, some.class_names) == (whole.size, whole.class_names)


@pytest.mark.parametrize("index", [0, 2, -1, -3, np.int64(1)])
def test_one_cell(index):
    whole = predictions([0.9, 0.8, 0.7], [2, 0, 1])
    one = whole[index]
    assert len(one) == 1
    assert (one.scores[0], one.classes[0]) == (whole.scores[index], whole.classes[index])
    assert one.boxes.tolist() == [whole.boxes[index].tolist()]
    assert one.masks == [whole.masks[index]]
    assert one.boxes.dtype == np.float32


def test_cell_by_cell():
    whole = predictions([0.9, 0.8, 0.7], [2, 0, 1])
    assert [cell.masks for cell in whole] == [[mask] for mask in whole.masks]
    assert list(Predictions.empty((5, 7))) == []
    for index in (3, -4):
        with pytest.raises(IndexError):
            whole[index]


def test_no_run():
    with pytest.raises(InputError, match="no run"):
        Predictor.from_run([])


def test_options_that_are_not_text(run):
    options = ["TEST.TILE", 300, "TEST.SCALES", (0.8, 1.0), "TEST.ACROSS_CLASSES", True]
    test = Predictor.from_run(run, options=[*options, "TEST.MASK_IOU", np.float64(0.25)]).cfg.TEST
    assert (test.TILE, test.SCALES, test.ACROSS_CLASSES) == (300, (0.8, 1.0), True)
    assert test.MASK_IOU == 0.25
    for wrong in (["TEST.TILE", 0.5], ["TEST.TILE", None], [300, "TEST.TILE"], ["TEST.TILE"]):
        with pytest.raises(InputError, match=r"TEST\.TILE|300"):
            Predictor.from_run(run, options=wrong)


@pytest.mark.one_engine
@pytest.mark.parametrize("device", ["auto", "foo", "cuda:99"])
def test_a_device_that_is_not_available_is_named(run, device):
    with pytest.raises(InputError, match=f"{device}: not available .*cpu always works"):
        Predictor.from_run(run, device=device)


def test_score_threshold(run, cells):
    predictor = Predictor.from_run(run)
    image = next(cells.glob("test_release/*.tif"))
    every = predictor.predict(image)
    assert every.class_names == ("class1", "class2", "class3", "class4")
    threshold = float(np.median(every.scores))
    few = predictor.predict(image, score_threshold=threshold)
    assert 0 < len(few) < len(every)
    assert (few.scores >= threshold).all()
    assert few.masks == every[every.scores >= threshold].masks


@pytest.mark.parametrize("threshold", [-0.1, 1.5, 50, float("nan"), "0.5", None])
def test_invalid_score_threshold(threshold, run):
    with pytest.raises(InputError, match=f"score_threshold {threshold!r}: .*0 to 1"):
        Predictor.from_run(run).predict(np.zeros((9, 9, 3), np.uint8), score_threshold=threshold)
    with pytest.raises(InputError, match=f"score_threshold {threshold!r}: .*0 to 1"):
        Predictions.empty((9, 9)).distinct(threshold)

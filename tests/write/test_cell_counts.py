"""Numbers of cells in the list of images."""

import numpy as np

from cellseg.predict.merge import merge_tiles
from cellseg.predict.predictor import join_predictions
from cellseg.predict.tiles import plan_tiles
from cellseg.write import summary
from cellseg.write.summary import CellCounts
from tests.predict.test_merge import detections, drawn

PLAN = plan_tiles((60, 150), 60, 20)
CELLS = [(2, 10, 24, 30), (35, 10, 57, 30), (16, 10, 43, 30)]
SCORES = (0.9, 0.9, 0.7)


def batches():
    """Return merged tiles: the third cell is under two others, 30 % each, in other batches."""
    tiles = []
    for tile in PLAN:
        left, _, right, _ = tile.window
        seen = [n for n, (x0, _, x1, _) in enumerate(CELLS) if x1 > left and x0 < right]
        boxes = [
            (max(x0 - left, 0), y0, min(x1, right) - left, y1)
            for x0, y0, x1, y1 in (CELLS[n] for n in seen)
        ]
        tiles.append(detections(drawn(tile.size, *boxes), [SCORES[n] for n in seen]))
    return list(merge_tiles(PLAN, tiles))


def test_cells_are_counted_as_if_all_were_in_one_batch():
    counts = CellCounts(["a", "b"])
    assert len(batches()) > 1
    for image in (3, 7):
        for batch in batches():
            counts.add(image, batch)
    expected = len(join_predictions(PLAN.size, batches()).distinct(0.5))
    assert expected == 2
    for image in (3, 7):
        assert counts.of(image).tolist() == [expected, 0]
    assert counts.of(1).tolist() == [0, 0]


def test_of_equal_scores_no_cell_is_left_out():
    nested = detections(drawn((60, 60), (10, 10, 30, 30), (15, 15, 27, 27)), [0.9, 0.9])
    counts = CellCounts(["a"])
    counts.add(1, nested)
    assert counts.of(1).tolist() == [2]


def test_many_cells_are_counted_in_parts(monkeypatch):
    monkeypatch.setattr(summary, "_MOST", 0)
    counts = CellCounts(["a"])
    for batch in batches():
        counts.add(1, batch)
    assert counts.of(1).tolist() == [sum(len(batch.distinct(0.5)) for batch in batches())]
    assert np.sum(counts.of(1)) == 3


def test_lines_of_images_of_one_name():
    numbers = {"tissue_px2": 100, "cells": {"a": 2}}
    paths = ["/data/one/image.tif", "/data/two/image.tif", "/data/other.tif"]
    lines = summary.summary_lines([{"file_name": path, **numbers} for path in paths])
    assert [line.partition(":")[0] for line in lines] == paths
    lines = summary.summary_lines([{"file_name": path, **numbers} for path in paths[1:]])
    assert [line.partition(":")[0] for line in lines] == ["image.tif", "other.tif"]

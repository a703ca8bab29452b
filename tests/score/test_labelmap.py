"""Label maps against maps drawn mask by mask, and by hand."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.images import distinct_detections
from cellseg.read.pairs import pair_by_image
from cellseg.score.labelmap import OVERLAP_RULES, class_agnostic, compare_label_maps, select_class
from tests.score.scoring_cases import (
    decode,
    entry,
    labels_of,
    naive_label_maps,
    random_case,
    rectangle,
    truth_of,
)


def line(start, end, length=20):
    return rectangle((1, length), 0, start, 1, end)


def compared(cells, detections, **settings):
    """Compare cells `(class, mask, crowd)` with detections `(class, mask, score)` in one row."""
    size = cells[0][1].shape if cells else detections[0][1].shape
    truth = truth_of({1: (size, cells)})
    eval_images = pair_by_image(truth, [entry(1, *one) for one in detections])
    return compare_label_maps(eval_images[0], **settings)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.4, 0.5, 1.0]),
    st.sampled_from(sorted(OVERLAP_RULES)),
)
def test_equals_maps_drawn_mask_by_mask(seed, threshold, overlap):
    truth, results = random_case(np.random.default_rng(seed), n_images=2)
    for eval_image in pair_by_image(truth, results):
        image = next(i for i in truth["images"] if i["id"] == eval_image.id)
        ours = compare_label_maps(eval_image, threshold, overlap)
        gt_map, pred_map, gt_class, pred_class = naive_label_maps(
            truth, results, image, threshold, overlap
        )
        gt_labels, pred_labels = labels_of(gt_map), labels_of(pred_map)
        assert (ours.gt_indices + 1).tolist() == gt_labels
        assert (ours.detection_indices + 1).tolist() == pred_labels
        assert (ours.gt_classes + 1).tolist() == [gt_class[t] for t in gt_labels]
        assert (ours.classes + 1).tolist() == [pred_class[f] for f in pred_labels]
        assert ours.gt_areas.tolist() == [(gt_map == t).sum() for t in gt_labels]
        assert ours.areas.tolist() == [(pred_map == f).sum() for f in pred_labels]
        pairs = {
            (ours.gt_indices[t] + 1, ours.detection_indices[f] + 1): (shared, union, iou)
            for (t, f), shared, union, iou in zip(
                ours.pairs, ours.intersection, ours.union, ours.iou, strict=True
            )
        }
        expected = {}
        for t in gt_labels:
            for f in pred_labels:
                shared = ((gt_map == t) & (pred_map == f)).sum()
                union = ((gt_map == t) | (pred_map == f)).sum()
                if shared:
                    expected[t, f] = (shared, union, shared / union)
        assert pairs == expected


@pytest.mark.parametrize(
    ("overlap", "areas"), [("score", [5, 1]), ("smaller", [2, 4]), ("larger", [5, 1])]
)
def test_which_detection_gets_overlapping_pixels(overlap, areas):
    # 5 and 4 pixels, 3 of them shared.
    detections = [(1, line(0, 5), 0.9), (2, line(2, 6), 0.8)]
    assert compared([], detections, overlap=overlap).areas.tolist() == areas
    # The class makes no difference, and the score only if overlap is "score".
    detections = [(1, line(0, 5), 0.8), (1, line(2, 6), 0.9)]
    other = [2, 4] if overlap == "score" else areas
    assert compared([], detections, overlap=overlap).areas.tolist() == other


def test_of_equal_scores_the_first_gets_the_pixels():
    detections = [(1, line(0, 4), 0.7), (1, line(2, 6), 0.7)]
    assert compared([], detections).areas.tolist() == [4, 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["score", "smaller"]))
def test_ground_truth_as_results_in_any_order(seed, overlap):
    """Rectangles of few areas that overlap: each is its own match, of an IoU of 1."""
    rng = np.random.default_rng(seed)
    cells: list[tuple[int, np.ndarray, int]] = []
    for _ in range(10):
        y, x = rng.integers(0, 12, 2)
        height, width = [(5, 5), (3, 5), (5, 3), (1, 1)][rng.integers(4)]
        mask = rectangle((16, 16), y, x, y + height, x + width)
        # One cell, if the IoU is a half.
        if all(2 * (mask & c).sum() < (mask | c).sum() for _, c, _ in cells):
            cells.append((int(rng.integers(1, 4)), mask, 0))
    order = rng.permutation(len(cells))
    truth = truth_of({1: ((16, 16), cells)})
    detections = [entry(1, cells[n][0], cells[n][1], 0.9) for n in order]
    (image,) = map(distinct_detections, pair_by_image(truth, detections))
    assert len(image.classes) == len(cells)
    ours = compare_label_maps(image, overlap=overlap)
    assert ours.gt_areas.sum() == ours.areas.sum() == np.any([c for _, c, _ in cells], 0).sum()
    pairs, iou = ours.matches()
    assert len(iou) == len(ours.gt_indices) == len(ours.detection_indices) == len(ours.pairs)
    assert (iou == 1).all()
    for gt, detection in pairs:
        same = image.gt_masks[ours.gt_indices[gt]], image.masks[ours.detection_indices[detection]]
        assert decode(same[0]).tolist() == decode(same[1]).tolist()


def test_covered_cells_are_in_no_map():
    detections = [(1, line(3, 5), 0.6), (1, line(2, 6), 0.7), (1, line(9, 9), 0.9)]
    assert compared([], detections).detection_indices.tolist() == [1]


def test_score_threshold():
    detections = [(1, line(0, 2), 0.5), (1, line(4, 6), 0.4999)]
    assert compared([], detections).detection_indices.tolist() == [0]
    assert compared([], detections, score_threshold=0).detection_indices.tolist() == [0, 1]


def test_of_overlapping_ground_truth_the_smaller_cell_stays_whole():
    ours = compared([(1, line(0, 9), 0), (2, line(3, 5), 0)], [(1, line(0, 1), 0.9)])
    assert ours.gt_areas.tolist() == [7, 2]


def test_an_iou_of_one_half_is_no_match():
    # 3 of 6 pixels: exactly one half, which two cells could reach.
    assert len(compared([(1, line(0, 6), 0)], [(1, line(0, 3), 0.9)]).matches()[0]) == 0
    at, iou = compared([(1, line(0, 6), 0)], [(1, line(0, 4), 0.9)]).matches()
    assert (at.tolist(), iou.tolist()) == ([[0, 0]], [4 / 6])


def test_more_than_half_in_a_crowd_of_its_class_is_ignored():
    cells = [(1, line(0, 10), True), (1, line(4, 10), True)]
    detections = [(1, line(0, 2), 0.9), (2, line(2, 4), 0.9)]
    detections += [(1, line(8, 12), 0.9), (1, line(7, 8), 0.8)]
    ours = compared(cells, detections)
    assert len(ours.gt_indices) == 0
    assert ours.in_crowd.tolist() == [True, False, False, True]


def test_no_cells():
    ours = compared([(1, line(0, 0), 0)], [])
    assert {*map(len, (ours.gt_indices, ours.detection_indices, ours.pairs, ours.iou))} == {0}


def test_one_class_and_class_agnostic():
    cells = [(1, line(0, 4), 0), (2, line(5, 9), 0)]
    detections = [(2, line(0, 4), 0.9), (2, line(5, 8), 0.9), (1, line(12, 14), 0.9)]
    ours = compared(cells, detections)
    second = select_class(ours, 1)
    assert second.gt_indices.tolist() == [1]
    assert second.detection_indices.tolist() == [0, 1]
    assert second.pairs.tolist() == [[0, 1]]
    assert second.intersection.tolist() == [3]
    everything = class_agnostic(ours)
    assert everything.gt_classes.tolist() == [0, 0]
    assert everything.classes.tolist() == [0, 0, 0]
    assert everything.pairs.tolist() == ours.pairs.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_bands_change_nothing(monkeypatch, seed):
    """A slide is compared in bands; here of 7 pixels, less than a column."""
    truth, results = random_case(np.random.default_rng(seed), n_gt=9, n_results=14)
    for eval_image in pair_by_image(truth, results):
        whole = compare_label_maps(eval_image, 0.2)
        with monkeypatch.context() as patch:
            patch.setattr("cellseg.score.labelmap._BAND", 7)
            bands = compare_label_maps(eval_image, 0.2)
        for one, other in zip(astuple(whole), astuple(bands), strict=True):
            np.testing.assert_array_equal(one, other)

"""Precision, recall, F1 and the confusion matrix, against loops and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.read.pairs import pair_by_image
from cellseg.score.confusion import confusion_matrix
from cellseg.score.detection import MatchCounts, count_matches, detection_scores
from cellseg.score.labelmap import compare_label_maps
from tests.score.scoring_cases import (
    entry,
    labels_of,
    naive_label_maps,
    random_case,
    rectangle,
    truth_of,
)

SIZE = (1, 30)


def line(start, end):
    return rectangle(SIZE, 0, start, 1, end)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.55, 0.75, 0.95]))
def test_equals_a_loop_over_the_cells(seed, threshold):
    truth, results = random_case(np.random.default_rng(seed), crowds=False)
    comparisons = [compare_label_maps(eval_image) for eval_image in pair_by_image(truth, results)]
    sums = count_matches(comparisons, 3, threshold)
    matrix = confusion_matrix(comparisons, 3)
    expected = np.zeros((4, 4), int)
    for i, image in enumerate(sorted(truth["images"], key=lambda image: image["id"])):
        gt_map, pred_map, gt_class, pred_class = naive_label_maps(truth, results, image)
        tp, fn, false = np.zeros(3, int), np.zeros(3, int), np.zeros(3, int)
        iou_sum = np.zeros(3)
        gt_labels, pred_labels = labels_of(gt_map), labels_of(pred_map)
        for t in gt_labels:
            fn[gt_class[t] - 1] += 1
            expected[gt_class[t] - 1, 3] += 1
        for f in pred_labels:
            false[pred_class[f] - 1] += 1
            expected[3, pred_class[f] - 1] += 1
        for t in gt_labels:
            for f in pred_labels:
                a, b = gt_class[t] - 1, pred_class[f] - 1
                gt, pred = gt_map == t, pred_map == f
                iou = (gt & pred).sum() / (gt | pred).sum()
                if iou > 0.5:
                    expected[a, b] += 1
                    expected[a, 3] -= 1
                    expected[3, b] -= 1
                if iou > threshold and a == b:
                    tp[a] += 1
                    fn[a] -= 1
                    false[a] -= 1
                    iou_sum[a] += iou
        assert sums.tp[i].tolist() == tp.tolist()
        assert sums.fn[i].tolist() == fn.tolist()
        assert sums.fp[i].tolist() == false.tolist()
        np.testing.assert_allclose(sums.iou[i], iou_sum)
    assert matrix.tolist() == expected.tolist()


def test_f1_by_hand():
    sums = MatchCounts(
        tp=np.array([[3, 0, 0], [1, 0, 0]]),
        fn=np.array([[1, 2, 0], [0, 0, 0]]),
        fp=np.array([[0, 0, 5], [2, 0, 0]]),
        iou=np.zeros((2, 3)),
    )
    ours = detection_scores(sums, np.ones(2, np.int64))
    np.testing.assert_allclose(ours.precision, [4 / 6, 0, np.nan])
    np.testing.assert_allclose(ours.recall, [4 / 5, 0, np.nan])
    np.testing.assert_allclose(ours.f1, [8 / 11, 0, np.nan])
    # The harmonic mean of the two.
    assert ours.f1[0] == pytest.approx(2 / (1 / ours.precision[0] + 1 / ours.recall[0]))
    twice = detection_scores(sums, np.array([[2, 0], [0, 1]]))
    np.testing.assert_allclose(twice.precision[:, 0], [1, 1 / 3])
    np.testing.assert_allclose(twice.recall[:, 0], [3 / 4, 1])


def test_detected_but_misclassified():
    cells = [(1, line(0, 4), 0), (1, line(5, 9), 0), (2, line(10, 14), 0)]
    truth = truth_of({1: (SIZE, cells)}, ["a", "b"])
    masks = [(1, line(0, 4)), (2, line(5, 9)), (2, line(20, 24))]
    results = [entry(1, class_id, mask, 0.9) for class_id, mask in masks]
    comparison = compare_label_maps(pair_by_image(truth, results)[0])
    assert confusion_matrix([comparison], 2).tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    sums = count_matches([comparison], 2)
    # Per class, the misclassified cell is a false negative and a false positive.
    assert sums.tp.tolist() == [[1, 0]]
    assert sums.fn.tolist() == [[1, 1]]
    assert sums.fp.tolist() == [[0, 2]]


def test_a_cell_in_a_crowd_is_no_false_positive():
    truth = truth_of({1: (SIZE, [(1, line(0, 10), 1)])}, ["a"])
    results = [entry(1, 1, line(0, 4), 0.9), entry(1, 1, line(20, 24), 0.9)]
    comparison = compare_label_maps(pair_by_image(truth, results)[0])
    assert count_matches([comparison], 1).fp.tolist() == [[1]]
    assert confusion_matrix([comparison], 1).tolist() == [[0, 0], [1, 0]]


def test_no_image():
    assert count_matches([], 2).tp.shape == (0, 2)
    assert confusion_matrix([], 2).tolist() == [[0] * 3] * 3
    assert np.isnan(detection_scores(count_matches([], 2), np.zeros(0, np.int64)).f1).all()

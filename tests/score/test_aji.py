"""AJI and AJI+ against their definitions on label maps, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from cellseg.read.pairs import pair_by_image
from cellseg.score.aji import aji, aji_plus, mean_over_images
from cellseg.score.labelmap import compare_label_maps, select_class
from tests.score.scoring_cases import (
    entry,
    labels_of,
    naive_label_maps,
    random_case,
    rectangle,
    truth_of,
)


def naive(gt_map, pred_map, unique):
    gt_labels, pred_labels = labels_of(gt_map), labels_of(pred_map)
    if not gt_labels and not pred_labels:
        return np.nan
    shape = (len(gt_labels), len(pred_labels))
    pairs = [(gt_map == t, pred_map == f) for t in gt_labels for f in pred_labels]
    shared = np.array([(t & f).sum() for t, f in pairs], float).reshape(shape)
    union = np.array([(t | f).sum() for t, f in pairs], float).reshape(shape)
    iou = shared / union
    if unique:
        pairs = list(zip(*linear_sum_assignment(-iou), strict=True))
    else:
        pairs = [(t, int(np.argmax(iou[t]))) for t in range(len(gt_labels)) if pred_labels]
    pairs = [pair for pair in pairs if iou[pair] > 0]
    inter = sum(shared[pair] for pair in pairs)
    total = sum(union[pair] for pair in pairs)
    total += sum((gt_map == t).sum() for n, t in enumerate(gt_labels) if n not in dict(pairs))
    used = {f for _, f in pairs}
    total += sum((pred_map == f).sum() for n, f in enumerate(pred_labels) if n not in used)
    return inter / total


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_the_definitions(seed):
    truth, results = random_case(np.random.default_rng(seed), n_images=2, crowds=False, largest=24)
    for eval_image in pair_by_image(truth, results):
        image = next(i for i in truth["images"] if i["id"] == eval_image.id)
        comparison = compare_label_maps(eval_image)
        gt_map, pred_map, gt_class, pred_class = naive_label_maps(truth, results, image)
        parts = [(comparison, gt_map, pred_map)]
        for k in range(3):
            gt_part, pred_part = (
                np.where(np.isin(m, [n for n, c in classes.items() if c == k + 1]), m, 0)
                for m, classes in ((gt_map, gt_class), (pred_map, pred_class))
            )
            parts.append((select_class(comparison, k), gt_part, pred_part))
        for part, gt_part, pred_part in parts:
            np.testing.assert_allclose(aji(part), naive(gt_part, pred_part, False), atol=1e-12)
            expected = naive(gt_part, pred_part, True)
            np.testing.assert_allclose(aji_plus(part), expected, atol=1e-12)


def of_row(gt_spans, pred_spans, length=30):
    size = (1, length)
    cells = [(1, rectangle(size, 0, a, 1, b), 0) for a, b in gt_spans]
    results = [entry(1, 1, rectangle(size, 0, a, 1, b), 0.9) for a, b in pred_spans]
    return compare_label_maps(pair_by_image(truth_of({1: (size, cells)}, ["a"]), results)[0])


def test_by_hand():
    # A match of 4 of 6 pixels, a false negative (3), a false positive (2).
    comparison = of_row([(0, 6), (10, 13)], [(0, 4), (20, 22)])
    assert aji(comparison) == aji_plus(comparison) == pytest.approx(4 / (6 + 3 + 2))


def test_two_cells_detected_as_one():
    # AJI matches the detection with both cells, AJI+ with one.
    comparison = of_row([(0, 5), (5, 10)], [(0, 10)])
    assert aji(comparison) == pytest.approx((5 + 5) / (10 + 10))
    assert aji_plus(comparison) == pytest.approx(5 / (10 + 5))


def test_the_assignment_is_the_best_one_not_the_greedy_one():
    # Matched greedily, the first cell would leave no detection to the second.
    comparison = of_row([(0, 10), (10, 16)], [(0, 4), (4, 13)])
    # IoU: 4/10 and 6/13 for the first cell, 3/12 for the second: 4/10 + 3/12 is the maximum.
    assert aji_plus(comparison) == pytest.approx((4 + 3) / (10 + 12))
    assert aji(comparison) == pytest.approx((6 + 3) / (13 + 12 + 4))


def test_no_cells_on_one_or_both_sides():
    assert np.isnan(aji(of_row([], [])))
    assert np.isnan(aji_plus(of_row([], [])))
    for comparison in (of_row([(0, 3)], []), of_row([], [(0, 3)])):
        assert aji(comparison) == aji_plus(comparison) == 0


def test_a_perfect_result_is_one():
    comparison = of_row([(0, 3), (3, 7)], [(3, 7), (0, 3)])
    assert aji(comparison) == aji_plus(comparison) == 1


def test_cells_in_a_crowd_don_t_count():
    size = (1, 20)
    truth = truth_of(
        {1: (size, [(1, rectangle(size, 0, 0, 1, 5), 0), (1, rectangle(size, 0, 10, 1, 20), 1)])}
    )
    results = [entry(1, 1, rectangle(size, 0, a, 1, b), 0.9) for a, b in ((0, 5), (12, 14))]
    comparison = compare_label_maps(pair_by_image(truth, results)[0])
    assert aji(comparison) == aji_plus(comparison) == 1


def test_mean_ignores_images_without_cells():
    values = np.array([[0.5, np.nan], [1.0, np.nan], [np.nan, 0.25]])
    weights = np.array([[1, 1, 1], [2, 1, 0]])
    np.testing.assert_allclose(mean_over_images(values, weights), [[0.75, 0.25], [2 / 3, np.nan]])

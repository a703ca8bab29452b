"""AJI and AJI+ against their definitions written out over label maps, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from cellseg.read.results import pair_by_image
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


def naive(true_map, found_map, unique):
    trues, founds = labels_of(true_map), labels_of(found_map)
    if not trues and not founds:
        return np.nan
    shared = np.array(
        [[((true_map == t) & (found_map == f)).sum() for f in founds] for t in trues], float
    ).reshape(len(trues), len(founds))
    union = np.array(
        [[((true_map == t) | (found_map == f)).sum() for f in founds] for t in trues], float
    ).reshape(len(trues), len(founds))
    iou = shared / union
    if unique:
        pairs = list(zip(*linear_sum_assignment(-iou), strict=True))
    else:
        pairs = [(t, int(np.argmax(iou[t]))) for t in range(len(trues)) if founds]
    pairs = [pair for pair in pairs if iou[pair] > 0]
    inter = sum(shared[pair] for pair in pairs)
    total = sum(union[pair] for pair in pairs)
    total += sum((true_map == t).sum() for n, t in enumerate(trues) if n not in dict(pairs))
    used = {f for _, f in pairs}
    total += sum((found_map == f).sum() for n, f in enumerate(founds) if n not in used)
    return inter / total


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_the_definitions(seed):
    truth, results = random_case(np.random.default_rng(seed), n_images=2, crowds=False, largest=24)
    for eval_image in pair_by_image(truth, results):
        image = next(i for i in truth["images"] if i["id"] == eval_image.id)
        comparison = compare_label_maps(eval_image)
        true_map, found_map, true_class, found_class = naive_label_maps(truth, results, image)
        parts = [(comparison, true_map, found_map)]
        for k in range(3):
            true_part, found_part = (
                np.where(np.isin(m, [n for n, c in classes.items() if c == k + 1]), m, 0)
                for m, classes in ((true_map, true_class), (found_map, found_class))
            )
            parts.append((select_class(comparison, k), true_part, found_part))
        for part, true_part, found_part in parts:
            np.testing.assert_allclose(aji(part), naive(true_part, found_part, False), atol=1e-12)
            np.testing.assert_allclose(
                aji_plus(part), naive(true_part, found_part, True), atol=1e-12
            )


def of_row(true_spans, found_spans, length=30):
    size = (1, length)
    cells = [(1, rectangle(size, 0, a, 1, b), 0) for a, b in true_spans]
    found = [entry(1, 1, rectangle(size, 0, a, 1, b), 0.9) for a, b in found_spans]
    return compare_label_maps(pair_by_image(truth_of({1: (size, cells)}, ["a"]), found)[0])


def test_by_hand():
    # One cell found with 4 of 6 pixels, one missed (3), one made up (2).
    comparison = of_row([(0, 6), (10, 13)], [(0, 4), (20, 22)])
    assert aji(comparison) == aji_plus(comparison) == pytest.approx(4 / (6 + 3 + 2))


def test_two_cells_detected_as_one():
    # One detected cell lies on both: AJI gives it to both, AJI+ to one.
    comparison = of_row([(0, 5), (5, 10)], [(0, 10)])
    assert aji(comparison) == pytest.approx((5 + 5) / (10 + 10))
    assert aji_plus(comparison) == pytest.approx(5 / (10 + 5))


def test_the_assignment_is_the_best_one_not_the_greedy_one():
    # The second cell must take what is best for the first, or go without.
    comparison = of_row([(0, 10), (10, 16)], [(0, 4), (4, 13)])
    # IoU: 4/10 and 6/13 for the first cell, 3/12 for the second: 4/10 + 3/12 is most.
    assert aji_plus(comparison) == pytest.approx((4 + 3) / (10 + 12))
    assert aji(comparison) == pytest.approx((6 + 3) / (13 + 12 + 4))


def test_nothing_and_one_side_alone():
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
    found = [
        entry(1, 1, rectangle(size, 0, 0, 1, 5), 0.9),
        entry(1, 1, rectangle(size, 0, 12, 1, 14), 0.9),
    ]
    comparison = compare_label_maps(pair_by_image(truth, found)[0])
    assert aji(comparison) == aji_plus(comparison) == 1


def test_mean_leaves_images_without_cells_out():
    values = np.array([[0.5, np.nan], [1.0, np.nan], [np.nan, 0.25]])
    weights = np.array([[1, 1, 1], [2, 1, 0]])
    np.testing.assert_allclose(mean_over_images(values, weights), [[0.75, 0.25], [2 / 3, np.nan]])

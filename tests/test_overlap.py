"""Overlapping masks, and the cells of detections: by hand, and against masks as arrays."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.overlap import distinct_cells, overlapping_boxes, shared_pixels
from cellseg.predictions import Predictions
from cellseg.rle import boxes_xyxy, decode, encode, select_masks
from tests.predict.test_merge import stack
from tests.score.scoring_cases import first_and_last

# --- pairs --------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 40), st.integers(1, 60), st.integers(0, 99))
def test_overlapping_boxes_are_listed_once(n, extent, seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 50, (n, 2))
    # Some are empty, in one or both directions; some are much larger than others.
    boxes = np.concatenate([low, low + rng.integers(0, extent, (n, 2))], axis=1)
    meets = (
        np.maximum(boxes[:, None, :2], boxes[:, :2]) < np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    ).all(2)
    expected = [(a, b) for a, b in zip(*np.nonzero(meets), strict=True) if a < b]
    pairs = np.sort(overlapping_boxes(boxes), axis=1)
    assert sorted(map(tuple, pairs.tolist())) == expected


def test_no_boxes_overlap():
    assert overlapping_boxes(np.zeros((0, 4), np.int64)).shape == (0, 2)
    assert overlapping_boxes(np.zeros((3, 4), np.int64)).shape == (0, 2)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.floats(0, 1), st.integers(0, 99))
def test_shared_pixels_are_those_of_the_full_masks(n, height, width, density, seed):
    masks = np.random.default_rng(seed).random((n, height, width)) < density
    pairs = np.stack(np.divmod(np.arange(n * n), n), axis=1)
    expected = [(masks[a] & masks[b]).sum() for a, b in pairs]
    assert shared_pixels(stack(masks, (height, width)), pairs).tolist() == expected


def test_shared_pixels_in_blocks(monkeypatch):
    monkeypatch.setattr("cellseg.overlap._BLOCK", 3)
    masks = np.random.default_rng(0).random((4, 5, 6)) < 0.5
    pairs = np.stack(np.divmod(np.arange(16), 4), axis=1)
    expected = [(masks[a] & masks[b]).sum() for a, b in pairs]
    assert shared_pixels(stack(masks, (5, 6)), pairs).tolist() == expected


# --- cells of detections ------------------------------------------------------------


def row(*parts, length=40):
    """Return masks in an image of one row; each is (start, end)."""
    masks = np.zeros((len(parts), 1, length), bool)
    for mask, (start, end) in zip(masks, parts, strict=True):
        mask[0, start:end] = True
    return stack(masks, (1, length))


def cells(masks, classes, scores):
    """Return the index and the score of each cell."""
    index, totals, _ = distinct_cells(masks, np.array(classes, np.int64), np.array(scores))
    return list(zip(index.tolist(), totals.round(9).tolist(), strict=True))


def test_detections_without_overlap_stay_as_they_are():
    assert cells(row((0, 5), (5, 9), (20, 21)), [0, 0, 1], [0.2, 0.9, 0.5]) == [
        (1, 0.9),
        (2, 0.5),
        (0, 0.2),
    ]


def test_a_cell_in_several_classes_has_the_best_and_the_root_of_the_squares():
    assert cells(row((0, 9), (0, 9)), [2, 0], [0.3, 0.4]) == [(1, 0.5)]
    assert cells(row((0, 9), (0, 9), (0, 9)), [0, 1, 2], [0.5, 0.4, 0.3]) == [(0, 0.707107)]
    assert cells(row((0, 9), (0, 9)), [0, 1], [0.9, 0.8]) == [(0, 1.0)]


def test_the_same_class_counts_once():
    assert cells(row((0, 9), (0, 9), (0, 9)), [1, 1, 0], [0.3, 0.4, 0.3]) == [(1, 0.5)]


def test_of_equal_scores_the_first_gives_the_class():
    assert cells(row((0, 9), (0, 9)), [1, 0], [0.4, 0.4]) == [(0, 0.565685)]


def test_cells_are_sorted_by_their_joined_scores():
    masks = row((0, 9), (20, 29), (20, 29))
    assert cells(masks, [0, 0, 1], [0.45, 0.4, 0.3]) == [(1, 0.5), (0, 0.45)]


def test_the_same_cell_from_an_iou_of_a_half():
    assert cells(row((0, 10), (0, 5)), [0, 1], [0.4, 0.3]) == [(0, 0.5)]
    # 8 of 12 pixels, and 4 of 12: a third, with two thirds of each visible.
    assert cells(row((0, 10), (2, 12)), [0, 1], [0.4, 0.3]) == [(0, 0.5)]
    assert cells(row((0, 8), (4, 12)), [0, 1], [0.5, 0.4]) == [(0, 0.5), (1, 0.4)]


def test_a_cell_of_which_half_is_visible_stays():
    better = (0, 20)  # the IoU is below a half, as it is longer
    assert cells(row(better, (15, 25)), [0, 0], [0.9, 0.4]) == [(0, 0.9), (1, 0.4)]
    assert cells(row(better, (14, 24)), [0, 0], [0.9, 0.4]) == [(0, 0.9)]
    assert cells(row(better, (14, 24)), [0, 1], [0.9, 0.4]) == [(0, 0.9)]  # not joined


def test_a_small_cell_hides_no_larger_one():
    assert cells(row((5, 10), (0, 20)), [0, 0], [0.9, 0.4]) == [(0, 0.9), (1, 0.4)]
    assert cells(row((5, 10), (0, 20)), [0, 0], [0.4, 0.9]) == [(1, 0.9)]


def test_several_cells_hide_one_together():
    # Of 10 pixels, 3 and 3 are covered.
    masks = row((0, 13), (17, 30), (10, 20))
    assert cells(masks, [0, 0, 0], [0.9, 0.8, 0.7]) == [(0, 0.9), (1, 0.8)]
    assert cells(masks, [0, 0, 0], [0.9, 0.6, 0.7]) == [(0, 0.9), (2, 0.7), (1, 0.6)]


def test_pixels_under_two_cells_count_once():
    # Of 10 pixels, 4 are under the first, and 5 or 6 under the second, 4 of them under both.
    masks = np.zeros((3, 2, 24), bool)
    masks[0, 0, :14] = masks[1, 0, 10:15] = masks[1, 1, :9] = masks[2, 0, 10:20] = True
    for shared, n in [(5, 3), (6, 2)]:
        masks[1, 0, 10 : 10 + shared] = True
        assert len(cells(stack(masks, (2, 24)), [0, 0, 0], [0.9, 0.8, 0.7])) == n


def test_cells_of_less_than_a_quarter_hide_a_larger_one_together():
    small = [(n, n + 2) for n in range(0, 10, 2)]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5]
    for n in range(1, 6):  # of 10 pixels, 2 each
        found = cells(row((0, 10), *small[:n]), [0] * (n + 1), [0.4, *scores[:n]])
        assert ((0, 0.4) in found) == (n <= 2)


def test_a_hidden_cell_hides_none():
    # The second is under the first; the third would be under the second.
    masks = row((0, 20), (11, 24), (17, 27))
    assert cells(masks, [0, 0, 0], [0.9, 0.8, 0.7]) == [(0, 0.9), (2, 0.7)]
    assert cells(masks, [0, 0, 0], [0.7, 0.9, 0.8]) == [(1, 0.9), (0, 0.7)]


def test_scores_that_are_no_probabilities_are_not_joined():
    assert cells(row((0, 9), (0, 9)), [0, 1], [7.0, 0.5]) == [(0, 7.0)]
    assert cells(row((0, 9), (0, 9)), [0, 1], [-0.5, 0.5]) == [(1, 0.5)]
    huge = distinct_cells(row((0, 9), (0, 9)), np.arange(2), np.array([-1e308, 1e308]))
    assert (huge.indices.tolist(), huge.scores.tolist()) == ([1], [1e308])
    # Others of the image are.
    masks = row((0, 9), (10, 19), (10, 19))
    assert cells(masks, [0, 1, 2], [1.5, 0.4, 0.3]) == [(0, 1.5), (1, 0.5)]


def test_joined_scores_have_as_many_digits_as_files():
    assert distinct_cells(row((0, 9), (0, 9)), np.arange(2), np.array([0.06, 0.08])).scores == [0.1]


def test_of_equal_scores_the_one_with_the_best_detection_is_first():
    masks = row((0, 10), (0, 10), (4, 20))
    for order in ([0, 1, 2], [2, 1, 0]):
        classes, scores = np.array([0, 1, 2])[order], np.array([0.8, 0.6, 1.0])[order]
        runs = select_masks(masks, np.array(order))
        indices, totals, hidden = distinct_cells(runs, classes, scores)
        assert np.array(order)[indices[0]] == 2
        assert (totals.tolist(), hidden.tolist()) == ([1.0], [1.0])


def test_of_equal_scores_the_smaller_cell_is_first_and_none_is_hidden():
    nested = row((0, 12), (4, 8), (0, 12), (4, 8))  # a third; each twice
    assert cells(nested, [0, 1, 1, 0], [0.9] * 4) == [(1, 1.0), (0, 1.0)]
    for order in ([0, 1], [1, 0]):
        masks = select_masks(nested, np.array(order))
        assert cells(masks, [0, 0], [0.9, 0.9]) == [(order.index(n), 0.9) for n in (1, 0)]
    # Two share 6 of their 10 pixels; two small ones cover 8 of 10.
    assert len(cells(row((0, 10), (4, 14)), [0, 0], [0.9, 0.9])) == 2
    assert len(cells(row((0, 10), (1, 5), (5, 9)), [0, 0, 0], [0.9, 0.9, 0.9])) == 3
    assert len(cells(row((0, 10), (1, 5), (5, 9)), [0, 0, 0], [0.8, 0.9, 0.9])) == 2


def test_of_equal_scores_and_areas_the_order_of_the_detections_makes_no_difference():
    # The first and the last share 9 of 11 pixels; the third is the same as one in another place.
    masks = row((1, 11), (0, 10), (20, 25), (22, 27))
    for order in itertools.permutations(range(4)):
        runs = select_masks(masks, np.array(order))
        found = [order[n] for n, _ in cells(runs, [0] * 4, [0.9] * 4)]
        assert found == [2, 3, 1]


def test_cells_in_a_much_larger_one_stay():
    """A gland, or a mistake, whose score is the highest."""
    for length, n in [(16, 1), (17, 2), (20, 2), (21, 3)]:  # of 4 times 4 and 4 times 5 pixels
        masks = row((0, length), (1, 5), (10, 15))
        assert len(cells(masks, [0, 1, 1], [0.9, 0.8, 0.7])) == n


def test_no_detections_and_masks_without_pixels():
    assert cells(row(), [], []) == []
    assert cells(row((3, 3)), [0], [0.9]) == []
    assert cells(row((3, 3), (3, 4)), [0, 0], [0.9, 0.1]) == [(1, 0.1)]


def distinct_by_arrays(masks, classes, scores):
    """The two rules, mask by mask, as sets of pixels."""
    place = [(mask.sum(), *first_and_last(mask)) for mask in masks]
    best_first = sorted(range(len(masks)), key=lambda n: (-scores[n], *place[n]))
    left = [n for n in best_first if masks[n].any()]
    found = []
    while left:
        best, *left = left
        union = np.array([(masks[best] | masks[n]).sum() for n in left])
        shared = np.array([(masks[best] & masks[n]).sum() for n in left])
        same = [n for n, s, u in zip(left, shared, union, strict=True) if 2 * s >= u]
        left = [n for n in left if n not in same]
        by_class: dict[int, float] = {}
        for n in [best, *same]:
            by_class[classes[n]] = max(scores[n], by_class.get(classes[n], 0))
        joined = round(min(1, sum(s**2 for s in by_class.values()) ** 0.5), 6)
        found.append((best, joined if len(by_class) > 1 else scores[best]))
    kept: list[tuple[int, float]] = []
    hidden: list[float] = []
    found.sort(key=lambda one: (-one[1], -scores[one[0]], *place[one[0]]))
    for cell, score in found:
        area, covered = masks[cell].sum(), np.zeros_like(masks[cell])
        for other, other_score in kept:
            is_better = (other_score, scores[other]) > (score, scores[cell])
            if is_better and masks[other].sum() <= 4 * area:
                covered |= masks[cell] & masks[other]
        if 2 * covered.sum() <= area:
            kept.append((cell, score))
        else:
            hidden.append(score)
    return kept, hidden


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_as_with_arrays(seed, n):
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, 12, 15), bool)
    for mask in masks:
        top, left = rng.integers(0, (12, 15))
        mask[top : top + rng.integers(0, 9), left : left + rng.integers(1, 9)] = True
    classes = rng.integers(0, 3, n)
    scores = rng.integers(0, 9, n) / 8
    runs = stack(masks, (12, 15))
    index, totals, hidden = distinct_cells(runs, classes, scores)
    expected, expected_hidden = distinct_by_arrays(masks, classes.tolist(), scores.tolist())
    assert list(zip(index.tolist(), totals.tolist(), strict=True)) == expected
    assert hidden.tolist() == expected_hidden
    # Distinct cells stay, at any minimum score; those of equal joint scores are sorted by area,
    # then by their first and last pixels.
    for start in range(len(index) + 1):
        some = index[:start]
        again = distinct_cells(stack(masks[some], (12, 15)), classes[some], totals[:start])
        place = [(mask.sum(), *first_and_last(mask)) for mask in masks[some]]
        by_place = sorted(range(start), key=lambda n: (-totals[n], *place[n]))
        assert again[0].tolist() == by_place
        assert again[1].tolist() == totals[:start].tolist()
        assert not len(again[2])


def test_of_predictions():
    masks = row((0, 9), (0, 9), (20, 29))
    scores = np.array([0.5, 0.375, 0.25], np.float32)
    boxes = boxes_xyxy(masks).astype(np.float32)
    every = Predictions((1, 40), boxes, scores, np.array([1, 0, 0]), encode(masks), ("a", "b"))
    distinct = every.distinct()
    assert distinct.scores.tolist() == [0.625, 0.25]
    assert distinct.scores.dtype == np.float32
    assert distinct.classes.tolist() == [1, 0]
    assert distinct.boxes.tolist() == [[0, 0, 9, 1], [20, 0, 29, 1]]
    assert distinct.class_names == ("a", "b")
    assert len(decode(distinct.masks, (1, 40))) == 2
    assert len(every.distinct(0.25)) == 2
    assert len(every.distinct(0.3)) == 1
    assert len(Predictions.empty((1, 40)).distinct()) == 0

"""AP against pycocotools on random cases, and by hand."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellseg.read.pairs import pair_by_image
from cellseg.score import ap, match
from cellseg.score.match import match_greedily
from tests.score.scoring_cases import entry, random_case, rectangle, truth_of


def coco_precision(truth, results, max_detections, area_range=None):
    """Return pycocotools' `(T, 101, K)` precisions, −1 without ground truth."""
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {**truth, "info": {}}
        reference.createIndex()
        # Without a box, pycocotools takes a detection's area from its mask.
        plain = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
        if plain:
            detections = reference.loadRes(plain)
        else:
            detections = COCO()
            detections.dataset = {**truth, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(reference, detections, "segm")
        evaluation.params.maxDets = [max_detections or 10**6]
        if area_range:
            evaluation.params.areaRng = [area_range]
            evaluation.params.areaRngLbl = ["some"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0]


def coco_mean(precision):
    precision = precision[precision > -1]
    return precision.mean() if precision.size else np.nan


def assert_same(ours, precision):
    pairs = [(ours.ap, precision), (ours.ap50, precision[0]), (ours.ap75, precision[5])]
    for k in range(precision.shape[2]):
        of_class = precision[:, :, k]
        pairs += [(ours.class_ap[k], of_class), (ours.class_ap50[k], of_class[0])]
        pairs.append((ours.class_ap75[k], of_class[5]))
    for mine, theirs in pairs:
        np.testing.assert_allclose(mine, coco_mean(theirs), rtol=0, atol=1e-9)


def ap_of(truth, results, **caps):
    return ap.mask_ap(pair_by_image(truth, results), len(truth["categories"]), **caps)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_equals_pycocotools(seed, ties):
    truth, results = random_case(np.random.default_rng(seed), ties=ties)
    ours = ap_of(truth, results, max_detections=(3, 100, None))
    for cap, of_cap in ours.items():
        assert of_cap.max_detections == cap
        assert_same(of_cap, coco_precision(truth, results, cap))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 20), st.integers(0, 40))
def test_equals_pycocotools_by_size(seed, low, span):
    truth, results = random_case(np.random.default_rng(seed))
    eval_images = pair_by_image(truth, results)
    candidates = ap.find_match_candidates(eval_images, 3)
    rankings = ap.rank_detections(candidates, 3, (low, low + span))
    precision = coco_precision(truth, results, None, [low, low + span])
    assert_same(ap.average_precision(rankings), precision)


def test_candidates_in_blocks(monkeypatch):
    truth, results = random_case(np.random.default_rng(1), n_images=6, n_results=20)
    eval_images = pair_by_image(truth, results)
    whole = ap.find_match_candidates(eval_images, 3)
    assert any(part.pairs for of_class in whole for part in of_class)
    monkeypatch.setattr(match, "_MAX_IOUS", 7)
    in_blocks = ap.find_match_candidates(eval_images, 3)
    for of_class, same_class in zip(whole, in_blocks, strict=True):
        assert [c.pairs for c in of_class] == [c.pairs for c in same_class]


def test_more_than_a_hundred_detections():
    # 150 detected cells in a row, in the order of decreasing scores: the cap removes a third.
    size = (1, 450)
    cells = [(1, rectangle(size, 0, 3 * i, 1, 3 * i + 2), False) for i in range(150)]
    truth = truth_of({1: (size, cells)}, ["a"])
    results = [entry(1, 1, mask, 1 - i / 1000) for i, (_, mask, _) in enumerate(cells)]
    ours = ap_of(truth, results)
    assert ours[None].ap == pytest.approx(1)
    # Recall reaches 2/3: precision is 1 at the 67 recalls 0 … 0.66, 0 at the 34 others.
    assert ours[100].ap50 == pytest.approx(67 / 101)
    assert_same(ours[100], coco_precision(truth, results, 100))


def test_by_hand():
    # Two cells. The best detection is a false positive, the second matches a cell at IoU 6/10.
    size = (10, 10)
    cells = [(1, rectangle(size, 0, 0, 2, 5), 0), (1, rectangle(size, 8, 8, 9, 9), 0)]
    truth = truth_of({1: (size, cells)}, ["a"])
    results = [
        entry(1, 1, rectangle(size, 5, 0, 6, 3), 0.9),
        entry(1, 1, rectangle(size, 0, 0, 2, 3), 0.8),
    ]
    ours = ap_of(truth, results)[None]
    # Precision is 1/2 at the 51 recalls 0 … 0.5; the three thresholds 0.5, 0.55, 0.6.
    assert ours.ap50 == pytest.approx(0.5 * 51 / 101)
    assert ours.ap75 == 0
    assert ours.ap == pytest.approx(0.3 * 0.5 * 51 / 101)


def test_no_detections_is_zero_and_no_ground_truth_is_nan():
    size = (4, 4)
    truth = truth_of({1: (size, [(1, rectangle(size, 0, 0, 2, 2), 0)]), 2: (size, [])})
    ours = ap_of(truth, [])[100]
    assert ours.ap == ours.ap50 == ours.ap75 == 0
    np.testing.assert_array_equal(ours.class_ap, [0, np.nan, np.nan])
    only_false = ap_of(truth_of({1: (size, [])}), [entry(1, 2, np.ones(size), 0.5)])[100]
    assert np.isnan(only_false.ap)
    assert np.isnan(only_false.class_ap50).all()
    assert np.isnan(ap.mask_ap([], 0)[None].ap)


def test_is_silent(capfd):
    truth, results = random_case(np.random.default_rng(5))
    ap_of(truth, results)
    assert capfd.readouterr() == ("", "")


def test_a_cell_matches_one_detection():
    # Two detections of one cell: the better score matches at every threshold it reaches.
    pairs = [(0, 0, 0.6), (1, 0, 0.9)]
    matched = match_greedily(pairs, 2, [False], [False], [0.5, 0.8])
    assert matched.tolist() == [[0, -1], [-1, 0]]


def test_a_crowd_matches_all_detections_without_another_match():
    pairs = [(0, 0, 1.0), (0, 1, 0.7), (1, 0, 0.9), (2, 0, 0.8), (2, 1, 0.6)]
    matched = match_greedily(pairs, 3, [True, False], [True, False], [0.5])
    assert matched.tolist() == [[1, 0, 0]]

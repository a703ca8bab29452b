"""PQ against a loop over label maps, against torchmetrics, and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.detection import PanopticQuality

from cellseg.read.pairs import pair_by_image
from cellseg.score.detection import count_matches
from cellseg.score.labelmap import class_agnostic, compare_label_maps
from cellseg.score.panoptic import panoptic
from tests.score.scoring_cases import (
    entry,
    labels_of,
    naive_label_maps,
    random_case,
    rectangle,
    truth_of,
)

N_CLASSES = 3


def all_weights(comparisons):
    return np.ones(len(comparisons), np.int64)


def naive_pq(gt_map, pred_map):
    """Return PQ, DQ and SQ of one label map, computed as in the challenge's script."""
    ious = []
    free = set(labels_of(pred_map))
    fn = 0
    for t in labels_of(gt_map):
        for f in labels_of(pred_map * (gt_map == t)):
            gt, pred = gt_map == t, pred_map == f
            iou = (gt & pred).sum() / (gt | pred).sum()
            if iou > 0.5:
                ious.append(iou)
                free.remove(f)
                break
        else:
            fn += 1
    weight = len(ious) + 0.5 * len(free) + 0.5 * fn
    return sum(ious) / weight, len(ious) / weight, np.mean(ious) if ious else np.nan


def only(label_map, classes, class_id):
    labels = [n for n, k in classes.items() if k == class_id]
    return np.where(np.isin(label_map, labels), label_map, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_a_loop_over_the_images(seed):
    truth, results = random_case(np.random.default_rng(seed), crowds=False)
    comparisons = [compare_label_maps(eval_image) for eval_image in pair_by_image(truth, results)]
    ours = panoptic(count_matches(comparisons, N_CLASSES), all_weights(comparisons))
    for k in range(N_CLASSES):
        values = []
        for image in truth["images"]:
            gt_map, pred_map, *classes = naive_label_maps(truth, results, image)
            gt_map = only(gt_map, classes[0], k + 1)
            if gt_map.any():
                values.append(naive_pq(gt_map, only(pred_map, classes[1], k + 1)))
        columns = np.array(values).reshape(-1, 3).T
        for mine, column in zip((ours.pq[k], ours.dq[k], ours.sq[k]), columns, strict=True):
            column = column[~np.isnan(column)]
            expected = column.mean() if len(column) else np.nan
            np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pooled_equals_torchmetrics(seed):
    truth, results = random_case(np.random.default_rng(seed), crowds=False)
    comparisons = [compare_label_maps(eval_image) for eval_image in pair_by_image(truth, results)]
    sums = count_matches(comparisons, N_CLASSES)
    ours = panoptic(sums, all_weights(comparisons))
    # Background is a separate class, whose score is ignored.
    options = {"return_sq_and_rq": True, "return_per_class": True}
    metric = PanopticQuality(things={1, 2, 3}, stuffs={0}, **options)
    for image in truth["images"]:
        gt_map, pred_map, gt_class, pred_class = naive_label_maps(truth, results, image)
        pair = []
        for labels, classes in ((pred_map, pred_class), (gt_map, gt_class)):
            class_map = np.vectorize({0: 0, **classes}.get)(labels)
            pair.append(torch.tensor(np.stack([class_map, labels], axis=-1)[None]))
        metric.update(*pair)
    theirs = metric.compute().numpy()
    known = (sums.tp + sums.fn).sum(axis=0) > 0
    order = metric.cat_id_to_continuous_id
    for k in np.flatnonzero(known):
        pq, sq, dq = theirs[order[k + 1]]
        assert ours.pooled_pq[k] == pytest.approx(pq, abs=1e-6)
        assert ours.pooled_dq[k] == pytest.approx(dq, abs=1e-6)
        assert np.nan_to_num(ours.pooled_sq[k]) == pytest.approx(sq, abs=1e-6)
    assert np.isnan(ours.pooled_pq[~known]).all()


def test_by_hand():
    # Image 1: two cells, one detected with IoU 4/6, one false positive. Image 2: one cell,
    # detected exactly. Image 3: no cell, one false positive. Image 4: nothing.
    size = (1, 20)

    def line(start, end):
        return rectangle(size, 0, start, 1, end)

    truth = truth_of(
        {
            1: (size, [(1, line(0, 6), 0), (1, line(10, 12), 0)]),
            2: (size, [(1, line(0, 2), 0)]),
            3: (size, []),
            4: (size, []),
        },
        ["a", "b"],
    )
    results = [
        entry(1, 1, line(0, 4), 0.9),
        entry(1, 1, line(15, 17), 0.9),
        entry(2, 1, line(0, 2), 0.9),
        entry(3, 1, line(0, 2), 0.9),
        entry(3, 2, line(5, 7), 0.9),
    ]
    comparisons = [compare_label_maps(eval_image) for eval_image in pair_by_image(truth, results)]
    sums = count_matches(comparisons, 2)
    assert sums.tp.tolist() == [[1, 0], [1, 0], [0, 0], [0, 0]]
    assert sums.fn.tolist() == [[1, 0], [0, 0], [0, 0], [0, 0]]
    assert sums.fp.tolist() == [[1, 0], [0, 0], [1, 1], [0, 0]]
    ours = panoptic(sums, all_weights(comparisons))
    # Images 3 and 4 have no ground-truth cell and are ignored, except for image 3's false positive
    # in the pooled scores.
    assert ours.dq[0] == pytest.approx((1 / 2 + 1) / 2)
    assert ours.sq[0] == pytest.approx((4 / 6 + 1) / 2)
    assert ours.pq[0] == pytest.approx((1 / 3 + 1) / 2)
    assert ours.pooled_dq[0] == pytest.approx(2 / (2 + 0.5 + 0.5 * 2))
    assert ours.pooled_pq[0] == pytest.approx((4 / 6 + 1) / 3.5)
    assert ours.pooled_pq[0] == pytest.approx(ours.pooled_dq[0] * ours.pooled_sq[0])
    for values in (ours.pq, ours.dq, ours.sq, ours.pooled_pq, ours.pooled_dq, ours.pooled_sq):
        assert np.isnan(values[1])
    # Several weights at once.
    weighted = panoptic(sums, np.array([[1, 1, 1, 1], [3, 1, 0, 0], [0, 0, 2, 2]]))
    np.testing.assert_allclose(weighted.pq[:, 0], [2 / 3, (3 / 3 + 1) / 4, np.nan])


def test_no_true_positive_is_zero_without_an_sq():
    size = (1, 4)
    truth = truth_of({1: (size, [(1, rectangle(size, 0, 0, 1, 2), 0)])}, ["a"])
    ours = panoptic(
        count_matches([compare_label_maps(pair_by_image(truth, [])[0])], 1), np.ones(1, np.int64)
    )
    assert (ours.pq[0], ours.dq[0], ours.pooled_pq[0]) == (0, 0, 0)
    assert np.isnan(ours.sq[0])
    assert np.isnan(ours.pooled_sq[0])


def test_classes_don_t_matter_if_there_is_one():
    size = (1, 4)
    truth = truth_of({1: (size, [(1, rectangle(size, 0, 0, 1, 2), 0)])}, ["a", "b"])
    eval_images = pair_by_image(truth, [entry(1, 2, rectangle(size, 0, 0, 1, 2), 0.9)])
    comparison = compare_label_maps(eval_images[0])
    assert panoptic(count_matches([comparison], 2), np.ones(1, np.int64)).pq[0] == 0
    assert panoptic(count_matches([class_agnostic(comparison)], 1), np.ones(1, np.int64)).pq[0] == 1

"""Detection scores by centroid, against dense assignment, loops and by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.read.pairs import pair_by_image
from cellseg.score.centroid import centroid_f1, count_by_centroid, match_centroids
from cellseg.score.labelmap import compare_label_maps
from tests.score.scoring_cases import entry, labels_of, naive_label_maps, random_case, truth_of

SIZE = (1, 60)


def line(start, end):
    mask = np.zeros(SIZE, bool)
    mask[:, start:end] = True
    return mask


def counts_of(truth, results, n_classes, radius=12.0):
    counts = []
    for eval_image in pair_by_image(truth, results):
        comparison = compare_label_maps(eval_image)
        counts.append(count_by_centroid(eval_image, comparison, n_classes, radius))
    return np.array(counts)


def f1_of(counts):
    return centroid_f1(counts, np.ones(len(counts), np.int64)).tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(0, 5))
def test_the_sum_of_all_distances_is_the_least(seed, n, m):
    """Against all ways to pair the cells."""
    rng = np.random.default_rng(seed)
    gt, detected = rng.uniform(0, 20, (n, 2)), rng.uniform(0, 20, (m, 2))
    few, many = sorted((n, m))
    ways = [
        [(i, j) if n <= m else (j, i) for i, j in enumerate(chosen)]
        for chosen in itertools.permutations(range(many), few)
    ]
    distances = np.hypot(*(gt[:, None] - detected[None]).transpose(2, 0, 1))
    best = min(ways, key=lambda way: sum(distances[pair] for pair in way))
    near = sorted(pair for pair in best if distances[pair] <= 5)
    assert sorted(map(tuple, match_centroids(gt, detected, 5).tolist())) == near


def test_pairs_that_are_too_far_apart_are_dropped_afterwards():
    # 9 + 10 px are less than 1 + 20.
    gt, detected = np.array([[0.0, 0], [10, 0]]), np.array([[9.0, 0], [20, 0]])
    assert match_centroids(gt, detected, 12).tolist() == [[0, 0], [1, 1]]
    assert match_centroids(gt, detected, 9).tolist() == [[0, 0]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 1))
def test_parts_of_a_large_image_are_paired_by_themselves(seed, axis):
    rng = np.random.default_rng(seed)
    # Two fields of nine cells each, 1000 px apart, in any order.
    fields = rng.permutation(np.repeat([0.0, 1000], 9))
    gt = rng.uniform(0, 30, (18, 2))
    gt[:, axis] += fields
    some = rng.permutation(18)[:14]
    detected = gt[some] + rng.uniform(-3, 3, (14, 2))
    expected = []
    for field in (0, 1000):
        g, d = np.flatnonzero(fields == field), np.flatnonzero(fields[some] == field)
        expected += [(g[i], d[j]) for i, j in match_centroids(gt[g], detected[d], 12)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cellseg.score.centroid._MAX_DISTANCES", 18 * 14 - 1)
        pairs = match_centroids(gt, detected, 12)
    assert sorted(map(tuple, pairs.tolist())) == sorted(expected)


def test_no_cell_is_lost_where_a_large_image_is_cut(monkeypatch):
    """Each detection is nearest to its own cell, some of them beyond the cut."""
    monkeypatch.setattr("cellseg.score.centroid._MAX_DISTANCES", 1000)
    gt = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), axis=-1).reshape(-1, 2) * 20
    detected = gt + np.random.default_rng(0).uniform(-5, 5, gt.shape)
    pairs = match_centroids(gt, detected, 12)
    assert sorted(map(tuple, pairs.tolist())) == [(n, n) for n in range(400)]


def test_many_cells_at_one_place_are_paired_as_well(monkeypatch):
    monkeypatch.setattr("cellseg.score.centroid._MAX_DISTANCES", 10)
    same = np.zeros((9, 2))
    assert 0 < len(match_centroids(same, same, 1)) <= 9


@pytest.mark.parametrize(("distance", "matches"), [(0, 1), (12, 1), (13, 0)])
def test_the_largest_distance_matches(distance, matches):
    truth = truth_of({1: (SIZE, [(1, line(20, 23), 0)])}, ["a"])
    results = [entry(1, 1, line(20 + distance, 23 + distance), 0.9)]
    expected = [[matches, 1 - matches], [1 - matches, 0]]
    assert counts_of(truth, results, 1).tolist() == [expected]


def test_by_hand():
    # Two pairs of class a, one of a with b, one of b; a missed b; two false a. No pair overlaps.
    truth = truth_of(
        {
            3: (SIZE, [(1, line(0, 1), 0), (1, line(20, 21), 0), (2, line(40, 41), 0)]),
            4: (SIZE, [(1, line(0, 1), 0), (2, line(30, 31), 0)]),
        },
        ["a", "b", "c"],
    )
    results = [
        entry(3, 1, line(1, 2), 0.9),
        entry(3, 2, line(22, 23), 0.9),
        entry(3, 2, line(38, 39), 0.9),
        entry(4, 1, line(2, 3), 0.9),
        entry(4, 1, line(50, 51), 0.9),
        entry(4, 1, line(55, 56), 0.6),
        entry(4, 2, line(31, 32), 0.4),  # below the score threshold
    ]
    counts = counts_of(truth, results, 3)
    matrix = [[2, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [2, 0, 0, 0]]
    assert counts.sum(axis=0).tolist() == matrix
    a, b, c, total = f1_of(counts)
    assert a == 4 / (4 + 2 * 1 + 2)  # 1 of a taken for b, 2 false
    assert b == 2 / (2 + 2 * 1 + 1)
    assert np.isnan(c)
    assert total == 8 / (8 + 2 + 1)
    # As often as an image is in the set.
    assert centroid_f1(counts, np.array([[1, 0], [0, 2]]))[:, 3].tolist() == [1, 4 / (4 + 4 + 2)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_counts_each_cell_of_the_label_maps_once(seed):
    truth, results = random_case(np.random.default_rng(seed), crowds=False)
    counts = counts_of(truth, results, 3, radius=0.5)
    for i, image in enumerate(sorted(truth["images"], key=lambda image: image["id"])):
        gt_map, pred_map, gt_class, pred_class = naive_label_maps(truth, results, image)
        of_gt = np.bincount([gt_class[t] - 1 for t in labels_of(gt_map)], minlength=3)
        detected = np.bincount([pred_class[f] - 1 for f in labels_of(pred_map)], minlength=3)
        assert counts[i, :3].sum(axis=1).tolist() == of_gt.tolist()
        assert counts[i, :, :3].sum(axis=0).tolist() == detected.tolist()


def test_a_detection_in_a_crowd_is_not_false():
    truth = truth_of({1: (SIZE, [(1, line(0, 20), 1), (1, line(30, 31), 0)])}, ["a"])
    results = [entry(1, 1, line(2, 6), 0.9), entry(1, 1, line(31, 32), 0.8)]
    assert counts_of(truth, results, 1).tolist() == [[[1, 0], [0, 0]]]


def test_nothing_is_not_zero():
    assert np.isnan(f1_of(np.zeros((2, 3, 3), np.int64))).all()
    assert np.isnan(f1_of(np.zeros((0, 3, 3), np.int64))).all()
    missed = counts_of(truth_of({1: (SIZE, [(2, line(0, 1), 0)])}, ["a", "b"]), [], 2)
    assert np.isnan(f1_of(missed)[0])
    assert f1_of(missed)[1:] == [0, 0]
    false = counts_of(truth_of({1: (SIZE, [])}, ["a"]), [entry(1, 1, line(0, 1), 0.9)], 1)
    assert np.isnan(f1_of(false)).all()

"""All metrics: resamples against sets of repeated images, matches, tables and JSON."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.read.coco import class_names
from cellseg.read.pairs import pair_by_image
from cellseg.score import summary
from cellseg.score.ap import mask_ap
from cellseg.score.bootstrap import draw_weights
from cellseg.score.summary import difference
from cellseg.score.tables import (
    as_json,
    as_text,
    difference_as_json,
    difference_as_text,
    per_image,
)
from tests.score.scoring_cases import entry, random_case, rectangle, truth_of

SIZE = (1, 30)


def score(truth, results, **options):
    return summary.score(pair_by_image(truth, results), class_names(truth), **options)


def line(start, end):
    return rectangle(SIZE, 0, start, 1, end)


def repeated(truth, results, weights):
    """Return a set with each image, its cells and detections repeated by its weight."""
    images: list[dict] = []
    annotations: list[dict] = []
    detections: list[dict] = []
    ordered = sorted(truth["images"], key=lambda image: image["id"])
    for image, weight in zip(ordered, weights, strict=True):
        cells = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        for _ in range(weight):
            new = len(images) + 1
            images.append({**image, "id": new, "file_name": str(new)})
            first = len(annotations) + 1
            annotations += [{**a, "image_id": new, "id": n} for n, a in enumerate(cells, first)]
            detections += [{**r, "image_id": new} for r in results if r["image_id"] == image["id"]]
    return {**truth, "images": images, "annotations": annotations}, detections


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_resample_scores_as_the_repeated_images(seed):
    # Without equal scores, whose order across images is arbitrary.
    truth, results = random_case(np.random.default_rng(seed), n_images=5, ties=False)
    caps = (2, 100, None)
    scores = score(truth, results, max_detections=caps, n_resamples=4, seed=seed % 100)
    for b, weights in enumerate(draw_weights(5, 4, seed % 100)):
        real = score(*repeated(truth, results, weights), max_detections=caps, n_resamples=0)
        assert scores.samples.keys() == real.metrics.keys()
        for name, values in scores.samples.items():
            expected = real.metrics[name]
            np.testing.assert_allclose(values[b], expected, rtol=0, atol=1e-12, err_msg=name)


def test_images_are_needed_one_at_a_time():
    truth, results = random_case(np.random.default_rng(5), n_images=6)
    taken: list[weakref.ref] = []

    def images():
        for image in pair_by_image(truth, results):
            assert sum(each() is not None for each in taken) < 2
            copy = replace(image)
            taken.append(weakref.ref(copy))
            yield copy

    scores = summary.score(images(), class_names(truth), with_masks=False, n_resamples=9)
    assert as_json(scores) == as_json(score(truth, results, n_resamples=9))
    assert as_text(scores) == as_text(score(truth, results, n_resamples=9))
    assert summary.count_without_pixels(scores) == summary.count_without_pixels(
        score(truth, results)
    )
    assert not any(each() for each in taken)
    assert not any(image.masks or len(image.mask_runs) for image in scores.eval_images)
    assert not any(image.gt_masks or len(image.gt_runs) for image in scores.eval_images)


def test_ap_is_that_of_mask_ap():
    truth, results = random_case(np.random.default_rng(3), n_images=6)
    scores = score(truth, results, n_resamples=0)
    for cap, of_cap in mask_ap(pair_by_image(truth, results), 3).items():
        name = "all" if cap is None else str(cap)
        np.testing.assert_array_equal(scores.metrics[f"AP@{name}"][:3], of_cap.class_ap)
        np.testing.assert_array_equal(scores.metrics[f"AP50@{name}"][3], of_cap.ap50)
        np.testing.assert_array_equal(scores.metrics[f"AP75@{name}"][3], of_cap.ap75)
        np.testing.assert_allclose(scores.precisions[cap].mean(axis=(1, 2)), of_cap.class_ap)
        assert scores.ap[cap].ap == of_cap.ap
    assert np.isnan(scores.metrics["AP@all"][4])


def case_by_hand():
    truth = truth_of(
        {
            7: (SIZE, [(1, line(0, 4), 0), (1, line(5, 9), 0), (2, line(10, 14), 0)]),
            9: (SIZE, [(2, line(0, 8), 0)]),
        },
        ["round", "long"],
    )
    results = [
        entry(9, 2, line(0, 6), 0.7),
        entry(7, 1, line(0, 4), 0.9),
        entry(7, 2, line(5, 8), 0.8),
        entry(7, 2, line(20, 24), 0.6),
        entry(7, 2, line(10, 14), 0.4),
    ]
    return truth, results


def test_matches_of_an_image():
    scores = score(*case_by_hand(), n_resamples=0)
    first, second = scores.images
    assert [eval_image.id for eval_image in scores.eval_images] == [7, 9]
    # Indices of detections are those in the image: entries 1, 2, 3, 4 of the file are 0, 1, 2, 3.
    assert scores.eval_images[0].entries.tolist() == [1, 2, 3, 4]
    assert first.tp.tolist() == [[0, 0]]
    assert first.misclassified.tolist() == [[1, 1]]
    assert first.fn.tolist() == [2]
    assert first.fp.tolist() == [2]
    assert second.tp.tolist() == [[0, 0]]
    assert scores.gt_counts.tolist() == [[2, 1], [0, 1]]
    assert scores.counts.tolist() == [[1, 2], [0, 1]]
    assert scores.confusion_matrix.tolist() == [[1, 1, 0], [0, 1, 1], [0, 1, 0]]


def test_a_cell_in_a_crowd_is_no_false_positive():
    truth = truth_of({1: (SIZE, [(1, line(0, 10), 1)])}, ["a"])
    results = [entry(1, 1, line(0, 4), 0.9), entry(1, 1, line(20, 24), 0.9)]
    image = score(truth, results, n_resamples=0).images[0]
    assert (image.fn.tolist(), image.fp.tolist()) == ([], [1])


def test_a_class_without_ground_truth_has_no_score():
    cell = line(0, 4)
    truth = truth_of({n: (SIZE, [(1, cell, 0)]) for n in (1, 2)}, ["a", "b"])
    results = [entry(1, 1, cell, 0.9), entry(2, 1, cell, 0.9), entry(2, 2, line(8, 12), 0.6)]
    scores = score(truth, results, n_resamples=0)
    for name, values in scores.metrics.items():
        assert np.isnan(values[1]), name
        assert values[2] == values[0] == 1, name
    # In the second image, half of the covered pixels are a false positive.
    np.testing.assert_allclose([scores.metrics[name][3] for name in ("AJI", "AJI+")], 3 / 4)
    # Nor in a resample without the only image with ground truth.
    truth = truth_of({1: (SIZE, [(1, cell, 0)]), 2: (SIZE, [])}, ["a"])
    results = [entry(1, 1, cell, 0.9), entry(2, 1, cell, 0.9)]
    scores = score(truth, results, n_resamples=20)
    weights = draw_weights(2, 20, 0)
    assert (weights[:, 0] == 0).any()
    for name in ("AJI", "AJI+"):
        expected = np.where(weights[:, 0] > 0, weights[:, 0] / 2, np.nan)
        for row in (0, 2):  # the class, and any class
            np.testing.assert_array_equal(scores.samples[name][:, row], expected)


def test_rows():
    scores = score(*case_by_hand(), n_resamples=0)
    assert scores.rows == ["round", "long", "mean of classes", "any class"]
    # Detected: 1 of 2 round, 1 of 2 long, and of any class 3 of 4, with 4 detections.
    np.testing.assert_allclose(scores.metrics["recall"], [0.5, 0.5, 0.5, 3 / 4])
    np.testing.assert_allclose(scores.metrics["precision"], [1, 1 / 3, 2 / 3, 3 / 4])
    # Image 7, any class: IoU 1 and 3/4, a false negative, a false positive; image 9: IoU 3/4.
    np.testing.assert_allclose(scores.metrics["PQ"][3], (1.75 / 3 + 0.75) / 2)
    # Precision and recall at 0.75 need more than 0.75.
    at = np.flatnonzero(np.isclose(scores.thresholds, 0.75))[0]
    assert scores.by_threshold.recall[at, 3] == 1 / 4
    np.testing.assert_allclose(scores.by_threshold.f1[0], scores.metrics["F1"])


def test_an_iou_of_a_threshold_is_not_above_it():
    """Twenty pixels and 11, 12 … 19 of them: an IoU of 0.55, 0.6 … 0.95."""
    size = (1, 20)
    for n in range(11, 20):
        truth = truth_of({1: (size, [(1, rectangle(size, 0, 0, 1, 20), 0)])})
        found = [entry(1, 1, rectangle(size, 0, 0, 1, n), 0.9)]
        scores = summary.score(pair_by_image(truth, found), class_names(truth), n_resamples=0)
        assert scores.by_threshold.f1[:, 0].tolist() == [1.0] * (n - 10) + [0.0] * (20 - n)


def test_score_threshold_and_overlap_reach_the_label_maps():
    truth, results = case_by_hand()
    assert score(truth, results, score_threshold=0.4, n_resamples=0).counts.sum() == 5
    assert score(truth, results, n_resamples=0).counts.sum() == 4
    # Of the cell's 8 pixels, the first detection has 6, or 4 if the smaller one gets the other 2.
    results += [entry(9, 1, line(4, 8), 0.6)]
    assert score(truth, results, n_resamples=0).match_counts.tp.sum() == 2
    assert score(truth, results, n_resamples=0, overlap="smaller").match_counts.tp.sum() == 1


def test_each_cell_is_counted_once_but_ap_has_all_detections():
    """A cell is detected as 1 with 0.4, as 2 with 0.3, and another one lies mostly under it."""
    truth = truth_of({1: (SIZE, [(1, line(0, 10), 0)])}, ["a", "b"])
    cell = [entry(1, 1, line(0, 10), 0.4), entry(1, 2, line(0, 9), 0.3)]
    scores = score(truth, [*cell, entry(1, 2, line(5, 12), 0.2)], n_resamples=0)
    assert scores.n_detections == [3]
    assert scores.eval_images[0].scores.tolist() == [0.5]
    assert scores.counts.tolist() == [[1, 0]]
    np.testing.assert_array_equal(scores.metrics["PQ"], [1, np.nan, 1, 1])
    assert score(truth, cell, score_threshold=0.51, n_resamples=0).counts.sum() == 0


def test_sizes_hold_all_cells_and_a_perfect_result_is_one_in_each():
    rng = np.random.default_rng(0)
    size = (40, 400)
    heights = rng.integers(1, 40, 40).tolist()
    cells = [(1, rectangle(size, 0, 10 * i, h, 10 * i + 5), 0) for i, h in enumerate(heights)]
    truth = truth_of({1: (size, cells)}, ["a"])
    results = [entry(1, 1, mask, 0.5) for _, mask, _ in cells]
    scores = score(truth, results, n_resamples=0)
    areas = [int(mask.sum()) for _, mask, _ in cells]
    assert sum(bin.n_gt for bin in scores.sizes) == 40
    assert (scores.sizes[0].low, scores.sizes[-1].high) == (min(areas), max(areas))
    for bin, following in zip(scores.sizes[:-1], scores.sizes[1:], strict=True):
        assert following.low == bin.high + 1
    for bin in scores.sizes:
        assert bin.n_gt == sum(bin.low <= area <= bin.high for area in areas)
        assert bin.ap.ap == pytest.approx(1)


def test_cells_of_one_size_make_one_bin():
    truth = truth_of({1: (SIZE, [(1, line(3 * i, 3 * i + 2), 0) for i in range(5)])}, ["a"])
    assert [(b.low, b.high, b.n_gt) for b in score(truth, [], n_resamples=0).sizes] == [(2, 2, 5)]


def test_no_cells():
    empty = truth_of({1: (SIZE, [])}, ["a"])
    scores = score(empty, [], n_resamples=3)
    assert all(np.isnan(values).all() for values in scores.metrics.values())
    assert scores.sizes == []
    assert "–" in as_text(scores)
    json.dumps(as_json(scores), allow_nan=False)


def test_intervals_contain_the_value_and_need_resamples():
    truth, results = random_case(np.random.default_rng(8), n_images=12)
    scores = score(truth, results, n_resamples=200)
    for name in ("AP@all", "F1"):
        assert scores.low[name][3] <= scores.metrics[name][3] <= scores.high[name][3]
    assert np.isnan(score(truth, results, n_resamples=0).low["F1"]).all()


def test_a_single_image_has_no_interval():
    truth, results = case_by_hand()
    truth["images"] = truth["images"][:1]
    truth["annotations"] = truth["annotations"][:3]
    scores = score(truth, results[1:], n_resamples=10)
    assert scores.metrics["recall"][3] == 2 / 3
    assert np.isnan(scores.low["recall"]).all()
    assert np.isnan(difference(scores, scores).low["recall"]).all()
    assert "intervals" not in as_text(scores)


@pytest.mark.parametrize("n_resamples", [2, 100])
def test_a_class_in_one_image_has_no_interval(n_resamples):
    size = (1, 12)
    one, two = rectangle(size, 0, 0, 1, 4), rectangle(size, 0, 6, 1, 10)
    images = {i: (size, [(1, one, 0)]) for i in range(1, 7)}
    images[3] = size, [(1, one, 0), (2, two, 0)]
    results = [entry(i, 1, one, 0.9) for i in range(1, 5)]
    results += [entry(i, 2, two, 0.8) for i in (3, 5)]  # the second is none
    scores = score(truth_of(images, ["a", "b"]), results, n_resamples=n_resamples)
    apart = difference(scores, scores)
    for name in ("AP@all", "F1", "PQ"):
        assert np.isfinite(scores.metrics[name][:3]).all()
        for bound in (scores.low, scores.high, apart.low, apart.high):
            assert np.isnan(bound[name][:3]).tolist() == [False, True, True]
    assert np.isfinite(scores.low["F1"][3])


def test_cells_in_one_image_of_several_have_no_interval():
    size = (1, 12)
    cell = rectangle(size, 0, 0, 1, 4)
    truth = truth_of({1: (size, [(1, cell, 0)]), 2: (size, []), 3: (size, [])}, ["a"])
    scores = score(truth, [entry(1, 1, cell, 0.9)], n_resamples=20)
    assert scores.metrics["F1"].tolist() == [1, 1, 1]
    assert np.isnan([scores.low["F1"], scores.high["F1"]]).all()
    as_text(scores)


def test_quality_of_true_positives_in_one_image_has_no_interval():
    size = (1, 12)
    cell, most = rectangle(size, 0, 0, 1, 4), rectangle(size, 0, 0, 1, 3)
    truth = truth_of({n: (size, [(1, cell, 0)]) for n in range(1, 9)}, ["a"])
    one = score(truth, [entry(1, 1, most, 0.9)], n_resamples=50)
    two = score(truth, [entry(1, 1, most, 0.9), entry(2, 1, cell, 0.9)], n_resamples=50)
    for name in ("SQ", "pooled SQ"):
        assert one.metrics[name].tolist() == [0.75] * 3
        for bounds in (one, difference(one, two), difference(two, one)):
            assert np.isnan([bounds.low[name], bounds.high[name]]).all()
        assert (two.low[name] < two.high[name]).all()
    assert (one.low["recall"] < one.high["recall"]).all()


def test_no_image():
    scores = score(truth_of({}), [])
    assert np.isnan(scores.metrics["F1"]).all()
    assert (scores.images, scores.sizes, list(per_image(scores))) == ([], [], [])
    json.dumps(as_json(scores), allow_nan=False)
    as_text(scores)


def test_difference_to_itself_and_to_fewer_detections():
    size = (1, 12)
    cell = rectangle(size, 0, 0, 1, 4)
    truth = truth_of({i: (size, [(1, cell, 0)]) for i in range(1, 31)}, ["a"])
    good = [entry(i, 1, cell, 0.5 + i / 100) for i in range(1, 31)]
    worse = good[:15]
    a, b = (score(truth, results, n_resamples=100) for results in (worse, good))
    same = difference(b, b)
    assert all((np.nan_to_num(values) == 0).all() for values in same.value.values())
    apart = difference(a, b)
    assert apart.value["recall"].tolist() == [0.5] * 3
    assert 0.2 < apart.low["recall"][0] < 0.5 < apart.high["recall"][0] < 0.8
    # On the same resamples: B detects all, so the difference is what A misses.
    expected = 1 - np.percentile(a.samples["recall"], 97.5, axis=0)
    np.testing.assert_allclose(apart.low["recall"], expected)
    text = difference_as_text("worse", "good", apart)
    row = next(line for line in text.splitlines() if line.startswith("recall"))
    assert row.split()[1:4] == ["0.5000", "1.0000", "+0.5000"]
    written = difference_as_json("worse", "good", apart)
    assert written["scores_a"]["recall"]["classes"] == {"a": 0.5}
    assert written["scores_b"]["recall"]["any class"] == 1


def test_where_the_cap_is_below_the_number_of_cells_ap_without_it_comes_first():
    """103 cells of one pixel, all detected: with 100 detections, 100 of 103 recall levels."""
    size = (1, 300)
    cells = [rectangle(size, 0, 2 * n, 1, 2 * n + 1) for n in range(103)]
    found = [entry(1, 1, cell, 0.9) for cell in cells]
    for n, is_first in ((100, False), (103, True)):
        truth = truth_of({1: (size, [(1, cell, 0) for cell in cells[:n]])}, ["a"])
        text = as_text(score(truth, found[:n], n_resamples=0))
        titles = [line for line in text.splitlines() if line.startswith("AP of masks")]
        assert titles[0].startswith("AP of masks, all detections") == is_first
        capped = next(title for title in titles if "at most 100" in title)
        assert ("in 1 image, where up to 103 are" in capped) == is_first


def test_per_image_rows():
    rows = list(per_image(score(*case_by_hand(), n_resamples=0)))
    classes = ("round", "long", "any class")
    keys = [(row["image_id"], row["class"]) for row in rows]
    assert keys == [(image_id, name) for image_id in (7, 9) for name in classes]
    assert rows[1] == {
        "image_id": 7, "file_name": "7.tif", "class": "long",
        "true": 1, "found": 2, "error": 1, "hits": 0, "misses": 1, "false_alarms": 2,
        "PQ": 0, "DQ": 0, "SQ": None, "AJI": 0, "AJI+": 0,
    }  # fmt: skip
    assert (rows[2]["hits"], rows[2]["misses"], rows[2]["false_alarms"]) == (2, 1, 1)
    assert rows[2]["PQ"] == pytest.approx(1.75 / 3)
    assert rows[2]["AJI"] == pytest.approx(7 / (4 + 4 + 4 + 4))
    assert rows[3]["AJI"] is None


def test_text_shows_every_row():
    text = as_text(score(*case_by_hand(), n_resamples=10))
    assert "fewer than 10 images they are too narrow" in text
    assert text.splitlines()[0] == "2 images, 4 ground-truth cells, 5 detections"
    truth, results = case_by_hand()
    first = [entry for entry in results if entry["image_id"] == results[0]["image_id"]]
    text_of_one = as_text(score(truth, first, n_resamples=0))
    assert f" {len(first)} detection (1 image " in text_of_one
    lines = text.splitlines()
    for row, times in (("round", 5), ("long", 5), ("mean of classes", 4), ("any class", 2)):
        assert sum(line.startswith(row) for line in lines) == times
    assert "AP50@100" in text
    assert "95 % intervals from 10 " in text
    assert "intervals" not in as_text(score(*case_by_hand(), n_resamples=0))


def test_classes_with_the_names_of_the_other_rows():
    names = [summary.MEAN, summary.ANY]
    truth, results = case_by_hand()
    plain = score(truth, results)
    truth["categories"] = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
    scores = score(truth, results)
    assert len(set(scores.rows)) == 4
    assert scores.rows[:2] == names
    rows, of_plain = list(per_image(scores)), list(per_image(plain))
    assert len({(row["image_id"], row["class"]) for row in rows}) == len(rows)
    assert [{**row, "class": ""} for row in rows] == [{**row, "class": ""} for row in of_plain]
    # The JSON keeps its keys, as it has the classes apart.
    metrics, expected = as_json(scores)["metrics"], as_json(plain)["metrics"]
    for name, of_rows in metrics.items():
        assert list(of_rows["classes"].values()) == list(expected[name]["classes"].values())
        assert {**of_rows, "classes": 0} == {**expected[name], "classes": 0}


def test_json_separates_classes_from_the_other_rows():
    truth, results = case_by_hand()
    truth["categories"][0]["name"] = "any class"
    plain = json.loads(json.dumps(as_json(score(truth, results, n_resamples=5))))
    recall = plain["metrics"]["recall"]
    assert recall["classes"]["any class"]["value"] == 0.5
    assert recall["any class"]["value"] == 0.75
    assert recall["any class"]["low"] <= 0.75 <= recall["any class"]["high"]
    assert plain["by_iou"]["f1"]["classes"]["long"][0] == pytest.approx(0.4)
    assert plain["confusion"]["cells"][0] == [1, 1, 0]
    assert len(plain["per_image"]) == 6

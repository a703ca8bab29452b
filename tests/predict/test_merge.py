"""Merging tiles: the tiles of the ground truth must merge to the ground truth."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.measure
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellseg.coarse import CoarseMask
from cellseg.predict.merge import merge_tiles
from cellseg.predict.predictor import join_predictions
from cellseg.predict.tiles import edge_margin, plan_tiles
from cellseg.predictions import Predictions
from cellseg.rle import (
    MaskRuns,
    areas,
    boxes_xyxy,
    concatenate,
    crop_mask,
    crop_runs,
    decode,
    encode,
    label_map_to_runs,
)


def stack(masks, size):
    """Return the runs of any masks, overlapping or empty."""
    return concatenate(size, [one(mask) for mask in masks])


def one(mask):
    mask = np.asarray(mask, bool)
    mask_runs = label_map_to_runs(mask)[1]
    if len(mask_runs):
        return mask_runs
    return MaskRuns(mask.shape, mask_runs.starts, mask_runs.ends, np.zeros(2, np.int64))


def detections(mask_runs, scores, classes=None):
    classes = np.zeros(len(mask_runs)) if classes is None else classes
    return Predictions(
        mask_runs.size,
        boxes_xyxy(mask_runs).astype(np.float32),
        np.array(scores, np.float32),
        np.array(classes, np.int64),
        encode(mask_runs),
    )


def drawn(size, *shapes):
    """Return masks of an image: each shape is one rectangle XYXY or a list of them."""
    masks = np.zeros((len(shapes), *size), bool)
    for mask, shape in zip(masks, shapes, strict=True):
        for left, top, right, bottom in shape if isinstance(shape, list) else [shape]:
            mask[top:bottom, left:right] = True
    return stack(masks, size)


def changed_copy(mask_runs, index, rng):
    """Return a mask, unchanged, dilated or eroded by a pixel."""
    box, mask = crop_mask(mask_runs, index)
    left, top = np.maximum(box[:2] - 1, 0)
    right, bottom = np.minimum(box[2:] + 1, mask_runs.size[::-1])
    canvas = np.zeros(mask_runs.size, np.uint8)
    canvas[box[1] : box[3], box[0] : box[2]] = mask
    window = canvas[top:bottom, left:right]
    change = [np.copy, lambda m: cv2.dilate(m, CROSS), lambda m: cv2.erode(m, CROSS)]
    canvas[top:bottom, left:right] = change[rng.integers(3)](window)
    return one(canvas)


CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def oracle(plan, truth, classes, rng, copies=0.5):
    """Yield the detections of a perfect network in each tile: clipped cells, and copies of some.

    Scores and order are random, scores of copies lower.
    """
    boxes = boxes_xyxy(truth)
    for tile in plan:
        low, high = tile.window[:2], tile.window[2:]
        near = np.flatnonzero((boxes[:, :2] < high).all(1) & (boxes[:, 2:] > low).all(1))
        near_truth = concatenate(truth.size, [single(truth, n) for n in near])
        clipped = crop_runs(near_truth, tile.window)
        some = np.flatnonzero(areas(clipped) > 0)
        parts = [single(clipped, n) for n in some]
        scores = rng.uniform(0.3, 1, len(some)).tolist()
        kinds = classes[near[some]].tolist()
        for n in np.flatnonzero(rng.random(len(some)) < copies):
            parts.append(changed_copy(parts[n], 0, rng))
            scores.append(scores[n] * rng.uniform(0.3, 0.99))
            kinds.append(kinds[n])
        order = rng.permutation(len(parts))
        shuffled = concatenate(tile.size, [parts[n] for n in order])
        yield detections(shuffled, [scores[n] for n in order], [kinds[n] for n in order])


def single(mask_runs, n):
    at = slice(mask_runs.offsets[n], mask_runs.offsets[n + 1])
    return MaskRuns(
        mask_runs.size, mask_runs.starts[at], mask_runs.ends[at], np.array([0, at.stop - at.start])
    )


def merged(plan, tile_predictions, **options):
    """Merge, and return all cells (class, mask, box), sorted, and the scores by mask."""
    cells, scores = [], {}
    for batch in merge_tiles(plan, tile_predictions, **options):
        assert batch.size == plan.size
        assert len(batch)
        assert (np.diff(batch.scores) <= 0).all()
        assert batch.boxes.dtype == batch.scores.dtype == np.float32
        assert batch.classes.dtype == np.int64
        for n, mask in enumerate(batch.masks):
            assert mask["size"] == list(plan.size)
            cells.append((int(batch.classes[n]), mask["counts"], tuple(batch.boxes[n].tolist())))
            scores[mask["counts"]] = round(float(batch.scores[n]), 6)
    return sorted(cells), scores


def cells_of(truth, classes):
    boxes = boxes_xyxy(truth).astype(float)
    return sorted(
        (int(k), mask["counts"], tuple(box))
        for k, mask, box in zip(classes, encode(truth), boxes.tolist(), strict=True)
    )


def merge_by_hand(plan, *tiles, **options):
    """Merge tiles of (masks, scores[, classes])."""
    return merged(plan, [detections(*tile) for tile in tiles], **options)


def of_image(size, *shapes, classes=None):
    truth = drawn(size, *shapes)
    return cells_of(truth, np.zeros(len(truth)) if classes is None else classes)


# --- batches ------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_outlines_of_a_cell_in_two_classes_are_in_one_batch(seed):
    """Each tile detects the cells in two classes, whose outlines differ by a pixel."""
    rng = np.random.default_rng(seed)
    plan = plan_tiles((90, 130), 40, 16)
    corners = np.stack(np.meshgrid(np.arange(2, 115, 14), np.arange(2, 75, 14)), -1).reshape(-1, 2)
    tops = corners[:, None] + rng.integers(0, 2, (len(corners), 2, 2))
    outlines = np.concatenate([tops, tops + 9], 2).reshape(-1, 4)
    tiles = []
    for tile in plan:
        left, top, right, bottom = tile.window
        low, high = (left, top) * 2, (right, bottom) * 2
        boxes = np.clip(outlines, low, high) - low
        seen = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
        scores = np.where(seen % 2, 0.3, 0.4)
        tiles.append(detections(drawn(tile.size, *boxes[seen]), scores, seen % 2))
    batches = [batch.distinct() for batch in merge_tiles(plan, tiles)]
    found = join_predictions(plan.size, batches)
    assert len(found) == len(corners)
    assert set(found.scores.tolist()) == {0.5}


# --- suppression within one image --------------------------------------------------------

SIZE = (20, 30)


def suppress(predictions, **options):
    """Merge an image of one tile, whose edges cut nothing."""
    plan = plan_tiles(SIZE, max(SIZE), 1)
    return next(merge_tiles(plan, [predictions], **options), Predictions.empty(SIZE))


def stays(*shapes, scores, classes=None, **options):
    """Return the indices of the shapes that NMS keeps."""
    before = detections(drawn(SIZE, *shapes), scores, classes)
    kept = suppress(before, **options)
    index = [before.masks.index(mask) for mask in kept.masks]
    for name in ("boxes", "classes", "scores"):  # unchanged
        assert getattr(kept, name).tolist() == getattr(before, name)[index].tolist()
    return index


@pytest.mark.parametrize(("iou", "kept"), [(0.5, [1]), (0.51, [1, 0])])
def test_suppression_iou_threshold(iou, kept):
    # 10 x 10 px in 10 x 20 px.
    assert stays((0, 0, 10, 10), (0, 0, 20, 10), scores=[0.8, 0.9], iou=iou, ios=1.1) == kept


@pytest.mark.parametrize(("ios", "kept"), [(0.75, [0]), (0.76, [0, 1])])
def test_suppression_ios_threshold(ios, kept):
    # A cell of 4 x 4 px with three of its rows in one of 10 x 10: IoU 12 / 104.
    shapes = (0, 0, 10, 10), (2, 7, 6, 11)
    assert stays(*shapes, scores=[0.9, 0.8], ios=ios) == kept


def test_suppression_is_greedy():
    # Each is the same cell as the next; the first suppresses the second, but that not the third.
    shapes = (0, 0, 10, 10), (3, 0, 13, 10), (6, 0, 16, 10)
    assert stays(*shapes, scores=[0.9, 0.8, 0.7], ios=1.1) == [0, 2]
    assert stays(*shapes, scores=[0.8, 0.9, 0.7], ios=1.1) == [1]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 12), st.floats(0.1, 0.9), st.floats(0.1, 1.1), st.booleans(), st.integers(0, 99)
)
@example(12, 0.5, 0.8, False, 0)
def test_suppression_is_that_of_the_full_masks(n, iou, ios, across_classes, seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 12, (n, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 10, (n, 2))], axis=1)
    masks = np.zeros((n, *SIZE), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        # Whole, with holes, or empty.
        density = rng.choice([0, 0.6, 1], p=[0.1, 0.3, 0.6])
        mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < density
    scores, classes = rng.permutation(n) / max(n, 1), rng.integers(0, 2, n)
    kept: list[int] = []
    for this in np.argsort(-scores):
        rivals = [k for k in kept if across_classes or classes[k] == classes[this]]
        shared = [(masks[k] & masks[this]).sum() for k in rivals]
        same = [
            both >= iou * (masks[k] | masks[this]).sum()
            or both >= ios * min(masks[k].sum(), masks[this].sum())
            for k, both in zip(rivals, shared, strict=True)
            if both
        ]
        if masks[this].any() and not any(same):
            kept.append(int(this))
    before = detections(stack(masks, SIZE), scores, classes)
    after = suppress(before, iou=iou, ios=ios, across_classes=across_classes)
    assert after.masks == [before.masks[k] for k in kept]
    assert after.scores.tolist() == before.scores[kept].tolist()


def test_suppression_across_classes():
    cells = {"scores": [0.8, 0.9], "classes": [0, 1]}
    assert stays((0, 0, 10, 10), (0, 0, 10, 9), **cells) == [1, 0]
    assert stays((0, 0, 10, 10), (0, 0, 10, 9), **cells, across_classes=True) == [1]


def test_neighbours_stay():
    c_shaped = [(0, 0, 10, 2), (0, 0, 2, 10), (0, 8, 10, 10)]
    in_its_box, beside_it = (3, 3, 9, 7), (10, 0, 20, 10)
    assert stays(c_shaped, in_its_box, beside_it, scores=[0.9, 0.8, 0.7]) == [0, 1, 2]


def test_tiles_and_predictions_are_as_many():
    found = detections(drawn(SIZE, (0, 0, 10, 10)), [0.5])
    for n in (0, 2):
        with pytest.raises(ValueError, match="argument"):
            list(merge_tiles(plan_tiles(SIZE, max(SIZE), 1), [found] * n))


def test_no_cells_and_empty_masks():
    assert len(suppress(detections(drawn(SIZE), []))) == 0
    assert stays([], (4, 4, 5, 5), [], scores=[0.9, 0.8, 0.7]) == [1]


def test_of_equal_scores_the_larger_stays_in_any_order():
    shapes = [(0, 0, 9, 10), (0, 0, 10, 10), (1, 0, 10, 10)]
    assert stays(*shapes, scores=[0.5] * 3) == [1]
    assert stays(*shapes[::-1], scores=[0.5] * 3) == [1]
    # Of equal areas, the one further left.
    assert stays(shapes[0], shapes[2], scores=[0.5] * 2) == [0]
    assert stays(shapes[2], shapes[0], scores=[0.5] * 2) == [1]


# --- by hand: two tiles, columns 0 to 20 and 10 to 30 --------------------------------------

TWO = plan_tiles(SIZE, tile=20, overlap=10)


def test_a_whole_cell_replaces_a_piece_regardless_of_scores():
    # Columns 13 to 26, of which the first tile shows seven.
    first = drawn((20, 20), (13, 5, 20, 9)), [0.99]
    second = drawn((20, 20), (3, 5, 16, 9)), [0.4]
    cells, scores = merge_by_hand(TWO, first, second)
    assert cells == of_image(SIZE, (13, 5, 26, 9))
    assert list(scores.values()) == [0.4]


@pytest.mark.parametrize("unit", [1, 2, 4, 7])
def test_at_any_scale_cut_cells_are_recognised(unit):
    """Of a network pixel of `unit` image pixels, outlines end one before the edge of a tile."""
    size, margin = (40 * unit, 60 * unit), edge_margin(1 / unit)
    plan = plan_tiles(size, 40 * unit, 20 * unit, margin)

    def tile(box):
        return drawn((40 * unit, 40 * unit), tuple(unit * side for side in box))

    whole = tuple(unit * side for side in (24, 10, 52, 20))
    first, second = (tile((24, 10, 39, 20)), [0.95]), (tile((4, 10, 32, 20)), [0.9])
    assert merge_by_hand(plan, first, second)[0] == of_image(size, whole)
    # Longer than the overlap: both tiles cut it.
    whole = tuple(unit * side for side in (5, 10, 55, 20))
    first, second = (tile((5, 10, 39, 20)), [0.95]), (tile((1, 10, 35, 20)), [0.9])
    assert merge_by_hand(plan, first, second)[0] == of_image(size, whole)


@pytest.mark.parametrize(("bottom", "dropped"), [(9, True), (8, False)])
def test_a_piece_is_dropped_if_half_of_it_is_covered(bottom, dropped):
    # Rows 5 to 13 and rows 5 to `bottom`.
    piece, whole = (13, 5, 20, 13), (13, 5, 26, bottom)
    second = drawn((20, 20), (3, 5, 16, bottom)), [0.4]
    cells, _ = merge_by_hand(TWO, (drawn((20, 20), piece), [0.9]), second)
    assert cells == (of_image(SIZE, whole) if dropped else of_image(SIZE, whole, piece))


def test_a_better_cell_of_another_class_replaces_a_piece():
    first = drawn((20, 20), (13, 5, 20, 9)), [0.6], [1]
    second = drawn((20, 20), (3, 5, 16, 9))
    piece, whole = (13, 5, 20, 9), (13, 5, 26, 9)
    better = merge_by_hand(TWO, first, (second, [0.7], [0]))[0]
    assert better == of_image(SIZE, whole)
    worse = merge_by_hand(TWO, first, (second, [0.5], [0]))[0]
    assert worse == of_image(SIZE, whole, piece, classes=[0, 1])
    worse = merge_by_hand(TWO, first, (second, [0.5], [0]), across_classes=True)[0]
    assert worse == of_image(SIZE, whole)


@pytest.mark.parametrize(
    ("piece", "stays"),
    [
        ((13, 5, 20, 9), True),
        ((14, 5, 20, 9), False),  # a sliver
        ((19, 5, 20, 9), False),
        ((13, 2, 20, 16), True),  # a disc of 14 px, cut in its middle
        ((13, 2, 20, 17), False),
    ],
)
def test_large_pieces_stay_if_the_other_tile_misses_the_cell(piece, stays):
    cells, _ = merge_by_hand(TWO, (drawn((20, 20), piece), [0.9]), (drawn((20, 20)), []))
    assert cells == (of_image(SIZE, piece) if stays else [])


def test_a_sliver_that_no_tile_contains_is_a_piece():
    # The second tile begins at column 16.
    plan = plan_tiles((20, 36), tile=20, overlap=4)
    first = drawn((20, 20), (15, 5, 20, 9)), [0.6]
    second = drawn((20, 20), (0, 5, 10, 9)), [0.8]
    assert merge_by_hand(plan, first, second)[0] == of_image((20, 36), (15, 5, 26, 9))


def test_two_whole_cells_replace_a_piece_of_both():
    first = drawn((20, 20), (14, 2, 20, 12)), [0.99]
    second = drawn((20, 20), (4, 2, 12, 7), (4, 7, 12, 12)), [0.5, 0.4]
    assert merge_by_hand(TWO, first, second)[0] == of_image(SIZE, (14, 2, 22, 7), (14, 7, 22, 12))


def test_a_whole_cell_comes_before_a_piece_that_holds_it():
    # The whole one covers only a quarter of the piece, which no other tile continues.
    first = drawn((20, 20), (10, 2, 20, 12)), [0.99]
    second = drawn((20, 20), (3, 3, 8, 8)), [0.4]
    assert merge_by_hand(TWO, first, second)[0] == of_image(SIZE, (13, 3, 18, 8))


def test_a_cell_longer_than_the_overlap_is_joined():
    first = drawn((20, 20), (2, 5, 20, 9)), [0.6], [2]
    second = drawn((20, 20), (0, 5, 16, 9)), [0.8], [2]
    cells, scores = merge_by_hand(TWO, first, second)
    assert cells == of_image(SIZE, (2, 5, 26, 9), classes=[2])
    assert list(scores.values()) == [0.8]


def test_a_joined_cell_has_the_pixels_of_both_pieces():
    # In the overlap of the tiles, rows 5 to 15 and rows 6 to 8 and 9 to 16: IoU 8 / 11.
    second = [(0, 6, 16, 8), (0, 9, 16, 16)]
    first = drawn((20, 20), (2, 5, 20, 15)), [0.6]
    cells, _ = merge_by_hand(TWO, first, (drawn((20, 20), second), [0.8]))
    assert cells == of_image(SIZE, [(2, 5, 20, 15), (10, 6, 26, 8), (10, 9, 26, 16)])


def test_a_joined_cell_counts_as_whole():
    """With the better score it suppresses a whole cell inside."""
    plan = plan_tiles((20, 40), tile=20, overlap=10)
    first = drawn((20, 20), (2, 5, 20, 15)), [0.9]
    second = drawn((20, 20), (0, 5, 16, 15)), [0.8]
    third = drawn((20, 20), (3, 6, 6, 9)), [0.7]
    assert merge_by_hand(plan, first, second, third)[0] == of_image((20, 40), (2, 5, 26, 15))


@pytest.mark.parametrize("across", [False, True])
def test_pieces_of_two_classes_are_joined_to_the_class_of_the_larger(across):
    first = drawn((20, 20), (2, 5, 20, 9)), [0.6], [2]
    second = drawn((20, 20), (0, 5, 16, 9)), [0.8], [1]
    cells, _ = merge_by_hand(TWO, first, second, across_classes=across)
    assert cells == of_image(SIZE, (2, 5, 26, 9), classes=[2])


def test_pieces_of_two_classes_are_joined_within_their_class():
    first = drawn((20, 20), *[(2, 5, 20, 9)] * 2), [0.6, 0.3], [2, 1]
    second = drawn((20, 20), *[(0, 5, 16, 9)] * 2), [0.5, 0.2], [2, 1]
    cell = (2, 5, 26, 9)
    assert merge_by_hand(TWO, first, second)[0] == of_image(SIZE, cell, cell, classes=[1, 2])
    agnostic, _ = merge_by_hand(TWO, first, second, across_classes=True)
    assert agnostic == of_image(SIZE, cell, classes=[2])


@pytest.mark.parametrize(("shift", "joined"), [(0, True), (1, True), (2, False), (3, False)])
def test_pieces_are_joined_if_they_agree_in_the_overlap(shift, joined):
    # In the overlap, rows 5 to 8 and those `shift` lower: IoU (3 - shift) / (3 + shift).
    first = drawn((20, 20), (2, 5, 20, 8)), [0.6]
    second = drawn((20, 20), (0, 5 + shift, 16, 8 + shift)), [0.8]
    cells, _ = merge_by_hand(TWO, first, second)
    pieces = (2, 5, 20, 8), (10, 5 + shift, 26, 8 + shift)
    assert cells == (of_image(SIZE, list(pieces)) if joined else of_image(SIZE, *pieces))


def test_a_piece_in_two_pieces():
    """A sideways U, of which the first tile shows the ends of both arms."""
    cell = [(13, 2, 28, 5), (13, 8, 28, 11), (25, 2, 28, 11)]
    ends = [(13, 2, 20, 5), (13, 8, 20, 11)]
    second = [(3, 2, 18, 5), (3, 8, 18, 11), (15, 2, 18, 11)]
    cells, _ = merge_by_hand(TWO, (drawn((20, 20), ends), [0.9]), (drawn((20, 20), second), [0.5]))
    assert cells == of_image(SIZE, cell)


def test_touching_cells_are_not_joined_at_the_seam():
    first = drawn((20, 20), (2, 5, 20, 9), (2, 9, 20, 12)), [0.6, 0.7]
    second = drawn((20, 20), (0, 5, 16, 9), (0, 9, 16, 12)), [0.8, 0.5]
    cells, _ = merge_by_hand(TWO, first, second)
    assert cells == of_image(SIZE, (2, 5, 26, 9), (2, 9, 26, 12))


def test_the_larger_of_two_whole_cells_stays_in_any_order():
    small, large = (13, 5, 16, 9), (13, 5, 17, 9)
    for a, b in ((small, large), (large, small)):
        first = drawn((20, 20), a), [0.5]
        second = drawn((20, 20), (b[0] - 10, b[1], b[2] - 10, b[3])), [0.5]
        assert merge_by_hand(TWO, first, second)[0] == of_image(SIZE, large)


def test_predictions_have_the_size_of_their_tile():
    with pytest.raises(ValueError, match=r"\(20, 30\), expected .*\(20, 20\)"):
        merge_by_hand(TWO, (drawn(SIZE), []), (drawn(SIZE), []))


@pytest.mark.parametrize("n", [1, 3])
def test_predictions_for_each_tile(n):
    with pytest.raises(ValueError, match="zip"):
        merge_by_hand(TWO, *[(drawn((20, 20)), [])] * n)


def test_no_cells_no_batch():
    assert list(merge_tiles(TWO, [detections(drawn((20, 20)), [])] * 2)) == []


# --- the oracle --------------------------------------------------------------------------


def random_cells(size, n, largest, rng):
    """Draw connected cells, many touching: discs and rectangles painted over each other."""
    labels = np.zeros(size, np.int32)
    for n_painted in range(1, n + 1):
        x, y = (int(rng.integers(0, side)) for side in size[::-1])
        extent = rng.integers(1, largest + 1, 2)
        if rng.random() < 0.5:
            cv2.circle(labels, (x, y), int(extent[0]) // 2, n_painted, -1)
        else:
            labels[y : y + extent[0], x : x + extent[1]] = n_painted
    connected = skimage.measure.label(labels, connectivity=2)
    return label_map_to_runs(connected.astype(np.int32))[1]


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    tile=st.integers(10, 40),
    overlap=st.floats(0, 0.7),
    n=st.integers(0, 12),
    largest=st.sampled_from([1, 4, 12, 60]),
    seed=st.integers(0, 9999),
)
@example(size=(9, 9), tile=2, overlap=0.5, n=5, largest=12, seed=0)
@example(size=(20, 20), tile=8, overlap=0.9, n=9, largest=12, seed=1)
def test_tiles_of_the_ground_truth_merge_to_it(size, tile, overlap, n, largest, seed):
    rng = np.random.default_rng(seed)
    truth = random_cells(size, n, largest, rng)
    classes = rng.integers(0, 3, len(truth))
    plan = plan_tiles(size, tile, max(1, min(int(overlap * tile), tile - 1)))
    assert merged(plan, oracle(plan, truth, classes, rng))[0] == cells_of(truth, classes)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 8), st.floats(0, 1))
def test_a_part_of_the_tiles_has_no_seams(seed, step, density):
    """Cells that touch the part are those of all tiles."""
    rng = np.random.default_rng(seed)
    size, largest = (70, 90), 12
    truth = random_cells(size, 12, largest, rng)
    classes = rng.integers(0, 3, len(truth))
    wanted = rng.random(len(truth)) < density
    pixels = np.zeros((70 // step + 1, 90 // step + 1), bool)
    for left, top, right, bottom in boxes_xyxy(truth)[wanted].tolist():
        pixels[(top + bottom) // 2 // step, (left + right) // 2 // step] = True
    plan = plan_tiles(size, 30, 14).restricted_to(CoarseMask(size, (step, step), pixels), largest)
    found = set(merged(plan, oracle(plan, truth, classes, rng))[0])
    kept = concatenate(size, [single(truth, n) for n in np.flatnonzero(wanted)])
    assert found >= set(cells_of(kept, classes[wanted]))


@pytest.mark.parametrize(
    ("size", "n", "largest"),
    [((33, 35), 6, 12), ((374, 464), 120, 40), ((2000, 3000), 700, 60), ((2000, 700), 60, 900)],
)
@pytest.mark.parametrize("across", [False, True])
def test_images_of_many_sizes(size, n, largest, across):
    rng = np.random.default_rng(size[0])
    truth = random_cells(size, n, largest, rng)
    classes = rng.integers(0, 4, len(truth))
    plan = plan_tiles(size, tile=512, overlap=80)
    tiles = oracle(plan, truth, classes, rng, copies=0.2)
    assert merged(plan, tiles, across_classes=across)[0] == cells_of(truth, classes)


def test_seams_of_a_huge_image():
    """Cells on seams, on corners of four tiles, and one that crosses the whole image."""
    size = (10_000, 10_000)
    plan = plan_tiles(size, tile=1000, overlap=100)
    rows = [tile.window for tile in plan][:: len(plan.lefts)]
    # One pixel, and a cell, at the first and at the last corner of a tile.
    shapes = []
    for _, top, _, bottom in rows[::3]:
        for _, left, _, right in rows[::4]:
            for y, x in ((top, left), (bottom - 1, right - 1)):
                shapes += [(x, y, 1, 1), (x - 20, y - 19, 30, 18)]
    shapes = [box for box in shapes if min(box[:2]) >= 0 and max(box[:2]) + 30 < 10_000]
    cells = [(x + np.arange(w))[:, None] * size[0] + np.array([y, y + h]) for x, y, w, h in shapes]
    # Ten pixels high and across all tiles, except the image's first and last column.
    cells.append(np.arange(1, size[1] - 1)[:, None] * size[0] + np.array([5550, 5560]))
    bounds = np.concatenate(cells)
    offsets = np.append(0, np.cumsum([len(cell) for cell in cells]))
    truth = MaskRuns(size, bounds[:, 0], bounds[:, 1], offsets)
    classes = np.arange(len(truth)) % 4
    tiles = oracle(plan, truth, classes, np.random.default_rng(0), copies=0)
    assert merged(plan, tiles)[0] == cells_of(truth, classes)


def test_the_result_does_not_depend_on_the_order_of_the_cells():
    rng = np.random.default_rng(3)
    truth = random_cells((150, 150), 60, 40, rng)
    plan = plan_tiles((150, 150), tile=60, overlap=20)
    tiles = []
    for cells in oracle(plan, truth, np.zeros(len(truth), int), rng):
        # Overlapping masks like a network's, and scores with ties.
        mask_runs = decode(cells.masks, cells.size)
        copies = [changed_copy(mask_runs, n, rng) for n in range(len(mask_runs))]
        scores = rng.integers(3, 10, len(mask_runs)) / 10
        tiles.append((concatenate(cells.size, copies), scores, cells.classes))
    expected = merge_by_hand(plan, *tiles)
    for _ in range(3):
        shuffled = []
        for mask_runs, scores, classes in tiles:
            order = rng.permutation(len(mask_runs))
            parts = concatenate(mask_runs.size, [single(mask_runs, n) for n in order])
            shuffled.append((parts, scores[order], classes[order]))
        assert merge_by_hand(plan, *shuffled) == expected


def test_one_tile_is_unchanged():
    rng = np.random.default_rng(4)
    truth = random_cells((60, 80), 20, 20, rng)
    cells = detections(truth, rng.random(len(truth)), rng.integers(0, 2, len(truth)))
    cells.boxes[:] += rng.uniform(-0.4, 0.4, cells.boxes.shape)  # a network's are not tight
    (batch,) = merge_tiles(plan_tiles((60, 80), 100, 10), [cells])
    expected = cells[np.argsort(-cells.scores)]
    for name in ("boxes", "scores", "classes"):
        assert getattr(batch, name).tolist() == getattr(expected, name).tolist()
    assert batch.masks == expected.masks


# --- in bounded memory ---------------------------------------------------------------------


def test_cells_are_returned_after_the_last_tile_that_shows_them():
    plan = plan_tiles((60, 60), tile=30, overlap=15)  # 3 x 3, starting at 0, 15 and 30
    # Only in the first tile; in the corner of four; longer than a row of tiles.
    truth = drawn((60, 60), (2, 2, 9, 9), (18, 18, 25, 25), (2, 46, 58, 50))
    taken = 0

    def tiles():
        nonlocal taken
        for tile in oracle(plan, truth, np.arange(3), np.random.default_rng(0)):
            taken += 1
            yield tile

    returned = {int(k): taken for batch in merge_tiles(plan, tiles()) for k in batch.classes}
    # The second tile of the second row is the last with the corner of four, the last tile of
    # all with the long cell.
    assert returned == {0: 1, 1: 5, 2: 9}

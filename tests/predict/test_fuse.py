"""Fusing views: means computed by hand, the rule on full masks, flipped and rotated views."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cellseg.network import Detections, enlarge_boxes
from cellseg.predict.fuse import fuse
from cellseg.predict.masks import encode_masks
from cellseg.view import View


def detections(*cells, side=28):
    """Detections from (box, score, class) or (box, score, class, mask)."""
    masks = [cell[3] if len(cell) > 3 else torch.ones((side, side)) for cell in cells]
    return Detections(
        torch.tensor([cell[0] for cell in cells], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([cell[1] for cell in cells], dtype=torch.float32),
        torch.tensor([cell[2] for cell in cells], dtype=torch.int64),
        torch.stack(masks) if masks else torch.zeros((0, side, side)),
    )


PARTS = ("boxes", "scores", "classes", "masks")


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in PARTS)


def combined(parts):
    return Detections(*(torch.cat([getattr(part, name) for part in parts]) for name in PARTS))


def sampled(mask, box, target_boxes, side):
    """Resample a mask from one box to a grid over another, by `grid_sample`."""
    axes = []
    for start, end in ((0, 2), (1, 3)):
        step = (target_boxes[end] - target_boxes[start]) / side
        centre = target_boxes[start] + (torch.arange(side) + 0.5) * step
        axes.append((centre - box[start]) / (box[end] - box[start]) * 2 - 1)
    x, y = axes
    grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), 2)
    return functional.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]


def smooth(n, side, generator):
    """Return different masks with soft edges."""
    coarse = torch.rand((n, 1, 5, 5), generator=generator)
    return functional.interpolate(coarse, (side, side), mode="bilinear")[:, 0]


def scattered(seed, n_views, n_cells, side=28, n_classes=2):
    """Return views of the same cells with jittered detections, some missing."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand((n_cells, 2), generator=generator) * 60
    truth = torch.cat([start, start + 10 + 20 * torch.rand((n_cells, 2), generator=generator)], 1)
    classes = torch.randint(n_classes, (n_cells,), generator=generator)
    squares = torch.linspace(-1, 1, side).square()
    disc = torch.sigmoid(8 * (0.9 - (squares[:, None] + squares).sqrt()))
    views = []
    for _ in range(n_views):
        detected = torch.rand(n_cells, generator=generator) < 0.8
        n = int(detected.sum())
        boxes = truth[detected] + torch.randn((n, 4), generator=generator)
        scores = torch.rand(n, generator=generator)
        masks = (disc + 0.1 * smooth(n, side, generator)).clamp(max=1)
        views.append(Detections(boxes, scores, classes[detected], masks))
    return views


def test_the_mean_of_two():
    """The second view has the cell one pixel to the right, with a third of the score."""
    (a, b) = ([0.0, 0, 10, 10], [1.0, 0, 11, 10])
    fused = fuse([detections((a, 0.75, 2)), detections((b, 0.25, 2))])
    box = [0.25, 0, 10.25, 10]
    assert fused.boxes.tolist() == [box]
    assert fused.scores.tolist() == [0.5]
    assert fused.classes.tolist() == [2]
    # 10 pixels are 28 grid cells, so 0.25 pixels are 0.7, and 0.75 are 2.1. The first mask ends
    # 0.7 grid cells before the grid: the last centre is 0.2 outside, with a value of 0.3; the
    # one before is 0.8 inside. The second starts after 2.1 grid cells: centres are 1.6 and 0.6
    # outside and 0.4 inside, with values 0, 0 and 0.9.
    row = torch.full((28,), 1.0)
    row[27] = 0.75 * 0.3 + 0.25
    row[:3] = 0.75 + 0.25 * torch.tensor([0, 0, 0.9])
    torch.testing.assert_close(fused.masks[0], row.expand(28, 28))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.sampled_from([(28, 28), (14, 28), (28, 14), (1, 7)]))
def test_masks_are_resampled_as_by_grid_sample(seed, sides):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[5.0, 6, 35, 30]]) + torch.rand((2, 4), generator=generator)
    masks = [smooth(1, side, generator)[0] * 0.2 + 0.8 for side in sides]
    views = [
        detections((box.tolist(), score, 0, mask))
        for box, score, mask in zip(boxes, (0.8, 0.4), masks, strict=True)
    ]
    fused = fuse(views, iou=0.1)
    torch.testing.assert_close(fused.boxes, (2 * boxes[:1] + boxes[1:]) / 3)
    largest = max(sides)
    expected = []
    for mask, side, box in zip(masks, sides, boxes, strict=True):
        same_side = mask if side == largest else sampled(mask, box, box, largest)
        expected.append(sampled(same_side, box, fused.boxes[0], largest))
    mean = (2 * expected[0] + expected[1]) / 3
    torch.testing.assert_close(fused.masks[0], mean, atol=1e-4, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(0, 20), st.sampled_from([28, 14, 1]))
def test_one_view_is_unchanged(seed, n_cells, side):
    (view,) = scattered(seed, 1, n_cells, side)
    if len(view):
        view.scores[-1] = 0
    assert same(fuse([view]), view[view.scores.argsort(descending=True)])


def test_equal_scores_are_ordered_by_class_and_box():
    cells = [([0.0, 0, 4, 4], 0.5, 1), ([9.0, 0, 14, 4], 0.5, 0), ([8.0, 0, 12, 4], 0.5, 0)]
    assert same(fuse([detections(*cells)]), detections(*cells[::-1]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9))
def test_views_that_agree_change_nothing(seed, n_views):
    (view,) = scattered(seed, 1, 15)
    assert same(fuse([view] * n_views), fuse([view]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.data())
def test_the_order_of_the_views_makes_no_difference(seed, data):
    views = scattered(seed, 4, 15)
    for view in views:
        view.scores.mul_(4).ceil_().div_(4)  # many are equal
    other = data.draw(st.permutations(views))
    assert same(fuse(views), fuse(other))


def rectangle(box, whole, side=40):
    """Return the mask of a rectangle within a larger box."""
    at = [whole[k] + (np.arange(side) + 0.5) / side * (whole[k + 2] - whole[k]) for k in (0, 1)]
    x, y = ((at[k] > box[k]) & (at[k] < box[k + 2]) for k in (0, 1))
    return torch.from_numpy((y[:, None] & x[None, :]).astype(np.float32))


@pytest.mark.parametrize(
    ("boxes", "classes", "n_cells"),
    [
        # IoU of 10 x 10 squares, x px apart: (10 - x) / (10 + x), 0.5 at 3.33.
        (([0, 0, 10, 10], [3.2, 0, 13.2, 10]), (0, 0), 1),
        (([0, 0, 10, 10], [3.5, 0, 13.5, 10]), (0, 0), 2),
        (([0, 0, 10, 10], [0, 3.2, 10, 13.2]), (0, 0), 1),
        (([0, 0, 10, 10], [0, 3.5, 10, 13.5]), (0, 0), 2),
        # One within the other.
        (([0, 0, 10, 10], [2, 2, 10, 8.8]), (0, 0), 1),
        (([0, 0, 10, 10], [2, 2, 10, 7.8]), (0, 0), 2),
        # The same box, another class; adjacent; far away.
        (([0, 0, 10, 10], [0, 0, 10, 10]), (0, 1), 2),
        (([0, 0, 10, 10], [10, 0, 20, 10]), (0, 0), 2),
        (([0, 0, 10, 10], [9000, 0, 9010, 10]), (0, 0), 2),
    ],
)
@pytest.mark.parametrize("better", [0, 1])
def test_which_detections_are_one_cell(boxes, classes, n_cells, better):
    views = [
        detections((box, 0.9 if n == better else 0.6, class_))
        for n, (box, class_) in enumerate(zip(boxes, classes, strict=True))
    ]
    assert len(fuse(views)) == n_cells


def test_masks_are_compared_not_boxes():
    whole = [0.0, 0, 20, 20]
    left, right = rectangle([0, 0, 10, 20], whole), rectangle([10, 0, 20, 20], whole)
    apart = [detections((whole, 0.9, 0, left)), detections((whole, 0.8, 0, right))]
    assert len(fuse(apart)) == 2
    # One cell, in boxes with an IoU of a quarter.
    tight = detections(([0.0, 0, 10, 20], 0.9, 0, torch.ones((40, 40))))
    wide = detections(([0.0, 0, 40, 20], 0.3, 0, rectangle([0, 0, 10, 20], [0, 0, 40, 20])))
    assert len(fuse([tight, wide])) == 1


def test_iou_threshold():
    first, second = ([0, 0, 10, 10], 0.9, 0), ([2.5, 0, 12.5, 10], 0.8, 0)
    views = [detections(first), detections(second)]  # IoU 0.6
    assert len(fuse(views, iou=0.55)) == 1
    assert len(fuse(views, iou=0.65)) == 2


def test_iou_threshold_of_one():
    view = detections(([0.1, 0.2, 10.3, 10.7], 0.9, 0))
    assert len(fuse([view, view], iou=1.0)) == 1


def test_the_highest_iou_matches_not_the_highest_score():
    views = [
        detections(([0, 0, 10, 10], 0.9, 0)),
        detections(([2, 0, 12, 10], 0.8, 0), ([1, 0, 11, 10], 0.3, 0)),
    ]
    fused = fuse(views)
    torch.testing.assert_close(fused.scores, torch.tensor([0.6, 0.4]))
    torch.testing.assert_close(fused.boxes, torch.tensor([[0.25, 0, 10.25, 10], [2.0, 0, 12, 10]]))


def test_the_higher_score_matches_first():
    """The second detection of the first view has the higher IoU."""
    views = [
        detections(([0, 0, 10, 10], 0.9, 0), ([3, 0, 13, 10], 0.5, 0)),
        detections(([2, 0, 12, 10], 0.3, 0)),
    ]
    fused = fuse(views)
    torch.testing.assert_close(fused.scores, torch.tensor([0.6, 0.25]))
    assert fused.boxes[1].tolist() == [3, 0, 13, 10]


def test_cells_in_few_views_score_lower():
    shared, alone = ([0, 0, 10, 10], 0.6, 0), ([50, 0, 60, 10], 0.9, 0)
    fused = fuse([detections(alone, shared), detections(shared), detections(shared)])
    assert fused.boxes.tolist() == [shared[0], alone[0]]
    torch.testing.assert_close(fused.scores, torch.tensor([0.6, 0.3]))


def test_views_without_detections_count():
    views = [detections(([0, 0, 10, 10], 0.6, 0)), detections(), detections()]
    torch.testing.assert_close(fuse(views).scores, torch.tensor([0.2]))


def test_no_detections():
    for views in ([detections()], [detections(), detections()]):
        fused = fuse(views)
        assert fused.boxes.shape == (0, 4)
        assert fused.scores.shape == (0,)
        assert fused.classes.dtype == torch.int64
        assert fused.masks.shape == (0, 28, 28)


def test_no_views():
    with pytest.raises(ValueError, match="no views"):
        fuse([])


def test_scores_of_zero_and_masks_below_one_half():
    cell = ([0.0, 0, 10, 10], 0.0, 0)
    fused = fuse([detections(cell), detections(cell)])
    assert same(fused, detections(cell))
    faint = ([0.0, 0, 10, 10], 0.5, 0, torch.full((28, 28), 0.25))
    fused = fuse([detections(faint), detections(faint)])
    assert fused.scores.tolist() == [0.25, 0.25]
    assert torch.equal(fused.masks, torch.full((2, 28, 28), 0.25))


def fused_one_by_one(views, iou):
    """Apply the rule in plain loops, on masks of an image enlarged tenfold.

    Return boxes and scores, best first, and the minimum margin of the decisions.
    """
    owner = [v for v, view in enumerate(views) for _ in range(len(view))]
    cells = combined(views)
    boxes, scores, classes = cells.boxes, cells.scores, cells.classes
    rles = encode_masks(cells.masks, boxes * 10 + 100, (1200, 1200))
    overlap = np.array(pycocotools.mask.iou(rles, rles, [0] * len(rles))).reshape(len(rles), -1)
    free = set(range(len(owner)))
    fused, margin = [], 1.0
    for best in sorted(free, key=lambda n: -scores[n]):
        if best not in free:
            continue
        members = [best]
        for view in set(range(len(views))) - {owner[best]}:
            like = sorted(
                (overlap[best, n], n)
                for n in free
                if owner[n] == view and classes[n] == classes[best]
            )
            values = [value for value, _ in like]
            margin = min([margin, *(abs(value - iou) for value in values)])
            if len(like) > 1 and values[-2] >= iou:
                margin = min(margin, values[-1] - values[-2])
            if like and values[-1] >= iou:
                members.append(like[-1][1])
        free -= set(members)
        weight = scores[members]
        box = (weight[:, None] * boxes[members]).sum(0) / weight.sum()
        fused.append((float(weight.sum()) / len(views), box.tolist()))
    fused.sort(reverse=True)
    return [box for _, box in fused], [score for score, _ in fused], margin


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), st.integers(2, 4), st.integers(1, 20))
def test_equals_the_rule_on_full_masks(seed, n_views, n_cells):
    views = scattered(seed, n_views, n_cells)
    assume(any(len(view) for view in views))
    boxes, scores, margin = fused_one_by_one(views, 0.5)
    assume(margin > 0.03)  # more than the error of a grid's IoU
    fused = fuse(views)
    assert fused.scores.tolist() == pytest.approx(scores)
    torch.testing.assert_close(fused.boxes, torch.tensor(boxes), atol=1e-4, rtol=0)


def test_hundreds_of_cells():
    """Groups of cells far apart, on a diagonal: each is fused as if it were alone."""
    corners = [(x, 4480 - x) for x in range(0, 4608, 128)]
    groups = [scattered(seed, 3, 15) for seed in range(len(corners))]
    for group, corner in zip(groups, corners, strict=True):
        for view in group:
            view.boxes.add_(torch.tensor([*corner, *corner]))
    views = [combined(parts) for parts in zip(*groups, strict=True)]
    assert sum(map(len, views)) > 1000
    separate = combined([fuse(group) for group in groups])
    assert same(fuse(views), separate[separate.scores.argsort(descending=True)])


# Asymmetric cells: ellipses without one quarter. Centre and radii.
CELLS = torch.tensor([[20.0, 22, 9, 6], [51, 18, 7, 12], [33, 47, 14, 8], [70, 50, 5, 5]])
SIZE = (64, 80)
VIEWS = [
    View((0, 0, 80, 64), size, *orientation)
    for size in ((64, 80), (128, 160), (96, 120))
    for orientation in itertools.product((False, True), repeat=3)
]


def detect(view, side=28, mask_scale=1.0):
    """Draw the cells in pixels of a view; return them in pixels of the image."""
    scale = view.size[0] / SIZE[0]
    centre, radius = CELLS[:, :2], CELLS[:, 2:]
    boxes = torch.cat([centre - radius, centre + radius], 1) * scale
    height, width = view.size
    if view.flip_x:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    if view.flip_y:
        boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    if view.transpose:
        boxes = boxes[:, [1, 0, 3, 2]]
    masks = torch.empty((len(CELLS), side, side))
    step = (torch.arange(side) + 0.5) / side
    for n, (left, top, right, bottom) in enumerate(enlarge_boxes(boxes, mask_scale)):
        y, x = torch.meshgrid(
            top + step * (bottom - top), left + step * (right - left), indexing="ij"
        )
        # Map each point to the image.
        if view.transpose:
            x, y = y, x
        x = (view.size[1] - x if view.flip_x else x) / scale
        y = (view.size[0] - y if view.flip_y else y) / scale
        u, v = (x - centre[n, 0]) / radius[n, 0], (y - centre[n, 1]) / radius[n, 1]
        masks[n] = torch.sigmoid(8 * (0.93 - (u**2 + v**2).sqrt())) * ~((u > 0) & (v > 0))
    classes = torch.tensor([0, 1, 0, 2])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    boxes, masks = view.invert_boxes(boxes), view.invert_grids(masks)
    return Detections(boxes, scores, classes, masks, mask_scale=mask_scale)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(VIEWS), min_size=1, max_size=24, unique=True),
    st.sampled_from([1.0, 1.5]),
)
def test_an_equivariant_network_detects_the_same_cells(views, scale):
    single = detect(VIEWS[0], mask_scale=scale)
    fused = fuse([detect(view, mask_scale=scale) for view in views])
    assert torch.equal(fused.classes, single.classes)
    torch.testing.assert_close(fused.scores, single.scores)
    torch.testing.assert_close(fused.boxes, single.boxes)
    masks = encode_masks(single.masks, single.mask_boxes, SIZE)
    assert encode_masks(fused.masks, fused.mask_boxes, SIZE) == masks
    assert len({mask["counts"] for mask in masks}) == 4


@pytest.mark.parametrize("scales", [(1.0, 1.5), (1.5, 1.0), (2.0, 1.25)])
def test_networks_with_masks_in_larger_boxes_and_in_others(scales):
    """The boxes are the same, and the masks differ by the coarseness of their grids only."""
    one, other = (detect(VIEWS[0], mask_scale=scale) for scale in scales)
    fused = fuse([one, other])
    assert torch.equal(fused.boxes, one.boxes)
    assert torch.equal(fused.scores, one.scores)
    masks = encode_masks(fused.masks, fused.mask_boxes, SIZE)
    expected = encode_masks(one.masks, one.mask_boxes, SIZE)
    assert pycocotools.mask.iou(masks, expected, [False] * 4).diagonal().min() > 0.97


def test_masks_that_reach_out_of_separate_boxes_match():
    """Two boxes side by side, each with the same cell in the part of its grid that both share."""
    grid = torch.zeros((28, 28))
    grid[:, 14:] = 1  # of a box of 0 to 10 enlarged to -10 to 20: from 5 to 20
    cells = [([0.0, 0, 10, 10], 0.5, 0, grid), ([15.0, 0, 25, 10], 0.5, 0, grid.flip(1))]
    views = [replace(detections(cell), mask_scale=3.0) for cell in cells]
    assert len(fuse(views)) == 1  # 5 to 20 in both
    assert len(fuse([replace(view, mask_scale=1.0) for view in views])) == 2


def test_a_missing_inversion_changes_the_masks():
    """The previous test depends on cells that differ from their mirror images."""
    (plain, mirrored) = (detect(VIEWS[0]), detect(VIEWS[4]))
    wrong = Detections(plain.boxes, plain.scores, plain.classes, mirrored.masks.flip(2))
    fused = fuse([plain, wrong])
    masks = encode_masks(plain.masks, plain.boxes, SIZE)
    assert encode_masks(fused.masks, fused.boxes, SIZE) != masks

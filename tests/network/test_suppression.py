"""Non-maximum suppression, compared with all pairs and with torchvision's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, nms

from cellseg.network.suppression import suppress


def one_by_one(boxes, scores, iou, groups):
    kept: list[int] = []
    overlap = box_iou(boxes, boxes).double()
    for index in scores.argsort(descending=True, stable=True).tolist():
        if not any(groups[k] == groups[index] and overlap[k, index] > iou for k in kept):
            kept.append(index)
    return kept


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 60),
    iou=st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.6, 0.7, 0.95, 1.0]),
    spread=st.sampled_from([0, 5, 30, 300]),
    longest=st.sampled_from([1, 8, 40]),
    whole=st.booleans(),
    n_groups=st.integers(1, 3),
)
def test_keeps_the_boxes_that_comparing_all_pairs_keeps(
    seed, count, iou, spread, longest, whole, n_groups
):
    """Sides of 0, equal boxes and equal scores included."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand((count, 2), generator=generator) * spread
    side = torch.rand((count, 2), generator=generator) * longest
    if whole:
        corner, side = corner.round(), side.round()
    boxes = torch.cat([corner, corner + side], 1)
    scores = torch.rand(count, generator=generator)
    if seed % 2:
        scores = (scores * 4).round()
    groups = torch.randint(0, n_groups, (count,), generator=generator)
    kept = suppress(boxes, scores, iou, groups)
    assert kept.tolist() == one_by_one(boxes, scores, iou, groups)
    if n_groups == 1:
        assert suppress(boxes, scores, iou).tolist() == kept.tolist()
        assert nms(boxes, scores, iou).tolist() == kept.tolist()


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.7])
@pytest.mark.parametrize(
    ("area", "side"),
    [(100, 60), (300, 5), (4000, 50), (0, 20)],
    ids=["crowded", "small", "sparse", "equal"],
)
def test_many_boxes_are_suppressed_as_by_torchvision(area, side, iou):
    generator = torch.Generator().manual_seed(area)
    corner = torch.rand((3000, 2), generator=generator) * area
    boxes = torch.cat([corner, corner + side], 1)
    boxes[7] = torch.tensor([-50.0, -50, 5000, 5000])  # much larger than the others
    scores = torch.rand(3000, generator=generator)
    assert suppress(boxes, scores, iou).equal(nms(boxes, scores, iou))


def test_equal_boxes_of_two_groups_are_two():
    boxes = torch.tensor([[-21.0, -21, -1, -1]]).repeat(100, 1)
    scores = torch.rand(100, generator=torch.Generator().manual_seed(0))
    kept = suppress(boxes, scores, 0.5, torch.arange(100) % 2)
    assert len(kept) == 2
    assert set((kept % 2).tolist()) == {0, 1}
    assert kept[0] == scores.argmax()


def test_any_overlap_suppresses_at_an_iou_of_0():
    boxes = torch.tensor([[0, 0, 0.5, 0.5], [0, 0, 2000, 2000]])
    assert suppress(boxes, torch.tensor([0.9, 0.8]), 0.0).tolist() == [0]


@pytest.mark.parametrize("shared", range(1, 10))
def test_an_iou_of_the_threshold_is_compared_as_by_torchvision(shared):
    """Rows of 10 pixels and of some of these: fractions that float32 rounds up or down."""
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, shared, 1]])
    scores = torch.tensor([0.9, 0.8])
    assert suppress(boxes, scores, shared / 10).equal(nms(boxes, scores, shared / 10))

"""Matching, drawing and selecting for all images at once, against loops over images and boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, nms

from cellseg.network import matching
from cellseg.network.matching import draw_samples, match_boxes, top_proposals

LABELS = st.sampled_from([-1, 0, 1])


def random_boxes(rng, n, size=40):
    """Return `(n, 4)` boxes on a grid of whole pixels, so that there are ties."""
    corners = np.sort(rng.integers(0, size, (n, 2, 2)), axis=1).reshape(n, 4)
    return torch.from_numpy(corners + [0, 0, 1, 1]).float()


@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    shared=st.booleans(),
    best_of_each=st.booleans(),
    overlaps_at_once=st.sampled_from([1, 60, 10_000]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=80)
def test_matches(counts, shared, best_of_each, overlaps_at_once, seed):
    """The cell of the highest IoU, background below 0.3, a cell from 0.5 on or as the best."""
    rng = np.random.default_rng(seed)
    cells = [random_boxes(rng, n) for n in counts]
    boxes = torch.stack([random_boxes(rng, 12) for _ in counts])
    if shared:
        boxes = boxes[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_OVERLAPS_ON_CPU", overlaps_at_once)
        cell, labels = match_boxes(boxes, cells, 0.3, 0.5, best_of_each)
    assert cell.shape == labels.shape == (len(counts), 12)
    first = 0
    for n, of_image in enumerate(cells):
        overlap = box_iou(boxes[0 if shared else n], of_image)
        highest = overlap.amax(1) if len(of_image) else torch.zeros(12)
        for box in range(12):
            expected = 1 if highest[box] >= 0.5 else 0 if highest[box] < 0.3 else -1
            ties = [k for k in range(len(of_image)) if overlap[box, k] == highest[box]]
            # Rounding may differ in the last digit.
            best_of = [
                k
                for k in range(len(of_image))
                if 0 < overlap[:, k].amax() <= overlap[box, k] + 1e-6
            ]
            if best_of_each and best_of:
                expected = 1
            assert labels[n, box] == expected
            if highest[box] > 0:
                assert int(cell[n, box]) - first in ties
            assert first <= int(cell[n, box]) <= max(first, first + len(of_image) - 1)
        first += len(of_image)


@given(
    labels=st.lists(
        st.lists(st.sampled_from([-1, 0, 1]), min_size=9, max_size=9), max_size=4, min_size=1
    ),
    count=st.integers(1, 12),
    fraction=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=80)
def test_samples(labels, count, fraction):
    """As many cells as there are, up to the fraction; background fills up."""
    torch.manual_seed(0)
    drawn, valid = draw_samples(torch.tensor(labels), count, fraction)
    for of_image, boxes, are_valid in zip(labels, drawn.tolist(), valid.tolist(), strict=True):
        chosen = [box for box, is_valid in zip(boxes, are_valid, strict=True) if is_valid]
        assert len(set(chosen)) == len(chosen)
        kinds = [of_image[box] for box in chosen]
        n_cells = min(of_image.count(1), int(count * fraction))
        n_background = min(of_image.count(0), count - n_cells)
        assert kinds == [1] * n_cells + [0] * n_background


def test_samples_are_drawn_evenly():
    torch.manual_seed(0)
    labels = torch.tensor([1] * 6 + [0] * 6 + [-1]).repeat(4000, 1)
    drawn, valid = draw_samples(labels, 6, 0.5)
    counts = torch.bincount(drawn[valid], minlength=13)
    assert counts[12] == 0
    assert ((counts[:12] - 2000).abs() < 5 * 32).all()  # √(4000 · ½ · ½) ≈ 32
    assert not torch.equal(drawn[0], drawn[1])


def one_by_one(boxes, logits, sizes, iou, pre_nms, post_nms, min_size):
    for n, (height, width) in enumerate(sizes):
        kept, scores = [], []
        for level_boxes, level_logits in zip(boxes, logits, strict=True):
            best = level_logits[n].argsort(descending=True, stable=True)[:pre_nms]
            corners = torch.tensor([width, height, width, height])
            clipped = level_boxes[n][best].clamp(min=0).minimum(corners)
            good = ((clipped[:, 2:] - clipped[:, :2]) > min_size).all(1)
            clipped, best = clipped[good], best[good]
            keep = nms(clipped, level_logits[n][best], iou)
            kept.append(clipped[keep])
            scores.append(level_logits[n][best][keep])
        order = torch.cat(scores).argsort(descending=True)[:post_nms]
        yield torch.cat(kept)[order], torch.cat(scores)[order]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_proposals(monkeypatch, seed, together):
    """The same as image by image and level by level, also suppressed together as on a GPU."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(40, 60), (33, 47), (60, 60)]
    boxes, logits = [], []
    for n in (70, 30, 4):
        middle, half = (torch.rand(3, n, 2, generator=generator) * k for k in (60, 12))
        boxes.append(torch.cat([middle - half, middle + half], 2))
        logits.append(torch.randn(3, n, generator=generator))
    if together:
        monkeypatch.setattr(matching, "_suppress", matching._suppress_together)
        monkeypatch.setattr(matching, "_SUPPRESSED", 150)  # two images, then one
    options: dict[str, Any] = {"iou": 0.5, "pre_nms": 50, "post_nms": 20, "min_size": 4.0}
    found = top_proposals(boxes, logits, sizes, **options)
    for (box, logit), (expected, scores) in zip(
        found, one_by_one(boxes, logits, sizes, **options), strict=True
    ):
        assert torch.equal(box, expected)
        assert torch.equal(logit, scores)
        assert len(box) <= 20


def test_few_or_no_proposals():
    box, logit = torch.tensor([[[1.0, 2.0, 9.0, 9.0]]]), torch.zeros(1, 1)
    options: dict[str, Any] = {"iou": 0.5, "pre_nms": 50, "post_nms": 20}
    ((found, _),) = top_proposals([box], [logit], [(5, 30)], min_size=0.0, **options)
    assert found.tolist() == [[1, 2, 9, 5]]
    ((found, logits),) = top_proposals([box], [logit], [(5, 30)], min_size=3.0, **options)
    assert found.shape == (0, 4)
    assert logits.shape == (0,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_proposals_that_are_not_finite(bad):
    box = torch.tensor([[[1.0, 2.0, 9.0, bad]]])
    options: dict[str, Any] = {"iou": 0.5, "pre_nms": 50, "post_nms": 20, "min_size": 0.0}
    with pytest.raises(FloatingPointError, match="diverged"):
        top_proposals([box], [torch.zeros(1, 1)], [(30, 30)], **options)

"""Limits of proposals and detections: they follow area and density, and lose no probable cell."""

from __future__ import annotations

import logging
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellseg.config import load_recipe
from cellseg.network import build_network, limits
from cellseg.network.limits import (
    DETECTIONS,
    POST_NMS,
    PRE_NMS,
    Limit,
    Limits,
    box_chunks,
    choose_limits,
    count_detections,
    mask_chunks,
    select_proposals,
    warn_of_limits,
)
from tests.network.network_cases import picture

MEGAPIXEL = 1e6
MANY = Limit(10**6, 10**6)


@pytest.fixture
def cfg():
    cfg = load_recipe("mask_rcnn_R_50_FPN_3x", "torchvision")
    cfg.DATA.CELLS_PER_MEGAPIXEL = 5000.0
    return cfg


def test_limits_follow_area_and_density(cfg):
    one = choose_limits(cfg, MEGAPIXEL)
    assert one.detections.most >= 5000  # the cells that have room
    assert one.post_nms.most >= 5000
    assert one.pre_nms.most >= 5000
    four = choose_limits(cfg, 4 * MEGAPIXEL)
    cfg.DATA.CELLS_PER_MEGAPIXEL *= 4
    assert choose_limits(cfg, MEGAPIXEL) == four
    for name in ("pre_nms", "post_nms", "detections"):
        small, large = getattr(one, name), getattr(four, name)
        assert large.most == 4 * small.most
        assert large.least == small.least  # boxes that are hardly cells cost no more time


def test_a_small_image_has_at_least_the_former_limits(cfg):
    assert choose_limits(cfg, 100) == Limits(Limit(1200, 1200), Limit(1000, 1000), Limit(800, 800))


def test_an_unknown_density_leaves_room_for_small_cells(cfg):
    cfg.DATA.CELLS_PER_MEGAPIXEL = 0.0
    assert choose_limits(cfg, MEGAPIXEL).detections.most >= 10_000


def test_a_value_of_the_user_is_used_as_it_is(cfg):
    cfg.merge_from_list([PRE_NMS, 30, POST_NMS, 20, DETECTIONS, 10])
    for area in (1, 1e9):
        assert choose_limits(cfg, area) == Limits(Limit(30, 30), Limit(20, 20), Limit(10, 10))


@pytest.mark.parametrize(
    ("n_probable", "n", "kept", "limited"),
    [
        (0, 0, 0, False),
        (0, 3, 3, False),
        (0, 100, 5, False),  # none is probably a cell: the best five
        (7, 100, 7, False),
        (9, 100, 9, False),
        (10, 100, 9, True),
        (100, 100, 9, True),
    ],
)
def test_probable_cells_extend_the_list(n_probable, n, kept, limited):
    scores = torch.tensor([0.9] * n_probable + [0.1] * (n - n_probable))
    assert Limit(5, 9).count(scores, 0.5) == (kept, limited)


def grid(n, step=12, side=10):
    """Return n boxes in rows of 100, which don't overlap."""
    index = torch.arange(n)
    corner = torch.stack([index % 100, index // 100], 1) * float(step)
    return torch.cat([corner, corner + side], 1)


def test_all_proposals_of_a_crowded_image_are_selected():
    boxes, logits = grid(5000), torch.full((5000,), 3.0)
    grown = Limits(Limit(1000, 8000), Limit(1000, 6000), MANY)
    size = (600, 1200)
    selected = select_proposals([boxes], [logits], size, grown, 0.7, 0.0)
    assert len(selected.boxes) == 5000
    assert selected.limited_by == ()
    # Background: as many as always.
    selected = select_proposals([boxes], [logits - 9], size, grown, 0.7, 0.0)
    assert len(selected.boxes) == 1000
    assert selected.limited_by == ()
    # Two feature maps: the second limit is for both.
    selected = select_proposals([boxes] * 2, [logits, logits + 1], size, grown, 0.7, 0.0)
    assert len(selected.boxes) == 6000
    assert selected.limited_by == (POST_NMS,)
    assert (selected.logits[:5000] == 4).all()
    fixed = Limits(Limit(1000, 1000), Limit(1000, 1000), MANY)
    selected = select_proposals([boxes], [logits], size, fixed, 0.7, 0.0)
    assert len(selected.boxes) == 1000
    assert selected.limited_by == (PRE_NMS,)


@pytest.mark.parametrize(
    ("n_cells", "limited"),
    [
        (1, False),  # 1000 boxes of a cell
        (124, False),
        (125, True),  # 8 boxes each: as many cells as have room
        (1000, True),
    ],
)
def test_many_boxes_of_few_cells_are_not_many_cells(n_cells, limited):
    """Of 2000 probable boxes the best 1000 are kept, and of these one for each cell."""
    boxes, logits = grid(n_cells).repeat(2000 // n_cells + 1, 1)[:2000], torch.linspace(4, 3, 2000)
    limits = Limits(Limit(1000, 1000), Limit(1000, 6000), MANY)
    selected = select_proposals([boxes], [logits], (600, 1200), limits, 0.7, 0.0)
    assert len(selected.boxes) == n_cells
    assert selected.limited_by == ((PRE_NMS,) if limited else ())


def test_selected_proposals_by_hand():
    """Clipped to 20 x 30; the second overlaps the first, the fourth is empty, the last is NaN."""
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 10, 11], [-5, -5, 50, 50], [40, 0, 50, 10], [torch.nan] * 4]
    )
    logits = torch.tensor([1.0, 0.5, 2.0, 3.0, 4.0])
    limits = Limits(MANY, MANY, MANY)
    selected = select_proposals([boxes], [logits], (20, 30), limits, 0.7, 0.0)
    assert selected.boxes.tolist() == [[0, 0, 30, 20], [0, 0, 10, 10]]
    assert selected.logits.tolist() == [2.0, 1.0]
    selected = select_proposals([boxes], [logits], (20, 30), limits, 0.7, 10.0)
    assert selected.boxes.tolist() == [[0, 0, 30, 20]]
    # On another feature map it stays.
    split = select_proposals(
        [boxes[:1], boxes[1:2]], [logits[:1], logits[1:2]], (20, 30), limits, 0.7, 0.0
    )
    assert split.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 11]]
    none = select_proposals([boxes[:0]], [logits[:0]], (20, 30), limits, 0.7, 0.0)
    assert none.boxes.shape == (0, 4)


@pytest.mark.detectron2
@pytest.mark.parametrize(("pre", "post"), [(40, 30), (10, 1000), (1000, 5)])
def test_fixed_limits_select_the_proposals_of_detectron2(pre, post):
    from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals

    torch.manual_seed(0)
    logits = [torch.randn(1, n) for n in (90, 30)]
    corners = [100 * torch.rand(1, n, 2) for n in (90, 30)]
    boxes = [
        torch.cat([corner, corner + 5 + 30 * torch.rand_like(corner)], 2) for corner in corners
    ]
    (expected,) = find_top_rpn_proposals(
        [each.clone() for each in boxes], logits, [(80, 110)], 0.5, pre, post, 0.0, False
    )
    fixed = Limits(Limit(pre, pre), Limit(post, post), MANY)
    selected = select_proposals(
        [each[0] for each in boxes], [each[0] for each in logits], (80, 110), fixed, 0.5, 0.0
    )
    assert torch.equal(selected.boxes, expected.proposal_boxes.tensor)
    assert torch.equal(selected.logits, expected.objectness_logits)


@pytest.mark.parametrize(("threshold", "expected"), [(0.05, (POST_NMS,)), (0.95, ())])
def test_an_image_without_cells_reaches_no_limit_of_proposals(tiny, engine, threshold, expected):
    """With random weights, all proposals and detections are about as probable as not."""
    from cellseg.config import load_config

    cfg = load_config(tiny, engine)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
    torch.manual_seed(0)
    network: Any = build_network(cfg).eval()
    (cells,) = network.detect([picture(64, 64)], Limits(MANY, Limit(2, 2), MANY))
    assert bool(len(cells)) == bool(expected)
    assert cells.limited_by == expected


def test_limited_detections():
    scores = torch.tensor([0.9, 0.8, 0.3, 0.05])
    for most, expected in ((2, (2, (DETECTIONS,))), (3, (3, ())), (4, (4, ()))):
        assert count_detections(scores, Limits(MANY, MANY, Limit(most, most))) == expected


@given(st.lists(st.integers(0, 120), min_size=1, max_size=4), st.integers(1, 60))
def test_chunks_have_every_box_once(lengths, count):
    lists = [list(range(100 * n, 100 * n + length)) for n, length in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "_BOXES", count)
        chunks = list(box_chunks(lists))
    assert all(len(chunk) == len(lists) for chunk in chunks)
    assert len(chunks) == max(1, -(-sum(lengths) // count))
    assert all(sum(map(len, chunk)) <= count for chunk in chunks)
    assert [list(chain(*parts)) for parts in zip(*chunks, strict=True)] == lists


def test_masks_are_computed_in_small_parts_on_a_cpu():
    lists = [range(500)]
    on_cpu, on_gpu = (list(mask_chunks(lists, torch.device(name))) for name in ("cpu", "cuda"))
    assert len(on_cpu) > len(on_gpu) == 1


def test_parts_of_a_batch_have_the_same_detections(tiny, engine, monkeypatch):
    from cellseg.config import load_config

    cfg = load_config(tiny, engine)
    cfg.MODEL.DEVICE = "cpu"
    heads = cfg.MODEL.ROI_HEADS
    heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST = 0.0, 0.9
    torch.manual_seed(0)
    network: Any = build_network(cfg).eval()
    images = [picture(64, 64), picture(64, 64, seed=1)]
    chosen = choose_limits(cfg, 64 * 64)
    whole = network.detect(images, chosen)
    monkeypatch.setattr(limits, "_BOXES", 7)
    monkeypatch.setattr(limits, "_MASKS_ON_CPU", 3)
    for expected, cells in zip(whole, network.detect(images, chosen), strict=True):
        assert len(cells) == len(expected) > 7
        assert cells.limited_by == expected.limited_by
        for name in ("boxes", "scores", "classes", "masks"):
            torch.testing.assert_close(
                getattr(cells, name), getattr(expected, name), rtol=1e-4, atol=1e-5
            )


def test_the_warning_names_images_and_keys(caplog):
    with caplog.at_level(logging.WARNING, "cellseg"):
        warn_of_limits({"a.tif": [(), ()], "b.tif": [()]})
        assert not caplog.records
        warn_of_limits({"a.tif": [(), (DETECTIONS,)], "b.tif": [(POST_NMS,)] * 2, "c.tif": [()]})
    (message,) = caplog.messages
    for part in ("3 tiles of 2 images", "a.tif, b.tif", DETECTIONS, POST_NMS, "--tile"):
        assert part in message

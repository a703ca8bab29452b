"""Detections selected by box scores: by hand, and as Detectron2 and torchvision select them."""

from __future__ import annotations

import math
from functools import partial
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellseg.network.limits import DETECTIONS, Limit, Limits, select_detections

MANY = Limit(10**6, 10**6)
SIZE = (9, 12)
POWERS = (0.0, 0.3, 1.0, 2.0)


def limits(n=10**6):
    return Limits(MANY, MANY, Limit(n, n))


select = partial(select_detections, size=SIZE, limits=limits(), threshold=0.0, iou=0.5)


def iou_of(one, other):
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    overlap = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return overlap / (sum(areas) - overlap)


def by_hand(proposals, n, power, threshold, iou, min_size):
    """Return the score, class and box of each detection, and whether probable cells are lost."""
    candidates = []
    for own_boxes, row, logit in zip(*(part.tolist() for part in proposals), strict=True):
        if not all(map(math.isfinite, chain(row, *own_boxes))):
            continue
        for k, prob in enumerate(row):
            x0, y0, x1, y1 = own_boxes[k if len(own_boxes) > 1 else 0]
            x0, x1 = (min(max(x, 0), SIZE[1]) for x in (x0, x1))
            y0, y1 = (min(max(y, 0), SIZE[0]) for y in (y0, y1))
            score = prob * (1 / (1 + math.exp(-logit))) ** power
            if score > threshold and x1 - x0 > min_size and y1 - y0 > min_size:
                candidates.append((score, k, [x0, y0, x1, y1]))
    kept: list[tuple[float, int, list[float]]] = []
    for score, k, box in sorted(candidates, key=lambda each: -each[0]):  # equal scores in order
        if all(k != other_k or iou_of(box, other) <= iou for _, other_k, other in kept):
            kept.append((score, k, box))
    return kept[:n], sum(score >= 0.1 for score, _, _ in kept) > n


@st.composite
def classified(draw):
    """Proposals with integer boxes, different probabilities and different logits; some damaged."""
    n, k = draw(st.integers(0, 8)), draw(st.integers(1, 3))
    n_boxes = draw(st.sampled_from([1, k]))
    corner, side = st.integers(-3, 10), st.integers(0, 6)
    boxes = torch.zeros(n, n_boxes, 4)
    for box in boxes.view(-1, 4):
        x, y, width, height = (draw(numbers) for numbers in (corner, corner, side, side))
        box[:] = torch.tensor([x, y, x + width, y + height])
    ranks = torch.tensor(draw(st.permutations(range(n * k))), dtype=torch.float32)
    probs = ranks.view(n, k) / max(n * k, 1)
    logits = torch.tensor(draw(st.permutations(range(-4, 4)))[:n], dtype=torch.float32)
    for row in draw(st.sets(st.integers(0, 7), max_size=2)):
        damaged = draw(st.sampled_from([boxes.flatten(1), probs]))
        if row < n:
            column = draw(st.integers(0, damaged.shape[1] - 1))
            damaged[row, column] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    return boxes, probs, logits


@given(
    classified(),
    st.integers(0, 10),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from(POWERS),
    st.sampled_from([0.0, 1.0]),
)
def test_detections_by_hand(proposals, n, threshold, iou, power, min_size):
    boxes, probs, logits = proposals
    before = [tensor.clone() for tensor in proposals]
    options = {"threshold": threshold, "iou": iou, "min_size": min_size}
    cells = select(boxes, probs, logits, limits=limits(n), objectness_power=power, **options)
    expected, limited = by_hand(proposals, n, power, **options)
    assert cells.classes.tolist() == [k for _, k, _ in expected]
    assert cells.boxes.tolist() == [box for _, _, box in expected]
    assert cells.scores.tolist() == pytest.approx([score for score, _, _ in expected], rel=1e-5)
    assert cells.limited_by == ((DETECTIONS,) if limited else ())
    for tensor, unchanged in zip(proposals, before, strict=True):
        assert torch.equal(tensor.nan_to_num(7), unchanged.nan_to_num(7))


@given(classified(), st.sampled_from(POWERS))
def test_one_box_for_all_classes_is_that_of_each(proposals, power):
    boxes, probs, logits = proposals
    one, each = (
        select(some, probs, logits, objectness_power=power)
        for some in (boxes[:, :1], boxes[:, :1].repeat(1, probs.shape[1], 1))
    )
    assert all(map(torch.equal, one[:3], each[:3]))


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("n_boxes", [1, 4])
@pytest.mark.parametrize("n", [0, 5])
def test_none(n, n_boxes, power):
    """No proposals, or none above the threshold: 0.9 is not."""
    boxes = torch.tensor([1.0, 1, 5, 5]).expand(n, n_boxes, 4)
    logits = torch.full((n,), math.log(9))
    cells = select(boxes, torch.full((n, 4), 0.9), logits, threshold=0.901, objectness_power=power)
    assert cells.boxes.shape == (0, 4)
    assert cells.scores.shape == cells.classes.shape == (0,)
    assert cells.classes.dtype == torch.int64
    assert cells.limited_by == ()


@pytest.mark.parametrize(
    ("power", "expected"),
    [(0.0, 0.36), (0.5, 0.36 * 0.8), (1.0, 0.36 * 0.64), (2.0, 0.36 * 0.4096)],
)
def test_the_score_is_a_product(power, expected):
    boxes, probs = torch.tensor([[[1.0, 1, 5, 5]]]), torch.tensor([[0.36]])
    logits = torch.tensor([math.log(0.64 / 0.36)])
    scores = select(boxes, probs, logits, objectness_power=power).scores
    assert scores.tolist() == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize(
    ("power", "expected"),
    [(0.0, [0.54, 0.06]), (0.5, [0.57, 0.19]), (1.0, [0.6, 0.6])],
)
def test_the_foreground_raises_uncertain_classes(power, expected):
    """By hand: f is 0.6, the square roots of 0.54 * 0.6 and 0.06 * 0.6 are 0.569 and 0.190."""
    boxes, probs = torch.tensor([[[1.0, 1, 5, 5]]]), torch.tensor([[0.54, 0.06]])
    for objectness_power, objectness in ((0.0, 1), (1.0, 0.5)):
        scores = select(
            boxes,
            probs,
            torch.zeros(1),
            objectness_power=objectness_power,
            foreground_power=power,
        ).scores
        assert scores.tolist() == pytest.approx([s * objectness for s in expected], abs=0.001)


def test_classes_that_do_not_exclude_each_other_have_scores_of_at_most_1():
    boxes, probs = torch.tensor([[[1.0, 1, 5, 5]]]), torch.tensor([[0.81, 0.9]])
    scores = select(boxes, probs, torch.zeros(1), foreground_power=0.5).scores
    assert scores.tolist() == pytest.approx([math.sqrt(0.9), 0.9])


def random_proposals(n, k, seed):
    """Return boxes that overlap, some of them empty, with probabilities and logits."""
    generator = torch.Generator().manual_seed(seed)
    corner = 100 * torch.rand((n, k, 2), generator=generator) - 10
    side = 40 * torch.rand((n, k, 2), generator=generator)
    side[::7, :, 0] = 0
    probs = (2 * torch.randn((n, k + 1), generator=generator)).softmax(1)
    logits = torch.randn(n, generator=generator)
    return torch.cat([corner, corner + side], 2), probs, logits


def test_objectness_sorts_equal_classes():
    """Boxes that do not overlap, of classes that are equally probable."""
    _, _, logits = random_proposals(6, 4, seed=0)
    corner = torch.arange(6.0).view(6, 1, 1) + torch.zeros(2)
    boxes = torch.cat([corner, corner + 1], 2)
    cells = select(boxes, torch.full((6, 4), 0.25), logits, objectness_power=1.0)
    order = logits.argsort(descending=True)
    assert torch.equal(cells.boxes, boxes[order, 0].repeat_interleave(4, 0))
    assert torch.equal(cells.scores, logits[order].sigmoid().repeat_interleave(4) / 4)
    assert cells.classes.tolist() == list(range(4)) * 6


def test_without_power_the_objectness_has_no_effect():
    boxes, probs, logits = random_proposals(30, 4, seed=0)
    with_nan = select(boxes, probs[:, :4], torch.full_like(logits, math.nan))
    assert len(with_nan.scores) > 0
    assert torch.isin(with_nan.scores, probs[:, :4]).all()


def test_small_boxes_take_no_place():
    boxes = torch.tensor([[[1.0, 1, 1, 5]], [[1, 1, 1.5, 5]], [[1, 1, 5, 5]], [[6, 1, 9, 5]]])
    probs = torch.tensor([[0.9], [0.8], [0.7], [0.6]])
    cells = select(boxes, probs, torch.zeros(4), min_size=0.5, limits=limits(2))
    assert cells.boxes.tolist() == boxes[2:, 0].tolist()
    assert cells.limited_by == ()


# On a CPU, torchvision's NMS has another way for more than 1,000 boxes.
@pytest.mark.parametrize(("n", "k", "n_boxes"), [(0, 3, 3), (60, 3, 3), (60, 3, 1), (800, 5, 5)])
@pytest.mark.detectron2
def test_class_probabilities_select_as_detectron2_does(n, k, n_boxes):
    from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference

    size = (80, 90)
    boxes, probs, logits = random_proposals(n, k, seed=1)
    boxes = boxes[:, :n_boxes].clone()
    boxes[5:6, 0, 1], probs[9:10] = math.nan, math.nan
    ((expected,), _) = fast_rcnn_inference([boxes.flatten(1)], [probs], [size], 0.1, 0.4, -1)
    assert not n or not expected.pred_boxes.nonempty().all()
    expected = expected[expected.pred_boxes.nonempty()]
    cells = select_detections(boxes, probs[:, :-1], logits, size, limits(), threshold=0.1, iou=0.4)
    assert torch.equal(cells.boxes, expected.pred_boxes.tensor)
    assert torch.equal(cells.scores, expected.scores)
    assert torch.equal(cells.classes, expected.pred_classes)


@pytest.mark.parametrize(("n", "k"), [(60, 3), (800, 5)])
def test_class_probabilities_select_as_torchvision_does(n, k):
    from torchvision.models.detection.roi_heads import RoIHeads

    size = (80, 90)
    boxes, probs, logits = random_proposals(n, k, seed=1)
    boxes[1::7, :, 3] = boxes[1::7, :, 1] + 0.005
    weights = (1.0, 1.0, 1.0, 1.0)
    heads = RoIHeads(None, None, None, 0.5, 0.5, 1, 0.5, weights, 0.1, 0.4, 10**6)
    proposals = torch.tensor([20.0, 20, 30, 30]).expand(n, 4)
    centres, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    regression = torch.cat([(centres - 25) / 10, (sides / 10).clamp(min=1e-30).log()], 2)
    regression = torch.cat([torch.zeros(n, 1, 4), regression], 1)
    with_background = probs.roll(1, 1)
    class_logits = with_background.log()
    (expected,) = zip(
        *heads.postprocess_detections(class_logits, regression.flatten(1), [proposals], [size]),
        strict=True,
    )
    decoded = heads.box_coder.decode(regression.flatten(1), [proposals])[:, 1:]
    cells = select_detections(
        decoded,
        class_logits.softmax(1)[:, 1:],
        logits,
        size,
        limits(),
        threshold=0.1,
        iou=0.4,
        min_size=0.01,
    )
    assert len(cells.scores) > 20
    assert torch.equal(cells.boxes, expected[0])
    assert torch.equal(cells.scores, expected[1])
    assert torch.equal(cells.classes, expected[2] - 1)

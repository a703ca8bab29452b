"""Encoded masks equal Detectron2's pasting with pycocotools, bit for bit."""

from __future__ import annotations

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellseg.predict.masks import encode_masks


def reference(masks, boxes, size):
    from detectron2.layers.mask_ops import paste_masks_in_image

    pasted = paste_masks_in_image(masks, boxes, size, threshold=0.5).numpy()
    rles = [pycocotools.mask.encode(np.asfortranarray(one.astype(np.uint8))) for one in pasted]
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles]


def drawn(n, side=28, seed=0):
    """Return masks with smooth edges like a network's, many pixels near 0.5."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((n, 1, 5, 5), generator=generator)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")[:, 0]


@st.composite
def boxes_in_images(draw):
    size = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    boxes = []
    for _ in range(draw(st.integers(0, 5))):
        box = []
        for length in (size[1], size[0]):
            inside = st.floats(0, length, width=32)
            start, end = draw(
                st.one_of(
                    st.tuples(inside, inside),
                    st.just((0.0, float(length))),
                    st.tuples(st.just(0.0), inside),
                    st.tuples(inside, st.just(float(length))),
                    # Across the edges, some far outside.
                    st.tuples(st.floats(-1e4, length, width=32), st.floats(0, 1e4, width=32)),
                    st.tuples(inside, st.floats(2**-10, 0.5, width=32)).map(
                        lambda t: (t[0], sum(t))
                    ),
                    st.integers(0, length).map(lambda n: (n, n + 0.5)),
                )
            )
            box.append(sorted((start, end)))
        boxes.append([box[0][0], box[1][0], box[0][1], box[1][1]])
    return size, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


@pytest.mark.detectron2
@settings(max_examples=300, deadline=None)
@given(
    boxes_in_images(),
    st.sampled_from([28, 14, 1]),
    st.integers(0, 9),
    st.sampled_from([None, 0.0, 1.0]),
)
@example(((1, 1), torch.tensor([[0.0, 0, 1, 1]])), 28, 0, 1.0)
@example(((7, 9), torch.tensor([[0.0, 0, 9, 7]])), 28, 0, 1.0)
@example(((7, 9), torch.tensor([[3.0, 2, 3, 2]])), 28, 0, 1.0)  # an empty box
def test_equals_pasting(case, side, seed, flat):
    size, boxes = case
    masks = drawn(len(boxes), side, seed)
    if flat is not None:
        masks = torch.full_like(masks, flat)
    assert encode_masks(masks, boxes, size) == reference(masks, boxes, size)


@pytest.mark.detectron2
@settings(max_examples=30, deadline=None)
@given(boxes_in_images(), st.integers(0, 9))
def test_in_chunks(case, seed):
    size, boxes = case
    boxes = boxes.repeat(3, 1)
    masks = drawn(len(boxes), seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cellseg.predict.masks._CHUNK", 100)  # a few masks, or less than one
        assert encode_masks(masks, boxes, size) == reference(masks, boxes, size)


@pytest.mark.detectron2
def test_hundreds_of_masks():
    generator = torch.Generator().manual_seed(1)
    start = torch.rand((300, 2), generator=generator) * torch.tensor([450.0, 350.0]) - 20
    boxes = torch.cat([start, start + 60 * torch.rand((300, 2), generator=generator)], 1)
    boxes = boxes.clamp(min=0)
    masks = drawn(300)
    assert encode_masks(masks, boxes, (333, 444)) == reference(masks, boxes, (333, 444))


@pytest.mark.parametrize(
    "box", [[20, 2, 30, 5], [2, 20, 5, 30], [-30, 1, -20, 4], [1e9, 1e9, 3e9, 3e9], [-9e9] * 4]
)
def test_boxes_outside_give_empty_masks(box):
    """Detectron2 can't paste these. Separately and with others, each is an empty mask."""
    empty = pycocotools.mask.encode(np.zeros((10, 12), np.uint8, order="F"))["counts"].decode()
    boxes = torch.tensor([box, [0, 0, 12, 10], box], dtype=torch.float32)
    masks = torch.ones((3, 28, 28))
    both = encode_masks(masks, boxes, (10, 12))
    assert [rle["counts"] for rle in both] == [empty, "0" + empty, empty]
    assert encode_masks(masks[:1], boxes[:1], (10, 12)) == [{"size": [10, 12], "counts": empty}]


def test_no_masks():
    assert encode_masks(torch.zeros((0, 28, 28)), torch.zeros((0, 4)), (5, 6)) == []


def test_a_probability_equal_to_the_threshold_is_in_the_mask():
    masks = torch.full((1, 28, 28), 0.25)
    boxes = torch.tensor([[0.0, 0, 8, 8]])
    # At the box's edge the sampled value is below the mask's.
    (at,) = encode_masks(masks, boxes, (8, 8), threshold=0.25)
    (above,) = encode_masks(masks, boxes, (8, 8), threshold=0.2501)
    assert pycocotools.mask.area(at) == 64
    assert pycocotools.mask.area(above) == 0


def test_memory_depends_on_the_boxes_not_the_image():
    """Masks of a huge image, whose stack would take 200 GB."""
    boxes = torch.tensor([[10.0 * n, 10.0 * n, 10.0 * n + 30, 10.0 * n + 20] for n in range(50)])
    rles = encode_masks(torch.ones((50, 28, 28)), boxes, (65000, 65000))
    assert [int(area) for area in pycocotools.mask.area(rles)] == [600] * 50
    assert pycocotools.mask.toBbox(rles[3]).tolist() == [30, 30, 30, 20]

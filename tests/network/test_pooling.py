"""RoIAlign, compared with torchvision's and by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torchvision.ops import roi_align

from cellseg.network.pooling import RoIAlign


def boxes_in(generator, count, images, reach):
    """Return `(n, 4)` for each image, `count` in all."""
    corner = torch.rand((count, 2), generator=generator) * 2 * reach - reach / 2
    size = torch.rand((count, 2), generator=generator) * reach * 1.5
    number = torch.randint(0, images, (count,), generator=generator)
    return [torch.cat([corner, corner + size], 1)[number == n] for n in range(images)]


def with_index(boxes):
    """Return the `(K, 5)` of torchvision."""
    return torch.cat([functional.pad(of, (1, 0), value=n) for n, of in enumerate(boxes)])


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(*(st.integers(1, top) for top in (3, 5, 9, 9))),
    bins=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    ratio=st.integers(0, 3),
    aligned=st.booleans(),
    stored=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    count=st.integers(0, 9),
)
def test_values_and_gradients_are_torchvisions(seed, shape, bins, ratio, aligned, stored, count):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(shape, generator=generator).contiguous(memory_format=stored)
    # From far outside to far outside, at a stride of 4.
    boxes = boxes_in(generator, count, shape[0], 4.0 * max(shape[2:]))
    theirs, ours = (features.clone().requires_grad_() for _ in range(2))
    expected = roi_align(theirs, with_index(boxes), bins, 0.25, ratio, aligned)
    pooled = RoIAlign(bins, [4], ratio, aligned)([ours], boxes)
    assert pooled.shape == expected.shape == (count, shape[1], *bins)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn(expected.shape, generator=generator)
    (pooled * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


STRIDES = [4, 8, 16]


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), ratio=st.integers(0, 2), counts=st.lists(st.integers(0, 7)))
@example(seed=999999, ratio=1, counts=[0, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0])
def test_each_box_is_pooled_from_the_level_for_its_size(seed, ratio, counts):
    """Boxes up to 112 px from stride 4, up to 224 from 8, larger ones from 16."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn((len(counts), 2, 400 // s, 500 // s), generator=generator) for s in STRIDES]
    boxes, expected = [torch.zeros((0, 4))], [torch.zeros((0, 2, 3, 3))]
    for image, count in enumerate(counts):
        order = torch.randperm(7, generator=generator)[:count]
        side = torch.tensor([0.0, 20, 111, 112, 223, 224, 700])[order]
        # A fraction with which all samples keep 0.001 features away from where a map ends and
        # they become 0: there rounding decides. A binary one, so that the sides are exact.
        corner = torch.randint(0, 300, (count, 2), generator=generator) + 3 / 32
        boxes.append(torch.cat([corner, corner + side[:, None] * torch.tensor([0.5, 2.0])], 1))
        for box, level in zip(boxes[-1], (side >= 112).int() + (side >= 224).int(), strict=True):
            rois = torch.cat([torch.tensor([float(image)]), box])[None]
            scale = 1 / STRIDES[level]
            expected.append(roi_align(maps[level], rois, 3, scale, ratio, True))
    pool = RoIAlign(3, STRIDES, ratio)
    pooled = pool(maps, boxes[1:] or boxes)
    torch.testing.assert_close(pooled, torch.cat(expected), rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # without the levels that have no boxes
        assert pool(maps, boxes[1:] or boxes).equal(pooled)


def test_all_levels_get_a_gradient_in_training():
    maps = [torch.ones((1, 2, 64 // s, 64 // s), requires_grad=True) for s in STRIDES]
    pooled = RoIAlign(3, STRIDES, 1)(maps, [torch.tensor([[1.0, 1, 20, 20]])])
    gradients = torch.autograd.grad(pooled.sum(), maps)
    assert [float(each.sum()) for each in gradients] == [pytest.approx(18), 0, 0]


def test_bins_of_a_ramp_are_the_values_at_their_centres():
    """Features that rise by 1 to the right and by 100 downwards."""
    y, x = torch.meshgrid(torch.arange(8.0) + 0.5, torch.arange(10.0) + 0.5, indexing="ij")
    features = (x + 100 * y)[None, None]
    box = torch.tensor([[8.0, 4, 32, 28]])  # at stride 4: x from 2 to 8, y from 1 to 7
    pooled = RoIAlign((2, 3), [4], 1)([features], [box])
    torch.testing.assert_close(pooled[0, 0], torch.tensor([[253.0, 255, 257], [553, 555, 557]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_summed_in_float32(dtype):
    """In bfloat16 a box at 301 would be at 302."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((2, 3, 90, 90), generator=generator).to(dtype)
    boxes = [torch.tensor([[301.0, 303, 331, 329]]), torch.tensor([[5.0, 299, 23, 341]])]
    pooled = RoIAlign(7, [4], 1)([features], boxes)
    assert pooled.dtype == dtype
    expected = roi_align(features.float(), with_index(boxes), 7, 0.25, 1, True).to(dtype)
    torch.testing.assert_close(pooled, expected)


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((1, 2, 3, 4), generator=generator, dtype=torch.float64)
    boxes = torch.tensor([[-1.3, 0.2, 3.1, 2.9]])
    pool = RoIAlign(2, [1], 2)
    assert torch.autograd.gradcheck(lambda f: pool([f], [boxes]), features.requires_grad_())


def test_nan_boxes_give_nan():
    features = torch.ones((1, 2, 3, 4))
    boxes = torch.tensor([[float("nan"), 0, 1, 1], [0, 0, 1, 1]])
    pooled = RoIAlign(2, [1], 1)([features], [boxes])
    assert pooled[0].isnan().all()
    assert (pooled[1] == 1).all()

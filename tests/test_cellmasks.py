"""`CellMasks` against full masks, sampled by torchvision and Detectron2."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import masks_to_boxes, roi_align

import cellseg.cellmasks
from cellseg.cellmasks import CellMasks
from cellseg.rle import label_map_to_runs
from cellseg.synthetic import draw_tissue
from cellseg.view import View
from tests.bitmasks import from_bitmasks, to_full


def roi_align_full(full, boxes, mask_size):
    """Return the values that Detectron2's `BitMasks.crop_and_resize` compares with 0.5."""
    rois = torch.cat([torch.arange(len(boxes))[:, None].float(), boxes], 1)
    return roi_align(full[:, None].float(), rois, mask_size, 1.0, 0, True)[:, 0]


def assert_targets(targets, values):
    """Check targets except where the value is about 0.5: coordinates are rounded differently."""
    assert targets.dtype == torch.bool
    assert targets.shape == values.shape
    assert ((targets == (values >= 0.5)) | ((values - 0.5).abs() < 1e-4)).all()


def ellipses(size, centres, radii):
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
    return torch.stack(
        [
            ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
            for (cx, cy), (rx, ry) in zip(centres, radii, strict=True)
        ]
    )


def jittered(boxes, size, generator):
    """Return boxes like proposals: somewhat shifted and resized, within the image."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = boxes + 0.15 * sides * torch.randn(boxes.shape, generator=generator)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
    return boxes.clamp(torch.zeros(4), torch.tensor([size[1], size[0]] * 2))


THREE = torch.zeros((3, 5, 7), dtype=torch.bool)
THREE[0, 1:3, 2:6] = True
THREE[0, 1, 3] = False
THREE[2, 4, 6] = True  # the second has no pixels


def test_masks_keep_their_pixels_tight_boxes_and_areas():
    masks = from_bitmasks(THREE)
    assert len(masks) == 3
    assert masks.size == (5, 7)
    assert torch.equal(to_full(masks), THREE)
    assert masks.boxes.dtype == torch.float32
    assert masks.boxes.tolist() == [[2, 1, 6, 3], [0, 0, 0, 0], [6, 4, 7, 5]]
    assert masks.areas().tolist() == [7, 0, 1]
    assert masks.areas().dtype == torch.int64
    assert masks.crop(0).tolist() == [[True, False, True, True], [True] * 4]
    assert "3" in repr(masks)


def test_no_masks():
    masks = from_bitmasks(torch.zeros((0, 5, 7), dtype=torch.bool))
    empty = np.zeros(0, np.int64)
    for none in (masks, CellMasks.from_rows((5, 7), *[empty] * 4), CellMasks.cat([masks, masks])):
        assert len(none) == 0
        assert none.size == (5, 7)
        assert none.boxes.shape == (0, 4)
        assert none.areas().shape == (0,)
        assert none.crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)
    assert torch.equal(to_full(CellMasks.cat([masks, from_bitmasks(THREE)])), THREE)


@pytest.mark.parametrize(
    "item",
    [0, -1, slice(1, None), slice(0, 0), slice(None, None, 2), torch.tensor([2, 0, 0]),
     torch.tensor([True, False, True]), torch.zeros(0, dtype=torch.int64)],
    ids=str,
)  # fmt: skip
def test_indexing(item):
    picked = from_bitmasks(THREE)[item]
    expected = THREE[[item]] if isinstance(item, int) else THREE[item]
    assert torch.equal(to_full(picked), expected)
    assert picked.areas().tolist() == expected.sum((1, 2)).tolist()
    boxes = torch.tensor([[1.0, 0, 7, 5]]).repeat(len(picked), 1)
    assert_targets(picked.crop_and_resize(boxes, 6), roi_align_full(expected, boxes, 6))


def test_index_out_of_range():
    with pytest.raises(IndexError):
        from_bitmasks(THREE)[3]


def test_cat():
    masks = from_bitmasks(THREE)
    both = CellMasks.cat([masks[torch.tensor([2, 0])], masks[1], masks])
    assert torch.equal(to_full(both), THREE[[2, 0, 1, 0, 1, 2]])
    assert both.areas().tolist() == [1, 7, 0, 7, 0, 1]


def test_to_and_pickle():
    masks = from_bitmasks(THREE)[torch.tensor([2, 0])]
    for there in (masks.to("cpu"), pickle.loads(pickle.dumps(masks))):
        assert torch.equal(to_full(there), THREE[[2, 0]])
        assert there.device == torch.device("cpu")
    assert masks.to("meta").device.type == "meta"


def test_from_crops_is_tight():
    crop = torch.zeros((4, 4), dtype=torch.bool)
    crop[1:3, 2] = True
    masks = CellMasks.from_crops((20, 30), [(10, 5), (0, 0)], [crop, torch.zeros_like(crop)])
    assert masks.boxes.tolist() == [[12, 6, 13, 8], [0, 0, 0, 0]]
    assert masks.areas().tolist() == [2, 0]


@pytest.mark.parametrize("draw", ["from_rows", "from_columns"])
def test_from_rows_and_columns(draw):
    # The first mask is an L of two pieces, the second has three pieces in one line, two of which
    # touch.
    owner, line, begin, end = np.array(
        [[0, 0, 1, 1, 1], [3, 2, 0, 0, 0], [1, 1, 0, 2, 5], [2, 4, 2, 3, 7]]
    )
    full = torch.zeros((2, 5, 7), dtype=torch.bool)
    full[0, 3, 1] = full[0, 2, 1:4] = full[1, 0, 0:3] = full[1, 0, 5:7] = True
    if draw == "from_columns":
        full = full.mT
    masks = getattr(CellMasks, draw)(tuple(full.shape[1:]), owner, line, begin, end)
    assert torch.equal(to_full(masks), full)
    assert torch.equal(masks.boxes, masks_to_boxes(full) + torch.tensor([0, 0, 1, 1]))


SIDES = st.integers(1, 40)


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(SIDES, SIDES), mask_size=st.sampled_from([1, 7, 28]), seed=st.integers(0, 999)
)
def test_targets_equal_those_of_full_masks(size, mask_size, seed):
    # Cells of all sizes, cut by every edge; boxes may extend far beyond the image.
    generator = torch.Generator().manual_seed(seed)
    random = torch.rand((6, 8), generator=generator)
    scale = torch.tensor([size[1], size[0]])
    full = ellipses(size, random[:, :2] * scale, random[:, 2:4] ** 2 * scale + 0.3)
    full &= torch.rand(full.shape, generator=generator) < 0.9
    low = (random[:, 4:6] * 1.4 - 0.4) * scale
    boxes = torch.cat([low, low + random[:, 6:] * 1.2 * scale], 1)
    boxes[::2] = jittered(from_bitmasks(full).boxes, size, generator)[::2]
    targets = from_bitmasks(full).crop_and_resize(boxes, mask_size)
    assert_targets(targets, roi_align_full(full, boxes, mask_size))


@pytest.mark.parametrize("whole", [(0, 0, 9, 6), (0, 0, 9, 1), (0, 0, 1, 6), (8, 5, 9, 6)])
def test_targets_at_image_edges(whole):
    full = torch.zeros((1, 6, 9), dtype=torch.bool)
    full[0, whole[1] : whole[3], whole[0] : whole[2]] = True
    boxes = torch.tensor([whole]).float()
    masks = from_bitmasks(full)
    for shift in ([0, 0, 0, 0], [-2, -2, 2, 2], [-0.7, 0, 0, 0.7], [1, 0, 3, 0]):
        moved = boxes + torch.tensor(shift)
        assert_targets(masks.crop_and_resize(moved, 28), roi_align_full(full, moved, 28))


def test_target_by_hand():
    full = torch.zeros((1, 8, 8), dtype=torch.bool)
    full[0, :, :4] = True
    masks = from_bitmasks(full)
    # Grid points at pixel centres, then at their edges, where the border has the value 0.5.
    for left in (2, 2.5):
        target = masks.crop_and_resize(torch.tensor([[left, 2, left + 4, 6]]), 4)
        assert target.tolist() == [[[True, True, False, False]] * 4]
    # At the image's edge a cell is extended instead of fading out.
    assert masks.crop_and_resize(torch.tensor([[0.0, 0, 4, 8]]), 28).all()


@pytest.fixture(scope="module")
def crop_of_tissue():
    """A training crop of a synthetic image: scale 2.3, flipped, cells cut at all edges."""
    labels = np.sum(draw_tissue(130, 150, np.random.default_rng(0), 2500, 1.0)[1], axis=0)
    view = View((20, 10, 120, 110), (230, 230), flip_x=True, transpose=True)
    return view.apply_masks(label_map_to_runs(labels)[1])[1]


def test_targets_in_batches_of_any_size(crop_of_tissue, monkeypatch):
    masks = crop_of_tissue
    assert len(masks) >= 15
    generator = torch.Generator().manual_seed(0)
    boxes = jittered(masks.boxes, masks.size, generator)
    values = roi_align_full(to_full(masks), boxes, 28)
    for batch in (1, 5000, 1 << 24):
        monkeypatch.setattr(cellseg.cellmasks, "_BATCH", batch)
        assert_targets(masks.crop_and_resize(boxes, 28), values)


@pytest.mark.detectron2
def test_same_as_bitmasks(crop_of_tissue):
    from detectron2 import structures

    masks = crop_of_tissue
    bitmasks = structures.BitMasks(to_full(masks))
    assert torch.equal(masks.boxes, bitmasks.get_bounding_boxes().tensor)
    picked = torch.tensor([3, 3, 0, 7])
    boxes = jittered(masks.boxes[picked], masks.size, torch.Generator().manual_seed(1))
    targets = masks[picked].crop_and_resize(boxes, 28)
    expected = bitmasks[picked].crop_and_resize(boxes, 28)
    assert (targets != expected).float().mean() <= 0.002
    instances = structures.Instances(masks.size, gt_masks=masks)
    both = structures.Instances.cat([instances[picked].to("cpu"), instances])
    assert torch.equal(to_full(both.gt_masks), to_full(masks)[[3, 3, 0, 7, *range(len(masks))]])


def test_masks_take_less_than_two_percent_of_full_masks():
    labels = np.sum(draw_tissue(304, 400, np.random.default_rng(0), 1000, 1.0)[1], axis=0)
    masks = View((0, 0, 400, 304), (304, 400)).apply_masks(label_map_to_runs(labels)[1])[1]
    assert len(masks) > 80
    assert len(pickle.dumps(masks)) < 0.02 * len(masks) * 304 * 400


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_targets_on_a_gpu(crop_of_tissue):
    masks = crop_of_tissue
    boxes = jittered(masks.boxes, masks.size, torch.Generator().manual_seed(0))
    on_gpu = masks.to("cuda")
    targets = on_gpu.crop_and_resize(boxes.cuda(), 28)
    assert targets.device.type == "cuda"
    assert (targets.cpu() != masks.crop_and_resize(boxes, 28)).float().mean() <= 0.002
    assert torch.equal(to_full(on_gpu[torch.tensor([2, 1], device="cuda")]), to_full(masks)[[2, 1]])


@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    stride=st.integers(1, 8),
    n=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_owners(size, stride, n, seed):
    """Each pixel of the grid belongs to the mask there with the smallest box."""
    rng = np.random.default_rng(seed)
    full = torch.zeros((n, *size), dtype=torch.bool)
    for mask in full:
        (top, bottom), (left, right) = (sorted(rng.integers(0, side + 1, 2)) for side in size)
        mask[top:bottom, left:right] = torch.from_numpy(
            rng.random((bottom - top, right - left)) < 0.7
        )
    masks = from_bitmasks(full)
    sides = masks.boxes[:, 2:] - masks.boxes[:, :2]
    box_areas = sides.prod(1).tolist()
    (found,) = CellMasks.owners([masks], stride)
    grid = full[:, stride // 2 :: stride, stride // 2 :: stride]
    assert found.shape == grid.shape[1:]
    for row, column in np.ndindex(*found.shape):
        there = [box_areas[k] for k in range(n) if grid[k, row, column]]
        owner = int(found[row, column])
        assert (owner >= 0) == bool(there)
        if there:
            assert grid[owner, row, column]
            assert box_areas[owner] == min(there)
    if len(set(box_areas)) == n:  # indexing copies no pixels
        order = torch.from_numpy(rng.permutation(n))
        (permuted,) = CellMasks.owners([masks[order]], stride)
        assert torch.equal(torch.cat([order, torch.tensor([-1])])[permuted], found)
    of_batch = CellMasks.owners([masks, masks[:0], masks], stride)
    assert torch.equal(of_batch[0], found)
    assert (of_batch[1] == -1).all()
    assert torch.equal(of_batch[2], torch.where(found < 0, found, found + n))

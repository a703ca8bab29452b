"""Views: masks against resized full masks, images and boxes against results by hand."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cellseg.rle import label_map_to_runs
from cellseg.view import View, resize_shortest_edge, to_tensor

ORIENTATIONS = list(itertools.product([False, True], repeat=3))


@st.composite
def labels_and_views(draw):
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    labels = draw(arrays(np.int16, (height, width), elements=st.integers(0, 4)))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    flips = draw(st.sampled_from(ORIENTATIONS))
    return labels, View((left, top, right, bottom), size, *flips)


def apply_by_definition(view, full):
    """Return the view of an `(H, W)` array: crop, nearest neighbour, flips, transpose."""
    left, top, right, bottom = view.window
    window = full[top:bottom, left:right]
    rows, columns = (
        np.floor((np.arange(out) + 0.5) * source / out).astype(int)
        for source, out in zip(window.shape, view.size, strict=True)
    )
    viewed = window[rows][:, columns]
    viewed = np.fliplr(viewed) if view.flip_x else viewed
    viewed = np.flipud(viewed) if view.flip_y else viewed
    return viewed.T if view.transpose else viewed


def full_masks(masks):
    full = np.zeros((len(masks), *masks.size), bool)
    for n, (left, top, right, bottom) in enumerate(masks.boxes.int().tolist()):
        full[n, top:bottom, left:right] = masks.crop(n).numpy()
    return full


@settings(max_examples=200, deadline=None)
@given(labels_and_views())
@example((np.ones((1, 1), np.int16), View((0, 0, 1, 1), (1, 1))))
@example((np.ones((1, 1), np.int16), View((0, 0, 1, 1), (9, 5), True, True, True)))
@example((np.ones((6, 5), np.int16), View((1, 2, 4, 6), (3, 7))))
@example((np.zeros((3, 3), np.int16), View((0, 0, 3, 3), (6, 6))))
@example((np.eye(9, dtype=np.int16), View((0, 0, 9, 9), (2, 3))))
def test_masks_equal_resized_full_masks(case):
    labels, view = case
    values, mask_runs = label_map_to_runs(labels)
    full = {n: apply_by_definition(view, labels == value) for n, value in enumerate(values)}
    expected = {n: mask for n, mask in full.items() if mask.any()}
    kept, masks = view.apply_masks(mask_runs)
    assert kept.dtype == np.int64
    assert kept.tolist() == list(expected)
    assert masks.size == view.shape
    inverted = full_masks(masks)
    assert all(np.array_equal(inverted[n], mask) for n, mask in enumerate(expected.values()))
    for mask, (left, top, right, bottom) in zip(inverted, masks.boxes.int().tolist(), strict=True):
        rows, columns = np.nonzero(mask)
        assert [left, top] == [columns.min(), rows.min()]
        assert [right, bottom] == [columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("size", [(7, 31), (20, 20), (64, 50)])
def test_masks_are_resized_like_opencv(size):
    # With odd sides no sampling point is between two pixels, where OpenCV's rounding matters.
    labels = np.random.default_rng(0).integers(0, 5, (21, 35))
    masks = View((1, 2, 34, 21), size).apply_masks(label_map_to_runs(labels)[1])[1]
    for value, mask in enumerate(full_masks(masks), 1):
        window = (labels[2:21, 1:34] == value).astype(np.uint8)
        resized = cv2.resize(window, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        assert np.array_equal(mask, resized)


@pytest.mark.parametrize("flips", ORIENTATIONS)
def test_image_boxes_and_masks_agree(flips):
    labels = np.zeros((10, 12), np.int16)
    labels[3:5, 4:9] = 1
    labels[6, 5] = 2
    view = View((2, 1, 11, 9), (24, 27), *flips)
    _, masks = view.apply_masks(label_map_to_runs(labels)[1])
    boxes = [[4, 3, 9, 5], [5, 6, 6, 7]]
    assert view.invert_boxes(masks.boxes).tolist() == boxes
    image = view.apply_image((labels[:, :, None] * 100).astype(np.uint8).repeat(3, 2))
    assert image.shape == (*view.shape, 3)
    # The centre of a cell keeps its colour when resized bilinearly.
    for (left, top, right, bottom), colour in zip(
        masks.boxes.int().tolist(), (100, 200), strict=True
    ):
        assert (image[(top + bottom) // 2, (left + right) // 2] == colour).all()


def test_flips_and_transposition_of_an_image():
    picture = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[:, :, None]

    def viewed(**flips):
        return View((0, 0, 3, 2), (2, 3), **flips).apply_image(picture)[:, :, 0].tolist()

    assert viewed() == [[1, 2, 3], [4, 5, 6]]
    assert viewed(flip_x=True) == [[3, 2, 1], [6, 5, 4]]
    assert viewed(flip_y=True) == [[4, 5, 6], [1, 2, 3]]
    assert viewed(transpose=True) == [[1, 4], [2, 5], [3, 6]]
    # A rotation by 90 degrees to the left.
    assert viewed(flip_x=True, transpose=True) == [[3, 6], [2, 5], [1, 4]]


def test_boxes_by_hand():
    view = View((10, 20, 30, 30), (20, 60))  # twice as high, three times as wide
    box = [[11, 22, 14, 27]]
    assert view.invert_boxes(torch.tensor([[3, 4, 12, 14]])).tolist() == box
    flipped = View((10, 20, 30, 30), (20, 60), flip_x=True)
    assert flipped.invert_boxes(torch.tensor([[48, 4, 57, 14]])).tolist() == box
    transposed = View((10, 20, 30, 30), (20, 60), flip_x=True, transpose=True)
    assert transposed.shape == (60, 20)
    viewed = torch.tensor([[4, 48, 14, 57]])
    assert transposed.invert_boxes(viewed).tolist() == box
    assert viewed.tolist() == [[4, 48, 14, 57]]


@pytest.mark.parametrize("flips", ORIENTATIONS)
def test_box_of_the_view_is_its_window(flips):
    view = View((3, 5, 44, 60), (23, 91), *flips)
    height, width = view.shape
    boxes = torch.tensor([[0.0, 0, width, height]])
    assert np.allclose(view.invert_boxes(boxes), [view.window])
    assert view.invert_boxes(boxes[:0]).shape == (0, 4)


@pytest.mark.parametrize("flips", ORIENTATIONS)
def test_inverse_of_grids(flips):
    grids = np.random.default_rng(0).integers(0, 256, (4, 7, 7)).astype(np.uint8)
    view = View((0, 0, 7, 7), (7, 7), *flips)
    viewed = torch.from_numpy(
        np.stack([view.apply_image(grid[:, :, None])[:, :, 0] for grid in grids])
    )
    assert np.array_equal(view.invert_grids(viewed), grids)
    assert view.invert_grids(viewed[:0]).shape == (0, 7, 7)


@pytest.mark.parametrize("flips", ORIENTATIONS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(8, 9), (1, 1), (20, 31), (4, 5), (4, 31), (20, 5)])
def test_images_keep_their_channels_and_are_contiguous(flips, channels, size):
    image = np.full((12, 15, channels), 77, np.uint8)
    view = View((3, 2, 12, 10), size, *flips)
    viewed = view.apply_image(image)
    assert viewed.shape == (*view.shape, channels)
    assert viewed.dtype == np.uint8
    assert viewed.flags.c_contiguous
    assert (viewed == 77).all()


def test_downscaling_averages_and_upscaling_interpolates():
    spots = np.zeros((4, 8, 3), np.uint8)
    spots[0, 0] = spots[3, 5] = 160
    viewed = View((0, 0, 8, 4), (1, 2)).apply_image(spots)
    assert viewed[:, :, 0].tolist() == [[10, 10]]
    ramp = np.tile(np.arange(0, 160, 20, dtype=np.uint8)[None, :, None], (4, 1, 1))
    double = View((0, 0, 8, 4), (4, 16)).apply_image(ramp)
    assert double[0, 1:-1, 0].tolist() == list(range(5, 140, 10))


def test_resize_shortest_edge():
    assert resize_shortest_edge((100, 200), 50, 1000) == (50, 100)
    assert resize_shortest_edge((200, 100), 150, 1000) == (300, 150)
    assert resize_shortest_edge((100, 200), 150, 240) == (120, 240)
    assert resize_shortest_edge((80, 80), 100, 50) == (50, 50)
    assert resize_shortest_edge((100, 200), 0, 50) == (100, 200)
    assert resize_shortest_edge((1, 2000), 1, 500) == (1, 500)


@pytest.mark.detectron2
def test_resize_shortest_edge_rounds_like_detectron2():
    from detectron2.data import transforms

    random = np.random.default_rng(0)
    for height, width in [(534, 2400), *random.integers(50, 2600, (3000, 2)).tolist()]:
        for shortest, longest in ((800, 1000), (608, 1333)):
            theirs = transforms.ResizeShortestEdge.get_output_shape(
                height, width, shortest, longest
            )
            assert resize_shortest_edge((height, width), shortest, longest) == theirs


def test_to_tensor():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    rgb = to_tensor(image, "RGB")
    assert rgb.shape == (3, 2, 3)
    assert rgb[:, 1, 2].tolist() == [15, 16, 17]
    assert torch.equal(to_tensor(image, "BGR"), rgb.flip(0))
    assert rgb.is_contiguous()
    assert to_tensor(image[:, 2:][:, ::-1], "BGR").shape == (3, 2, 1)

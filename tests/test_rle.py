"""RLE against pycocotools: encoding, decoding, areas and boxes."""

from __future__ import annotations

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cellseg.rle import (
    MaskRuns,
    PackedMasks,
    areas,
    boxes_xyxy,
    crop_mask,
    cut_at_columns,
    decode,
    encode,
    first_and_last,
    label_map_to_runs,
    subtract_masks,
    unite_masks,
    xyxy_to_xywh,
)

# A warning of pycocotools 2.0.11 about itself.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
MAPS = SHAPES.flatmap(lambda shape: arrays(np.int16, shape, elements=st.integers(0, 4)))


def coco_rle(mask):
    rle = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def runs_of_masks(masks, size):
    """Return the runs of masks, which may overlap or be empty, by their definition."""
    starts, ends, offsets = [], [], [0]
    for mask in masks:
        line = np.concatenate([[0], mask.T.reshape(-1).astype(int), [0]])
        starts.append(np.flatnonzero(np.diff(line) == 1))
        ends.append(np.flatnonzero(np.diff(line) == -1))
        offsets.append(offsets[-1] + len(starts[-1]))
    empty = [np.zeros(0, np.int64)]
    return MaskRuns(
        size, np.concatenate(starts + empty), np.concatenate(ends + empty), np.array(offsets)
    )


def equal_runs(a, b):
    return a.size == b.size and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("starts", "ends", "offsets")
    )


@settings(max_examples=300, deadline=None)
@given(MAPS)
@example(np.zeros((1, 1), np.int16))
@example(np.ones((1, 1), np.int16))
@example(np.ones((1, 7), np.int16))
@example(np.ones((7, 1), np.int16))
@example(np.full((5, 4), 3, np.int16))
def test_label_maps_against_pycocotools(labels):
    values, mask_runs = label_map_to_runs(labels)
    expected = [value for value in np.unique(labels) if value != 0]
    assert values.tolist() == expected
    assert values.dtype == labels.dtype
    masks = [labels == value for value in expected]
    assert equal_runs(mask_runs, runs_of_masks(masks, labels.shape))
    rles = encode(mask_runs)
    assert rles == [coco_rle(mask) for mask in masks]
    assert areas(mask_runs).tolist() == [mask.sum() for mask in masks]
    pixels = [np.flatnonzero(mask.T) for mask in masks]
    ends = [(p[0], p[-1]) if len(p) else (-1, -1) for p in pixels]
    assert list(zip(*first_and_last(mask_runs), strict=True)) == ends
    boxes = [pycocotools.mask.toBbox(rle).tolist() for rle in rles]
    assert xyxy_to_xywh(boxes_xyxy(mask_runs)).tolist() == boxes


@pytest.mark.parametrize("scale", [40, 400, 4000, 100_000])
def test_counts_of_any_length_are_encoded_like_pycocotools(scale):
    # Differences of both signs, with one to four characters.
    rng = np.random.default_rng(scale)
    height, width = 997, 3 * scale // 997 + 2
    line = np.zeros(height * width, np.uint8)
    at = 0
    while at < line.size:
        gap, run = rng.integers(1, scale, 2)
        line[at + gap : at + gap + run] = 1
        at += gap + run
    mask = line.reshape(width, height).T
    assert encode(label_map_to_runs(mask)[1]) == [coco_rle(mask)]


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("order", ["C", "F", ">"])
def test_dtypes_and_memory_orders_of_label_maps(dtype, order):
    labels = np.array([[0, 5, 5, 1], [5, 5, 0, 1], [0, 0, 7, 7]])
    expected = [coco_rle(labels == value) for value in (1, 5, 7)]
    if order == ">":
        labels = labels.astype(np.dtype(dtype).newbyteorder(">"))
    else:
        labels = np.array(labels, dtype, order=order)
    values, mask_runs = label_map_to_runs(labels)
    assert values.tolist() == [1, 5, 7]
    assert encode(mask_runs) == expected


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_images_without_pixels(shape):
    values, mask_runs = label_map_to_runs(np.zeros(shape, np.uint8))
    assert len(values) == len(mask_runs) == 0
    assert encode(mask_runs) == []
    assert boxes_xyxy(mask_runs).shape == (0, 4)


def test_nan_is_in_the_values():
    labels = np.zeros((4, 4))
    labels[1, 2] = labels[3, 3] = np.nan
    values, mask_runs = label_map_to_runs(labels)
    assert np.isnan(values).tolist() == [True, True]
    assert areas(mask_runs).tolist() == [1, 1]


def test_runs_that_continue_into_the_next_column():
    labels = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0]])
    mask_runs = label_map_to_runs(labels)[1]
    assert (mask_runs.starts.tolist(), mask_runs.ends.tolist()) == ([2], [5])
    # Columns 0 and 1, rows 0 to 2: the exclusive edges are 2 and 3.
    assert boxes_xyxy(mask_runs).tolist() == [[0, 0, 2, 3]]


@settings(max_examples=200, deadline=None)
@given(SHAPES.flatmap(lambda s: st.lists(st.tuples(*[arrays(bool, s)] * 2), min_size=1)))
def test_differences_and_unions_of_overlapping_masks(pairs):
    size = pairs[0][0].shape
    masks, others = ([pair[side] for pair in pairs] for side in (0, 1))
    runs = runs_of_masks(masks, size)
    left = [mask & ~other for mask, other in pairs]
    assert equal_runs(subtract_masks(runs, runs_of_masks(others, size)), runs_of_masks(left, size))
    groups = np.arange(len(masks)) % 2  # the third has none
    unions = [np.any(masks[0::2], axis=0), np.any([np.zeros(size, bool), *masks[1::2]], axis=0)]
    expected = runs_of_masks([*unions, np.zeros(size, bool)], size)
    assert equal_runs(unite_masks(runs, groups, 3), expected)


@settings(max_examples=200, deadline=None)
@given(SHAPES.flatmap(lambda s: st.lists(arrays(bool, s), max_size=5).map(lambda m: (s, m))))
def test_overlapping_and_empty_masks_round_trip(case):
    size, masks = case
    mask_runs = runs_of_masks(masks, size)
    rles = encode(mask_runs)
    assert rles == [coco_rle(mask) for mask in masks]
    assert equal_runs(decode(rles, size), mask_runs)
    as_bytes = [{"size": rle["size"], "counts": rle["counts"].encode()} for rle in rles]
    assert equal_runs(decode(as_bytes, size), mask_runs)
    boxes = boxes_xyxy(mask_runs)
    for n, mask in enumerate(masks):
        box, crop = crop_mask(mask_runs, n)
        assert box.tolist() == boxes[n].tolist()
        left, top, right, bottom = box
        assert np.array_equal(crop, mask[top:bottom, left:right])
        assert crop.sum() == mask.sum()


@settings(max_examples=100, deadline=None)
@given(MAPS)
def test_pieces_of_columns_cover_the_mask(labels):
    values, mask_runs = label_map_to_runs(labels)
    covered = np.zeros(labels.shape, int)
    for mask, column, top, bottom in zip(*cut_at_columns(mask_runs), strict=True):
        assert 0 <= top < bottom <= labels.shape[0]
        covered[top:bottom, column] += values[mask]
    assert np.array_equal(covered, labels)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.integers(1, 9))
def test_runs_of_length_0_are_decoded(counts, height):
    # pycocotools keeps runs of length 0, which have no meaning.
    counts.append(-sum(counts) % height or height)
    width = sum(counts) // height
    rle = pycocotools.mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(width, height).T
    assert np.array_equal(pycocotools.mask.decode(rle), mask)
    assert equal_runs(decode([rle]), runs_of_masks([mask], (height, width)))


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [3, 3], "counts": "54"}, "1: size [3, 3], expected [2, 2]"),
        ({"size": [2, 2], "counts": ""}, "1: the counts don't add up to 2 x 2 pixels"),
        ({"size": [2, 2], "counts": "5"}, "1: the counts don't add up to 2 x 2 pixels"),
        ({"size": [2, 2], "counts": "3"}, "1: the counts don't add up to 2 x 2 pixels"),
        ({"size": [2, 2], "counts": "6N"}, "1: the counts don't add up to 2 x 2 pixels"),
        ({"size": [2, 2], "counts": "4P"}, "1: the counts are not a COCO RLE string"),
        ({"size": [2, 2], "counts": "4 "}, "1: the counts are not a COCO RLE string"),
        ({"size": [2, 2], "counts": "4é"}, "1: the counts are not a COCO RLE string"),
        ({"size": [2, 2], "counts": "o" * 30 + "4"}, "1: the counts are not a COCO RLE string"),
    ],
)
def test_invalid_rle_is_an_error_with_its_index(rle, message):
    with pytest.raises(ValueError) as caught:
        decode([{"size": [2, 2], "counts": "4"}, rle], (2, 2))
    assert str(caught.value) == message


def test_index_of_an_invalid_rle_among_many():
    labels = np.arange(1, 5001).reshape(100, 50)
    mask_runs = label_map_to_runs(labels)[1]
    rles = encode(mask_runs)
    assert equal_runs(decode(rles), mask_runs)
    rles[4500]["counts"] = "5"
    with pytest.raises(ValueError, match=r"^4500: the counts don't add up"):
        decode(rles)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=130), max_size=12))
def test_any_text_is_decoded_within_the_image_or_an_error(text):
    try:
        mask_runs = decode([{"size": [5, 7], "counts": text}])
    except ValueError:
        return
    assert (
        (mask_runs.starts >= 0) & (mask_runs.starts < mask_runs.ends) & (mask_runs.ends <= 35)
    ).all()
    assert (mask_runs.starts[1:] > mask_runs.ends[:-1]).all()
    rle = {"size": [5, 7], "counts": text.encode()}
    assert areas(mask_runs).tolist() == [int(pycocotools.mask.decode(rle).sum())]


def test_xyxy_to_xywh_copies():
    boxes = np.array([[1, 2, 4, 9], [0, 0, 0, 0]])
    assert xyxy_to_xywh(boxes).tolist() == [[1, 2, 3, 7], [0, 0, 0, 0]]
    assert boxes.tolist() == [[1, 2, 4, 9], [0, 0, 0, 0]]


@given(MAPS, st.slices(5), st.integers(-6, 6))
def test_packed_masks_are_the_same(labels, part, index):
    masks = encode(label_map_to_runs(labels)[1])
    packed = PackedMasks(masks, labels.shape)
    assert [*packed] == masks
    assert packed[part] == masks[part]
    assert len(packed) == len(masks)
    if -len(masks) <= index < len(masks):
        assert packed[index] == masks[index]
    else:
        with pytest.raises(IndexError):
            packed[index]

"""Copy-paste: which cells are pasted where, and what they cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.learn.copy_paste import MAX_CELLS, Drawn, paste
from tests.bitmasks import from_bitmasks


def masks_of(size, *cells):
    """Return rectangular masks, each given by top, bottom, left and right, exclusive."""
    masks = torch.zeros((len(cells), *size), dtype=torch.bool)
    for mask, (top, bottom, left, right) in zip(masks, cells, strict=True):
        mask[top:bottom, left:right] = True
    return from_bitmasks(masks)


def drawn(masks):
    """Return `(N, H, W)` bool masks of the whole image."""
    whole = np.zeros((len(masks), *masks.size), bool)
    for n, (left, top, right, bottom) in enumerate(masks.boxes.long().tolist()):
        whole[n, top:bottom, left:right] = masks.crop(n).numpy()
    return whole


def grey(size, level):
    return np.full((*size, 3), level, np.uint8)


def paste_masks(masks, donor, seed=0):
    """Paste from grey level 200 into 50; the sample has class 0, the donor class 1."""
    classes, donor_classes = np.zeros(len(masks), np.int64), np.ones(len(donor), np.int64)
    sample = Drawn(grey(masks.size, 50), masks, classes)
    other = Drawn(grey(donor.size, 200), donor, donor_classes)
    return paste(sample, other, np.random.default_rng(seed))


SIZE = (20, 30)


def test_a_cell_may_cover_half_of_another():
    """It covers 2 of the 4 columns."""
    _, masks, classes = paste_masks(masks_of(SIZE, (5, 9, 8, 12)), masks_of(SIZE, (4, 12, 10, 20)))
    expected = drawn(masks_of(SIZE, (5, 9, 8, 10), (4, 12, 10, 20)))
    np.testing.assert_array_equal(drawn(masks), expected)
    assert masks.boxes.tolist() == [[8, 5, 10, 9], [10, 4, 20, 12]]
    assert classes.tolist() == [0, 1]


def test_a_cell_that_would_cover_more_than_half_of_another_is_skipped():
    sample = masks_of(SIZE, (1, 3, 1, 3), (5, 9, 8, 12))
    image, masks, classes = paste_masks(sample, masks_of(SIZE, (4, 12, 9, 20)))
    np.testing.assert_array_equal(image, grey(SIZE, 50))
    np.testing.assert_array_equal(drawn(masks), drawn(sample))
    assert classes.tolist() == [0, 0]


@pytest.mark.parametrize("row", [4, 11])
@pytest.mark.parametrize("column", [10, 19])
def test_a_cell_of_one_pixel_is_never_covered(row, column):
    sample = masks_of(SIZE, (row, row + 1, column, column + 1))
    assert len(paste_masks(sample, masks_of(SIZE, (4, 12, 10, 20)))[1]) == 1


def test_covered_pixels_of_several_cells_are_added():
    """Each covers two of a cell's five columns: one of them is pasted, but not both."""
    sample = masks_of(SIZE, (5, 9, 10, 15))
    donor = masks_of(SIZE, (4, 10, 8, 12), (4, 10, 13, 18))
    numbers = [len(paste_masks(sample, donor, seed)[1]) for seed in range(40)]
    assert set(numbers) == {2}


def test_a_pasted_cell_is_not_covered_by_the_next():
    donor = masks_of(SIZE, (4, 10, 8, 12), (9, 15, 11, 18))
    pasted = {drawn(paste_masks(masks_of(SIZE), donor, seed)[1]).tobytes() for seed in range(40)}
    assert pasted == {drawn(donor[n]).tobytes() for n in range(2)}


@pytest.mark.parametrize(
    "cell", [(0, 4, 5, 9), (5, 9, 0, 4), (16, 20, 5, 9), (5, 9, 26, 30), (3, 3, 4, 4)]
)
def test_cells_at_the_border_or_without_pixels_are_skipped(cell):
    image, masks, classes = paste_masks(masks_of(SIZE), masks_of(SIZE, cell))
    assert len(masks) == len(classes) == 0
    np.testing.assert_array_equal(image, grey(SIZE, 50))


def test_cells_of_a_larger_donor_are_within_the_sample():
    donor = masks_of((40, 50), (4, 9, 5, 9), (25, 29, 5, 9), (5, 9, 28, 35))
    image, masks, _ = next(
        result for seed in range(20) if len((result := paste_masks(masks_of(SIZE), donor, seed))[1])
    )
    assert masks.size == SIZE
    assert masks.boxes.tolist() == [[5, 4, 9, 9]]
    assert image.shape == (*SIZE, 3)


def test_a_smaller_donor_does_not_change_the_rest_of_the_sample():
    image, masks, _ = paste_masks(masks_of(SIZE), masks_of((12, 12), (3, 11, 3, 11)))
    assert masks.size == SIZE
    assert image[7, 7].tolist() == [200, 200, 200]
    np.testing.assert_array_equal(image[12:], 50)
    np.testing.assert_array_equal(image[:, 12:], 50)


def test_the_edge_is_soft():
    """A half-plane: half of the Gaussian at the edge, all of it 4 sigma away."""
    size = (60, 60)
    image, _, _ = paste_masks(masks_of(size), masks_of(size, (1, 59, 1, 30)))
    profile = image[30, :, 0].astype(int)
    assert (profile[5:26] == 200).all()
    assert (profile[34:] == 50).all()
    # 0.5 and 1.5 sigma from the edge, 0.69 and 0.93 of the Gaussian are on one side.
    assert profile[28:32] == pytest.approx([190, 154, 96, 60], abs=3)


def test_the_inputs_are_not_changed():
    sample, donor = masks_of(SIZE, (5, 9, 8, 12)), masks_of(SIZE, (4, 12, 10, 20))
    image, before = grey(SIZE, 50), drawn(sample)
    classes = np.zeros(1, np.int64)
    other = Drawn(grey(SIZE, 200), donor, classes)
    paste(Drawn(image, sample, classes), other, np.random.default_rng(0))
    np.testing.assert_array_equal(image, grey(SIZE, 50))
    np.testing.assert_array_equal(drawn(sample), before)
    np.testing.assert_array_equal(drawn(donor), drawn(masks_of(SIZE, (4, 12, 10, 20))))


def test_the_number_of_pasted_cells():
    dots = [(y, y + 1, x, x + 1) for y in range(1, 19, 4) for x in range(1, 29, 4)]
    sample, donor = masks_of(SIZE), masks_of(SIZE, *dots)
    numbers = [len(paste_masks(sample, donor, seed)[1]) for seed in range(150)]
    assert set(numbers) == set(range(1, MAX_CELLS + 1))


bitmasks = st.builds(
    lambda size, n, density, seed: from_bitmasks(
        torch.from_numpy(np.random.default_rng(seed).random((n, *size)) < density)
    ),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 6),
    st.sampled_from([0.01, 0.05, 0.3]),
    st.integers(0, 999),
)


@given(bitmasks, bitmasks, st.integers(0, 999))
@settings(max_examples=100, deadline=None)
def test_cells_keep_half_of_their_pixels_and_pasted_cells_all(sample, donor, seed):
    image, masks, classes = paste_masks(sample, donor, seed)
    n = len(sample)
    before, after = drawn(sample), drawn(masks)
    assert classes.tolist() == [0] * n + [1] * (len(masks) - n)
    assert masks.size == sample.size
    assert image.shape == (*sample.size, 3)

    pasted = after[n:]
    np.testing.assert_array_equal(after[:n], before & ~pasted.any(0))
    assert (2 * after[:n].sum((1, 2)) >= before.sum((1, 2))).all()
    assert pasted.sum(0).max(initial=0) <= 1
    height, width = np.minimum(sample.size, donor.size)
    originals = {mask[:height, :width].tobytes() for mask in drawn(donor)}
    assert all(mask[:height, :width].tobytes() in originals for mask in pasted)
    assert not pasted[:, height:].any()
    assert not pasted[:, :, width:].any()

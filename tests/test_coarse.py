"""Coarse masks: areas and boxes around separate pieces."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.coarse import CoarseMask


def mask_of(size, step, *places):
    pixels = np.zeros([int(-(-length // step)) for length in size], bool)
    for place in places:
        pixels[place] = True
    return CoarseMask(size, (step, step), pixels)


def test_area_ends_with_the_image():
    assert mask_of((25, 38), 10).area == 0
    assert mask_of((25, 38), 10, (0, 0)).area == 100
    assert mask_of((25, 38), 10, (2, 3)).area == 5 * 8
    assert mask_of((25, 38), 10, ...).area == 25 * 38
    assert CoarseMask((5, 9), (2.5, 4.5), np.ones((2, 2), bool)).area == 45


def test_boxes_by_hand():
    mask = mask_of((100, 100), 10, (1, 1), (1, 8))
    whole = (0, 0, 100, 100)
    assert sorted(mask.boxes(whole, 0)) == [(10, 10, 20, 20), (80, 10, 90, 20)]
    assert sorted(mask.boxes(whole, 5)) == [(0, 0, 30, 30), (70, 0, 100, 30)]
    assert mask.boxes(whole, 40) == [(0, 0, 100, 60)]  # near each other
    assert mask.boxes((0, 40, 100, 100), 0) == []
    assert mask.boxes((35, 5, 60, 15), 0) == []
    assert mask.boxes((25, 0, 55, 60), 20) == [(25, 0, 40, 40)]
    assert mask.boxes((15, 12, 60, 60), 0) == [(15, 12, 20, 20)]


@settings(max_examples=60)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.floats(1, 9),
    st.floats(0, 0.2),
    st.integers(0, 20),
    st.integers(0, 99),
)
def test_what_is_near_lies_in_a_box(height, width, step, density, margin, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.random((int(np.ceil(height / step)), int(np.ceil(width / step)))) < density
    mask = CoarseMask((height, width), (step, step), pixels)
    (left, right), (top, bottom) = (np.sort(rng.integers(0, n + 1, 2)) for n in (width, height))
    y, x = np.indices((height, width))
    marked = pixels[(y / step).astype(int), (x / step).astype(int)]
    near = np.zeros((height, width), bool)
    for row, column in zip(*marked.nonzero(), strict=True):
        near[
            max(0, row - margin) : row + margin + 1, max(0, column - margin) : column + margin + 1
        ] = True
    covered = np.zeros_like(near)
    for x0, y0, x1, y1 in mask.boxes((left, top, right, bottom), margin):
        assert left <= x0 < x1 <= right
        assert top <= y0 < y1 <= bottom
        covered[y0:y1, x0:x1] = True
    window = np.s_[top:bottom, left:right]
    assert not (near[window] & ~covered[window]).any()

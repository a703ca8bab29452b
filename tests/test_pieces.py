"""Connected pieces of masks, against scipy."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cellseg.pieces import largest_pieces
from cellseg.rle import concatenate, decode, encode, label_map_to_runs


@settings(deadline=None)
@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3))
)
def test_the_largest_piece_of_each_mask(labels):
    values, mask_runs = label_map_to_runs(labels)
    result = largest_pieces(mask_runs)
    assert len(result) == len(values)
    for n, value in enumerate(values):
        pieces, _ = scipy.ndimage.label(labels.T == value, np.ones((3, 3)))  # column by column
        largest = pieces == np.bincount(pieces[pieces > 0]).argmax()
        _, expected = label_map_to_runs(largest.T.astype(np.uint8))
        assert encode(result)[n] == encode(expected)[0]
    which = np.arange(len(values)) % 2 == 0
    some = encode(largest_pieces(mask_runs, which))
    assert some[::2] == encode(result)[::2]
    assert some[1::2] == encode(mask_runs)[1::2]


def test_masks_without_pixels_and_no_masks():
    assert len(largest_pieces(concatenate((5, 6), []))) == 0
    assert len(largest_pieces(concatenate((0, 0), []))) == 0
    two = largest_pieces(decode([{"size": [2, 3], "counts": "6"}] * 2))
    assert np.array_equal(two.offsets, [0, 0, 0])


def test_runs_over_the_ends_of_columns():
    """The whole image is one run; a run over two columns may be two pieces."""
    (whole,) = encode(largest_pieces(decode([{"size": [3, 4], "counts": "0<"}])))
    assert whole["counts"] == "0<"
    # Rows 3 and 4 of a column of 5, and row 0 of the next: they don't touch.
    labels = np.zeros((5, 2), np.uint8)
    labels[3:, 0] = labels[0, 1] = 1
    _, mask_runs = label_map_to_runs(labels)
    assert len(mask_runs.starts) == 1
    result = largest_pieces(mask_runs)
    assert (result.starts.tolist(), result.ends.tolist()) == ([3], [5])

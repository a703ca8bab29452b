"""Bootstrap resamples of images: weights and intervals."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cellseg.score.bootstrap import draw_weights, interval


@given(st.integers(0, 30), st.integers(0, 20), st.integers(0, 5))
def test_resamples_have_the_number_of_images(n_images, n_resamples, seed):
    weights = draw_weights(n_images, n_resamples, seed)
    assert weights.shape == (n_resamples, n_images)
    assert (weights >= 0).all()
    assert (weights.sum(axis=1) == n_images).all()
    np.testing.assert_array_equal(weights, draw_weights(n_images, n_resamples, seed))


def test_other_seeds_give_other_resamples():
    assert (draw_weights(20, 5, 0) != draw_weights(20, 5, 1)).any()


def test_interval_ignores_nan():
    samples = np.arange(1001.0)
    low, high = interval(np.stack([samples, np.full(1001, np.nan)], axis=1))
    np.testing.assert_allclose([low[0], high[0]], [25, 975])
    assert np.isnan([low[1], high[1]]).all()
    some = np.where(samples < 101, samples, np.nan)
    np.testing.assert_allclose(interval(some), (2.5, 97.5))
    np.testing.assert_allclose(interval(some, 0.5), (25, 75))


def test_no_sample():
    low, high = interval(np.zeros((0, 3)))
    assert low.shape == high.shape == (3,)
    assert np.isnan(low).all()


def test_coverage_of_a_mean():
    # 300 sets of 60 numbers around 0: the interval of the mean contains 0 in about 95 %.
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(300):
        values = rng.normal(size=60)
        low, high = interval(draw_weights(60, 300, seed) @ values / 60)
        covered += bool(low < 0 < high)
    assert 0.90 <= covered / 300 <= 0.98

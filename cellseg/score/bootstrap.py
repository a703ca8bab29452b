"""Confidence intervals by a percentile bootstrap over images.

B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Images are
resampled, not cells, since the cells of one image are alike. Of few images the intervals are too
narrow (docs/cells.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FEW = 10
"""Number of images below which an interval is far too narrow."""


def draw_weights(n_images: int, n_resamples: int = 1000, seed: int = 0) -> NDArray[np.int64]:
    """Resample images with replacement.

    Returns
    -------
    `(n_resamples, n_images)` int64: how often each image is in each resample. The same
    arguments give the same resamples, so that two results can be compared on them.
    """
    if n_images == 0:
        return np.zeros((n_resamples, 0), np.int64)
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=n_resamples)


def interval(
    samples: NDArray[np.float64], level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounds of the middle `level` of `(B, …)` samples, each `(…)`, ignoring NaN."""
    tail = 50 * (1 - level)
    shape = samples.shape[1:]
    bounds = np.full((2, int(np.prod(shape))), np.nan)
    for n, values in enumerate(samples.reshape(len(samples), bounds.shape[1]).T):
        known = values[~np.isnan(values)]
        if len(known):
            bounds[:, n] = np.percentile(known, [tail, 100 - tail])
    return bounds[0].reshape(shape), bounds[1].reshape(shape)

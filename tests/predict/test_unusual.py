"""Warnings of dark images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cellseg.predict.unusual import BrightnessCheck


@pytest.mark.parametrize(("n_bright", "dark"), [(0, True), (10, True), (40, False)])
def test_a_few_bright_pixels_are_not_a_bright_image(caplog, n_bright, dark):
    """Hot pixels of a camera, for example; 40 of 20,000 are tissue."""
    pixels = np.full((10_000, 1, 3), 60, np.uint8)
    pixels[:n_bright] = 255, 60, 60
    check = BrightnessCheck()
    for tile in (pixels, np.full((100, 100, 3), 10, np.uint8)):
        check.add(Path("a.tif"), tile)
    check.warn()
    assert bool(caplog.messages) == dark


def test_counts_of_several_parts_of_an_image(caplog):
    """A dark part, as a worker may see it alone, is no dark image."""
    whole = BrightnessCheck()
    for brightness in (10, 220):
        part = BrightnessCheck()
        part.add(Path("a.tif"), np.full((50, 50, 3), brightness, np.uint8))
        part.add(Path("b.tif"), np.full((50, 50, 3), 10, np.uint8))
        whole.add_counts(part.counts)
    whole.warn()
    (message,) = caplog.messages
    assert "b.tif" in message
    assert "a.tif" not in message

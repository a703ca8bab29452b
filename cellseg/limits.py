"""Limits on what a file may ask for, so that a small one can't fill the memory or run for hours.

Real files stay far below them. Only images and label maps may be as large as the memory allows,
which is why `--max_image_gb` raises their limit. Windows of slides are read without one, as only
the tiles or strips that they need are decoded.
"""

from __future__ import annotations

import os
from pathlib import Path

from cellseg.errors import InputError

IMAGE_GB = 2.0
"""Memory to decode one image, or one of its tiles or strips: 20,000 x 20,000 pixels of a label
map of 32 bits, 25,000 x 25,000 of an RGB image."""

SLIDE_SIDE, SLIDE_PIXELS = 1_000_000, 2e11
"""Height or width, and pixels, of a slide that OpenSlide reads: 11 x 11 cm at 0.25 micrometres."""

OUTLINE_LENGTH = 10_000_000
"""Pixels along all outlines of a file, plus `LENGTH_PER_POINT` for each of their points: 100,000
cells of 100 pixels, or any number of cells that are drawn finely."""

LENGTH_PER_POINT = 100

ZIP_BYTES = 100_000_000
"""Unpacked size of a file in a zip that is packed to less than a hundredth; results to a fifth."""

ZIP_RATIO = 100

GZIP_BYTES = 1 << 29
"""Unpacked size of a GeoJSON file in gzip: the outlines of about a million cells."""

XML_DEPTH = 50
"""Nested elements of an XML file; ImageScope's have 6."""

XML_TOKEN = 1_000_000
"""Bytes of one tag with its attributes."""

CONFIG_BYTES = 200_000
"""Bytes of a config file; complete ones have 10,000."""

CONFIG_VALUES = 10_000
"""Values of a config file with its aliases resolved; complete ones have 500."""


def check_outline_length(path: object, pixels: float, n_points: int) -> None:
    """Raise InputError if the outlines of a file are too long to be filled."""
    allowed = OUTLINE_LENGTH + LENGTH_PER_POINT * n_points
    if pixels > allowed:
        raise InputError(
            f"{path}: outlines of {pixels:.3g} pixels in total with only {n_points} points, "
            f"expected at most {allowed:.3g}; they aren't drawn around cells: draw them again"
        )


# In the environment, so that the processes that a command starts have it too.
_VARIABLE = "CELLSEG_MAX_IMAGE_GB"


def allow_image_gb(gigabytes: float) -> None:
    """Set the memory that one image may need, in this process and those that it starts."""
    os.environ[_VARIABLE] = str(gigabytes)


def check_slide_size(path: Path, height: int, width: int) -> None:
    """Raise InputError if a slide states a size that no glass has."""
    if max(height, width) > SLIDE_SIDE or height * width > SLIDE_PIXELS:
        raise InputError(
            f"{path}: {height} x {width} pixels (height x width), expected at most "
            f"{SLIDE_SIDE:,} each and {SLIDE_PIXELS:.0e} in all; it is damaged: copy it again"
        )


def check_image_memory(path: Path, height: int, width: int, bytes_per_pixel: float) -> None:
    """Raise InputError if decoding an image, a tile or a strip needs more memory than allowed."""
    needed = height * width * bytes_per_pixel / 1e9
    allowed = float(os.environ.get(_VARIABLE, IMAGE_GB))
    if needed > allowed:
        raise InputError(
            f"{path}: decoding {height} x {width} pixels (height x width) at once needs "
            f"{needed:.1f} GB, more than the {allowed:g} GB that are allowed; cut it into "
            "smaller images (inference.py reads tiled TIFFs of any size), or allow it with "
            f"--max_image_gb {needed + 0.1:.1f}"
        )

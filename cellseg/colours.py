"""The colour of each class, in pictures, pages and files for QuPath."""

from __future__ import annotations

import colorsys

# Colours of Okabe & Ito, distinct for people with any colour vision
# (https://jfly.uni-koeln.de/color/), without the purple of stained tissue, and in an order
# that gives dark lymphocytes a light one and pale macrophages a strong one.
CLASS_COLOURS: tuple[tuple[int, int, int], ...] = (
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermilion
    (230, 159, 0),  # orange
    (0, 114, 178),  # blue
    (0, 0, 0),  # black
)


def class_colour(index: int) -> tuple[int, int, int]:
    """Return the RGB colour, 0 to 255, of class `index` (0 to K−1), for any K."""
    if index < len(CLASS_COLOURS):
        return CLASS_COLOURS[index]
    # Steps by the golden ratio never repeat a hue.
    hue = (index * 0.618033988749895) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, 0.9 if index % 2 else 0.6)
    return round(255 * red), round(255 * green), round(255 * blue)

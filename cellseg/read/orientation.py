"""EXIF orientation as the reason for a size that doesn't fit."""

from __future__ import annotations

from pathlib import Path

import PIL.Image

_TAG = 274
_TURNED = (5, 6, 7, 8)  # these swap height and width


def orientation(path: Path) -> int:
    """Return the EXIF orientation of an image file, 1 to 8: 1 if there is none."""
    try:
        with PIL.Image.open(path) as picture:
            value = picture.getexif().get(_TAG, 1)
    except Exception:  # noqa: BLE001 (damage is reported by those who read the pixels)
        return 1
    return value if value in range(1, 9) else 1


def turn_note(path: Path, size: tuple[int, ...], other: tuple[int, ...]) -> str:
    """Return what to add to a message about two sizes of an image if its EXIF explains them.

    `size` is the size of the image, `other` that of its annotations, both height and width.
    """
    turned = orientation(path)
    if turned not in _TURNED or tuple(size) != tuple(other)[::-1]:
        return ""
    is_read_turned = path.suffix.lower() in (".jpg", ".jpeg")
    how = "is turned on reading, as" if is_read_turned else "is not turned on reading, though"
    return f" (the image {how} its EXIF orientation {turned} says)"

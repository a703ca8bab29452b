"""EXIF orientation: what turns JPEGs, but no other images, on reading; it explains other sizes."""

from __future__ import annotations

from pathlib import Path

import PIL.Image

from cellseg.files import file_start
from cellseg.read.image_formats import JPEG_MAGIC, PNG_MAGIC

TAG = 274
AS_STORED = "images not turned by their orientation tag, so that masks are of the image as stored"
TURNED = (5, 6, 7, 8)  # these swap height and width


def exif_orientation(picture: PIL.Image.Image) -> int:
    """Return the EXIF orientation of a picture, 1 to 8: 1 if there is none."""
    value = picture.getexif().get(TAG, 1)
    return value if value in range(1, 9) else 1


def file_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image file, as `exif_orientation`."""
    try:
        with PIL.Image.open(path) as picture:
            return exif_orientation(picture)
    except Exception:  # noqa: BLE001 (damage is reported by those who read the pixels)
        return 1


def is_jpeg(path: Path) -> bool:
    """Return whether a file is a JPEG, whatever its name: these are turned on reading."""
    return file_start(path, 2) == JPEG_MAGIC


def orientation_notes(path: Path) -> list[str]:
    """Return what `WindowedImage.notes` says of a PNG, JPEG or BMP with an orientation."""
    if is_jpeg(path):
        note = "images turned by their EXIF orientation, so that masks are of the turned image"
        return [note] * (file_orientation(path) > 1)
    # Pillow would decode the pixels of a PNG to look for it after them.
    has_exif = file_start(path, 4) == PNG_MAGIC and b"eXIf" in path.read_bytes()
    return [AS_STORED] * (has_exif and file_orientation(path) > 1)


def turn_note(path: Path, size: tuple[int, ...], other: tuple[int, ...]) -> str:
    """Return what to add to a message about two sizes of an image if its EXIF explains them.

    `size` is the size of the image, `other` that of its annotations, both height and width.
    """
    turned = file_orientation(path)
    if turned not in TURNED or tuple(size) != tuple(other)[::-1]:
        return ""
    how = "is turned on reading, as" if is_jpeg(path) else "is not turned on reading, though"
    return f" (the image {how} its EXIF orientation {turned} says)"

"""Slides in formats of scanners, read with OpenSlide: NDPI, MRXS, SCN, BIF, DICOM and others."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.limits import check_slide_size
from cellseg.read.image_formats import MRXS, decode_errors
from cellseg.read.resolution import slide_resolution
from cellseg.read.windowed_image import WindowedImage, check_level

DICOM = ".dcm"  # each level of a slide is a file, and any of them opens it


def slide_format(path: Path) -> str | None:
    """Return OpenSlide's name of a file's format, None if it can't read the file."""
    if (library := _openslide()) is None:
        return None
    with decode_errors(path):
        name: str | None = library.OpenSlide.detect_format(path)
    return name


def slide_id(path: Path) -> object:
    """Return what the files of one slide have in common: a DICOM series, else the file."""
    if path.suffix.lower() == DICOM and (library := _openslide()) is not None:
        with contextlib.suppress(library.OpenSlideError, OSError), library.OpenSlide(path) as slide:
            if series := slide.properties.get("dicom.SeriesInstanceUID"):
                return path.parent.resolve(), series
    return path.resolve()


def _openslide() -> ModuleType | None:
    """Import OpenSlide, which takes a while; return None if it is not installed."""
    try:
        import openslide
    except (ImportError, OSError):  # the package or its library
        return None
    return openslide


class SlideImage(WindowedImage):
    """A level of a slide, cropped to its bounds, as in QuPath.

    Level 0 begins at OpenSlide's `bounds-x` and `bounds-y` if the scanner wrote them: around the
    scanned areas, slides of some formats are empty.
    """

    def __init__(self, path: Path, level: int) -> None:
        """Open a slide. Raises InputError if OpenSlide can't read it or it has no such level."""
        if slide_format(path) is None:
            raise InputError(f"{path}: {_why_unreadable(path)}")
        with decode_errors(path):
            slide = _openslide().OpenSlide(path)  # type: ignore[union-attr]
            scales, sizes = slide.level_downsamples, slide.level_dimensions
            check_level(path, level, len(scales))
            left, top, width, height = (
                int(slide.properties.get(f"openslide.bounds-{name}", default))
                for name, default in zip(
                    ("x", "y", "width", "height"), (0, 0, *sizes[0]), strict=True
                )
            )
            check_slide_size(path, height, width)
            if (width, height) != sizes[0]:
                sizes = [(max(1, int(width / s)), max(1, int(height / s))) for s in scales]
            levels = [(height, width) for width, height in sizes]
            super().__init__(path, levels[level], levels, slide_resolution(slide.properties))
            background = slide.properties.get("openslide.background-color", "FFFFFF")
            self._background = np.frombuffer(bytes.fromhex(background), np.uint8).astype(int)
        self._slide = slide
        self._level = level
        self._scale = scales[level]
        self._origin = left, top

    def close(self) -> None:
        self._slide.close()

    def _fill(self, rgb: NDArray[np.uint8], x0: int, y0: int) -> None:
        left, top = self._origin
        corner = left + round(x0 * self._scale), top + round(y0 * self._scale)
        with decode_errors(self.path):
            region = self._slide.read_region(corner, self._level, (rgb.shape[1], rgb.shape[0]))
            rgba = np.asarray(region)
        rgb[:] = rgba[:, :, :3]
        alpha = rgba[:, :, 3:].astype(int)
        if alpha.min() < 255:  # not scanned
            rgb[:] = (rgb * alpha + self._background * (255 - alpha) + 127) // 255


def _why_unreadable(path: Path) -> str:
    if _openslide() is None:
        return (
            "not a TIFF, PNG, JPEG or BMP image, and OpenSlide is not installed: pip install "
            "openslide-python openslide-bin"
        )
    if path.suffix.lower() == MRXS:
        return f"no slide without its data; copy the folder {path.stem}/ next to it"
    return (
        "not a TIFF, PNG, JPEG or BMP image, nor a slide that OpenSlide reads; save it as one of "
        "them"
    )

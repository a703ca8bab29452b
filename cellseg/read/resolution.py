"""Micrometres per pixel, as files of different programs state them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import tifffile

from cellseg.read.ome import attribute, ome_images

# Micrometres per pixel: the finest objectives, and the coarsest level that still shows cells.
# Above are the resolutions of screens and printers: 72 dpi is 353 µm, 4800 dpi 5.3 µm.
MIN_MPP, MAX_MPP = 0.02, 5.0
MPP_RANGE = f"a number of micrometres per pixel, {MIN_MPP:g} to {MAX_MPP:g}"

_TOLERANCE = 1.05  # factor; scanners of one type differ by less

# Micrometres in a unit, by its names in OME-XML and ImageJ.
_MICROMETRES = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "micrometre": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0, "in": 25400.0,
}  # fmt: skip
_OF_RESOLUTION_UNIT = {2: 25400.0, 3: 10000.0}  # TIFF's inch and centimetre


class Resolution(NamedTuple):
    """Width and height of a pixel in micrometres, and where the file says so."""

    x: float
    y: float
    source: str

    @property
    def mpp(self) -> float:
        """Micrometres per pixel: the side of a square of the pixel's area."""
        return math.sqrt(self.x * self.y)

    @property
    def is_square(self) -> bool:
        """Whether width and height are about the same."""
        return is_about(self.x, self.y)


def is_plausible(mpp: object) -> bool:
    """Return whether it is a number that microscope images of cells may have per pixel."""
    is_number = isinstance(mpp, Real) and not isinstance(mpp, bool)
    return is_number and MIN_MPP <= mpp <= MAX_MPP  # type: ignore[operator]


def is_about(mpp: float, other: float) -> bool:
    """Return whether two resolutions differ by less than 5 %, as pixels of one scanner may."""
    return max(mpp, other) < _TOLERANCE * min(mpp, other)


def magnification(mpp: float | None, run_mpp: float) -> float:
    """Return the factor that brings an image of `mpp` to the resolution of a run.

    1 if either is unknown (None or 0), or they are about the same.
    """
    return 1.0 if not (mpp and run_mpp) or is_about(mpp, run_mpp) else mpp / run_mpp


def tiff_resolution(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Resolution | None:
    """Return the resolution of a page of a TIFF, None if it is missing or implausible.

    The first that is there: `MPP` of Aperio, `PhysicalSizeX` of OME, ImageJ's unit, the tags of
    the resolution, Aperio's magnification.
    """
    text = page.description
    aperio = text if text.startswith("Aperio") else ""
    unit = _MICROMETRES.get(_imagej_unit(tiff.imagej_metadata or {}), 0.0)
    across, down = _rational(page, 282), _rational(page, 283)  # pixels per unit
    tag = page.tags.get(296)
    length = _OF_RESOLUTION_UNIT.get(tag.value if tag else 2, 0.0)
    mpp = _number(aperio, r"\bMPP\s*=\s*")
    return (
        _resolution(mpp, mpp, "Aperio's MPP")
        or _ome_resolution(tiff.ome_metadata or "", (page.imagelength, page.imagewidth))
        or _resolution(unit * across, unit * down, "ImageJ's unit")
        or _resolution(length * across, length * down, "XResolution")
        or _of_magnification(_number(aperio, r"\bAppMag\s*=\s*"))
    )


def picture_resolution(info: Mapping[Any, Any]) -> Resolution | None:
    """Return the resolution in Pillow's `info` of a PNG, JPEG or BMP, None if there is none."""
    dpi = info.get("dpi")
    if not (isinstance(dpi, tuple) and len(dpi) == 2 and all(n > 0 for n in dpi)):
        return None
    return _resolution(25400 / dpi[0], 25400 / dpi[1], "pixels per inch")


def slide_resolution(properties: Mapping[str, str]) -> Resolution | None:
    """Return the resolution in OpenSlide's properties, None if it is missing or implausible."""
    x, y, power = (
        _number(properties.get(f"openslide.{name}", ""), "")
        for name in ("mpp-x", "mpp-y", "objective-power")
    )
    return _resolution(x, y, "OpenSlide's mpp-x") or _of_magnification(power)


def imagescope_mpp(start: str) -> float | None:
    """Return the micrometres per pixel at the start of ImageScope's XML, None if it is missing
    or implausible.
    """
    mpp = _number(start, r"<Annotations\b[^>]*\bMicronsPerPixel\s*=\s*[\"']\s*")
    return mpp if is_plausible(mpp) else None


def _resolution(x: float, y: float, source: str) -> Resolution | None:
    return Resolution(x, y, source) if is_plausible(x) and is_plausible(y) else None


def _of_magnification(power: float) -> Resolution | None:
    """Return what scanners with this objective usually have: 0.25 µm at 40, 0.5 µm at 20."""
    return _resolution(10 / power, 10 / power, f"magnification {power:g}") if power else None


def _imagej_unit(metadata: Mapping[str, Any]) -> str:
    name = str(metadata.get("unit", "")).strip().lower()
    return name.replace("\\u00b5", "µ")  # escaped as in Java


def _ome_resolution(xml: str, size: tuple[int, int]) -> Resolution | None:
    """Return the resolution of the image of that size in OME-XML, or of the first one."""
    images = ome_images(xml)
    tag = next((each.pixels for each in images if each.size == size), "")
    tag = tag or (images[0].pixels if images else "")
    sides = []
    for side in "XY":
        unit = attribute(tag, f"PhysicalSize{side}Unit").strip() or "µm"
        factor = _MICROMETRES.get(unit, 0.0)
        sides.append(factor * _number(tag, rf"\bPhysicalSize{side}\s*=\s*[\"']\s*"))
    x, y = sides
    return _resolution(x, y or x, "OME's PhysicalSizeX")


def _number(text: str, before: str) -> float:
    """Return the positive number after a pattern, 0 if there is none."""
    found = re.search(before + r"(\d*[.,]?\d+(?:[eE][+-]?\d+)?)", text)
    number = float(found[1].replace(",", ".")) if found else 0.0
    return number if math.isfinite(number) else 0.0


def _rational(page: tifffile.TiffPage, code: int) -> float:
    """Return 1 / the value of a tag, units per pixel; 0 if it is missing or not positive."""
    tag = page.tags.get(code)
    value = tag.value if tag else None
    if isinstance(value, tuple) and len(value) == 2 and all(n > 0 for n in value):
        return float(value[1] / value[0])
    return 0.0


def resolution_text(sizes: Sequence[float], total: int) -> str:
    """Return the micrometres per pixel of images in a few words; `total` counts unknown ones."""
    low, high = min(sizes), max(sizes)
    text = f"{low:.4g}" if is_about(low, high) else f"{low:.4g} to {high:.4g}"
    return text if len(sizes) == total else f"{text}, unknown for {total - len(sizes)} of {total}"

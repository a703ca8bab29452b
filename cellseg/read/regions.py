"""Regions of an image to predict: outlines that were drawn in QuPath, as GeoJSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.coarse import CoarseMask
from cellseg.errors import InputError
from cellseg.messages import plural, warn
from cellseg.read.fill import check_lengths, fill_polygons, outline_box
from cellseg.read.geojson import read_geojson
from cellseg.rle import MaskRuns, areas, cut_at_columns

_REMEDY = (
    "draw annotations around the regions in QuPath, and export these as GeoJSON for --regions, or "
    "for the column regions of a table of slides"
)
_OTHERS = "detection, point or line", "detections, points and lines"


@dataclass(frozen=True)
class Regions:
    """The outlines of a region file, together.

    Attributes
    ----------
    path
        The file.
    count
        Number of outlines.
    mask
        One mask: the pixels in any of them, of the size of the image's level.
    """

    path: Path
    count: int
    mask: MaskRuns

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(areas(self.mask).sum())

    def contain(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which points lie in the regions: `(N, 2)` x and y in pixels to `(N,)` bool.

        The point (0, 0) is the corner of the first pixel. Points outside the image are not, nor is
        NaN, the centroid of no pixels.
        """
        height, width = self.mask.size
        x, y = np.floor(np.nan_to_num(points, nan=-1.0)).astype(np.int64).T
        position = x * height + y
        run = np.searchsorted(self.mask.starts, position, side="right") - 1
        ends = np.append(self.mask.ends, 0)  # for -1
        in_image = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        inside: NDArray[np.bool_] = in_image & (position < ends[run])
        return inside

    def area_in(self, part: CoarseMask) -> float:
        """Return the area of the regions in a part of the image, in pixels."""
        h, w = part.pixels.shape
        above = np.zeros((h + 1, w), np.int32)
        np.cumsum(part.pixels, axis=0, out=above[1:])
        _, column, top, bottom = cut_at_columns(self.mask)
        at = np.minimum(((column + 0.5) / part.step[1]).astype(np.int64), w - 1)

        def height_above(y: NDArray[np.int64]) -> NDArray[np.float64]:
            row = np.minimum((y / part.step[0]).astype(np.int64), h - 1)
            in_row = (y - part.step[0] * row) * part.pixels[row, at]
            return np.asarray(part.step[0] * above[row, at] + in_row)

        return float((height_above(bottom) - height_above(top)).sum())

    def coarse(self, step: tuple[float, float], shape: tuple[int, ...] | None = None) -> CoarseMask:
        """Return a mask of pixels of that height and width, set where any region reaches.

        It has `shape`, or as many rows and columns as cover the image.
        """
        height, width = self.mask.size
        h, w = shape or (math.ceil(height / step[0]), math.ceil(width / step[1]))
        _, column, top, bottom = cut_at_columns(self.mask)
        # The last row and column of a shape may be a little longer.
        first, last = (
            np.minimum((edge / step[0]).astype(np.int64), h - 1) for edge in (top, bottom - 1)
        )
        at = np.minimum((column / step[1]).astype(np.int64), w - 1)
        change = np.zeros((h + 1, w), np.int32)
        np.add.at(change, (first, at), 1)
        np.add.at(change, (last + 1, at), -1)
        return CoarseMask(self.mask.size, step, np.cumsum(change, axis=0)[:-1] > 0)


def read_regions(
    path: Path, size: tuple[int, int], full_size: tuple[int, int] | None = None
) -> Regions:
    """Read the regions of an image from GeoJSON, as `cellseg.read.geojson.read_geojson` does.

    Outlines are polygons in pixels of full resolution, of any class; their holes are left out.
    Detections, points and lines are ignored, with a warning. Parts outside the image are cut off.

    Parameters
    ----------
    path
        A `.geojson`, `.json` or `.geojson.gz` file.
    size
        Height and width in pixels of the image's level that is predicted.
    full_size
        Those of its full resolution, if that is another level.

    Raises
    ------
    InputError
        If the file can't be read, has no outlines, one of them is outside the image, or they
        contain no pixel.
    """
    outlines = read_geojson(path, "regions to predict", _REMEDY)
    for outline in outlines:
        if outline.error:
            raise InputError(outline.error)
    regions = [outline for outline in outlines if outline.polygons and outline.kind != "detection"]
    if not regions:
        found = f"only {plural(len(outlines), *_OTHERS)}"
        raise InputError(
            f"{path}: {found if outlines else 'no outlines'}, expected regions to predict; "
            f"{_REMEDY}"
        )
    if len(regions) < len(outlines):
        ignored = plural(len(outlines) - len(regions), *_OTHERS)
        warn(f"{path}: {ignored} ignored besides {plural(len(regions), 'region')}")
    height, width = full_size or size
    boxes = np.array([outline_box(outline.polygons) for outline in regions]) + 0.5
    outside = (boxes[:, :2] >= (width, height)).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        left, top, right, bottom = boxes[first].round().astype(int)
        raise InputError(
            f"{path}: {int(outside.sum())} of {plural(len(regions), 'region')} outside the image "
            f"of {height} x {width} pixels (height x width): {regions[first].where} is at "
            f"x {left} to {right}, y {top} to {bottom}; use the regions of this image, in pixels "
            "of its full resolution, or remove those outside"
        )
    if n_beyond := int(
        ((boxes[:, :2] < -1) | (boxes[:, 2:] > (width + 1, height + 1))).any(1).sum()
    ):
        warn(f"{path}: {plural(n_beyond, 'region')} cut off at the image's edge")
    scale = np.array([size[1] / width, size[0] / height])
    polygons = [[(ring + 0.5) * scale - 0.5 for ring in p] for r in regions for p in r.polygons]
    check_lengths(path, [polygons], size)
    read = Regions(path, len(regions), fill_polygons([polygons], size))
    if not read.area:
        raise InputError(
            f"{path}: its {plural(len(regions), 'region')} contain no pixel; {_REMEDY}"
        )
    return read

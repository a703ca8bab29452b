"""Measures of single cells: shape, stain and neighbours. docs/cells.md defines each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import skimage.measure
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from cellseg.rle import MaskRuns, areas, boxes_xyxy, centroids, cut_at_columns, ranges, select_masks

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CANVAS = 1 << 22  # pixels of a canvas on which many cells are measured at once
_LARGEST = 1 << 26  # pixels of a cell's box, above which only area and centroid are measured

_PROPERTIES = {
    "perimeter": "perimeter",
    "major_axis": "axis_major_length",
    "minor_axis": "axis_minor_length",
    "eccentricity": "eccentricity",
}


def shape_measures(
    mask_runs: MaskRuns, progress: Callable[[int], object] = lambda _: None
) -> dict[str, Floats]:
    """Measure the shape of each mask; masks may overlap.

    Parameters
    ----------
    mask_runs
        N masks.
    progress
        Called with the number of cells that were measured since the last call.

    Returns
    -------
    `(N,)` float64 each, lengths in pixels: "x" and "y" of the centroid, where the first pixel's
    centre is at 0.5, "area", "perimeter", "major_axis", "minor_axis", "eccentricity",
    "solidity", "circularity". NaN for a mask without pixels, and all but the first three for a box
    of more than 2^26 pixels.
    """
    n_cells = len(mask_runs)
    names = [*_PROPERTIES, "solidity"]
    measures: dict[str, Floats] = {name: np.full(n_cells, np.nan) for name in names}
    measures["area"] = areas(mask_runs).astype(float)
    measures["x"], measures["y"] = centroids(mask_runs).T
    boxes = boxes_xyxy(mask_runs)
    for cells in _blocks(boxes):
        part = select_masks(mask_runs, cells)
        labels, hull_areas = _draw(part, boxes[cells])
        found = skimage.measure.regionprops_table(labels, properties=list(_PROPERTIES.values()))
        for name, of_skimage in _PROPERTIES.items():
            measures[name][cells] = found[of_skimage]
        measures["solidity"][cells] = measures["area"][cells] / hull_areas
        progress(len(cells))
    circle = 4 * np.pi * measures["area"]
    squared = measures["perimeter"] ** 2
    measures["circularity"] = np.full(n_cells, np.nan)
    np.divide(circle, squared, out=measures["circularity"], where=squared > 0)
    np.minimum(measures["circularity"], 1, out=measures["circularity"])
    return measures


def _blocks(boxes: Ints) -> Iterator[Ints]:
    """Yield the indices of cells of similar height whose boxes fit side by side on a canvas."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    order = np.argsort(height, kind="stable")
    order = order[(width * height > 0)[order] & (width * height <= _LARGEST)[order]]
    height, right = height[order], np.cumsum(width[order])
    begin = 0
    while begin < len(order):
        left = right[begin - 1] if begin else 0
        # Both factors rise, so that the cells that fit come first.
        n_fitting = np.searchsorted((right[begin:] - left) * height[begin:], _CANVAS, side="right")
        end = begin + max(int(n_fitting), 1)
        yield order[begin:end]
        begin = end


def _draw(mask_runs: MaskRuns, boxes: Ints) -> tuple[NDArray[np.int32], Floats]:
    """Draw masks side by side; return their label map, and the area of each one's convex hull.

    The hull is that of the pixels as squares, so that a rectangle has a solidity of 1.
    """
    width, height = boxes[:, 2] - boxes[:, 0], int((boxes[:, 3] - boxes[:, 1]).max())
    left = np.cumsum(width) - width
    mask, column, top, bottom = cut_at_columns(mask_runs)
    column = column - boxes[mask, 0]
    top, bottom = top - boxes[mask, 1], bottom - boxes[mask, 1]
    labels = np.zeros(int(width.sum()) * height, np.int32)
    pixels = ranges((column + left[mask]) * height + top, bottom - top)
    labels[pixels] = np.repeat(mask + 1, bottom - top)
    corners = np.stack(
        [np.stack([x, y], axis=1) for x in (column, column + 1) for y in (top, bottom)], axis=1
    ).astype(np.int32)
    bounds = np.searchsorted(mask, np.arange(len(mask_runs) + 1)).tolist()
    hulls = [
        cv2.contourArea(cv2.convexHull(corners[begin:end].reshape(-1, 2)))
        for begin, end in itertools.pairwise(bounds)
    ]
    return labels.reshape(-1, height).T, np.array(hulls)


def sum_within(mask_runs: MaskRuns, values: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Return the sums of values and of their squares over the pixels of each mask.

    `values` is `(H, W, C)`, the result is `(N, C)` twice.
    """
    owner = np.repeat(np.arange(len(mask_runs)), np.diff(mask_runs.offsets))
    between = np.stack([mask_runs.starts, mask_runs.ends], axis=1).reshape(-1)
    sums = np.zeros((2, values.shape[2], len(mask_runs)))
    for channel in range(values.shape[2]) if len(owner) else ():
        # Column-major as the runs are; the zero allows a run to end with the image.
        column_major = np.append(values[..., channel].T.reshape(-1).astype(float), 0)
        for power, powers in enumerate((column_major, column_major**2)):
            of_run = np.add.reduceat(powers, between)[::2]
            sums[power, channel] = np.bincount(owner, of_run, len(mask_runs))
    return sums[0].T, sums[1].T


def neighbour_measures(
    points: Floats, classes: Ints, n_classes: int, radii: Sequence[float]
) -> tuple[Floats, Ints]:
    """Find the neighbours of each cell by their centroids.

    Parameters
    ----------
    points
        `(N, 2)` centroids; cells with NaN are nobody's neighbours.
    classes
        `(N,)` 0…K−1.
    n_classes
        K.
    radii
        R distances in the unit of `points`.

    Returns
    -------
    nearest
        `(N,)` float64: distance to the nearest other centroid, NaN if there is none.
    counts
        `(R, N, K)` int64: number of other cells of each class at most so far away.
    """
    known = np.flatnonzero(~np.isnan(points).any(axis=1))
    nearest = np.full(len(points), np.nan)
    counts = np.zeros((len(radii), len(points), n_classes), np.int64)
    if len(known) > 1:
        # The nearest one is the cell itself, or another at the same place.
        nearest[known] = cKDTree(points[known]).query(points[known], k=2)[0][:, 1]
    for class_ in range(n_classes):
        members = known[classes[known] == class_]
        if not len(members):
            continue
        tree = cKDTree(points[members])
        for n, radius in enumerate(radii):
            counts[n, known, class_] = tree.query_ball_point(
                points[known], radius, return_length=True
            )
            counts[n, members, class_] -= 1  # itself
    return nearest, counts

"""What the table of cells says of each cell of an image. docs/cells.md defines the columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.images import ImageCells
from cellseg.messages import plural, warn
from cellseg.overlap import reach_into
from cellseg.read.window import open_image_of_size
from cellseg.rle import MaskRuns, areas, boxes_xyxy, crop_runs, decode, select_masks
from cellseg.score.measures import neighbour_measures, shape_measures, sum_within
from cellseg.stains import stain_densities
from cellseg.write.ids import cell_ids

Columns = dict[str, Any]  # name to the N texts, integers or floats of an image's cells
Measure = Callable[..., Columns]  # as `measure_cells`

RADII = (25, 50)  # µm, or pixels where the resolution is unknown
STAINS = ("haematoxylin", "eosin")

_WINDOW = 2048  # pixels a side that are read at once
_KEPT = 1_000_000  # cells, of half a kilobyte each


def column_types(images: Sequence[ImageCells], names: Sequence[str]) -> dict[str, type]:
    """Return the columns of the table of these images: name to str, int or float.

    `names` are the K class names. Neighbours are counted within micrometres, pixels, or both if
    the resolution of some images is unknown.
    """
    types: dict[str, type] = {"image": str, "id": str, "class": str, "score": float}
    types |= dict.fromkeys(("centroid_x_px", "centroid_y_px"), float)
    types |= dict.fromkeys(("centroid_x_um", "centroid_y_um"), float)
    types |= dict.fromkeys((f"box_{side}_px" for side in ("left", "top", "right", "bottom")), int)
    types |= {"area_px": int, "area_um2": float}
    for length in ("perimeter", "major_axis", "minor_axis"):
        types |= {f"{length}_px": float, f"{length}_um": float}
    types |= dict.fromkeys(("eccentricity", "solidity", "circularity"), float)
    types |= {f"{stain}_od_{what}": float for stain in STAINS for what in ("mean", "std")}
    types |= {"nearest_cell_px": float, "nearest_cell_um": float}
    known = {image.mpp is not None for image in images} or {False}
    units = [unit for unit, is_known in (("um", True), ("px", False)) if is_known in known]
    for unit, radius, name in itertools.product(units, RADII, names):
        types[f"neighbours_{radius}{unit}_{name}"] = int
    return types


def measure_cells(
    image: ImageCells,
    names: Sequence[str],
    progress: Callable[[int], object] = lambda _: None,
    unreadable: list[InputError] | None = None,
) -> Columns:
    """Measure each cell of an image.

    Parameters
    ----------
    image
        An image with N cells; without `mpp`, values in micrometres are NaN.
    names
        The K class names.
    progress
        Called with the number of cells that were measured since the last call.
    unreadable
        If the image can't be read, the values of its stains are NaN and the error is added here;
        None raises it.

    Returns
    -------
    The columns of `column_types` for this image, each `(N,)`: an array, or a list of texts.
    """
    mask_runs = decode(image.masks, image.size)
    um = image.mpp or np.nan
    boxes = boxes_xyxy(mask_runs)
    shape = shape_measures(mask_runs, progress)
    points = np.stack([shape["x"], shape["y"]], axis=1)
    radii = [radius / (image.mpp or 1) for radius in RADII]
    nearest, counts = neighbour_measures(points, image.classes, len(names), radii)
    unknown = np.full(len(image.masks), np.nan)
    columns: Columns = {
        "image": [image.name] * len(image.masks),
        "id": cell_ids(image.name, image.masks),
        "class": [names[k] for k in image.classes],
        "score": unknown if image.scores is None else _rounded(image.scores, 6),
        "area_px": shape["area"].astype(np.int64),
        "area_um2": (shape["area"] * um**2).round(3),
    }
    columns |= {
        f"box_{side}_px": boxes[:, n] for n, side in enumerate(("left", "top", "right", "bottom"))
    }
    lengths = {"centroid_x": shape["x"], "centroid_y": shape["y"], "nearest_cell": nearest}
    lengths |= {name: shape[name] for name in ("perimeter", "major_axis", "minor_axis")}
    for name, values in lengths.items():
        columns |= {f"{name}_px": values.round(3), f"{name}_um": (values * um).round(3)}
    for name in ("eccentricity", "solidity", "circularity"):
        columns[name] = shape[name].round(6)
    unit = "um" if image.mpp else "px"
    for (n, radius), (k, name) in itertools.product(enumerate(RADII), enumerate(names)):
        columns[f"neighbours_{radius}{unit}_{name}"] = counts[n, :, k]
    try:
        means, deviations = _measure_stains(image, mask_runs, boxes)
    except InputError as error:
        if unreadable is None:
            raise
        unreadable.append(error)
        means = deviations = np.stack([unknown] * len(STAINS), axis=1)
    for n, stain in enumerate(STAINS):
        columns[f"{stain}_od_mean"] = means[:, n].round(6)
        columns[f"{stain}_od_std"] = deviations[:, n].round(6)
    return {name: columns[name] for name in column_types([image], names)}


def measured_once() -> Measure:
    """Return a `measure_cells` for images that it is called with twice, and measured once.

    What it returned is kept for that; images beyond `_KEPT` cells are measured again.
    """
    kept: dict[str, Columns] = {}

    def measure(image: ImageCells, *args: Any, **keywords: Any) -> Columns:
        if image.name in kept:
            return kept.pop(image.name)
        columns = measure_cells(image, *args, **keywords)
        if sum(len(each["id"]) for each in (*kept.values(), columns)) <= _KEPT:
            kept[image.name] = columns
        return columns

    return measure


def _rounded(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """Round as Python does: numpy multiplies, which is too much for scores of up to 1e308."""
    return np.array([round(value, digits) for value in values.tolist()], np.float64)


def measurements(columns: Columns) -> list[dict[str, float | None]]:
    """Return the numbers of each cell by name, None where unknown, but its score."""
    names = [name for name, v in columns.items() if isinstance(v, np.ndarray) and name != "score"]
    values = [[None if v != v else v for v in columns[name].tolist()] for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def warn_of_unreadable(errors: Sequence[InputError]) -> None:
    """Warn of images without stains, if there are any."""
    if errors:
        warn(f"stain columns are empty for {plural(len(errors), 'image')}: {errors[0]}")


def _measure_stains(
    image: ImageCells, mask_runs: MaskRuns, boxes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of the stains in each cell, `(N, 2)`, window by window."""
    sums = np.zeros((2, len(mask_runs), len(STAINS)))  # of the values, and of their squares
    with open_image_of_size(image.path, image.size, image.level) as pixels:
        for window in pixels.windows(_WINDOW):
            here = np.flatnonzero(reach_into(boxes, window))
            if not len(here):
                continue
            inside = crop_runs(select_masks(mask_runs, here), window)
            values = stain_densities(pixels.read(window))
            sums[:, here] += sum_within(inside, values)
    n_pixels = areas(mask_runs)[:, None].astype(float)
    means, squares = sums / np.where(n_pixels > 0, n_pixels, np.nan)
    return means, np.sqrt(np.maximum(squares - means**2, 0))

"""What a set of images consists of: counts, densities and shares of the classes of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.score.bootstrap import draw_weights, interval
from cellseg.score.detection import ratio
from cellseg.text import name_of_total

ALL = "all"  # name of the row of all classes, and of that of all images (`name_of_total`)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Quantity:
    """One quantity of K classes, and of all cells in the last column. NaN where not defined.

    Attributes
    ----------
    by_image
        `(I, K + 1)` float64.
    total
        `(K + 1,)` float64: of all images together, not the mean of `by_image`.
    low, high
        `(K + 1,)` float64: bounds of the 95 % interval of `total` over images; NaN where fewer
        than two images determine it.
    """

    by_image: Floats
    total: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Composition:
    """Cells of I images by class; each `Quantity` has K + 1 columns, the last for all classes.

    Attributes
    ----------
    count
        Number of cells.
    share
        Part of the image's cells, 0 to 1; NaN without cells.
    density_per_mm2
        Cells per mm² of `area_mm2`; NaN where the resolution is unknown. The total is of the
        images where it is known.
    mean_area_px, mean_area_um2
        Mean area of a cell; NaN without cells or without their areas. In µm², of images of known
        resolution only.
    area_px, area_mm2
        `(I,)` float64: the area that was searched, of the image or its tissue; in mm² NaN where
        the resolution is unknown.
    """

    count: Quantity
    share: Quantity
    density_per_mm2: Quantity
    mean_area_px: Quantity
    mean_area_um2: Quantity
    area_px: Floats
    area_mm2: Floats


def composition(
    classes: Sequence[NDArray[Any]],
    n_classes: int,
    area_px: Sequence[float],
    mpp: Sequence[float | None],
    cell_areas: Sequence[NDArray[Any]] | None = None,
) -> Composition:
    """Count the cells of I images by class, with densities, shares and 95 % intervals.

    Intervals are those of `cellseg.score.bootstrap`: images are drawn with replacement.

    Parameters
    ----------
    classes
        For each image the classes of its cells, `(N,)` integers 0…K−1.
    n_classes
        K.
    area_px
        For each image the area that was searched, in pixels: of the image, or of its tissue.
    mpp
        For each image its micrometres per pixel, or None.
    cell_areas
        For each image the areas of its cells, `(N,)` in pixels; None leaves mean areas out.
    """
    n_images = len(classes)
    um = np.array([each or np.nan for each in mpp], float)
    area = np.asarray(area_px, float)
    mm2 = area * um**2 / 1e6
    counts = np.array([np.bincount(each, minlength=n_classes) for each in classes], float)
    counts = _with_all(counts.reshape(n_images, n_classes))
    sums = np.full_like(counts, np.nan)
    if cell_areas is not None:
        pairs = zip(classes, cell_areas, strict=True)
        by_class = [np.bincount(c, a, minlength=n_classes) for c, a in pairs]
        sums = _with_all(np.array(by_class, float).reshape(n_images, n_classes))
    weights = draw_weights(n_images) if n_images > 1 else np.zeros((0, n_images))
    known = ~np.isnan(um)

    def quotient(numerator: Floats, denominator: Floats) -> Quantity:
        """Return the ratio of `(I, K + 1)` arrays; images with NaN are left out of the total."""
        usable = np.isfinite(numerator) & np.isfinite(denominator)
        above = np.where(usable, numerator, 0)
        below = np.where(usable, denominator, 0)
        bounds = np.array(interval(ratio(weights @ above, weights @ below)))
        bounds[:, (below > 0).sum(axis=0) < 2] = np.nan  # of one image, each resample is the same
        return Quantity(
            ratio(numerator, denominator),
            ratio(above.sum(axis=0), below.sum(axis=0)),
            *bounds,
        )

    everything = np.broadcast_to(counts[:, -1:], counts.shape)
    known_area = np.broadcast_to(mm2[:, None], counts.shape)
    return Composition(
        count=Quantity(counts, counts.sum(axis=0), *interval(weights @ counts)),
        share=quotient(counts, everything),
        density_per_mm2=quotient(counts, known_area),
        mean_area_px=quotient(sums, counts),
        mean_area_um2=quotient(sums * um[:, None] ** 2, np.where(known[:, None], counts, np.nan)),
        area_px=area,
        area_mm2=mm2,
    )


def composition_rows(
    found: Composition, images: Sequence[str], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a composition as rows of a table, of each image and class and then of all images.

    Columns are `image`, `class` ("all" for all, or "all (total)" if one is called "all"), and the
    fields of `Composition`; totals also have `_low` and `_high`, None in other rows. None where a
    value is not defined.
    """
    fields = ("count", "share", "density_per_mm2", "mean_area_px", "mean_area_um2")
    areas = [("area_px", found.area_px), ("area_mm2", found.area_mm2)]
    rows = []
    for i, image in enumerate([*images, name_of_total(ALL, images)]):
        total = i == len(images)
        for k, class_ in enumerate([*classes, name_of_total(ALL, classes)]):
            row: dict[str, Any] = {"image": image, "class": class_}
            for name, values in areas:
                known = values[~np.isnan(values)]
                row[name] = known.sum() if total and len(known) else np.nan if total else values[i]
            for name in fields:
                quantity: Quantity = getattr(found, name)
                row[name] = quantity.total[k] if total else quantity.by_image[i, k]
                for bound in ("low", "high"):
                    row[f"{name}_{bound}"] = getattr(quantity, bound)[k] if total else np.nan
            row["count"] = int(row["count"])
            rows.append(
                {
                    key: None if isinstance(value, float) and np.isnan(value) else _plain(value)
                    for key, value in row.items()
                }
            )
    return rows


def _with_all(by_class: Floats) -> Floats:
    """Return a `(I, K)` array with a last column of its sums."""
    return np.concatenate([by_class, by_class.sum(axis=1, keepdims=True)], axis=1)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value

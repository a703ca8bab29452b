"""What was predicted on an image, in numbers: tissue, cells and their density, and the time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.messages import plural
from cellseg.predict.job import PredictionJob
from cellseg.predict.predictor import join_predictions
from cellseg.predictions import Predictions
from cellseg.rle import encode
from cellseg.score.composition import composition

MIN_SCORE = 0.5
"""Of the cells that are counted, as in `export.py`; results have more, of lower scores, for AP."""

_MOST = 200_000
"""Detections of an image that are counted together, which bounds the memory: of more, at most a few
cells at the edges of tiles are counted that `export.py` leaves out."""

MAX_LINES = 5
"""Images that have a line each; more have one together."""


class CellCounts:
    """Numbers of cells of each class by image, of a score of `MIN_SCORE` or more."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self._by_image: dict[int, NDArray[np.int64]] = {}
        self._image_id = 0
        self._waiting: list[Predictions] = []  # of this image

    def add(self, image_id: int, cells: Predictions) -> None:
        """Add a batch of an image's detections from `merge_tiles`, image by image."""
        if image_id != self._image_id or sum(map(len, self._waiting)) > _MOST:
            self._count()
        self._image_id = image_id
        self._waiting.append(cells)

    def of(self, image_id: int) -> NDArray[np.int64]:
        """Return the numbers of cells of an image, each once, `(K,)` int64."""
        self._count()
        return self._by_image.get(image_id, np.zeros(len(self.class_names), np.int64))

    def _count(self) -> None:
        """Count the cells that wait together, as cells of two batches may hide a third."""
        if self._waiting:
            cells = join_predictions(self._waiting[0].size, self._waiting).distinct(MIN_SCORE)
            counts = np.bincount(cells.classes, minlength=len(self.class_names))
            before = self._by_image.get(self._image_id, np.zeros(len(counts), np.int64))
            self._by_image[self._image_id] = before + counts
        self._waiting = []


def summarise(job: PredictionJob, counts: CellCounts) -> list[dict[str, Any]]:
    """Return the numbers of each usable image of a job, as they stand in the list of images.

    Returns
    -------
    Each has `tissue_px2`, `cells` by class, `seconds`, the `bytes` of its file, the mask of its
    `regions` if not all of it was predicted, and where the resolution is known `tissue_mm2`, and
    where there is some tissue, `cells_per_mm2` by class and `seconds_per_mm2`.
    """
    usable = [(n, image) for n, image in enumerate(job.images) if n not in job.unusable]
    names = counts.class_names
    by_class = [counts.of(image.id) for _, image in usable]
    classes = [np.repeat(np.arange(len(names)), count) for count in by_class]
    areas = [job.parts[n].tissue_area() for n, _ in usable]
    found = composition(classes, len(names), areas, [image.mpp for _, image in usable])
    images = []
    for i, (n, image) in enumerate(usable):
        mm2, took = found.area_mm2[i], job.seconds(n)
        numbers: dict[str, Any] = {
            "tissue_px2": round(areas[i]),
            "cells": dict(zip(names, by_class[i].tolist(), strict=True)),
        }
        with contextlib.suppress(OSError):
            numbers["bytes"] = image.path.stat().st_size
        if regions := job.parts[n].regions:
            numbers["regions"] = encode(regions.mask)[0]
        if took is not None:
            numbers["seconds"] = _rounded(took)
        if mm2 >= 0:  # not NaN
            numbers["tissue_mm2"] = _rounded(mm2)
        if mm2 > 0:
            densities = map(_rounded, found.density_per_mm2.by_image[i])
            numbers["cells_per_mm2"] = dict(zip(names, densities, strict=False))
            if took is not None:
                numbers["seconds_per_mm2"] = _rounded(took / mm2)
        images.append(numbers)
    return images


def summary_lines(images: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each of a few entries of the list of images, or one for all."""
    if len(images) <= MAX_LINES:
        paths = [image["file_name"] for image in images]
        names = [Path(path).name for path in paths]
        names = names if len(set(names)) == len(names) else paths
        return [_line(name, image) for name, image in zip(names, images, strict=True)]
    together: dict[str, Any] = {
        key: sum(numbers[key] for numbers in images)
        for key in ("tissue_px2", "tissue_mm2", "seconds")
        if all(key in numbers for numbers in images)
    }
    classes = images[0]["cells"]
    together["cells"] = {name: sum(image["cells"][name] for image in images) for name in classes}
    if mm2 := together.get("tissue_mm2"):
        together["cells_per_mm2"] = {name: n / mm2 for name, n in together["cells"].items()}
        if "seconds" in together:
            together["seconds_per_mm2"] = together["seconds"] / mm2
    return [_line(plural(len(images), "image"), together)]


def _line(name: str, numbers: dict[str, Any]) -> str:
    known = "tissue_mm2" in numbers
    area = f"{numbers['tissue_mm2']:.4g} mm²" if known else f"{numbers['tissue_px2']} px²"
    total = sum(numbers["cells"].values())
    line = f"{name}: {area} of tissue, {plural(total, 'cell')} of score {MIN_SCORE} or more"
    if densities := numbers.get("cells_per_mm2"):
        classes = ", ".join(f"{class_} {each:.0f}" for class_, each in densities.items())
        line += f"; per mm²: {classes}, in all {total / numbers['tissue_mm2']:.0f}"
    else:
        line += ": " + ", ".join(f"{class_} {n}" for class_, n in numbers["cells"].items())
    # In less tissue, most of the time is start-up.
    if "seconds_per_mm2" in numbers and numbers["tissue_mm2"] >= 1:
        seconds = numbers["seconds_per_mm2"]
        line += f"; {seconds:.{0 if seconds >= 100 else 2}f} s per mm²"
    return line


def _rounded(value: float) -> float:
    """Return a number with six digits."""
    return float(f"{value:.6g}")

"""From the label maps of one training image to its cells, in one pass over each map."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.read.layout import TRAIN, TrainImage
from cellseg.read.tiff import read_image, read_labels
from cellseg.rle import Runs, areas, runs_of_labels

SMALL = 10
"""Pixels: a cell of so few is probably a slip of the pen. The homework's smallest has 11."""

DARK = 16
"""Of 255: what the 12 bits of a camera come to in a file of 16 bits that nobody scaled."""


@dataclass(frozen=True)
class AnnotatedImage:
    """The cells of one image.

    Attributes
    ----------
    file_name
        The image, relative to the data folder, with forward slashes.
    size
        Height and width in pixels.
    cells
        The masks of each class that has a file, by class, 1…K, rising; those of a class
        by label value. A class without a cell has none.
    odd
        What looks wrong but doesn't hinder, by kind, with how many.
    """

    file_name: str
    size: tuple[int, int]
    cells: dict[int, Runs]
    odd: Counter[str]


def annotate_image(image: TrainImage) -> AnnotatedImage:
    """Read one image of the training part and its label maps.

    Raises
    ------
    InputError
        If a file can't be read, a label map has another size than the image, or labels
        are not whole numbers from 0 on.
    """
    pixels = read_image(image.path)
    size = pixels.shape[0], pixels.shape[1]
    cells: dict[int, Runs] = {}
    odd: Counter[str] = Counter()
    odd[f"images with nothing brighter than {DARK} of 255"] += int(pixels.max()) <= DARK
    seen: set[int | float] = set()
    for number, path in image.class_files.items():
        labels = read_labels(path)
        if labels.shape != size:
            raise InputError(
                f"{path}: {_by(labels.shape)} (height x width), but {image.path.name} is "
                f"{_by(size)}; draw it on that image"
            )
        values, cells[number] = runs_of_labels(labels)
        _check_labels(path, values, cells[number])
        ids = set(values.tolist())
        odd["labels that stand in two class files of an image"] += len(ids & seen)
        odd["class files without a cell"] += not ids
        odd[f"cells of at most {SMALL} pixels"] += int((areas(cells[number]) <= SMALL).sum())
        seen |= ids
    odd["pixels that two classes claim"] += claimed_twice(list(cells.values()))
    odd["images without a cell"] += not seen
    odd["files that are not of the layout, left out"] += len(image.ignored)
    file_name = f"{TRAIN}/{image.name}/{image.path.name}"
    return AnnotatedImage(file_name, size, cells, +odd)


def _check_labels(path: Path, values: NDArray[Any], runs: Runs) -> None:
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values) | (values < 0) | (values != np.floor(values))
    else:
        bad = values < 0
    if bad.any():
        at = np.flatnonzero(bad)[0]
        column, row = np.divmod(runs.starts[runs.offsets[at]], runs.size[0])
        raise InputError(
            f"{path}: the label {values[at]} in row {row}, column {column} (from 0), but labels "
            "are whole numbers: 0 for background, 1 and up for cells; mend the label map"
        )


def claimed_twice(masks: list[Runs]) -> int:
    """Count the pixels that lie in two or more of the given masks of one image."""
    starts = np.concatenate([runs.starts for runs in masks] or [np.zeros(0, np.int64)])
    ends = np.concatenate([runs.ends for runs in masks] or [np.zeros(0, np.int64)])
    at = np.concatenate([starts, ends])
    step = np.repeat([1, -1], [len(starts), len(ends)])
    order = np.argsort(at, kind="stable")
    cover = np.cumsum(step[order])
    return int(np.diff(at[order])[cover[:-1] >= 2].sum())


def _by(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"

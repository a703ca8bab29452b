"""Load the images of an annotation file, and split them into training and validation set."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.errors import InputError
from cellseg.images import ImageCells
from cellseg.learn.split import choose_validation, read_groups, split_folds
from cellseg.messages import listed, warn
from cellseg.read.coco import annotated_cells, class_names, contiguous_classes
from cellseg.read.corrected_store import STORE, STORED, is_corrected
from cellseg.read.foreign_coco import load_coco_as_written
from cellseg.read.names import check_distinct, is_outside, name_images, relative_name
from cellseg.read.orientation import turn_note
from cellseg.read.train_files import list_cell_files
from cellseg.read.window import image_size, wrong_size

_AHEAD = 60  # seconds that the clock of another computer may be ahead


@dataclass(frozen=True)
class TrainingData:
    """The images of an annotation file.

    Attributes
    ----------
    coco
        The annotation file, a COCO dict with compressed RLE.
    categories
        Its K categories, `{"id", "name"}`, in the order of the classes 0…K−1.
    train, validation
        The images with their cells.
    """

    coco: dict[str, Any]
    categories: list[dict[str, Any]]
    train: list[ImageCells]
    validation: list[ImageCells]


def load_training_data(root: str, annotations: str) -> TrainingData:
    """Load an annotation file, with all images in the training set.

    Parameters
    ----------
    root
        The data folder, which the file names are relative to.
    annotations
        The annotation file.

    Raises
    ------
    InputError
        If the file is missing, not COCO, without cells or older than the masks that it was made
        from, or if an image is listed twice, is missing or has another size.
    """
    path = Path(annotations)
    coco = load_coco_as_written(path)
    check_up_to_date(Path(root), path)
    categories = [
        {"id": id_, "name": name}
        for id_, name in zip(contiguous_classes(coco), class_names(coco), strict=True)
    ]
    file_names = [image["file_name"] for image in coco["images"]]
    check_distinct(path, file_names, Path(root))
    if outside := [n for n in file_names if is_outside(relative_name(n, Path(root)))]:
        where = f"{len(outside)}: {listed(outside)}"
        warn(f"{path}: images outside {root}, of which export.py writes no cells: {where}")
    samples = annotated_cells(coco, Path(root), name_images(file_names))
    if not any(sample.masks for sample in samples):
        raise InputError(f"{path}: no cells, nothing to train on; check the masks")
    for sample in samples:
        _check_image(sample, path)
    return TrainingData(coco, categories, samples, [])


def split_data(
    data: TrainingData,
    val_fraction: float = 0.0,
    n_folds: int = 0,
    fold: int = 0,
    groups: str = "",
    seed: int = 0,
    val_images: Sequence[str] = (),
) -> TrainingData:
    """Move a part of `data.train` to the validation set.

    The part is a fraction, or with `n_folds` the fold `fold`, counted from 1; 0 moves none; or the
    images named `val_images`. Corrected windows always stay in the training set, and do not change
    which other images are moved; those of a group in the validation set are in neither.
    `groups` is a file with the group of each image, or empty. The seed -1 splits as 0 does.
    Raises InputError if the split is not possible.
    """
    corrected = [sample.name for sample in data.train if is_corrected(sample.file_name)]
    names = [sample.name for sample in data.train if sample.name not in {*corrected}]
    group_of = read_groups(Path(groups), names + corrected) if groups else None
    if missing := sorted({*val_images} - {*names}):
        raise InputError(
            f"DATA.VAL_IMAGES: {listed(missing)}: not in the annotations; correct the names, or if "
            "a run goes on, restore the images or begin a new run with --model"
        )
    if val_images:
        validation = {*val_images}
    elif n_folds:
        validation = {*[[], *split_folds(names, n_folds, max(seed, 0), group_of)][fold]}
    else:
        validation = {*choose_validation(names, val_fraction, max(seed, 0), group_of)}
    excluded: set[str] = set()
    if group_of:
        groups_held_out = {group_of[name] for name in validation}
        excluded = {name for name in corrected if group_of[name] in groups_held_out}
    if excluded:
        warn(
            f"corrected windows of groups in the validation set, not used: {len(excluded)}: "
            f"{listed(sorted(excluded))}"
        )
    return dataclasses.replace(
        data,
        train=[sample for sample in data.train if sample.name not in validation | excluded],
        validation=[sample for sample in data.train if sample.name in validation],
    )


def check_up_to_date(root: Path, annotations: Path) -> None:
    """Raise InputError if the annotations are older than cells in `train/` or corrections.

    Files from the future, as of a computer whose clock is ahead, would always be newer: they give a
    warning.
    """
    modified = annotations.stat().st_mtime
    from_future = []
    for path in [*list_cell_files(root), root / STORE / STORED]:
        if not path.is_file() or (changed := path.stat().st_mtime) <= modified:
            continue
        if changed <= time.time() + _AHEAD:
            raise InputError(f"{annotations}: older than {path}; run python annotation.py again")
        from_future.append(path)
    if from_future:
        warn(
            f"files whose time of change is in the future, so that {annotations} may be older: "
            f"{len(from_future)}: {listed(from_future)}; check the clock, touch them, and run "
            "python annotation.py again"
        )


def _check_image(image: ImageCells, annotations: Path) -> None:
    """Raise InputError if an image is missing or has another size, by its header only."""
    path = image.path
    if not path.is_file():
        raise InputError(
            f"{path}: not found, but listed in {annotations}; set the folder of the images with "
            "--data, or run python annotation.py again"
        )
    if (size := image_size(path)) != image.size:
        turned = turn_note(path, size, image.size)
        rest = f" from {annotations}{turned}; run python annotation.py again"
        raise wrong_size(path, size, image.size, rest)

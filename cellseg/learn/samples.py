"""What the network learns from: the images of an annotation file, split."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.errors import InputError
from cellseg.images import ImageCells
from cellseg.read.coco import annotated_cells, class_names, contiguous_classes, load_coco
from cellseg.read.layout import OUTLINES, TRAIN
from cellseg.read.names import name_images
from cellseg.read.split import choose_validation, read_groups, split_folds
from cellseg.read.tiff import image_size


@dataclass(frozen=True)
class TrainingData:
    """The images of an annotation file.

    Attributes
    ----------
    coco
        The annotation file, a COCO dict with compressed RLE.
    categories
        Its K categories, `{"id", "name"}`; class c inside is `categories[c]`.
    train, validation
        The images and their cells.
    """

    coco: dict[str, Any]
    categories: list[dict[str, Any]]
    train: list[ImageCells]
    validation: list[ImageCells]


def load_training_data(root: str, annotations: str) -> TrainingData:
    """Load an annotation file; all of its images are to train on.

    Parameters
    ----------
    root
        The data folder, to which the file names are relative.
    annotations
        The annotation file.

    Raises
    ------
    InputError
        If the file is missing, not COCO or older than the masks it was made from; if it
        has no cell; if an image is missing or has another size.
    """
    path = Path(annotations)
    coco = load_coco(path)
    check_up_to_date(Path(root), path)
    categories = [
        {"id": id_, "name": name}
        for id_, name in zip(contiguous_classes(coco), class_names(coco), strict=True)
    ]
    names = name_images([image["file_name"] for image in coco["images"]])
    samples = annotated_cells(coco, Path(root), names)
    if not any(sample.masks for sample in samples):
        raise InputError(f"{path}: no cell in it, so there is nothing to learn; check the masks")
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
) -> TrainingData:
    """Hold out part of `data.train`: a fraction, or with folds one of them, from 1 on, or none (0).

    `groups` is a file that names each image's group, or empty. The seed -1 splits as 0 does.
    Raises InputError if the split can't be made.
    """
    names = [sample.name for sample in data.train]
    group_of = read_groups(Path(groups), names) if groups else None
    if n_folds:
        validation = {*[[], *split_folds(names, n_folds, max(seed, 0), group_of)][fold]}
    else:
        validation = {*choose_validation(names, val_fraction, max(seed, 0), group_of)}
    return dataclasses.replace(
        data,
        train=[sample for sample in data.train if sample.name not in validation],
        validation=[sample for sample in data.train if sample.name in validation],
    )


def check_up_to_date(root: Path, annotations: Path) -> None:
    """Raise InputError for annotations that are older than a label map or outlines in `train/`.

    Raises
    ------
    InputError
        If there is one, naming it.
    """
    modified = annotations.stat().st_mtime
    for mask in sorted((root / TRAIN).glob("*/*")):
        is_annotation = mask.suffix.lower() in OUTLINES or mask.name.lower().startswith("class")
        if is_annotation and mask.is_file() and mask.stat().st_mtime > modified:
            raise InputError(
                f"{annotations}: older than {mask}, so it may not say what the masks say; run "
                "python annotation.py again"
            )


def _check_image(image: ImageCells, annotations: Path) -> None:
    """Raise InputError for a missing image or one of another size, from its header alone."""
    path = image.path
    if not path.is_file():
        raise InputError(
            f"{path}: no such file, but {annotations} lists it; say with --data where the images "
            "are, or run python annotation.py again"
        )
    if (found := image_size(path)) != image.size:
        raise InputError(
            f"{path}: {found[0]} x {found[1]} pixels (height x width), but {annotations} says "
            f"{image.size[0]} x {image.size[1]}; run python annotation.py again"
        )

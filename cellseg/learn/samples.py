"""What the network learns from: the images of an annotation file, split."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cellseg.errors import InputError
from cellseg.read.coco import load_coco
from cellseg.read.layout import OUTLINES, TRAIN
from cellseg.read.split import hold_out, read_groups
from cellseg.read.tiff import image_size

Sample = dict[str, Any]


@dataclass(frozen=True)
class TrainingData:
    """The images of an annotation file.

    Attributes
    ----------
    coco
        The annotation file, a COCO dict with compressed RLE.
    categories
        Its K categories, `{"id", "name"}`; class c inside is `categories[c]`.
    train, held_out
        One dict an image: `name`, `file_name` (the path), `image_id`, `height`,
        `width`, and `annotations`: `bbox` XYWH in pixels, `segmentation` RLE, `class` 0…K−1.
    """

    coco: dict[str, Any]
    categories: list[dict[str, Any]]
    train: list[Sample]
    held_out: list[Sample]


def name_images(file_names: Sequence[str]) -> list[str]:
    """Name the images of an annotation file as their user does.

    By the folder in `train/`, else by the file's stem; where two would share a name, as
    may be in other people's files, all by their `file_name`.
    """
    paths = [PurePosixPath(file_name) for file_name in file_names]
    names = [
        path.parent.name if path.stem.lower() == "image" and path.parent.name else path.stem
        for path in paths
    ]
    return names if len(set(names)) == len(names) else list(file_names)


@functools.lru_cache(maxsize=1)
def load_training_data(
    root: str, annotations: str, val_fraction: float, groups: str, seed: int
) -> TrainingData:
    """Load an annotation file and split its images.

    Parameters
    ----------
    root
        The data folder, to which the file names are relative.
    annotations
        The annotation file.
    val_fraction, groups, seed
        As `hold_out` takes them; `groups` is a file's path, or empty.

    Raises
    ------
    InputError
        If the file is missing, not COCO or older than the masks it was made from; if it
        has no cell; if an image is missing or has another size; if the split can't be made.
    """
    path = Path(annotations)
    coco = load_coco(path)
    check_age(Path(root), path)
    categories = sorted(coco["categories"], key=lambda category: category["id"])
    class_of = {category["id"]: index for index, category in enumerate(categories)}
    samples: dict[int, Sample] = {}
    names = name_images([image["file_name"] for image in coco["images"]])
    for name, image in zip(names, coco["images"], strict=True):
        samples[image["id"]] = {
            "name": name,
            "file_name": str(Path(root) / image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": [],
        }
    for annotation in coco["annotations"]:
        if not annotation.get("iscrowd"):
            samples[annotation["image_id"]]["annotations"].append(
                {
                    "bbox": annotation["bbox"],
                    "segmentation": annotation["segmentation"],
                    "class": class_of[annotation["category_id"]],
                }
            )
    if not any(sample["annotations"] for sample in samples.values()):
        raise InputError(f"{path}: no cell in it, so there is nothing to learn; check the masks")
    for sample in samples.values():
        _check_image(sample, path)
    group_of = read_groups(Path(groups), names) if groups else None
    held = set(hold_out(names, val_fraction, max(seed, 0), group_of))
    return TrainingData(
        coco,
        [{"id": c["id"], "name": c["name"]} for c in categories],
        [sample for sample in samples.values() if sample["name"] not in held],
        [sample for sample in samples.values() if sample["name"] in held],
    )


def check_age(root: Path, annotations: Path) -> None:
    """Refuse annotations that are older than a label map or outlines in `train/`.

    Raises
    ------
    InputError
        If there is one, naming it.
    """
    made = annotations.stat().st_mtime
    for mask in sorted((root / TRAIN).glob("*/*")):
        of_cells = mask.suffix.lower() in OUTLINES or mask.name.lower().startswith("class")
        if of_cells and mask.is_file() and mask.stat().st_mtime > made:
            raise InputError(
                f"{annotations}: older than {mask}, so it may not say what the masks say; run "
                "python annotation.py again"
            )


def _check_image(sample: Sample, annotations: Path) -> None:
    """Refuse a missing image or one of another size, from its header alone."""
    path = Path(sample["file_name"])
    if not path.is_file():
        raise InputError(
            f"{path}: no such file, but {annotations} lists it; say with --data where the images "
            "are, or run python annotation.py again"
        )
    expected = (sample["height"], sample["width"])
    if (found := image_size(path)) != expected:
        raise InputError(
            f"{path}: {found[0]} x {found[1]} pixels (height x width), but {annotations} says "
            f"{expected[0]} x {expected[1]}; run python annotation.py again"
        )

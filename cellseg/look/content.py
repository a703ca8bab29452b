"""Content of a report page: results with or without scores, or annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.images import EvalImage, ImageCells
from cellseg.look.parts import ReportContent
from cellseg.read.cells import read_predicted_cells
from cellseg.read.coco import COCO, class_names
from cellseg.read.ground_truth import read_ground_truth
from cellseg.read.layout import TEST
from cellseg.read.names import short_name
from cellseg.read.pairs import pair_by_image
from cellseg.rle import decode
from cellseg.score.summary import Scores
from cellseg.text import printable


def annotations_content(path: Path, data: Path) -> ReportContent:
    """Return the content of a page of annotations.

    Raises InputError as `read_ground_truth` does, or if an image is missing.
    """
    ground_truth = read_ground_truth(path, data)
    return ReportContent(
        title=f"Annotated cells of {_short(path)}",
        sources=[("annotations", display_path(path))],
        classes=class_names(ground_truth),
        images=_with_paths(data, [pair_by_image(ground_truth, [])]),
        results=[],
        has_ground_truth=True,
    )


def scores_content(
    paths: Sequence[Path],
    ground_truth_path: Path,
    data: Path,
    threshold: float,
    ground_truth: COCO,
    scores: list[Scores],
) -> ReportContent:
    """Return the content of a page of one or two results with ground truth.

    Raises InputError if an image is not in the data folder.

    Parameters
    ----------
    paths, scores
        One or two results, and the scores of each.
    ground_truth_path, ground_truth
        The ground truth: its file or folder, and its content.
    data
        Data folder with the images.
    threshold
        Initial minimum score of the page, 0 to 1.
    """
    return ReportContent(
        **_heading(paths, ground_truth_path),
        threshold=threshold,
        classes=class_names(ground_truth),
        images=_with_paths(data, [one.eval_images for one in scores]),
        has_ground_truth=True,
        scores=scores,
    )


def results_content(paths: Sequence[Path], data: Path, threshold: float) -> ReportContent:
    """Return the content of a page of one or two results without ground truth.

    Raises InputError as `read_predicted_cells` does, or if two results are of different images
    or classes.
    """
    names, images = read_predicted_cells(paths[0], data)
    first = list(images)
    for image in first:
        if not image.path.is_file():
            raise InputError(
                f"{image.path}: image of {paths[0]} not found; put it there, or run this in the "
                "folder that inference.py was run in"
            )
    results = [first]
    for path in paths[1:]:
        other_names, images = read_predicted_cells(path, data)
        cells = list(images)
        keys = [[(image.name, image.size) for image in one] for one in (first, cells)]
        if other_names != names or keys[0] != keys[1]:
            raise InputError(
                f"{path}: its images or classes differ from those of {paths[0]}; compare results "
                "of the same images"
            )
        results.append(cells)
    return ReportContent(
        **_heading(paths, None),
        threshold=threshold,
        classes=names,
        images=[[_eval_image(one) for one in image] for image in zip(*results, strict=True)],
        has_ground_truth=False,
    )


def _heading(paths: Sequence[Path], ground_truth_path: Path | None) -> dict[str, Any]:
    """Return the title, files and training metrics of a page of results."""
    names = [display_path(path) for path in paths]
    sources = list(zip(["A", "B"] if len(names) > 1 else ["results"], names, strict=False))
    if ground_truth_path:
        sources.append(("ground truth", display_path(ground_truth_path)))
    folder = paths[-1] if paths[-1].is_dir() else paths[-1].parent
    shown = _short(paths[0])
    if len(paths) > 1:
        shown = f"{shown} (A) and {_short(paths[1])} (B)"
    return {
        "title": f"Detections of {shown}{' and their ground truth' if ground_truth_path else ''}",
        "sources": sources,
        "results": names,
        "metrics": folder / "metrics.json",
    }


def _short(path: Path) -> str:
    """Return a path's last two parts: of a run its model and its date."""
    return printable("/".join(path.resolve().parts[-2:]))


def _with_paths(data: Path, results: Sequence[Sequence[EvalImage]]) -> list[list[EvalImage]]:
    """Group the images of one or two results by image, with the path and a short name of each."""
    return [
        [replace(one, name=short_name(one.name), path=_find_image(data, one)) for one in image]
        for image in zip(*results, strict=True)
    ]


def _find_image(data: Path, image: EvalImage) -> Path:
    """Return the path of an annotated image: in the data folder, its test folder or as listed.

    The lists of `inference.py --images` have paths from the working folder.
    """
    name = image.file_name
    for path in (data / name, *(data / test / name for test in TEST), image.path):
        if path.is_file():
            return path
    raise InputError(
        f"{data / name}: image of the annotations not found; pass the folder that contains it "
        "with --data"
    )


def _eval_image(cells: ImageCells) -> EvalImage:
    assert cells.scores is not None
    none = np.zeros(0, np.int64)
    return EvalImage(
        id=cells.id,
        file_name=cells.file_name,
        path=cells.path,
        size=cells.size,
        level=cells.level,
        mpp=cells.mpp,
        tissue_px=cells.tissue_px,
        name=cells.name,
        gt_masks=[],
        gt_runs=decode([], cells.size),
        gt_classes=none,
        crowd=np.zeros(0, bool),
        masks=cells.masks,
        mask_runs=decode(cells.masks, cells.size),
        classes=cells.classes,
        scores=cells.scores,
        entries=np.arange(len(cells.masks)),
        hidden=cells.hidden,
    )

"""What a page shows: results with their scores, results alone, or annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.images import EvalImage, ImageCells
from cellseg.look.report import ReportContent
from cellseg.read.cells import read_predicted_cells
from cellseg.read.coco import COCO, class_names
from cellseg.read.ground_truth import read_ground_truth
from cellseg.read.layout import TEST
from cellseg.read.results import pair_by_image
from cellseg.rle import decode
from cellseg.score.summary import Scores


def annotations_content(path: Path, data: Path) -> ReportContent:
    """Collect what a page of annotations alone shows.

    Raises InputError as `cellseg.read.ground_truth.read_ground_truth` does, or if an image is
    missing.
    """
    ground_truth = read_ground_truth(path, data)
    return ReportContent(
        title=f"Annotations {path.name}",
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
    """Collect what a page of one or two results with their truth shows.

    Parameters
    ----------
    paths
        The results.
    ground_truth_path, data
        The ground truth and the data folder; raises InputError if an image is not in it.
    threshold
        The least score, 0…1, at which the page begins.
    ground_truth, scores
        The ground truth, read, and the scores of each of `paths`.
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
    """Collect what a page of one or two results without ground truth shows.

    The parameters are those of `scores_content`. Raises InputError as `read_predicted_cells` does,
    or if two results are of other images or classes.
    """
    names, first = read_predicted_cells(paths[0], data)
    of_results = [first]
    for path in paths[1:]:
        other_names, cells = read_predicted_cells(path, data)
        keys = [[(image.name, image.size) for image in one] for one in (first, cells)]
        if other_names != names or keys[0] != keys[1]:
            raise InputError(
                f"{path}: its images or classes are not those of {paths[0]}; compare results of "
                "the same images"
            )
        of_results.append(cells)
    images = [[_eval_image(one) for one in each] for each in zip(*of_results, strict=True)]
    return ReportContent(
        **_heading(paths, None),
        threshold=threshold,
        classes=names,
        images=images,
        has_ground_truth=False,
    )


def _heading(paths: Sequence[Path], ground_truth_path: Path | None) -> dict[str, Any]:
    """Return what a page of results says of its files."""
    names = [display_path(path) for path in paths]
    sources = list(zip(["A", "B"] if len(names) > 1 else ["results"], names, strict=False))
    if ground_truth_path:
        sources.append(("truth", display_path(ground_truth_path)))
    folder = paths[-1] if paths[-1].is_dir() else paths[-1].parent
    return {
        "title": "Cells found: " + " and ".join(path.resolve().name for path in paths),
        "sources": sources,
        "results": names,
        "metrics": folder / "metrics.json",
    }


def _with_paths(
    data: Path, all_eval_images: Sequence[Sequence[EvalImage]]
) -> list[list[EvalImage]]:
    """Find the images of one or two runs, and put those of one image together."""
    return [
        [
            replace(eval_image, path=_find_image(data, eval_image.file_name))
            for eval_image in eval_images
        ]
        for eval_images in zip(*all_eval_images, strict=True)
    ]


def _find_image(data: Path, name: str) -> Path:
    """Find an image that annotations name: in the data folder, or in its test folder."""
    for folder in (data, *(data / test for test in TEST)):
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{data / name}: no such image, but the annotations name it; give the folder that it is in "
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
    )

"""What a page shows: results with their scores, results alone, or annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.errors import InputError
from cellseg.files import shown
from cellseg.images import ImageCells, Scene
from cellseg.look.report import Content
from cellseg.read.cells import read_predicted_cells
from cellseg.read.coco import COCO, class_names
from cellseg.read.ground_truth import read_truth
from cellseg.read.layout import TEST
from cellseg.read.results import side_by_side
from cellseg.rle import decode
from cellseg.score.summary import Scores


def of_annotations(path: Path, data: Path) -> Content:
    """Collect what a page of annotations alone shows.

    Raises InputError as `cellseg.read.ground_truth.read_truth` does, or if an image is missing.
    """
    truth = read_truth(path, data)
    return Content(
        title=f"Annotations {path.name}",
        sources=[("annotations", shown(path))],
        classes=class_names(truth),
        images=_with_paths(data, [side_by_side(truth, [])]),
        runs=[],
        has_truth=True,
    )


def of_scores(
    paths: Sequence[Path],
    truth_path: Path,
    data: Path,
    threshold: float,
    truth: COCO,
    scores: list[Scores],
) -> Content:
    """Collect what a page of one or two results with their truth shows.

    Parameters
    ----------
    paths
        The results.
    truth_path, data
        The truth and the data folder; raises InputError if an image is not in it.
    threshold
        The least score, 0…1, at which the page begins.
    truth, scores
        The truth, read, and the scores of each of `paths`.
    """
    return Content(
        **_heading(paths, truth_path),
        threshold=threshold,
        classes=class_names(truth),
        images=_with_paths(data, [one.scenes for one in scores]),
        has_truth=True,
        scores=scores,
    )


def of_results(paths: Sequence[Path], data: Path, threshold: float) -> Content:
    """Collect what a page of one or two results without truth shows.

    The parameters are those of `of_scores`. Raises InputError as `read_predicted_cells` does,
    or if two results are of other images or classes.
    """
    names, first = read_predicted_cells(paths[0], data)
    of_runs = [first]
    for path in paths[1:]:
        other_names, cells = read_predicted_cells(path, data)
        keys = [[(image.name, image.size) for image in one] for one in (first, cells)]
        if other_names != names or keys[0] != keys[1]:
            raise InputError(
                f"{path}: its images or classes are not those of {paths[0]}; compare results of "
                "the same images"
            )
        of_runs.append(cells)
    images = [[_scene(one) for one in each] for each in zip(*of_runs, strict=True)]
    return Content(
        **_heading(paths, None), threshold=threshold, classes=names, images=images, has_truth=False
    )


def _heading(paths: Sequence[Path], truth_path: Path | None) -> dict[str, Any]:
    """Return what a page of results says of its files."""
    names = [shown(path) for path in paths]
    sources = list(zip(["A", "B"] if len(names) > 1 else ["results"], names, strict=False))
    if truth_path:
        sources.append(("truth", shown(truth_path)))
    folder = paths[-1] if paths[-1].is_dir() else paths[-1].parent
    return {
        "title": "Cells found: " + " and ".join(path.resolve().name for path in paths),
        "sources": sources,
        "runs": names,
        "metrics": folder / "metrics.json",
    }


def _with_paths(data: Path, runs: Sequence[Sequence[Scene]]) -> list[list[Scene]]:
    """Find the images of one or two runs, and put those of one image together."""
    return [
        [replace(scene, path=_find_image(data, scene.file_name)) for scene in scenes]
        for scenes in zip(*runs, strict=True)
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


def _scene(cells: ImageCells) -> Scene:
    assert cells.scores is not None
    none = np.zeros(0, np.int64)
    return Scene(
        id=cells.id,
        file_name=cells.file_name,
        path=cells.path,
        size=cells.size,
        level=cells.level,
        name=cells.name,
        truth_masks=[],
        truth_runs=decode([], cells.size),
        truth_classes=none,
        crowd=np.zeros(0, bool),
        masks=cells.masks,
        runs=decode(cells.masks, cells.size),
        classes=cells.classes,
        scores=cells.scores,
        entries=np.arange(len(cells.masks)),
    )

"""Write the results of a prediction: the results file and its sidecar files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellseg.predict.job import PredictionJob
from cellseg.predict.predictor import Predictor
from cellseg.read.images import list_entry
from cellseg.write.sidecars import write_sidecars
from cellseg.write.submission import write_submission
from cellseg.write.summary import CellCounts, summarise


def write_results(
    job: PredictionJob,
    predictor: Predictor,
    categories: Sequence[dict[str, Any]],
    own: bool,
    annotations: Path | None = None,
    data: Path | None = None,
) -> tuple[list[dict[str, Any]], Path | None]:
    """Merge the tiles of a job, and write its results and their sidecar files.

    Parameters
    ----------
    job, predictor
        The job, whose tiles are predicted, and what merges them.
    categories
        Id and name of each class.
    own
        Whether they are the user's own images, whose list gets their numbers.
    annotations, data
        As for `write_sidecars`.

    Returns
    -------
    The usable images, in the form of the test list, and the path of the annotations or None.
    """
    counts = CellCounts([category["name"] for category in categories])
    with write_submission(job.results, [category["id"] for category in categories]) as writer:
        for image, cells in job.merge(predictor):
            writer.add(image.id, cells)
            counts.add(image.id, cells)
    listed = [list_entry(image) for image in job.usable]
    if own:
        numbers = summarise(job, counts)
        listed = [entry | more for entry, more in zip(listed, numbers, strict=True)]
    return listed, write_sidecars(job.results, listed, categories, own, annotations, data)

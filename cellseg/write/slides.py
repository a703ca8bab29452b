"""Predict the slides of a table, and write the results of each into a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.predict.cohort import Cohort, Outcome
from cellseg.predict.job import PredictionJob
from cellseg.predict.networks import Networks
from cellseg.predict.part import warn_of_empty_parts
from cellseg.predict.resolution import set_resolution
from cellseg.predict.tile_store import results_fingerprint
from cellseg.predict.workers import connect
from cellseg.read.image_lists import ImageSet
from cellseg.read.results import OWN_RESULTS_FILE
from cellseg.read.slide_table import read_slide_table
from cellseg.write.results import check_results_output, write_results
from cellseg.write.submission import check_submission
from cellseg.write.summary import summary_lines


def predict_table(
    table: Path,
    output: Path,
    networks: Networks,
    *,
    mpp: float | None,
    level: int | None,
    all_tiles: bool,
    workers: int,
    scheduler: str | None,
) -> None:
    """Predict the slides of a table that are not done, each into a folder in `output`.

    Parameters
    ----------
    table
        As for `cellseg.read.slide_table.read_slide_table`.
    output
        Folder of the slides' folders and of the manifest: see `cellseg.predict.cohort`.
    networks
        The networks.
    mpp, level, all_tiles
        As for `set_resolution` and `PredictionJob.begin`; the `mpp` of a row counts more.
    workers, scheduler
        As for `cellseg.predict.workers.connect`.

    Raises
    ------
    InputError
        If the table, the folder or the workers can't be used; at the end, if slides failed.
    """
    if output.suffix.lower() == ".json" or (output.exists() and not output.is_dir()):
        raise InputError(f"--output {output}: a folder is expected for a table of slides")
    cfgs, categories = networks.cfgs, networks.categories
    printed: set[str] = set()

    def begin(image: ImageRecord, results: Path) -> PredictionJob:
        check_results_output(results, with_zip=False)
        images, resolution = set_resolution([image], cfgs, None if image.mpp else mpp, level)
        if resolution not in printed:
            printed.add(resolution)
            tqdm.write(resolution)
        job = PredictionJob.begin(predictor, networks.weights, images, results, all_tiles)
        warn_of_empty_parts(job.parts.values())
        return job

    def write(job: PredictionJob) -> Outcome:
        predicted = ImageSet(OWN_RESULTS_FILE, list(job.images))
        (listed,), _ = write_results(job, predictor, categories, predicted)
        check_submission(job.results, [listed], [category["id"] for category in categories])
        (line,) = summary_lines([listed])
        return Outcome(sum(listed["cells"].values()), listed.get("tissue_mm2"), line)

    def made_from(image: ImageRecord) -> list[Any]:
        return [fingerprint, categories, None if image.mpp else mpp, level, all_tiles]

    slides = read_slide_table(table)
    fingerprint = results_fingerprint(networks.weights, cfgs)
    with connect(networks, workers, scheduler) as (predictor, predict):
        cohort = Cohort(slides, output, made_from, begin, write)
        cohort.run(predict, in_background=workers > 1 or bool(scheduler))

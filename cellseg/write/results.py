"""Write the results of a prediction: the results file, its sidecar files and its zip."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellseg.errors import InputError
from cellseg.files import check_own, display_path, read_json, shell_path
from cellseg.images import ImageRecord
from cellseg.messages import listed, plural, warn
from cellseg.predict.job import PredictionJob
from cellseg.predict.predictor import Predictor
from cellseg.read.image_lists import ImageSet, list_entry
from cellseg.read.names import absolute_path, image_name
from cellseg.read.results import RESULTS_FILE, sidecar_path
from cellseg.runs import category_text
from cellseg.write.sidecars import check_sidecars, write_sidecars
from cellseg.write.submission import check_submission, write_submission, write_zip
from cellseg.write.summary import CellCounts, summarise, summary_lines


def choose_results(output: Path, name: str) -> Path:
    """Return the results file: `output` if it ends in .json, else `name` in that folder."""
    if output.suffix.lower() != ".json":
        if output.suffix[1:].isalpha() and not output.is_dir():
            raise InputError(
                f"--output {output}: ends like a file, expected a .json file or a folder; choose "
                "another name, or create the folder first"
            )
        return output / name
    if output.is_dir():  # checked before the prediction, not after it
        raise InputError(f"--output {output}: is a folder, expected a file; choose another name")
    return output


def check_results_output(results: Path, with_zip: bool) -> None:
    """Raise InputError if the user's own files have the names of files that will be written."""
    check_own(results, rb'\[\n(\{"image_id": |\]\n)', "results")
    if with_zip:
        name = re.escape(RESULTS_FILE.encode())
        check_own(results.with_suffix(".zip"), rb"PK\x03\x04.{26}" + name, "a submission")
    check_sidecars(results)


def warn_of_replaced(results: Path, images: Sequence[ImageRecord]) -> None:
    """Warn that results of a user's own images will be replaced by those of other `images`."""
    try:
        entries = read_json(sidecar_path(results, "list"), "list of images", "")
        former = [Path(entry["file_name"]) for entry in entries]
    except (InputError, LookupError, TypeError):  # there are none, or none that can be used
        return
    predicted = {absolute_path(Path(image.file_name)) for image in images}
    if lost := [path.name for path in former if absolute_path(path) not in predicted]:
        warn(
            f"{display_path(results)}: replaces the results of {plural(len(lost), 'other image')} "
            f"({listed(lost)}); to keep them, choose another --output"
        )


def write_results(
    job: PredictionJob,
    predictor: Predictor,
    categories: Sequence[dict[str, Any]],
    predicted: ImageSet,
) -> tuple[list[dict[str, Any]], Path | None]:
    """Merge the tiles of a job, and write its results and their sidecar files.

    Parameters
    ----------
    job, predictor
        The job, whose tiles are predicted, and what merges them.
    categories
        Id and name of each class.
    predicted
        What the images are; the list of a user's own gets their numbers.

    Returns
    -------
    The usable images, in the form of the test list, and the path of the annotations or None.
    """
    counts = CellCounts([category["name"] for category in categories])
    with write_submission(job.results, [category["id"] for category in categories]) as writer:
        for image, cells in job.merge(predictor):
            writer.add(image.id, cells)
            counts.add(image.id, cells)
    images = [list_entry(image) for image in job.usable]
    if predicted.is_own:
        numbers = summarise(job, counts)
        images = [entry | more for entry, more in zip(images, numbers, strict=True)]
    return images, write_sidecars(job.results, images, categories, predicted)


def write_checked_results(
    job: PredictionJob,
    predictor: Predictor,
    categories: Sequence[dict[str, Any]],
    predicted: ImageSet,
    with_zip: bool,
) -> None:
    """Write results as `write_results` does, zip and check them, and print what they are.

    Those of a test list whose classes are the run's are zipped to submit them, others `with_zip`.
    """
    results, own, expected = job.results, predicted.is_own, predicted.categories
    images, ground_truth = write_results(job, predictor, categories, predicted)
    fits = expected == list(categories)
    archive = write_zip(results) if fits or with_zip else None
    written = archive or results
    count, empty = check_submission(written, images, [category["id"] for category in categories])
    without_any = set(empty)
    names = [image_name(each["file_name"]) for each in images if each["id"] in without_any]
    without = f", {len(names)} of them without detections ({listed(names)})" if names else ""
    print(
        f"{plural(count, 'detection')} in {plural(len(images), 'image')}{without}: "
        f"{display_path(results)}"
    )
    for line in summary_lines(images) if own else ():
        print(line)
    if not count:
        warn(
            f"no cells found in any image{', so the zip is not valid' if archive else ''}; lower "
            "--score_threshold, or check that the images look like those of the training"
        )
    elif archive:
        missing = f", without the images that were skipped ({len(job.unusable)})"
        ready = ", ready to submit" if fits else ""
        print(f"valid{missing if job.unusable else ready}: {display_path(archive)}")
    if expected is not None and not fits:
        no_zip = "no zip is written without --zip"
        if results.with_suffix(".zip").exists():
            no_zip += f", and {display_path(results.with_suffix('.zip'))} has earlier results"
        warn(
            f"the run's classes ({category_text(categories)}) are not those of {predicted.data} "
            f"({category_text(expected)}), so "
            + ("the server may refuse the zip" if archive else no_zip)
        )
    if ground_truth:
        print(
            f"evaluate with: python evaluate.py {shell_path(written)} "
            f"--truth {shell_path(ground_truth)}"
        )

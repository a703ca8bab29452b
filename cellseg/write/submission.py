"""The file that the course's server takes: `test-results.json`, and a zip that holds it.

A list of `{"image_id", "category_id", "segmentation", "score", "bbox"}`, COCO's results
format: https://cocodataset.org/#format-results
"""

from __future__ import annotations

import contextlib
import itertools
import json
import reprlib
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from cellseg.errors import InputError
from cellseg.files import write_atomic
from cellseg.predictions import Predictions
from cellseg.read.results import RESULTS_FILE, iter_results, pair_by_image
from cellseg.rle import xyxy_to_xywh

_BLOCK = 1 << 14  # cells that are checked at a time


class SubmissionWriter:
    """Writes the predictions of one image after the other; memory holds one image's."""

    def __init__(self, file: IO[str], category_ids: Sequence[int]) -> None:
        """
        Parameters
        ----------
        file
            Where to write.
        category_ids
            The id in files of each class 0…K−1.
        """
        self._file = file
        self._category_ids = category_ids
        self.count = 0

    def add(self, image_id: int, predictions: Predictions) -> None:
        """Write the cells of one image."""
        boxes = xyxy_to_xywh(predictions.boxes.astype(float)).round(2).tolist()
        for box, score, class_, mask in zip(
            boxes,
            # The fewest digits that tell any two float32 scores apart.
            map(float, map(str, predictions.scores)),
            predictions.classes.tolist(),
            predictions.masks,
            strict=True,
        ):
            entry = {
                "image_id": image_id,
                "category_id": self._category_ids[class_],
                "segmentation": mask,
                "score": score,
                "bbox": box,
            }
            self._file.write(",\n" if self.count else "\n")
            # Not json.dump, which is ten times slower.
            self._file.write(json.dumps(entry, allow_nan=False))
            self.count += 1


@contextlib.contextmanager
def write_submission(path: Path, category_ids: Sequence[int]) -> Iterator[SubmissionWriter]:
    """Open a results file that is whole when the block ends, and else stays as it was."""
    with write_atomic(path) as file:
        file.write("[")
        yield SubmissionWriter(file, category_ids)
        file.write("\n]\n")


def write_zip(results: Path) -> Path:
    """Put a results file into a zip beside it, under the name that the server looks for."""
    path = results.with_suffix(".zip")
    with (
        write_atomic(path, "wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.write(results, RESULTS_FILE)
    return path


def check_submission(
    path: Path, images: Sequence[dict[str, Any]], category_ids: Sequence[int]
) -> tuple[int, list[int]]:
    """Check a submission as the server would: the zip, or the JSON alone.

    Some thousand cells are held at a time, however large the file is.

    Parameters
    ----------
    path
        A `.zip` or `.json` file, of this project or anybody's.
    images
        What may be predicted: `{"id", "file_name", "height", "width"}` each.
    category_ids
        The ids that a class may have.

    Returns
    -------
    count
        How many cells it has.
    empty
        The ids of the images that have none, rising.

    Raises
    ------
    InputError
        At the first thing that the server would refuse or misread.
    """
    expected = {
        "images": list(images),
        "annotations": [],
        "categories": [{"id": id_, "name": str(id_)} for id_ in category_ids],
    }
    entries, count = iter_results(path), 0
    empty = {image["id"] for image in images}
    while block := list(itertools.islice(entries, _BLOCK)):
        eval_images = pair_by_image(expected, block, path, count)
        empty -= {eval_image.id for eval_image in eval_images if eval_image.masks}
        for index, entry in enumerate(block, count):
            box = entry.get("bbox", [0, 0, 0, 0])
            if not _is_box(box):
                raise InputError(
                    f"{path}: entry {index}: bbox {reprlib.repr(box)}, but four finite numbers "
                    "x, y, width, height are expected; write it again with inference.py"
                )
        count += len(block)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # macOS adds what it knows of a file beside it.
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
        if RESULTS_FILE not in names:
            raise InputError(
                f"{path}: {RESULTS_FILE} is in a folder of the zip, but must stand at its root; "
                "zip the file itself"
            )
        if len(names) > 1:
            raise InputError(
                f"{path}: the zip holds {', '.join(names[:3])}{', …' * (len(names) > 3)}, but "
                f"{RESULTS_FILE} alone is expected; zip that file by itself"
            )
    return count, sorted(empty)


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        # JSON may hold a whole number that no float can.
        and all(type(side) in (int, float) and abs(side) <= sys.float_info.max for side in box)
        and min(box[2:]) >= 0
    )

"""The results file for the course server, `test-results.json`, and its zip.

A list of `{"image_id", "category_id", "segmentation", "score", "bbox"}` in COCO's results
format: https://cocodataset.org/#format-results
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from cellseg.errors import InputError
from cellseg.files import write_atomic
from cellseg.messages import listed
from cellseg.predictions import Predictions
from cellseg.read.copies import CopyCheck
from cellseg.read.pairs import pair_by_image
from cellseg.read.results import RESULTS_FILE, iter_results, results_file
from cellseg.rle import xyxy_to_xywh
from cellseg.text import show
from cellseg.write.box_check import BoxCheck

_BLOCK = 1 << 14  # detections checked at a time


class SubmissionWriter:
    """Writer of results, one image after the other; `category_ids` has the id of each class."""

    def __init__(self, file: IO[str], category_ids: Sequence[int]) -> None:
        self._file = file
        self._category_ids = category_ids
        self.count = 0

    def add(self, image_id: int, predictions: Predictions) -> None:
        """Write the detections of one image. Raises ValueError if a number is not finite."""
        boxes = xyxy_to_xywh(predictions.boxes.astype(float)).round(2)
        if not (np.isfinite(boxes).all() and np.isfinite(predictions.scores).all()):
            raise ValueError("boxes or scores that are not finite, which JSON can't hold")
        for box, score, class_, mask in zip(
            boxes.tolist(),
            # The shortest decimals that distinguish any two float32 scores.
            map(float, map(str, predictions.scores)),
            predictions.classes.tolist(),
            predictions.masks,
            strict=True,
        ):
            size = [*map(int, mask["size"])]
            # Numbers and lists of them are written as in Python; json.dumps takes twice as long.
            self._file.write(
                f"{',' if self.count else ''}\n"
                f'{{"image_id": {image_id}, "category_id": {self._category_ids[class_]}, '
                f'"segmentation": {{"size": {size}, "counts": {json.dumps(mask["counts"])}}}, '
                f'"score": {score}, "bbox": {box}}}'
            )
            self.count += 1


@contextlib.contextmanager
def write_submission(path: Path, category_ids: Sequence[int]) -> Iterator[SubmissionWriter]:
    """Open a results file for writing; it is replaced when the block ends without an error."""
    with write_atomic(path) as file:
        file.write("[")
        yield SubmissionWriter(file, category_ids)
        file.write("\n]\n")


def write_zip(results: Path) -> Path:
    """Write a results file into a zip next to it, under the name that the server expects.

    Without the file's time, so that equal results give equal zips.
    """
    path = results.with_suffix(".zip")
    member = zipfile.ZipInfo(RESULTS_FILE)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o644 << 16
    member.file_size = results.stat().st_size  # so that more than 4 GB fit
    with (
        write_atomic(path, "wb") as file,
        zipfile.ZipFile(file, "w") as archive,
        results.open("rb") as source,
        archive.open(member, "w") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    return path


def check_submission(
    path: Path, images: Sequence[dict[str, Any]], category_ids: Sequence[int]
) -> tuple[int, list[int]]:
    """Check a submission, a zip or a JSON file, by the rules of the server.

    The file is read block by block, so that memory hardly grows with its size. Warns of detections
    that occur twice, which the server counts as false positives.

    Parameters
    ----------
    path
        A `.zip` or `.json` file, or a folder with one.
    images
        The images to predict: `{"id", "file_name", "height", "width"}` each.
    category_ids
        The valid category ids.

    Returns
    -------
    count
        Number of detections.
    empty
        Ascending ids of the images without detections.

    Raises
    ------
    InputError
        If the server, or pycocotools' `COCO.loadRes`, would refuse or misread an entry.
    """
    expected = {
        "images": list(images),
        "annotations": [],
        "categories": [{"id": id_, "name": str(id_)} for id_ in category_ids],
    }
    path = results_file(path)
    entries, count = iter_results(path), 0
    empty = {image["id"] for image in images}
    check, copies, with_boxes = BoxCheck(), CopyCheck(), False  # as entry 0
    while block := list(itertools.islice(entries, _BLOCK)):
        eval_images = pair_by_image(expected, block, path, count)
        empty -= {eval_image.id for eval_image in eval_images if eval_image.masks}
        copies.add(eval_image for eval_image in eval_images if eval_image.masks)
        with_boxes = with_boxes if count else "bbox" in block[0]
        _check_boxes(path, block, count, with_boxes)
        boxes = [entry["bbox"] for entry in block] if with_boxes else []
        for eval_image in eval_images:
            if len(eval_image.entries):
                check.add(eval_image, boxes, count)
        count += len(block)
    if check.problem:
        raise InputError(f"{path}: {check.problem}")
    _check_file(path)
    copies.warn(path)
    return count, sorted(empty)


def _check_boxes(path: Path, block: Sequence[Any], first: int, with_boxes: bool) -> None:
    """Raise InputError if an entry has a bad box, or none, or one in a file without boxes.

    `first` is the index of the block's first entry in the file.
    """
    for index, entry in enumerate(block, first):
        if ("bbox" in entry) != with_boxes:
            has = ("has no", "has a")
            raise InputError(
                f"{path}: entry {index} {has['bbox' in entry]} bbox, but entry 0 "
                f"{has[with_boxes]} bbox; pycocotools' COCO.loadRes reads all entries as the "
                "first: write the bbox of every entry or of none"
            )
        if with_boxes and not _is_box(entry["bbox"]):
            raise InputError(
                f"{path}: entry {index}: bbox {show(entry['bbox'])}, expected four finite "
                "numbers x, y, width, height; write it again with inference.py"
            )


def _check_file(path: Path) -> None:
    """Raise InputError for a zip with other files, or a byte order mark, which Python refuses."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # macOS adds a file of metadata.
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
        if RESULTS_FILE not in names:
            raise InputError(
                f"{path}: {RESULTS_FILE} is in a folder of the zip, expected at its root; zip the "
                "file itself"
            )
        if len(names) > 1:
            raise InputError(
                f"{path}: the zip holds {listed(names)}, expected only {RESULTS_FILE}; zip that "
                "file by itself"
            )
    if _has_mark(path):
        raise InputError(
            f"{path}: begins with a byte order mark (UTF-8 BOM), which Python's json.load and "
            "so pycocotools' COCO.loadRes refuse; save it as UTF-8 without BOM"
        )


def _has_mark(path: Path) -> bool:
    """Return whether results begin with a byte order mark, in a zip or not."""
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(file))
            file = stack.enter_context(archive.open(RESULTS_FILE))
        return file.read(3) == codecs.BOM_UTF8


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    for side in box:
        # JSON integers can exceed the range of floats.
        if type(side) not in (int, float) or not abs(side) <= sys.float_info.max:
            return False
    return bool(min(box[2:]) >= 0)

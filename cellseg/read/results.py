"""Read results: what inference wrote, or what is about to be sent to the server."""

from __future__ import annotations

import contextlib
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cellseg.errors import InputError
from cellseg.files import open_json
from cellseg.read.coco import COCO
from cellseg.read.json_list import NotAListError, json_items

FILE_NAME = "test-results.json"
REMEDY = "run inference.py, or name another results file"


def read_results(path: Path) -> list[Any]:
    """Read a list of detections in COCO's result form, as `each_result` does, all at once."""
    return list(each_result(path))


def each_result(path: Path) -> Iterator[Any]:
    """Read detections in COCO's result form, one after the other.

    Parameters
    ----------
    path
        A JSON file, a zip that holds `test-results.json`, or a run folder that does.

    Yields
    ------
    Each item of the list; `cellseg.score.match.side_by_side` checks them against the truth.

    Raises
    ------
    InputError
        If there is no such file, or it is damaged or not a list. What is damaged further on
        is found out there.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    # By its first bytes: a zip is one under any name, and so is JSON.
    opened = _open_zip(path) if _is_zip(path) else open_json(path, "results", REMEDY)
    try:
        with opened as file:
            yield from json_items(file)
    except NotAListError as error:
        raise InputError(
            f"{path}: holds a {type(error.args[0]).__name__}, expected a list of detections"
            f" {{image_id, category_id, segmentation, score}}; {REMEDY}"
        ) from None


def _is_zip(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"PK" or path.suffix.lower() == ".zip"
    except OSError:
        return False  # read_json says why


@contextlib.contextmanager
def _open_zip(path: Path) -> Iterator[IO[str]]:
    """Open the results in a zip, and say what is wrong with it, also if found in the block."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if PurePosixPath(n).name == FILE_NAME]
            if not names:
                held = ", ".join(archive.namelist()[:3]) or "nothing"
                raise InputError(
                    f"{path}: the zip holds {held}, but no {FILE_NAME}; write it with inference.py"
                )
            with archive.open(min(names, key=len)) as member:
                yield io.TextIOWrapper(member, "utf-8")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {FILE_NAME} in it is not JSON ({error}); {REMEDY}") from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        OSError,
        EOFError,
        RuntimeError,
    ) as error:
        # RuntimeError: encrypted; NotImplementedError, one of its kind: odd compression.
        raise InputError(f"{path}: a zip that can't be read ({error}); {REMEDY}") from None


def beside(results: Path, what: str) -> Path:
    """Give the place of what inference.py leaves beside results.

    Parameters
    ----------
    results
        A results file, or a folder that has one.
    what
        "list" of the images, where they are the user's own; "truth", where they are annotated.
    """
    file = results / FILE_NAME if results.is_dir() else results
    return file.with_name(f"{file.stem}-{what}.json")


def own_truth(results: Path) -> Path | None:
    """Give the annotations that inference.py left beside results of such images, if it did."""
    path = beside(results, "truth")
    return path if path.is_file() else None


def only_annotated(results: list[Any], truth: COCO) -> list[Any]:
    """Leave out the detections in images that the truth doesn't have."""
    annotated = {image["id"] for image in truth["images"]}
    return [
        entry
        for entry in results
        if not isinstance(entry, dict)
        or not isinstance(entry.get("image_id"), int)
        or entry["image_id"] in annotated
    ]


def newest_results(runs: Path) -> Path:
    """The results of the run that wrote them last: `<runs>/<model>/<run>/test-results.json`.

    Raises
    ------
    InputError
        If no run has any.
    """
    found = list(runs.glob(f"*/*/{FILE_NAME}"))
    if not found:
        raise InputError(f"{runs}: no run has a {FILE_NAME} yet; {REMEDY}")
    return max(found, key=lambda path: path.stat().st_mtime)
